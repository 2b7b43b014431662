"""What turns one module of a model in memory from base's into tuned's and back.

Two kinds: tensors, exchanged by pointer, and adapters that stand beside the weights, exchanged by
their scaling. Neither copies or computes anything when switched.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from refusaldir.errors import ModelSpecError
from refusaldir.models.hookpoints import find_blocks

_COMPONENTS = {
    **dict.fromkeys(
        ("self_attn", "attn", "attention", "self_attention", "linear_attn", "mixer"), "attn"
    ),
    **dict.fromkeys(("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe"), "mlp"),
}
#: Tensors that a module applies together; others (stacked experts) are changes of their own.
_TOGETHER = ("weight", "bias")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A module, or one of several matrices in it, that differs between base and tuned.

    Attributes:
        layer: Block index from 0, or None outside the blocks (embedding, last norm, head).
        component: ``"attn"``, ``"mlp"``, or None where it belongs to neither.
        name: Within the component, e.g. ``"q_proj"``, ``"input_layernorm"``, ``"embed_tokens"``
            or ``"experts.down_proj"``; weight and bias of a module go together.
    """

    layer: int | None
    component: str | None
    name: str

    def __str__(self) -> str:
        """Return e.g. ``layer 3 attn.q_proj``."""
        path = self.name if self.component is None else f"{self.component}.{self.name}"
        return path if self.layer is None else f"layer {self.layer} {path}"


class Switch(Protocol):
    """One change and how to make it.

    Attributes:
        change: What changes.
    """

    @property
    def change(self) -> Change:
        """What changes."""
        ...

    def set(self, tuned: bool) -> None:
        """Make it tuned's or base's."""
        ...


T = TypeVar("T", bound=Switch)


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorSwitch:
    """A change of tensors; base's and tuned's are both in memory.

    Attributes:
        change: What changes.
        modules: Modules that hold the tensors; more than one where they are tied.
        tensors: Those of base and of tuned, by their name in the module.
    """

    change: Change
    modules: tuple[nn.Module, ...]
    tensors: Mapping[str, tuple[Tensor, Tensor]]

    def set(self, tuned: bool) -> None:
        """Point the module's tensors at tuned's or base's."""
        for module in self.modules:
            for name, pair in self.tensors.items():
                getattr(module, name).data = pair[tuned]


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterSwitch:
    """A change by adapters beside one module's weights.

    Attributes:
        change: What changes.
        module: PEFT's layer around the model's own.
        scalings: What each adapter's product is multiplied by in base and in tuned; 0 is off.
    """

    change: Change
    module: Any
    scalings: Mapping[str, tuple[float, float]]

    def set(self, tuned: bool) -> None:
        """Turn adapters on and off."""
        self.at(float(tuned))

    def at(self, tau: float) -> None:
        """Put the adapters at a point of the line from base (0) to tuned (1)."""
        for name, (base, tuned) in self.scalings.items():
            self.module.scaling[name] = (1 - tau) * base + tau * tuned


def tensor_switches(
    base: PreTrainedModel, tuned: PreTrainedModel, *, where: object
) -> list[TensorSwitch]:
    """Compare two models of one architecture; call it before either is hooked.

    Args:
        base: The model that is to be switched. A tie between two of its tensors is undone where
            tuned has none.
        tuned: The other; what differs is taken from it by reference, so that the rest is freed
            with it.
        where: Tuned's name, for errors.

    Raises:
        ModelSpecError: The two do not have the same tensors.
    """
    _require_same(base, tuned, where)
    _untie_like(base, tuned)
    others = dict(tuned.named_modules())
    places = _Places(base)
    owners: dict[int, list[nn.Module]] = {}
    for module in base.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(module)
    switches: list[TensorSwitch] = []
    seen: set[int] = set()
    for path, module in base.named_modules():
        changed = {}
        for name, mine in _own(module):
            theirs = dict(_own(others[path]))[name].data
            if id(mine) in seen or torch.equal(mine.data, theirs):
                continue
            seen.add(id(mine))
            changed[name] = (mine.data, theirs)
        together = set(changed) <= {*_TOGETHER, *dict(module.named_buffers(recurse=False))}
        groups = [changed] if together else [{name: pair} for name, pair in changed.items()]
        for tensors in groups:
            if tensors:
                first = getattr(module, next(iter(tensors)))
                inner = "" if together else f".{next(iter(tensors))}"
                switches.append(
                    TensorSwitch(
                        change=places.change(path + inner),
                        modules=tuple(owners.get(id(first), [module])),
                        tensors=tensors,
                    )
                )
    return _ordered(switches)


def adapter_switches(
    hf: PreTrainedModel, names: Mapping[str, bool], *, where: object
) -> list[AdapterSwitch]:
    """Find what each of the adapters beside a model's weights changes.

    Args:
        hf: The model, with PEFT's layers in it.
        names: PEFT's name of each adapter to switch, and whether it is tuned's (else base's).
        where: Tuned's name, for errors.

    Raises:
        ModelSpecError: An adapter changes something other than a layer's weight.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    places = _Places(hf)
    switches = []
    for path, module in hf.named_modules():
        scaling = getattr(module, "scaling", None)
        if not isinstance(module, LoraLayer) or not isinstance(scaling, dict):
            continue
        own = {name: float(scaling[name]) for name in names if name in scaling}
        if not own:
            continue
        if isinstance(module, ParamWrapper):
            raise ModelSpecError(
                "An adapter of stacked parameters cannot be switched", got=path, where=where
            )
        switches.append(
            AdapterSwitch(
                change=places.change(path),
                module=module,
                scalings={n: (0.0, s) if names[n] else (s, 0.0) for n, s in own.items()},
            )
        )
    return _ordered(switches)


class _Places:
    """Which block and component a module belongs to, by its path."""

    def __init__(self, hf: PreTrainedModel) -> None:
        blocks = find_blocks(hf)
        self._paths = {
            path: index
            for path, module in hf.named_modules()
            for index, block in enumerate(blocks)
            if module is block
        }

    def change(self, path: str) -> Change:
        parts = path.split(".")
        for end in range(1, len(parts)):
            layer = self._paths.get(".".join(parts[:end]))
            if layer is not None:
                inner = parts[end:]
                component = _COMPONENTS.get(inner[0])
                name = ".".join(inner[1:] if component and inner[1:] else inner)
                return Change(layer=layer, component=component, name=name)
        return Change(layer=None, component=None, name=parts[-1])


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _ordered(switches: list[T]) -> list[T]:
    """Embedding first, then the blocks, then what follows them."""
    blocks = [i for i, s in enumerate(switches) if s.change.layer is not None]
    first = blocks[0] if blocks else len(switches)
    before = [s for i, s in enumerate(switches) if s.change.layer is None and i < first]
    inside = sorted((switches[i] for i in blocks), key=lambda s: s.change.layer or 0)
    after = [s for i, s in enumerate(switches) if s.change.layer is None and i > first]
    return [*before, *inside, *after]


def _require_same(base: PreTrainedModel, tuned: PreTrainedModel, where: object) -> None:
    if type(base) is not type(tuned):
        raise ModelSpecError(
            "Weights of different architectures cannot be compared",
            expected=type(base).__name__,
            got=type(tuned).__name__,
            where=where,
        )
    mine, theirs = (
        {
            f"{path}.{name}": tensor
            for path, module in hf.named_modules()
            for name, tensor in _own(module)
        }
        for hf in (base, tuned)
    )
    for key in dict.fromkeys([*mine, *theirs]):
        a, b = mine.get(key), theirs.get(key)
        if a is None or b is None or a.shape != b.shape:
            embedding = a is not None and any(
                a is getattr(m, "weight", None)
                for m in (base.get_input_embeddings(), base.get_output_embeddings())
            )
            raise ModelSpecError(
                "The two models differ in their vocabulary"
                if embedding
                else "The two models differ in their matrices",
                expected=f"{key} {'absent' if a is None else list(a.shape)}",
                got="none" if b is None else list(b.shape),
                where=where,
                next_step="Resize base's embeddings as the fine-tune did "
                "(resize_token_embeddings) and save it"
                if embedding
                else "Compare a fine-tune with the model it was made from",
            )
        if a.dtype != b.dtype:
            raise ModelSpecError(
                "The two models were loaded in different dtypes",
                expected=f"{key} {str(a.dtype).removeprefix('torch.')}",
                got=str(b.dtype).removeprefix("torch."),
                where=where,
                next_step="Name one dtype for both",
            )


def _untie_like(base: PreTrainedModel, tuned: PreTrainedModel) -> None:
    """Undo ties of base that tuned does not have; no tensor is copied."""
    others = dict(tuned.named_modules())
    first: dict[int, tuple[nn.Module, str]] = {}
    for path, module in base.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in first:
                first[id(parameter)] = (others[path], name)
                continue
            other, other_name = first[id(parameter)]
            if getattr(others[path], name) is not getattr(other, other_name):
                setattr(module, name, nn.Parameter(parameter.data, requires_grad=False))
                base.config.tie_word_embeddings = False
