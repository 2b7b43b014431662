"""How much of the outcome's change each changed module accounts for, on the way to tuned.

For the change ``ΔW`` of one module, on the straight line ``θ(τ) = θᵇ + τ (θᵗ − θᵇ)``::

    A_W = ∫₀¹ ⟨∇_W s(θ(τ)), ΔW⟩ dτ,        Σ_W A_W = s(θᵗ) − s(θᵇ)

(integrated gradients, Sundararajan et al. 2017, arXiv:1703.01365, with weights in the place of
inputs), for every prompt. The sum rule is exact, so that what a number of nodes leaves open is
known: the completeness gap. Nodes are added until it closes.

The gap stays open where the outcome jumps along the line (a router that sends a token to other
experts) and in 16 bits, where rounding is larger than it. It does not say that an attribution is
what the module would do alone: halfway, the weights are those of neither model.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from refusaldir.batching import TokenBatch
from refusaldir.errors import CaptureError
from refusaldir.layers.effects import LEAST_SDS
from refusaldir.layers.outcomes import Outcome
from refusaldir.layers.path.line import on_line
from refusaldir.layers.path.quadrature import NESTED, Rule, gauss_legendre, nested
from refusaldir.layers.path.whole_batches import WholeBatches
from refusaldir.layers.weight_pair import Change, WeightPair
from refusaldir.models.quantization import unrounded_inputs

#: Gap at which the sum counts as closed, relative to the mean change of the outcome, or to the
#: smallest change that would be shared out where it is smaller.
TOLERANCE = 1e-3
#: From these nodes on, a rule that moves the sum by less than this share of the gap is the last:
#: what is left open is rounding or a jump, and no node closes it.
SETTLED, SETTLED_FROM = 0.2, 15


@dataclass(frozen=True, kw_only=True, eq=False)
class PathAttribution:
    """Attributions of one outcome to every change.

    Attributes:
        outcome: Name of the outcome.
        changes: What changed, in the order of the model.
        values: Attribution of each change, in the outcome's unit; tuned − base.
        base: Outcome of base.
        tuned: Outcome of tuned.
        nodes: Nodes of the integral; 0 where nothing changed.
        n_layers: Blocks of the model.
    """

    outcome: str
    changes: tuple[Change, ...]
    values: Float64[np.ndarray, "prompt change"]
    base: Float64[np.ndarray, " prompt"]
    tuned: Float64[np.ndarray, " prompt"]
    nodes: int
    n_layers: int

    @property
    def prompt_gaps(self) -> Float64[np.ndarray, " prompt"]:
        """What the attributions of each prompt miss: their sum − (tuned − base)."""
        gaps: Float64[np.ndarray, " prompt"] = self.values.sum(axis=1) - (self.tuned - self.base)
        return gaps

    @property
    def gap(self) -> float:
        """Absolute gap of the mean over prompts."""
        return abs(float(self.prompt_gaps.mean()))

    @property
    def relative_gap(self) -> float | None:
        """`gap` as a share of the mean change; None where that is 0."""
        change = abs(float((self.tuned - self.base).mean()))
        return self.gap / change if change > 0 else None

    @property
    def closed(self) -> bool:
        """Whether the gap is within `TOLERANCE`."""
        return self.gap <= _allowed(self.base, self.tuned)

    @property
    def by_layer(self) -> Float64[np.ndarray, "prompt layer"]:
        """Sums by block; what lies outside the blocks is left out."""
        return self._by_block({"attn", "mlp", None})

    @property
    def outside(self) -> Float64[np.ndarray, " prompt"]:
        """Sum of what lies outside the blocks."""
        total: Float64[np.ndarray, " prompt"] = self.values[
            :, [change.layer is None for change in self.changes]
        ].sum(axis=1)
        return total

    @property
    def by_component(self) -> dict[str, Float64[np.ndarray, "prompt layer"]]:
        """Sums by block for ``"attn"``, ``"mlp"`` and ``"other"`` (norms between them)."""
        return {
            name: self._by_block({None if name == "other" else name})
            for name in ("attn", "mlp", "other")
        }

    def to_dict(self) -> dict[str, Any]:
        """Means over prompts as plain values, for JSON."""
        means = self.values.mean(axis=0)
        return {
            "outcome": self.outcome,
            "n_prompts": len(self.base),
            "base": float(self.base.mean()),
            "tuned": float(self.tuned.mean()),
            "nodes": self.nodes,
            "gap": self.gap,
            "relative_gap": self.relative_gap,
            "changes": [
                {
                    "layer": change.layer,
                    "component": change.component,
                    "name": change.name,
                    "value": float(mean),
                }
                for change, mean in zip(self.changes, means, strict=True)
            ],
        }

    def _by_block(self, components: set[str | None]) -> Float64[np.ndarray, "prompt layer"]:
        sums = np.zeros((len(self.values), self.n_layers))
        for index, change in enumerate(self.changes):
            if change.layer is not None and change.component in components:
                sums[:, change.layer] += self.values[:, index]
        return sums


def attribute(
    pair: WeightPair,
    sequences: Sequence[Sequence[int]],
    outcome: Outcome,
    *,
    nodes: int | None = None,
    batch_size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> PathAttribution:
    """Attribute the change of an outcome to the changes of the weights.

    Costs 2 to 3 forward passes of the whole prompts a node. The prefix that prompts share is not
    cached, because gradients flow through it. Inputs of 8-bit matrices are not rounded here, nor
    for the outcomes of base and tuned, since rounding has no gradient.

    Args:
        pair: The pair; afterwards it is set as before.
        sequences: Token ids of every prompt.
        outcome: What is attributed.
        nodes: Gauss–Legendre nodes; None adds nodes until the gap closes, from 3 to 31.
        batch_size: Rows a batch; None goes by tokens. Both are halved when memory runs out.
        on_progress: Called with prompts done and prompts in all, once for each node; the total
            grows when nodes are added.

    Raises:
        CaptureError: No prompts or nodes, a prompt that does not fit in memory, or an outcome
            that is not finite.
        ModelLoadError: A changed module cannot be differentiated along its change.
    """
    if not sequences or (nodes is not None and nodes < 1):
        raise CaptureError(
            "Path attribution needs prompts and nodes",
            expected="at least 1 of each",
            got=f"{len(sequences)} prompts, {'automatic' if nodes is None else nodes} nodes",
        )
    batches = WholeBatches(pair.model, sequences, batch_size)
    with unrounded_inputs(pair.model.hf):
        return _attribute(pair, batches, outcome, nodes, on_progress)


def _attribute(
    pair: WeightPair,
    batches: WholeBatches,
    outcome: Outcome,
    nodes: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> PathAttribution:
    base, tuned = _ends(pair, batches, outcome)
    change, allowed = float((tuned - base).mean()), _allowed(base, tuned)
    slopes: list[Float64[np.ndarray, "prompt change"]] = []
    values = np.zeros((len(base), len(pair.changes)))
    with on_line(pair) as line:
        gap = math.inf
        for points, weights in _rules(nodes) if pair.changes else ():
            for tau in points[len(slopes) :].tolist():
                step = partial(line.slopes, tau, outcome=outcome)
                count = _counter(on_progress, len(slopes), len(points), len(base))
                slopes.append(batches.gather(step, count))
            values = np.tensordot(weights, np.stack(slopes), axes=1)
            previous, gap = gap, float(values.sum(axis=1).mean()) - change
            settled = len(points) >= SETTLED_FROM and abs(gap - previous) < SETTLED * abs(gap)
            if abs(gap) <= allowed or settled:
                break
    if not np.all(np.isfinite(values)):
        raise _not_finite("A slope of the outcome", outcome)
    return PathAttribution(
        outcome=outcome.name,
        changes=pair.changes,
        values=values,
        base=base,
        tuned=tuned,
        nodes=len(slopes),
        n_layers=pair.model.n_layers,
    )


def _allowed(base: Float64[np.ndarray, " prompt"], tuned: Float64[np.ndarray, " prompt"]) -> float:
    """Largest gap at which the sum counts as closed."""
    least = LEAST_SDS * float(np.std(base, ddof=1)) if len(base) > 1 else 0.0
    return TOLERANCE * max(abs(float((tuned - base).mean())), least)


def _rules(nodes: int | None) -> Iterator[Rule]:
    """Rules to try, each of which begins with the nodes of the one before."""
    if nodes is not None:
        yield gauss_legendre(nodes)
    else:
        yield from map(nested, NESTED)


def _ends(
    pair: WeightPair, batches: WholeBatches, outcome: Outcome
) -> tuple[Float64[np.ndarray, " prompt"], Float64[np.ndarray, " prompt"]]:
    """Outcome of base and of tuned."""

    def step(batch: TokenBatch) -> Tensor:
        with torch.no_grad():
            return outcome.of(pair.model, batch, None)

    before = pair.tuned_layers, pair.tuned_outside
    try:
        pair.set_base()
        base = batches.gather(step)
        pair.set_tuned()
        tuned = batches.gather(step)
    finally:
        pair.set(before[0], outside=before[1])
    if not np.all(np.isfinite([base, tuned])):
        raise _not_finite("The outcome", outcome)
    return base, tuned


def _not_finite(what: str, outcome: Outcome) -> CaptureError:
    return CaptureError(
        f"{what} is not finite",
        where=outcome.name,
        next_step="Load the models in float32 or bfloat16",
    )


def _counter(
    on_progress: Callable[[int, int], None] | None, node: int, nodes: int, prompts: int
) -> Callable[[int], None]:
    """Count prompts of one node into a total over nodes."""

    def count(done: int) -> None:
        if on_progress is not None:
            on_progress(node * prompts + done, nodes * prompts)

    return count
