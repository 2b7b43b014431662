"""The fewest layers whose return to base brings an outcome back, and what that costs.

Layers are given back to base in the order of a ranking, 1, 2, 3, … together, until the mean
outcome lies within the interval of base's own mean. That interval is wide where prompts differ
much, so "back" means back to what base does on prompts like these, not prompt by prompt equal.
Then each layer is left out again in turn, the last of the ranking first, for as long as the
others suffice. No layer of what remains can be left out; a smaller set of other layers may exist.

All of it happens in memory. It is evidence for where to intervene in training, not a repaired
model: what the layers had learnt is gone with them, which is what the cost says.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refusaldir.errors import ProbeError
from refusaldir.layers.exchange.repair_cost import Cost
from refusaldir.layers.exchange.sweep import Mixture, sweep
from refusaldir.layers.outcomes import Outcome, RefusalRate
from refusaldir.layers.weight_pair import WeightPair
from refusaldir.layers.words import layer_words
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, mean, proportion


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One set of layers given back.

    Attributes:
        layers: The set, ascending.
        outcome: Mean outcome.
        back: Whether it lies within base's interval.
    """

    layers: tuple[int, ...]
    outcome: Estimate
    back: bool


@dataclass(frozen=True, kw_only=True)
class RepairCost:
    """What giving the layers back costs, as means over texts.

    Attributes:
        name: What was measured, with its unit.
        tuned: Of tuned.
        repaired: Of tuned with the layers given back.
        base: Of base.
        change: Repaired less tuned, text by text.
    """

    name: str
    tuned: Estimate
    repaired: Estimate
    base: Estimate
    change: Estimate


@dataclass(frozen=True, kw_only=True)
class Repair:
    """The fewest layers found, and how.

    Attributes:
        outcome: Name of the outcome.
        base: Mean in base; its interval is the aim.
        tuned: Mean in tuned.
        repaired: Mean with the layers given back.
        layers: The layers, ascending; none where tuned lies within base's interval already.
        back: Whether that brings the outcome back. Where all layers of the ranking together do
            not, these are all of them.
        attempts: Every set tried, in order.
        cost: What it costs, if that was asked for.
    """

    outcome: str
    base: Estimate
    tuned: Estimate
    repaired: Estimate
    layers: tuple[int, ...]
    back: bool
    attempts: tuple[Attempt, ...]
    cost: RepairCost | None

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found, in plain words."""
        now = f"the mean {self.outcome} from {_figure(self.tuned)} to {_figure(self.repaired)}"
        aim = f"base has {_figure(self.base)}"
        if not self.layers:
            first = (
                f"Nothing to repair: tuned's mean {self.outcome} of {_figure(self.tuned)} lies "
                f"within base's interval ({aim})."
                if self.back
                else "No layer was tried for repair."
            )
            return (first,)
        given = f"Giving {layer_words(self.layers)} back to base, in memory, takes {now} ({aim})"
        first = (
            f"{given}; none of these can be left out."
            if self.back
            else f"{given}: even all layers of the ranking together do not bring it back."
        )
        if self.cost is None:
            return (first,)
        cost = self.cost
        return (
            first,
            f"It changes the {cost.name} by {_figure(cost.change, signed=True)} "
            f"(tuned {_figure(cost.tuned)}, base {_figure(cost.base)}).",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        out = asdict(self)
        out["layers"] = list(self.layers)
        out["attempts"] = [{**asdict(a), "layers": list(a.layers)} for a in self.attempts]
        return out


def _figure(estimate: Estimate, *, signed: bool = False) -> str:
    """Value and interval, with a typographic minus."""
    form = "+.3g" if signed else ".3g"
    if estimate.value is None:
        return "–"
    text = f"{estimate.value:{form}}"
    if estimate.lower is not None and estimate.upper is not None:
        text += f" ({estimate.lower:{form}} to {estimate.upper:{form}})"
    return text.replace("-", "−")


def repair(
    pair: WeightPair,
    sequences: Sequence[Sequence[int]],
    outcome: Outcome | RefusalRate,
    ranking: Sequence[int],
    clusters: Clusters,
    *,
    cost: Cost | None = None,
    level: float = 0.95,
    batch_size: int | None = None,
    on_attempt: Callable[[Attempt], None] | None = None,
) -> Repair:
    """Find the fewest layers whose return to base brings an outcome back.

    Args:
        pair: The two models; left as base.
        sequences: Token ids of every rendered prompt.
        outcome: What is to come back.
        ranking: Layers, the one to try first first; those that did not change are left out.
        clusters: The prompts' independent clusters, e.g. by intent. A refusal rate gets a score
            interval over prompts instead, which holds at 0 and 1.
        cost: What to measure on tuned, on the repaired model and on base.
        level: Nominal coverage of the intervals.
        batch_size: Rows a batch; None finds one by itself.
        on_attempt: Called with every set tried.

    Raises:
        CaptureError: No prompt, or one that cannot be run.
        ProbeError: Base's mean has no interval, or an outcome is not finite.
    """
    every = frozenset(range(pair.model.n_layers))
    base_mixture, tuned_mixture = Mixture(frozenset(), False), Mixture(every, True)

    def summary(values: NDArray[np.float64]) -> Estimate:
        if isinstance(outcome, RefusalRate):
            return proportion(int(values.sum()), len(values), level=level)
        return mean(values, clusters, level=level)

    def measured(*mixtures: Mixture) -> list[Estimate]:
        swept = sweep(pair, sequences, outcome, mixtures, batch_size=batch_size)
        return [summary(swept.values[mixture]) for mixture in mixtures]

    base, tuned = measured(base_mixture, tuned_mixture)
    if base.lower is None or base.upper is None:
        raise ProbeError(
            "Whether an outcome is back cannot be told without an interval of base's mean",
            expected="prompts of at least two intents",
            got=base.note or base.n,
        )
    lower, upper = base.lower, base.upper
    attempts: dict[frozenset[int], Attempt] = {}

    def attempt(layers: Sequence[int]) -> Attempt:
        chosen = frozenset(layers)
        if chosen not in attempts:
            (value,) = [tuned] if not chosen else measured(Mixture(every - chosen, True))
            assert value.value is not None
            attempts[chosen] = Attempt(
                layers=tuple(sorted(chosen)), outcome=value, back=lower <= value.value <= upper
            )
            if on_attempt is not None:
                on_attempt(attempts[chosen])
        return attempts[chosen]

    order = [layer for layer in dict.fromkeys(ranking) if layer in pair.layers]
    for k in range(len(order) + 1):
        reached = attempt(order[:k])
        if reached.back:
            break
    if reached.back:
        reached = _without_needless(reached, order, attempt)
    final = Mixture(every - set(reached.layers), True)
    found_cost = None
    if cost is not None:
        found_cost = _priced(cost, pair, (tuned_mixture, final, base_mixture), level)
    return Repair(
        outcome=outcome.name,
        base=base,
        tuned=tuned,
        repaired=reached.outcome,
        layers=reached.layers,
        back=reached.back,
        attempts=tuple(attempts.values()),
        cost=found_cost,
    )


def _without_needless(
    reached: Attempt, order: Sequence[int], attempt: Callable[[Sequence[int]], Attempt]
) -> Attempt:
    """Leave out layers, the last of the order first, while the outcome stays back."""
    shrunk = True
    while shrunk:
        shrunk = False
        for layer in reversed(order):
            if layer not in reached.layers:
                continue
            fewer = attempt([k for k in reached.layers if k != layer])
            if fewer.back:
                reached, shrunk = fewer, True
    return reached


def _priced(
    cost: Cost, pair: WeightPair, mixtures: tuple[Mixture, Mixture, Mixture], level: float
) -> RepairCost:
    try:
        tuned, repaired, base = cost.of(pair, mixtures)
    finally:
        pair.set_base()
    texts = Clusters.of(range(len(tuned)))
    return RepairCost(
        name=cost.name,
        tuned=mean(tuned, texts, level=level),
        repaired=mean(repaired, texts, level=level),
        base=mean(base, texts, level=level),
        change=mean(repaired - tuned, texts, level=level),
    )
