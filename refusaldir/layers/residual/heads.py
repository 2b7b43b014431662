"""What each attention head adds to the projection on a direction, read in the forward pass.

The output projection is an affine function of the heads' outputs side by side, z, so with u a
unit vector::

    u·(W_O z + b) = Σ_h z_h·(W_Oᵀu)_h + u·b

``W_Oᵀu`` is the gradient of the left side in z. Autograd gives it for any affine module, whether
its weights are plain, quantised to 4 bits or have an adapter beside them. Not to 8 bits: there z
is rounded on the way.

Where a norm stands behind the projection (Gemma 2 and 3), it is ``N(y) = s(y)·G y`` with its gain
G and one scale s a token. The scale is taken as the token has it, so that heads still add up to
what attention adds to the stream. It ties them together: where one head writes more, the shares
of the others shrink.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from refusaldir.errors import CaptureError
from refusaldir.layers.weights.matrix_names import Family, TensorKey, family_of
from refusaldir.models.bridge import HookedModel
from refusaldir.models.config import text_config
from refusaldir.models.hookpoints import find_blocks

#: How TransformerLens names what it has wrapped.
_WRAPPED = "_original_component"

#: Roundings to the model's dtype on the way: the gradient, the projection, an adapter, a norm.
_ROUNDINGS = 4


class HeadReader:
    """Projects the attention heads of a model's first blocks on a direction.

    Args:
        model: The model; its weights must stay as they are while this is in use.
        u: The unit vector.
        n_layers: How many blocks to read.

    Attributes:
        n_layers: Number of blocks read.
        n_heads: Number of heads in each.

    Raises:
        ModelSpecError: It is not known how this architecture names its output projections.
        CaptureError: A block has no output projection of that name.
    """

    def __init__(self, model: HookedModel, u: Float64[Tensor, " d_model"], n_layers: int) -> None:
        """Find the output projections, and the norms behind them."""
        config = text_config(model.hf.config)
        self.n_layers, self.n_heads = n_layers, int(config.num_attention_heads)
        names = [name for name, _ in model.hf.named_modules() if name]
        family = family_of(config.model_type, names, where=model.identity.name)
        self._projections = [
            _OutputProjection(*_find(block, family, layer), u, self.n_heads, layer)
            for layer, block in enumerate(list(find_blocks(model.hf))[:n_layers])
        ]

    @contextmanager
    def reading(self, rows: Int[Tensor, " batch"], where: Int[Tensor, " batch"]) -> Iterator[None]:
        """Read the forward pass of this context at one token of each row.

        Args:
            rows: Index of each row.
            where: Index of its token.
        """
        handles = [h for p in self._projections for h in p.attach(rows, where)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def columns(self) -> list[Float64[Tensor, "batch heads_bias_rounding"]]:
        """What was read last, by layer: every head, the bias, and the SD of rounding."""
        return [projection.read for projection in self._projections]


class _Affine(NamedTuple):
    """A projection seen from the direction: what it writes is ``scale·(reads·z + bias)`` along u.

    The gain is that of the norm behind it, 1 without one.
    """

    reads: Float64[Tensor, " d_heads"]
    bias: float
    gain: Float64[Tensor, " d_model"]


class _OutputProjection:
    """One block's output projection, and the norm behind it if there is one."""

    def __init__(
        self, module: nn.Module, norm: nn.Module | None, u: Tensor, n_heads: int, layer: int
    ) -> None:
        self._module, self._norm, self._u = module, norm, u
        self._n_heads, self._layer = n_heads, layer
        self._affine: _Affine | None = None
        self.read = torch.empty(0)

    def attach(self, rows: Tensor, where: Tensor) -> list[RemovableHandle]:
        """Read at one token of each row from now on."""
        waiting: list[tuple[_Affine, Tensor]] = []

        def on_projection(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            z = at_tokens(args[0], rows, where)
            if self._affine is None:
                self._affine = self._seen_from_u(args[0])
            if self._norm is None:
                written = at_tokens(output, rows, where)
                self._read(self._affine, z, written, torch.ones_like(written[:, 0]), output.dtype)
            else:
                waiting.append((self._affine, z))

        def on_norm(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            affine, z = waiting.pop()
            written = at_tokens(output, rows, where)
            gained = at_tokens(args[0], rows, where) * affine.gain.to(written.device)
            # N(y) = s·Gy in every entry; least squares takes its rounding best. Where y is 0, so is
            # every share, whatever the scale.
            size = (gained * gained).sum(dim=-1).clamp(min=torch.finfo(gained.dtype).tiny)
            scale = (written * gained).sum(dim=-1) / size
            self._read(affine, z, written, scale, output.dtype)

        handles = [self._module.register_forward_hook(on_projection)]
        if self._norm is not None:
            handles.append(self._norm.register_forward_hook(on_norm))
        return handles

    def _read(
        self, affine: _Affine, z: Tensor, written: Tensor, scale: Tensor, dtype: torch.dtype
    ) -> None:
        reads = scale.to(z.device)[:, None] * z * affine.reads.to(z.device)
        # Products are summed in float32 or better and then rounded, each time by up to eps/2.
        eps = torch.finfo(torch.float32).eps * math.sqrt(reads.shape[1])
        eps += torch.finfo(dtype).eps * math.sqrt(_ROUNDINGS)
        size = (written * self._u.to(written.device)).norm(dim=-1).to(z.device)
        rounding = eps / math.sqrt(12) * torch.hypot(reads.norm(dim=-1), size)
        heads = reads.reshape(len(reads), self._n_heads, -1).sum(dim=-1)
        bias = scale.to(z.device) * affine.bias
        self.read = torch.cat([heads, bias[:, None], rounding[:, None]], dim=1)

    def _seen_from_u(self, z: Tensor) -> _Affine:
        if z.shape[-1] % self._n_heads:
            raise CaptureError(
                "The input of an output projection cannot be divided among the heads",
                expected=f"a multiple of {self._n_heads} entries",
                got=z.shape[-1],
                where=f"layer {self._layer}",
                next_step="Leave the heads out",
            )
        with torch.inference_mode(False), torch.enable_grad():
            gain = torch.ones_like(self._u)
            # `forward` rather than a call: hooks are not meant to see these two.
            if self._norm is not None:
                # The norm of ones is the gain, up to a factor that the scale takes back.
                ones = torch.ones(1, 1, len(gain), dtype=torch.float32, device=z.device)
                gain = self._norm.forward(ones).detach().flatten().cpu().double()
            nothing = torch.zeros(1, 1, z.shape[-1], dtype=z.dtype, device=z.device)
            written = self._module.forward(nothing.requires_grad_()).flatten().cpu().double()
            projected = (written * self._u * gain).sum()
            (reads,) = torch.autograd.grad(projected, nothing)
        return _Affine(reads.flatten().cpu().double(), float(projected.detach()), gain)


def at_tokens(
    value: Float[Tensor, "batch seq width"],
    rows: Int[Tensor, " batch"],
    where: Int[Tensor, " batch"],
) -> Float64[Tensor, "batch width"]:
    """One token of each row, in float64, on the value's device if that knows float64."""
    # With a device map the blocks live on several devices.
    x = value[rows.to(value.device), where.to(value.device)]
    return (x.cpu() if x.device.type == "mps" else x).double()


def _find(block: nn.Module, family: Family, layer: int) -> tuple[nn.Module, nn.Module | None]:
    """A block's output projection, and the norm that its output goes through or None."""
    # What is wrapped comes after its wrapper and takes the name over.
    modules = {
        ".".join(part for part in name.split(".") if part != _WRAPPED): module
        for name, module in block.named_modules()
    }
    for name, module in modules.items():
        place = family.place(TensorKey(layer, f"{name}.weight"))
        if place is not None and (place.component, place.side) == ("attn", "writes"):
            return module, None if place.norm is None else modules[place.norm[: -len(".weight")]]
    raise CaptureError(
        "This block has no output projection behind its heads",
        expected=" | ".join(rule[0] for rule in family.rules if rule[1:3] == ("attn", "writes")),
        got=", ".join(name for name in modules if name) or "no module",
        where=f"layer {layer}",
        next_step="Leave the heads out",
    )
