"""Refusal to compare captures that differ in something other than the weights."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refusaldir.directions.reader import CaptureReader
from refusaldir.errors import CaptureMismatchError
from refusaldir.records import Provenance

_NEXT = {
    "prompts": "Extract both models with the same prompt set",
    "tokenizer": "A different tokenizer gives other tokens: extract both models with one tokenizer",
    "chat template": "Extract the tuned model with the base model's chat template",
    "system prompt": "Extract both models with the same --system",
    "thinking": "Extract both models with the same thinking setting",
    "post-instruction tokens": "Extract the tuned model with the base model's chat template",
    "rendered prompts": "Extract both models again with the same prompts and template",
    "positions": "Extract both models with the same --positions",
    "layers": "Extract both models with the same --layers",
    "hook": "Extract both models with the same --hooks, this one among them",
    "dtype": "Extract both models in one dtype, or allow the mismatch explicitly",
    "quantization": "Extract both models with one quantization, or allow the mismatch explicitly",
    "number of layers": "Only models of one architecture and size can be compared",
    "d_model": "Only models of one architecture and size can be compared",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """How the tuned capture's prompts map onto the base capture's.

    Attributes:
        order: Row of the tuned capture for each row of the base capture.
        notes: What was tolerated, in words; empty when the captures match exactly.
    """

    order: NDArray[np.int64]
    notes: tuple[str, ...] = ()


def require_comparable(
    base: CaptureReader,
    tuned: CaptureReader,
    hook: str,
    *,
    allow_dtype_mismatch: bool = False,
) -> Alignment:
    """Check that two captures differ in nothing but the model's weights.

    Prompts must be the same; another order is put right by id. Tokenizer, template, system
    prompt, thinking switch, rendered token ids, hook, layers, positions and the size of the
    model must be equal.

    Args:
        base: Capture of the base model.
        tuned: Capture of the tuned model.
        hook: Hook point to compare.
        allow_dtype_mismatch: Accept another dtype or quantization, with a note.

    Raises:
        CaptureMismatchError: Naming everything that differs, with both values.
    """
    b, t = base.provenance, tuned.provenance
    differs: dict[str, tuple[object, object]] = {}
    notes: list[str] = []

    def equal(name: str, left: object, right: object) -> None:
        if left != right:
            differs[name] = (left, right)

    equal("number of layers", b.model.n_layers, t.model.n_layers)
    equal("d_model", b.model.d_model, t.model.d_model)
    equal("tokenizer", b.template.tokenizer_hash, t.template.tokenizer_hash)
    equal("chat template", b.template.template_hash, t.template.template_hash)
    equal("system prompt", b.template.system, t.template.system)
    equal("thinking", b.template.thinking, t.template.thinking)
    equal("post-instruction tokens", b.template.post_tokens, t.template.post_tokens)
    order = _align(base, tuned, differs)
    reordered = order is not None and bool(np.any(order != np.arange(len(order))))
    if order is not None:
        if not reordered:
            equal("rendered prompts", b.rendered_hash, t.rendered_hash)
        else:  # the hash covers the order too; token counts are what is left to compare
            _same_lengths(base, tuned, order, differs)
            notes.append("the tuned capture holds the prompts in another order; aligned by id")
    equal("positions", base.positions.offsets, tuned.positions.offsets)
    equal("layers", tuple(base.layers), tuple(tuned.layers))
    if hook not in base.hooks or hook not in tuned.hooks:
        differs["hook"] = (
            f"{hook} in {tuple(base.hooks)}",
            f"{tuple(tuned.hooks)}",
        )
    for name, left, right in (
        ("dtype", b.model.dtype, t.model.dtype),
        ("quantization", b.model.quantization, t.model.quantization),
    ):
        if left != right and allow_dtype_mismatch:
            notes.append(f"{name} differs: {left} in base, {right} in tuned; part of any drift")
        else:
            equal(name, left, right)
    if differs or order is None:
        raise _mismatch(b, t, differs)
    return Alignment(order=order, notes=tuple(notes))


def _mismatch(
    base: Provenance, tuned: Provenance, differs: dict[str, tuple[object, object]]
) -> CaptureMismatchError:
    names = list(differs)
    listed = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
    return CaptureMismatchError(
        f"the captures cannot be compared, because they differ in {listed}",
        expected="; ".join(f"{name} {left}" for name, (left, _) in differs.items()) + " as in base",
        got="; ".join(f"{name} {right}" for name, (_, right) in differs.items()) + " in tuned",
        where=f"{base.model.name} and {tuned.model.name}",
        next_step=_NEXT[names[0]],
    )


def _align(
    base: CaptureReader, tuned: CaptureReader, differs: dict[str, tuple[object, object]]
) -> NDArray[np.int64] | None:
    """Row of tuned for each row of base, or None with the difference noted."""
    left, right = list(base.prompts), list(tuned.prompts)
    where = {prompt.id: i for i, prompt in enumerate(right)}
    ids = {prompt.id for prompt in left}
    missing = [p.id for p in left if p.id not in where]
    extra = [p.id for p in right if p.id not in ids]
    if missing or extra or len(left) != len(right):
        differs["prompts"] = (
            f"{len(left)} ({len(missing)} of them only there{_example(missing)})",
            f"{len(right)} ({len(extra)} of them only there{_example(extra)})",
        )
        return None
    order = np.array([where[p.id] for p in left], dtype=np.int64)
    changed = [
        p.id
        for i, p in enumerate(left)
        if p.turns != right[order[i]].turns
        or p.intent_id != right[order[i]].intent_id
        or base.labels[i] != tuned.labels[order[i]]
    ]
    if changed:
        differs["prompts"] = (
            base.provenance.prompts_hash,
            f"{tuned.provenance.prompts_hash} ({len(changed)} with the same id and another text, "
            f"label or intent{_example(changed)})",
        )
        return None
    return order


def _example(ids: list[str]) -> str:
    return f", e.g. {ids[0]}" if ids else ""


def _same_lengths(
    base: CaptureReader,
    tuned: CaptureReader,
    order: NDArray[np.int64],
    differs: dict[str, tuple[object, object]],
) -> None:
    left, right = (getattr(c, "lengths", None) for c in (base, tuned))
    if left is not None and right is not None:
        a, b = np.asarray(left), np.asarray(right)[order]
        if not np.array_equal(a, b):
            n = int(np.sum(a != b))
            differs["rendered prompts"] = (f"{len(a)} token counts", f"{n} other token counts")
