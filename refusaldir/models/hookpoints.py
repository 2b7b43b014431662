"""Where the residual stream can be read and written: plain torch hooks on the HF blocks.

A backend is anything that can call a function at a (hook, layer) point; `TorchPoints` does it
with forward (pre-)hooks, `refusaldir.models.lens.LensPoints` with TransformerLens. Both leave
attention, MLP and norms as Hugging Face wrote them.

Which tensor is which (``h`` the stream, block ``l``):

- ``resid_pre``: the block's input; ``resid_post``: its output.
- ``attn_out``, ``mlp_out``: what attention and MLP add to the stream, after a norm on their
  output where the architecture has one (Gemma 2 and 3, OLMo 2, GLM-4).
- ``resid_mid``: ``resid_pre + attn_out``, the input of the MLP branch. Blocks that compute both
  branches from ``resid_pre`` (GPT-NeoX, Phi) have none.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from transformers import PreTrainedModel

from refusaldir.errors import CaptureError, ModelLoadError
from refusaldir.models.config import text_config

#: Gets ``[batch, seq, d_model]`` at a hook point; returns another tensor of that shape to put in
#: its place, or None to keep it.
HookFn = Callable[[Tensor], Tensor | None]
#: Takes away what `Points.attach` attached.
Remove = Callable[[], None]

_ATTENTION = ("self_attn", "attn", "attention", "self_attention", "linear_attn", "mixer")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "fc2")
#: Names of the norms in a block, by layout: (after attention, before the MLP, after the MLP).
#: The first layout whose names are all there is meant; "post_attention_layernorm" alone stands
#: before the MLP in Llama and its kin, but after attention in Gemma 2, OLMo 2 and GLM-4.
_NORMS: tuple[tuple[str | None, str | None, str | None], ...] = (
    ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    ("post_attention_layernorm", None, "post_feedforward_layernorm"),
    (None, "post_attention_layernorm", None),
    (None, "pre_feedforward_layernorm", None),
    (None, "ln_2", None),
    (None, "ffn_norm", None),
    (None, "feedforward_layernorm", None),
    (None, "norm_2", None),
    (None, "final_layer_norm", None),
    (None, None, None),
)


@runtime_checkable
class Points(Protocol):
    """A backend: the hook points of one model."""

    #: ``transformer_lens`` or ``torch_hooks``.
    backend: str

    def has(self, hook: str, layer: int) -> bool:
        """Whether the block has this hook point."""
        ...

    def attach(self, hook: str, layer: int, fn: HookFn, *, first: bool = False) -> Remove:
        """Call ``fn`` at a hook point from now on, before the others there if ``first``."""
        ...


def find_blocks(hf: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder blocks of a model.

    Raises:
        ModelLoadError: There is no list, or more than one, as long as the model is deep.
    """
    depth = text_config(hf.config).num_hidden_layers
    found = [
        (name, module)
        for name, module in hf.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and "vision" not in name
    ]
    outer = [
        (name, module)
        for name, module in found
        if not any(name != other and name.startswith(f"{other}.") for other, _ in found)
    ]
    if len(outer) > 1:
        usual = ("layers", "h", "blocks")
        outer = [item for item in outer if item[0].rpartition(".")[2] in usual]
    if len(outer) != 1:
        raise ModelLoadError(
            "The decoder blocks of this model cannot be told apart from other modules",
            expected=f"one list of {depth} modules",
            got=", ".join(name for name, _ in outer) or "none",
            where=type(hf).__name__,
        )
    return outer[0][1]


class TorchPoints:
    """Hook points by torch's own forward hooks.

    Args:
        hf: The model; not changed.
    """

    backend = "torch_hooks"

    def __init__(self, hf: PreTrainedModel) -> None:
        """Find attention, MLP and norms of every block by name."""
        #: Granite's blocks scale what attention and MLP return before they add it.
        self._scale = float(getattr(text_config(hf.config), "residual_multiplier", 1.0))
        self._points: list[dict[str, tuple[nn.Module, bool]]] = [
            _points_of(block) for block in find_blocks(hf)
        ]

    def has(self, hook: str, layer: int) -> bool:
        """Whether the block has this hook point."""
        return hook in self._points[layer]

    def attach(self, hook: str, layer: int, fn: HookFn, *, first: bool = False) -> Remove:
        """Call ``fn`` at a hook point; see `Points.attach`."""
        module, is_input = self._points[layer][hook]
        if is_input:
            return module.register_forward_pre_hook(
                _on_input(fn), with_kwargs=True, prepend=first
            ).remove
        if hook != "resid_post" and self._scale != 1.0:
            fn = _scaled(fn, self._scale)
        return module.register_forward_hook(_on_output(fn), prepend=first).remove


def _points_of(block: nn.Module) -> dict[str, tuple[nn.Module, bool]]:
    """Module of each hook point of a block, and whether the point is its input."""
    children = dict(block.named_children())
    attention = next((children[name] for name in _ATTENTION if name in children), None)
    mlp = next((children[name] for name in _MLP if name in children), None)
    norms = next(
        layout for layout in _NORMS if all(name is None or name in children for name in layout)
    )
    after_attention, before_mlp, after_mlp = (name and children[name] for name in norms)
    candidates: dict[str, tuple[nn.Module | None, bool]] = {
        "resid_pre": (block, True),
        "attn_out": (after_attention or attention, False),
        "resid_mid": (before_mlp or mlp, True),
        "mlp_out": (after_mlp or mlp, False),
        "resid_post": (block, False),
    }
    return {
        hook: (module, is_input)
        for hook, (module, is_input) in candidates.items()
        if module is not None
    }


def _scaled(fn: HookFn, scale: float) -> HookFn:
    """Show a function the scaled tensor and take back what it returns."""

    def scaled(value: Tensor) -> Tensor | None:
        new = fn(value * scale)
        return None if new is None else new / scale

    return scaled


def _on_input(fn: HookFn) -> Callable[..., Any]:
    def pre_hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if args:
            new = fn(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        key = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        new = fn(kwargs[key])
        return None if new is None else (args, {**kwargs, key: new})

    return pre_hook


def _on_output(fn: HookFn) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            new = fn(output[0])
            return None if new is None else (new, *output[1:])
        return fn(output)

    return hook


def checked(fn: HookFn, hook: str, layer: int) -> HookFn:
    """A hook function whose result must look like what it got."""

    def point_fn(value: Tensor) -> Tensor | None:
        new = fn(value)
        if new is None:
            return None
        if not isinstance(new, Tensor):
            raise CaptureError(
                "A hook function must return a tensor or None",
                got=type(new).__name__,
                where=f"{hook}.{layer}",
            )
        if (new.shape, new.dtype, new.device) != (value.shape, value.dtype, value.device):
            raise CaptureError(
                "A hook function returned another kind of tensor than it was given",
                expected=f"{list(value.shape)} {value.dtype} on {value.device}",
                got=f"{list(new.shape)} {new.dtype} on {new.device}",
                where=f"{hook}.{layer}",
            )
        return new

    return point_fn


def carried(fn: HookFn) -> tuple[HookFn, HookFn]:
    """Make a change of resid_mid a change of the stream.

    A block keeps ``resid_mid`` aside and hands a reference to the MLP branch, so replacing what
    the branch gets leaves the stream as it was. The change is carried to the block's output.
    """
    change: list[Tensor] = []

    def at_mid(value: Tensor) -> Tensor | None:
        change.clear()
        new = fn(value)
        if new is not None:
            change.append(new - value)
        return new

    def at_post(value: Tensor) -> Tensor | None:
        return value + change.pop() if change else None

    return at_mid, at_post
