"""Two captures side by side: the same prompts in the same order, and nothing else that differs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from refusaldir.directions.reader import CaptureReader, PromptLike
from refusaldir.errors import CaptureMismatchError, DirectionError
from refusaldir.records import HARMFUL, HARMLESS, Positions, Provenance

#: Fewest prompts of a class that both captures must hold; no interval is worth it below.
MIN_SHARED = 8

#: Smallest share of either capture's prompts that both must hold.
MIN_SHARE = 0.5

_NEXT = {
    "prompts": "Extract both models with the same prompt set (at least half of the prompts, and 8 "
    "of each class, must be in both captures)",
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


class Rows:
    """Some prompts of a capture, in an order of choice; reads like the capture itself.

    Args:
        capture: The capture.
        rows: Index of each prompt kept.
    """

    def __init__(self, capture: CaptureReader, rows: Int[np.ndarray, " kept"]) -> None:
        """Take the rows of prompts and labels; activations are read when asked for."""
        self._capture, self._rows = capture, rows
        prompts = list(capture.prompts)
        self.prompts: Sequence[PromptLike] = tuple(prompts[i] for i in rows)
        self.labels: Int[np.ndarray, " prompt"] = np.asarray(capture.labels)[rows]

    @property
    def provenance(self) -> Provenance:
        """Of the whole capture."""
        return self._capture.provenance

    @property
    def hooks(self) -> Sequence[str]:
        """Hook points captured."""
        return self._capture.hooks

    @property
    def layers(self) -> Sequence[int]:
        """Block indices captured, ascending."""
        return self._capture.layers

    @property
    def positions(self) -> Positions:
        """Token positions captured."""
        return self._capture.positions

    @property
    def lengths(self) -> Int[np.ndarray, " prompt"] | None:
        """Tokens of each rendered prompt; None where the capture does not say."""
        found = getattr(self._capture, "lengths", None)
        return None if found is None else np.asarray(found)[self._rows]

    def read(self, hook: str, *, layer: int) -> Float[np.ndarray, "prompt pos d_model"]:
        """Activations of one layer, float32."""
        x = self._capture.read(hook, layer=layer)
        return x if np.array_equal(self._rows, np.arange(len(x))) else x[self._rows]


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparable:
    """Two captures that differ in nothing but the weights, prompt by prompt.

    Attributes:
        base: The prompts of base that both captures hold.
        tuned: The same prompts of tuned, in the order of base.
        notes: What was tolerated, in words; empty when the captures match exactly.
    """

    base: Rows
    tuned: Rows
    notes: tuple[str, ...] = ()


def require_comparable(
    base: CaptureReader,
    tuned: CaptureReader,
    hook: str,
    *,
    allow_dtype_mismatch: bool = False,
) -> Comparable:
    """Check that two captures differ in nothing but the model's weights, and align them.

    Prompts are matched by id; those that only one capture holds are left out, with a note.
    Tokenizer, template, system prompt, thinking switch, token ids or counts, hook, layers,
    positions and the size of the model must be equal.

    Args:
        base: Capture of the base model.
        tuned: Capture of the tuned model.
        hook: Hook point to compare.
        allow_dtype_mismatch: Accept another dtype or quantization, with a note.

    Raises:
        CaptureMismatchError: Naming everything that differs, with both values; or too few
            prompts in common.
        DirectionError: A class has fewer than `MIN_SHARED` prompts.
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
    pair = _align(base, tuned, differs, notes)
    if pair is not None and b.rendered_hash != t.rendered_hash:
        if notes:  # the hash covers choice and order too; token counts are left to compare
            _same_lengths(*pair, differs)
        else:
            equal("rendered prompts", b.rendered_hash, t.rendered_hash)
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
            notes.append(
                f"{name} differs: {left} in base, {right} in tuned; that may be part of any drift"
            )
        else:
            equal(name, left, right)
    if differs or pair is None:
        raise _mismatch(b, t, differs)
    for label, name in ((HARMFUL, "harmful"), (HARMLESS, "harmless")):
        count = int(np.sum(pair[0].labels == label))
        if count < MIN_SHARED:
            raise DirectionError(
                f"too few {name} prompts to compare",
                expected=f"at least {MIN_SHARED}",
                got=count,
                where=f"{b.model.name} and {t.model.name}",
                next_step="Extract both models with more prompts; refusaldir plan says how many",
            )
    return Comparable(base=pair[0], tuned=pair[1], notes=tuple(notes))


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
    base: CaptureReader,
    tuned: CaptureReader,
    differs: dict[str, tuple[object, object]],
    notes: list[str],
) -> tuple[Rows, Rows] | None:
    """The prompts that both hold, in the order of base; or None with the difference noted."""
    left, right = list(base.prompts), list(tuned.prompts)
    where = {prompt.id: i for i, prompt in enumerate(right)}
    rows = np.array([i for i, prompt in enumerate(left) if prompt.id in where], dtype=np.int64)
    order = np.array([where[left[i].id] for i in rows], dtype=np.int64)
    changed = [
        left[i].id
        for i, j in zip(rows, order, strict=True)
        if left[i].turns != right[j].turns
        or left[i].intent_id != right[j].intent_id
        or base.labels[i] != tuned.labels[j]
    ]
    if changed:
        differs["prompts"] = (
            base.provenance.prompts_hash,
            f"{tuned.provenance.prompts_hash} ({len(changed)} with the same id and another text, "
            f"label or intent{_example(changed)})",
        )
        return None
    ids = {prompt.id for prompt in left}
    missing = [p.id for p in left if p.id not in where]
    extra = [p.id for p in right if p.id not in ids]
    if missing or extra:
        shared = np.asarray(base.labels)[rows]
        per_class = min(int(np.sum(shared == label)) for label in (HARMFUL, HARMLESS))
        if per_class < MIN_SHARED or len(rows) < MIN_SHARE * max(len(left), len(right)):
            differs["prompts"] = (
                f"{len(left)} ({len(missing)} of them only there{_example(missing)})",
                f"{len(right)} ({len(extra)} of them only there{_example(extra)})",
            )
            return None
        notes.append(
            f"{len(rows)} prompts are in both captures and were compared; {len(missing)} only in "
            f"base and {len(extra)} only in tuned were left out"
        )
    if np.any(np.diff(order) < 0):
        notes.append("the tuned capture holds the prompts in another order; aligned by id")
    return Rows(base, rows), Rows(tuned, order)


def _example(ids: list[str]) -> str:
    return f", e.g. {ids[0]}" if ids else ""


def _same_lengths(base: Rows, tuned: Rows, differs: dict[str, tuple[object, object]]) -> None:
    left, right = base.lengths, tuned.lengths
    if left is not None and right is not None and not np.array_equal(left, right):
        n = int(np.sum(left != right))
        differs["rendered prompts"] = (f"{len(left)} token counts", f"{n} other token counts")
