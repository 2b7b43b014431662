"""Base and tuned as one model in memory, in which every block can be either's.

Two ways, behind one interface:

- *Adapters*: both stand on the same weights and differ by plain LoRA adapters. There is one copy
  of the weights; adapters that both have are merged (or active, on a quantised base), the others
  stay beside the weights and are switched by their scaling. Tuned is then not rounded the way a
  merged checkpoint in a 16-bit dtype is.
- *Tensors*: anything else of one architecture. Both are loaded, what is equal is kept once, and
  the rest is switched by pointer: two copies of what differs.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from refusaldir.errors import ModelLoadError, ModelSpecError
from refusaldir.layers.switches import Change, Switch, adapter_switches, tensor_switches
from refusaldir.layers.weights.lora import read_adapter
from refusaldir.models.adapters import apply_adapters
from refusaldir.models.bridge import HookedModel, hook_model
from refusaldir.models.load import LoadedModel, identify, load_model, load_tokenizer
from refusaldir.models.options import LoadOptions
from refusaldir.models.quiet import quiet
from refusaldir.models.resolve import Resolved, resolve
from refusaldir.models.spec import AdapterRef, ModelSpec
from refusaldir.models.weights import adapter_digest, model_digest
from refusaldir.records import ModelIdentity

__all__ = ["Change", "WeightPair"]

#: Entries of a configuration that do not change what a model computes.
_INERT = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version",
          "use_cache", "tie_word_embeddings"}  # fmt: skip


class WeightPair:
    """Base and tuned as one model; made by `open`.

    Args:
        model: The model, switched to base.
        base: What base is.
        tuned: What tuned is.
        switches: Every difference between them.

    Attributes:
        model: The model; it runs what was set last.
        base: What base is.
        tuned: What tuned is.
        switches: Every difference and how to switch it, in the order of the model.
        changes: Every difference.
        layers: Blocks with a change, ascending.
        outside: Whether anything outside the blocks changed.
        tuned_layers: Blocks that are tuned's now.
        tuned_outside: Whether what lies outside the blocks is tuned's now.
    """

    def __init__(
        self,
        model: HookedModel,
        base: ModelIdentity,
        tuned: ModelIdentity,
        switches: Sequence[Switch],
    ) -> None:
        """Take the parts; see the class docstring."""
        self.model, self.base, self.tuned = model, base, tuned
        self.switches = tuple(switches)
        self.changes: tuple[Change, ...] = tuple(switch.change for switch in switches)
        self.layers: tuple[int, ...] = tuple(
            sorted({c.layer for c in self.changes if c.layer is not None})
        )
        self.outside = any(change.layer is None for change in self.changes)
        self.tuned_layers: frozenset[int] = frozenset()
        self.tuned_outside = False
        self.set_base()

    @classmethod
    def open(
        cls,
        base: ModelSpec | str,
        tuned: ModelSpec | str,
        options: LoadOptions | None = None,
        *,
        backend: str = "auto",
    ) -> "WeightPair":
        """Load a pair.

        Args:
            base: Base's spec.
            tuned: Tuned's spec.
            options: How to load both.
            backend: Of the hooks, see `refusaldir.models.bridge.open_model`.

        Raises:
            ModelSpecError: One of them cannot be opened, they are of different architecture,
                shape or vocabulary, they compute differently from the same weights, or they are
                quantised and differ by more than plain LoRA adapters on the same weights.
            ModelLoadError: Files are damaged, or weights do not fit in the device's memory.
            MissingExtraError: Quantisation was asked for without bitsandbytes.
        """
        options = options or LoadOptions()
        first, second = (
            resolve(ModelSpec.parse(spec), trust_remote_code=options.trust_remote_code)
            for spec in (base, tuned)
        )
        identities = tuple(identify(arm.spec, options) for arm in (first, second))
        shared = _shared_adapters(first, second)
        switches: Sequence[Switch]
        tuned_sample: Tensor | None = None
        if shared is not None:
            merge = identities[0].quantization is None
            hf, switches = _beside(first, second, shared, options, merge=merge)
            tokenizer = load_tokenizer(first.spec, options)
        else:
            if any(identity.quantization is not None for identity in identities):
                raise _quantized(second)
            other = load_model(second.spec, options).hf
            tuned_sample = _sample(other)
            opened = load_model(first.spec, options)
            hf, tokenizer = opened.hf, opened.tokenizer
            _require_plain(hf, second)
            switches = tensor_switches(hf, other, where=second.spec)
            differing = _differing(hf.config.to_dict(), other.config.to_dict())
            del other
        model = hook_model(LoadedModel(hf=hf, tokenizer=tokenizer, identity=identities[0]), backend)
        pair = cls(
            model,
            model.identity,
            replace(identities[1], backend=model.identity.backend),
            switches,
        )
        if tuned_sample is not None:
            pair.set_tuned()
            _require_equal(_sample(hf), tuned_sample, differing, second)
            pair.set_base()
        return pair

    def set(self, tuned: Collection[int], *, outside: bool) -> None:
        """Choose whose each block is; nothing is copied.

        Args:
            tuned: Blocks that are to be tuned's; all others become base's.
            outside: Whether what lies outside the blocks (embedding, last norm, head) is tuned's.

        Raises:
            ModelSpecError: The model has no such block.
        """
        chosen = frozenset(tuned)
        if not chosen <= frozenset(range(self.model.n_layers)):
            raise ModelSpecError(
                "The model has no such layer",
                expected=f"0 to {self.model.n_layers - 1}",
                got=sorted(chosen - frozenset(range(self.model.n_layers))),
                where=self.base.name,
            )
        for switch in self.switches:
            layer = switch.change.layer
            switch.set(outside if layer is None else layer in chosen)
        self.tuned_layers, self.tuned_outside = chosen, outside

    def set_base(self) -> None:
        """Make the whole model base."""
        self.set((), outside=False)

    def set_tuned(self) -> None:
        """Make the whole model tuned."""
        self.set(range(self.model.n_layers), outside=True)


def _shared_adapters(first: Resolved, second: Resolved) -> int | None:
    """How many adapters both begin with, or None if more than plain LoRA tells them apart."""
    same = first.model.samefile(second.model) or (
        model_digest(first.model) == model_digest(second.model)
    )
    if not same:
        return None
    digests = [[adapter_digest(path) for path in arm.adapters] for arm in (first, second)]
    shared = 0
    while shared < min(map(len, digests)) and digests[0][shared] == digests[1][shared]:
        shared += 1
    for arm in (first, second):
        for directory, name in list(zip(arm.adapters, arm.adapter_names, strict=True))[shared:]:
            try:
                replaced, _ = read_adapter(directory, name, source="")
            except ModelSpecError:
                return None
            if replaced:
                return None
    return shared


def _beside(
    first: Resolved, second: Resolved, shared: int, options: LoadOptions, *, merge: bool
) -> tuple[PreTrainedModel, Sequence[Switch]]:
    """Load the weights once, with the adapters that only one of the two has beside them."""
    common = first.adapters[:shared]
    own = [
        (path, name, is_tuned)
        for arm, is_tuned in ((first, False), (second, True))
        for path, name in list(zip(arm.adapters, arm.adapter_names, strict=True))[shared:]
    ]
    if not merge:
        # Nothing is merged, so all are put on at once and PEFT's names count from the first.
        hf = _load(first.model, [*common, *(path for path, _, _ in own)], options)
        offset = shared
    else:
        hf = _load(first.model, common, options)
        with quiet():
            hf = apply_adapters(hf, [(path, name) for path, name, _ in own], merge=False)
        hf.eval().requires_grad_(False)
        offset = 0
    names = {f"adapter_{offset + i}": is_tuned for i, (_, _, is_tuned) in enumerate(own)}
    return hf, adapter_switches(hf, names, where=second.spec) if names else ()


def _load(model: Path, adapters: Sequence[Path], options: LoadOptions) -> PreTrainedModel:
    refs = tuple(AdapterRef(where=str(path)) for path in adapters)
    return load_model(ModelSpec(where=str(model), adapters=refs), options).hf


def _require_plain(hf: PreTrainedModel, tuned: Resolved) -> None:
    """Refuse weights that cannot be exchanged by pointer."""
    if getattr(hf, "is_quantized", False) or hasattr(hf.config, "quantization_config"):
        raise _quantized(tuned)
    if any(parameter.is_meta for parameter in hf.parameters()):
        raise ModelLoadError(
            "Both models must be in memory",
            got="weights that did not fit and were left on disk",
            where=tuned.spec,
            next_step="Use a smaller dtype or a larger device",
        )


def _quantized(tuned: Resolved) -> ModelSpecError:
    return ModelSpecError(
        "Quantised models can be switched only where plain LoRA adapters on the same weights "
        "tell them apart",
        where=tuned.spec,
        next_step="Leave out the quantisation",
    )


def _sample(hf: PreTrainedModel) -> Float[Tensor, "seq vocab"]:
    """Logits on a few fixed tokens."""
    embedding: Any = hf.get_input_embeddings()
    tokens = torch.arange(5, 13, device=embedding.weight.device)[None]
    with torch.inference_mode():
        output: Any = hf(input_ids=tokens % embedding.weight.shape[0], use_cache=False)
    logits: Tensor = output.logits[0].float().cpu()
    return logits


def _require_equal(got: Tensor, expected: Tensor, differing: list[str], tuned: Resolved) -> None:
    """Check that tuned's weights in base's model make tuned."""
    if torch.allclose(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        return
    raise ModelSpecError(
        "The two models compute differently from the same weights",
        expected="configurations that agree",
        got=f"other {', '.join(differing[:5])}" if differing else "other outputs",
        where=tuned.spec,
        next_step="Compare a fine-tune with the model it was made from",
    )


def _differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    keys = sorted({*first, *second} - _INERT)
    return [key for key in keys if first.get(key) != second.get(key)]
