"""Hook points by TransformerLens, with attention, MLP and norms left native.

A `TransformerBridge` normally puts its own attention, MLP and norms in the place of the model's.
Here every part of a block is wrapped by a `GeneralizedComponent` instead, which calls the
original and fires a hook before and after it, and the block keeps only its five residual
aliases. The outputs are those of the Hugging Face model, bit for bit.

Importing TransformerLens takes seconds, so it happens when the first model is bridged.
"""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from refusaldir.models.hookpoints import HookFn, Remove
from refusaldir.models.quiet import quiet
from refusaldir.records import HOOKS


class UnsupportedError(Exception):
    """TransformerLens cannot bridge this model; the message says why. The model is unchanged."""


class LensPoints:
    """Hook points by a TransformerLens bridge.

    Args:
        hf: The model; its submodules are wrapped in place, so that ``save_pretrained`` and
            parameter names no longer work as before.

    Attributes:
        bridge: The `TransformerBridge`.

    Raises:
        UnsupportedError: No adapter for the architecture, or building it failed.
    """

    backend = "transformer_lens"

    def __init__(self, hf: PreTrainedModel) -> None:
        """Build the bridge; see the class docstring."""
        self._children: Mapping[nn.Module, dict[str, nn.Module | None]] = {
            module: dict(module._modules) for module in hf.modules()
        }
        try:
            with quiet():
                self.bridge = _build(hf)
        except UnsupportedError:
            self.unwrap()
            raise
        self._points: list[dict[str, Any]] = [_points_of(block) for block in self.bridge.blocks]

    def unwrap(self) -> None:
        """Put the model's own submodules back."""
        for module, children in self._children.items():
            module._modules.clear()
            module._modules.update(children)

    def has(self, hook: str, layer: int) -> bool:
        """Whether the block has this hook point."""
        return hook in self._points[layer]

    def attach(self, hook: str, layer: int, fn: HookFn, *, first: bool = False) -> Remove:
        """Call ``fn`` at a hook point; see `refusaldir.models.hookpoints.Points.attach`."""
        point = self._points[layer][hook]

        def lens_fn(tensor: Tensor, hook: Any) -> Tensor | None:
            return fn(tensor)

        handle = point.add_hook(lens_fn, prepend=first)

        def remove() -> None:
            handle.hook.remove()
            if handle in point.fwd_hooks:
                point.fwd_hooks.remove(handle)

        return remove


def _build(hf: PreTrainedModel) -> Any:
    architecture = type(hf).__name__
    try:
        from transformer_lens.factories.architecture_adapter_factory import (
            SUPPORTED_ARCHITECTURES,
        )
        from transformer_lens.model_bridge.sources._bridge_builder import (
            build_bridge_from_module,
        )
    except ImportError as error:
        raise UnsupportedError(f"transformer_lens cannot be imported: {error}") from error
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise UnsupportedError(f"transformer_lens has no adapter for {architecture}")
    try:
        return build_bridge_from_module(
            hf,
            architecture,
            # A copy: adapters write to it. No tokenizer: setting one up would change ours.
            hf_config=copy.deepcopy(hf.config),
            tokenizer=None,
            post_adapter_hook=_make_native,
        )
    except Exception as error:
        raise UnsupportedError(f"transformer_lens: {type(error).__name__}: {error}") from error


def _make_native(adapter: Any) -> None:
    """Replace the parts of an adapter that reimplement the model by plain wrappers."""
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    adapter.prepare_model = lambda model: None  # would switch to eager attention, patch forwards
    adapter.cfg.attn_implementation = None
    mapping = adapter.component_mapping
    for name in list(mapping):
        if name == "blocks":
            block = mapping[name]
            aliases = {f"hook_{hook}" for hook in HOOKS}
            block.hook_aliases = {
                alias: target for alias, target in block.hook_aliases.items() if alias in aliases
            }
            block.submodules = {
                key: GeneralizedComponent(
                    name=part.name, optional=bool(getattr(part, "optional", False))
                )
                for key, part in block.submodules.items()
                if part.name is not None
            }
        elif name in ("embed", "ln_final", "unembed"):
            mapping[name] = GeneralizedComponent(name=mapping[name].name)
        else:  # positions, rotary tables: nothing to hook
            del mapping[name]


def _points_of(block: Any) -> dict[str, Any]:
    """The TransformerLens hook point behind each of our hooks that the block has."""
    points = {}
    for hook in HOOKS:
        point = getattr(block, f"hook_{hook}", None)
        if point is not None and hasattr(point, "add_hook"):
            points[hook] = point
    return points
