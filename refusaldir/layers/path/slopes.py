"""Slope of each prompt's outcome along the change of one module, as its gradient passes.

With ``ε_i`` the size of a step of prompt i alone along the change ``ΔW`` of a module f,

    y_i = f(x_i; W + ε_i ΔW),    ∂s_i/∂ε_i at 0 = Σ_token g_i · (∂f/∂W · ΔW)(x_i),

where ``g_i = ∂s_i/∂y_i`` is what backpropagation brings anyway, for all prompts of a batch at once
because no prompt sees another. No gradient of a weight is formed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from refusaldir.errors import ModelLoadError

#: Tensors of base and of tuned.
Ends = tuple[Tensor, Tensor]


class MixedRowsError(Exception):
    """A changed module sees tokens of several prompts in an order that is not known.

    Experts that are modules of their own do. One prompt a batch is always right.
    """


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which prompt each vector of a batch belongs to.

    Attributes:
        count: Prompts in the batch.
        length: Tokens of each, padding included.
    """

    count: int
    length: int

    def spread(self, value: Tensor) -> Tensor:
        """Give every prompt a copy of its own of what they share (position embeddings).

        Args:
            value: ``[batch or 1, seq, ...]``, or ``[batch · seq, ...]`` as routed models have it.

        Raises:
            MixedRowsError: It is neither.
        """
        if self.count == 1 or (value.ndim > 2 and value.shape[0] == self.count):
            return value
        if value.ndim > 2 and value.shape[0] == 1:
            return value.expand(self.count, *value.shape[1:])
        if value.ndim == 2 and value.shape[0] == self.count * self.length:
            return value
        raise MixedRowsError

    def inner(self, a: Tensor, b: Tensor, dtype: torch.dtype) -> Float[Tensor, " batch"]:
        """Inner product of two tensors per prompt."""
        product = (a if a.dtype == torch.float64 else a.float()) * b
        return product.reshape(self.count, -1).sum(dim=1, dtype=dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class AffineLine:
    """A matrix and a bias on their way from base's to tuned's.

    Attributes:
        weight: Base's and tuned's, ``[out, in]``.
        bias: Base's and tuned's, or None without one.
    """

    weight: Ends
    bias: Ends | None

    def at(self, x: Tensor, tau: float) -> Tensor:
        """Apply the map at a point of the line."""
        bias = None if self.bias is None else between(self.bias, tau)
        return F.linear(x, between(self.weight, tau), bias)


class AffineStep(torch.autograd.Function):
    """An affine map at a point of its line, with a step size per prompt that is 0.

    The weights at that point are not kept for the backward pass, where ``g W + τ g ΔW`` needs
    only the ends of the line, and ``g ΔW`` is the step's derivative with respect to x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, line: AffineLine, tau: float, rows: Rows
    ) -> Tensor:
        """Apply the map."""
        ctx.save_for_backward(x)
        ctx.line, ctx.tau, ctx.rows, ctx.dtype = line, tau, rows, step.dtype
        return line.at(x, tau)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients with respect to x and to the step."""
        (x,), (grad,) = ctx.saved_tensors, grads
        base, tuned = ctx.line.weight
        along = grad @ (tuned - base)
        slope = ctx.rows.inner(along, x, ctx.dtype)
        if ctx.line.bias is not None:
            shift = ctx.line.bias[1] - ctx.line.bias[0]
            slope = slope + ctx.rows.inner(grad, shift, ctx.dtype)
        of_x = torch.add(grad @ base, along, alpha=ctx.tau) if ctx.needs_input_grad[0] else None
        return of_x, slope, None, None, None


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """An adapter at a point of its line.

    Attributes:
        a: A, ``[rank, in]``.
        b: B, ``[out, rank]``.
        scaling: c at that point.
        change: What c changes by from base to tuned.
    """

    a: Tensor
    b: Tensor
    scaling: float
    change: float


class Step(torch.autograd.Function):
    """A value as it is, with a step size per prompt that is 0.

    ``slope`` gets the gradient of the value and returns the step's, ``[batch]``.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, step: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the value."""
        ctx.slope = slope
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients with respect to the value and to the step."""
        return grads[0], ctx.slope(grads[0]), None


class LowRankStep(torch.autograd.Function):
    """An adapter's ``c B A x`` added to a value, with a step of c per prompt that is 0.

    ``A x`` and ``g B`` each serve twice: for the adapter's own effect and for the slope.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, x: Tensor, step: Tensor, adapter: Adapter, rows: Rows
    ) -> Tensor:
        """Add the adapter."""
        low = x.to(adapter.a.dtype) @ adapter.a.T
        ctx.save_for_backward(low)
        ctx.adapter, ctx.rows, ctx.dtype, ctx.x_dtype = adapter, rows, step.dtype, x.dtype
        return (value + adapter.scaling * (low @ adapter.b.T)).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients with respect to value, x and step."""
        (low,), (grad,), adapter = ctx.saved_tensors, grads, ctx.adapter
        of_low = grad.to(adapter.b.dtype) @ adapter.b
        slope = adapter.change * ctx.rows.inner(of_low, low, ctx.dtype)
        of_x = None
        if ctx.needs_input_grad[1]:
            of_x = (adapter.scaling * of_low @ adapter.a).to(ctx.x_dtype)
        return grad, of_x, slope, None, None


def between(ends: Ends, tau: float) -> Tensor:
    """A point of the line between two tensors; exactly the ends at 0 and 1."""
    return ends[0] if ends[0] is ends[1] else torch.lerp(ends[0], ends[1], tau)


@contextmanager
def holding(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a module compute with other tensors than its own while the context lasts."""
    parameters, buffers = cast(dict[str, Any], module._parameters), module._buffers
    stores = {name: parameters if name in parameters else buffers for name in tensors}
    kept = {name: store[name] for name, store in stores.items()}
    try:
        for name, store in stores.items():
            store[name] = tensors[name]
        yield
    finally:
        for name, store in stores.items():
            store[name] = kept[name]


def tangents(
    compute: Callable[[Mapping[str, Tensor]], Any], ends: Mapping[str, Ends], tau: float
) -> tuple[Tensor | None, ...]:
    """Derivative along a line of everything that a module returns.

    Args:
        compute: The module, as a function of the tensors that lie on the line.
        ends: These tensors, in base and tuned.
        tau: Point of the line.

    Returns:
        One entry for each value returned, None where it does not depend on them.

    Raises:
        ModelLoadError: Something in the module has no forward-mode derivative.
    """
    # torch annotates neither.
    dual, undual = cast(Any, forward_ad.make_dual), cast(Any, forward_ad.unpack_dual)
    with torch.no_grad(), forward_ad.dual_level():
        duals = {name: dual(between(pair, tau), pair[1] - pair[0]) for name, pair in ends.items()}
        try:
            output = compute(duals)
        except (NotImplementedError, RuntimeError) as error:
            if "forward AD" not in str(error) and "jvp" not in str(error):
                raise
            raise ModelLoadError(
                "A module of this model cannot be differentiated along its change",
                got=str(error).splitlines()[0],
                next_step="Leave out path attribution",
            ) from error
        values = output if isinstance(output, tuple) else (output,)
        return tuple(
            undual(value).tangent if isinstance(value, Tensor) else None for value in values
        )
