"""The straight line from base's weights to tuned's, and the slope of each prompt's outcome on it.

Slopes come by module, as `refusaldir.layers.path.slopes` says: for a matrix at the cost of one
product more than a backward pass has, for an adapter ``Σ (g B) · (A x)`` at next to none, for
other modules (norms, embeddings, routers, stacked experts) by forward-mode differentiation of that
module alone.

Neither model's weights are written to: ``W + τ ΔW`` exists for one module at a time, for matrices
while they are applied (stacked experts are computed again in the backward pass, so that theirs do
too). Activations of the batch are kept for the backward pass, as in training.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from refusaldir.batching import TokenBatch
from refusaldir.errors import ModelSpecError
from refusaldir.layers.outcomes import Outcome
from refusaldir.layers.path.slopes import (
    Adapter,
    AffineLine,
    AffineStep,
    Ends,
    LowRankStep,
    Rows,
    Step,
    between,
    holding,
    tangents,
)
from refusaldir.layers.switches import AdapterSwitch, TensorSwitch
from refusaldir.layers.weight_pair import WeightPair

Forward = Callable[..., Any]


class Line:
    """The line between the models of a pair; made by `on_line`.

    Args:
        pair: The pair.
    """

    def __init__(self, pair: WeightPair) -> None:
        """Stand at base; nothing is changed yet."""
        self.pair = pair
        self._tau = 0.0
        self._rows = Rows(count=0, length=0)
        device = pair.model.device
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._steps: list[Tensor] = []

    def slopes(
        self, tau: float, batch: TokenBatch, outcome: Outcome
    ) -> Float64[Tensor, "batch change"]:
        """Slope of the outcome along every change at a point of the line.

        Args:
            tau: The point, 0 at base and 1 at tuned.
            batch: Whole prompts.
            outcome: What is differentiated.

        Raises:
            MixedRowsError: The batch must be one prompt.
            ModelLoadError: A changed module has no derivative along its change.
        """
        rows, length = batch.input_ids.shape
        self._tau, self._rows = tau, Rows(count=rows, length=length)
        for switch in self.pair.switches:
            if isinstance(switch, AdapterSwitch):
                switch.at(tau)
        self._steps = [
            torch.zeros(rows, dtype=self._dtype, device=self.pair.model.device, requires_grad=True)
            for _ in self.pair.changes
        ]
        with torch.enable_grad():
            values = outcome.of(self.pair.model, batch, None)
        slopes = torch.zeros(rows, len(self._steps), dtype=torch.float64)
        if values.requires_grad:
            grads = torch.autograd.grad(values.sum(), self._steps, allow_unused=True)
            for index, grad in enumerate(grads):
                if grad is not None:  # else the outcome is read before the change acts
                    slopes[:, index] = grad.to("cpu", torch.float64)
        return slopes

    def forwards(self) -> Iterator[tuple[nn.Module, Forward]]:
        """Every module with a change, and what is to take the place of its ``forward``.

        Raises:
            ModelSpecError: A tensor that differs is no real number.
        """
        held: dict[nn.Module, list[tuple[int, TensorSwitch]]] = {}
        for index, switch in enumerate(self.pair.switches):
            if isinstance(switch, AdapterSwitch):
                yield switch.module, self._adapted(index, switch)
            elif isinstance(switch, TensorSwitch):
                _require_real(switch)
                for module in switch.modules:
                    held.setdefault(module, []).append((index, switch))
        for module, switches in held.items():
            if len(switches) == 1 and _is_affine(module):
                yield module, self._affine(module, *switches[0])
            else:
                yield module, self._any(module, switches)

    def _affine(self, module: nn.Module, index: int, switch: TensorSwitch) -> Forward:
        own: dict[str, Any] = dict(module.named_parameters(recurse=False))
        ends = {name: (p.data, p.data) for name, p in own.items()} | dict(switch.tensors)
        if isinstance(module, Conv1D):
            ends["weight"] = (ends["weight"][0].T, ends["weight"][1].T)
        line = AffineLine(weight=ends["weight"], bias=ends.get("bias"))

        def forward(x: Tensor) -> Tensor:
            value: Tensor = cast(Any, AffineStep).apply(
                self._rows.spread(x), self._steps[index], line, self._tau, self._rows
            )
            return value

        return forward

    def _any(self, module: nn.Module, switches: Sequence[tuple[int, TensorSwitch]]) -> Forward:
        own = module.forward
        ends = {name: pair for _, switch in switches for name, pair in switch.tensors.items()}
        large = any(_is_stacked(switch) for _, switch in switches)

        def forward(*args: Any, **kwargs: Any) -> Any:
            tau = self._tau
            at_tau = {name: between(pair, tau) for name, pair in ends.items()} if not large else {}

            def compute(tensors: Mapping[str, Tensor]) -> Any:
                rest = {
                    n: at_tau[n] if n in at_tau else between(pair, tau)
                    for n, pair in ends.items()
                    if n not in tensors
                }
                with holding(module, rest | dict(tensors)):
                    return own(*args, **kwargs)

            if large:
                output = checkpoint(compute, {}, use_reentrant=False, preserve_rng_state=False)
            else:
                output = compute({})
            for index, switch in switches:
                output = self._stepped(output, index, tangents(compute, switch.tensors, tau))
            return output

        return forward

    def _adapted(self, index: int, switch: AdapterSwitch) -> Forward:
        module = switch.module
        own = module.forward

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not switch.scalings.keys() <= module.lora_A.keys():  # of an embedding
                value = own(x, *args, **kwargs)
                ends = {n: _ends(pair, value) for n, pair in switch.scalings.items()}

                def compute(scalings: Mapping[str, Tensor]) -> Any:
                    module.scaling.update(scalings)
                    return own(x, *args, **kwargs)

                try:
                    along = tangents(compute, ends, self._tau)
                finally:
                    switch.at(self._tau)
                return self._stepped(value, index, along)
            x = self._rows.spread(x)
            value = module.base_layer(x, *args, **kwargs)
            for name in module.active_adapters:
                if name in module.lora_A:
                    base, tuned = switch.scalings.get(name, (0.0, 0.0))
                    adapter = Adapter(
                        a=module.lora_A[name].weight,
                        b=module.lora_B[name].weight,
                        scaling=module.scaling[name],
                        change=tuned - base,
                    )
                    value = cast(Any, LowRankStep).apply(
                        value, x, self._steps[index], adapter, self._rows
                    )
            return value

        return forward

    def _stepped(self, output: Any, index: int, along: Sequence[Tensor | None]) -> Any:
        """Attach a step to every value returned that depends on it."""
        values = output if isinstance(output, tuple) else (output,)
        stepped = tuple(
            value if tangent is None else self._step(value, index, tangent)
            for value, tangent in zip(values, along, strict=True)
        )
        return stepped if isinstance(output, tuple) else stepped[0]

    def _step(self, value: Tensor, index: int, tangent: Tensor) -> Tensor:
        slope = partial(self._rows.inner, self._rows.spread(tangent), dtype=self._dtype)
        stepped: Tensor = cast(Any, Step).apply(self._rows.spread(value), self._steps[index], slope)
        return stepped


@contextmanager
def on_line(pair: WeightPair) -> Iterator[Line]:
    """Put a pair's model on the line while the context lasts; then it is what was set before.

    Args:
        pair: The pair.

    Raises:
        ModelSpecError: A tensor that differs is no real number.
    """
    line = Line(pair)
    before = pair.tuned_layers, pair.tuned_outside
    experts = pair.model.hf.get_experts_implementation()
    replaced: list[tuple[nn.Module, Any]] = []
    try:
        if any(_is_stacked(switch) for switch in pair.switches):
            # Grouped products have no forward-mode derivative.
            pair.model.hf.set_experts_implementation("eager")
        for module, forward in line.forwards():
            replaced.append((module, module.__dict__.get("forward")))
            module.forward = forward
        yield line
    finally:
        for module, own in replaced:
            if own is None:
                del module.forward
            else:
                module.forward = own
        pair.model.hf.set_experts_implementation(experts)
        pair.set(before[0], outside=before[1])


def _is_affine(module: nn.Module) -> bool:
    """Whether a module applies its weight and bias and does nothing else."""
    return type(module).forward in (nn.Linear.forward, Conv1D.forward)


def _is_stacked(switch: object) -> bool:
    """Whether a change is one of matrices held in one tensor."""
    return isinstance(switch, TensorSwitch) and any(
        base.ndim > 2 for base, _ in switch.tensors.values()
    )


def _ends(scaling: tuple[float, float], like: Tensor) -> Ends:
    base, tuned = (torch.tensor(value, dtype=like.dtype, device=like.device) for value in scaling)
    return base, tuned


def _require_real(switch: TensorSwitch) -> None:
    for name, (base, _) in switch.tensors.items():
        if not base.is_floating_point():
            raise ModelSpecError(
                "There is no line between these tensors",
                expected="real numbers",
                got=str(base.dtype),
                where=f"{switch.change}, {name}",
                next_step="Leave out path attribution",
            )
