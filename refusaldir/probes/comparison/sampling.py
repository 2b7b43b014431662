"""Several replies a prompt: what each temperature does, how steady outcomes are, and why they vary.

One reply is a draw. How often the outcome of a prompt flips from reply to reply, and how often
one reply says what most do, tells what a comparison of single replies would be worth
(arXiv 2512.12066 found flips in 18 to 28 % of prompts).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from refusaldir.probes.behaviour import BehaviourRow
from refusaldir.probes.comparison.group import GroupComparison, Settings, compare_group
from refusaldir.probes.comparison.paired_prompt import PairedPrompt
from refusaldir.probes.comparison.variance import VarianceComponents, variance_components
from refusaldir.probes.outcomes import is_refused
from refusaldir.records import Estimate
from refusaldir.statistics import mean_share


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How steady one model's outcomes are over the replies to one prompt.

    Attributes:
        n: Prompts with at least two replies that could be judged.
        replies: Mean number of such replies.
        flipping: Share of those prompts that have both outcomes; it grows with the replies.
        agreement: How often one reply has the outcome of most of its prompt's replies, itself
            among them; of a tie half do.
    """

    n: int
    replies: float | None
    flipping: Estimate
    agreement: Estimate


@dataclass(frozen=True, kw_only=True)
class ByArm:
    """Stability in base and in tuned."""

    base: Stability
    tuned: Stability


@dataclass(frozen=True, kw_only=True)
class VarianceByArm:
    """Components of the outcome in base and in tuned, and of the change from reply to reply."""

    base: VarianceComponents | None
    tuned: VarianceComponents | None
    change: VarianceComponents | None


@dataclass(frozen=True, kw_only=True)
class TemperatureComparison:
    """The replies at one temperature alone.

    Attributes:
        temperature: The temperature; 0 is greedy.
        comparison: All prompts of the axis.
        stability: How steady outcomes are there.
    """

    temperature: float
    comparison: GroupComparison
    stability: ByArm


@dataclass(frozen=True, kw_only=True)
class AxisSampling:
    """What several replies a prompt say about one axis.

    Attributes:
        replies: Most replies that a prompt has in one model.
        temperatures: Each temperature by itself, ascending.
        stability: How steady outcomes are over all replies.
        variance: Where replies differ.
    """

    replies: int
    temperatures: tuple[TemperatureComparison, ...]
    stability: ByArm
    variance: VarianceByArm


def compare_sampling(pairs: Sequence[PairedPrompt], settings: Settings) -> AxisSampling | None:
    """Look into the replies of one axis; None where every prompt has one reply only.

    Args:
        pairs: The axis's prompts.
        settings: How groups are compared.
    """
    most = max(max(len(pair.base), len(pair.tuned)) for pair in pairs)
    if most < 2:
        return None
    temperatures = sorted({s.temperature for pair in pairs for s in pair.temperatures})
    alone = {t: [pair.at(t) for pair in pairs] for t in temperatures}
    without = replace(settings, scores=False)  # the score is of the prompt, not of a reply
    return AxisSampling(
        replies=most,
        temperatures=tuple(
            TemperatureComparison(
                temperature=t,
                comparison=compare_group(None, alone[t], without),
                stability=_stability(alone[t], settings.level),
            )
            for t in temperatures
        ),
        stability=_stability(pairs, settings.level),
        variance=_variance(pairs, settings.level),
    )


def _stability(pairs: Sequence[PairedPrompt], level: float) -> ByArm:
    return ByArm(
        base=_of_arm(pairs, [pair.base for pair in pairs], level),
        tuned=_of_arm(pairs, [pair.tuned for pair in pairs], level),
    )


def _of_arm(
    pairs: Sequence[PairedPrompt], replies: Sequence[Sequence[BehaviourRow]], level: float
) -> Stability:
    numbers, flips, agreements, intents = [], [], [], []
    for pair, rows in zip(pairs, replies, strict=True):
        outcomes = [o for row in rows if (o := is_refused(pair.label(row))) is not None]
        if len(outcomes) < 2:
            continue
        share = sum(outcomes) / len(outcomes)
        numbers.append(len(outcomes))
        flips.append(0 < share < 1)
        agreements.append(max(share, 1 - share))
        intents.append(pair.prompt.intent_id)
    clusters = intents if len(set(intents)) < len(intents) else None
    return Stability(
        n=len(numbers),
        replies=sum(numbers) / len(numbers) if numbers else None,
        flipping=mean_share(flips, clusters, level=level),
        agreement=mean_share(agreements, clusters, level=level),
    )


def _variance(pairs: Sequence[PairedPrompt], level: float) -> VarianceByArm:
    """Replies of the two models are matched by temperature, seed and number of the sample."""
    base, tuned, change = _Column(), _Column(), _Column()
    for pair in pairs:
        known: dict[tuple[str, int | None, float, int, int], bool] = {}
        for row in pair.base:
            if (refused := is_refused(pair.label(row))) is not None:
                known[row.key] = refused
                base.add(pair, row, float(refused))
        for row in pair.tuned:
            if (refused := is_refused(pair.label(row))) is not None:
                tuned.add(pair, row, float(refused))
                if row.key in known:
                    change.add(pair, row, float(refused) - float(known[row.key]))
    return VarianceByArm(
        base=base.components(level), tuned=tuned.components(level), change=change.components(level)
    )


class _Column:
    """Figures of replies with what they belong to."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.intents: list[str] = []
        self.prompts: list[str] = []
        self.temperatures: list[float] = []
        self.seeds: list[int] = []

    def add(self, pair: PairedPrompt, row: BehaviourRow, value: float) -> None:
        self.values.append(value)
        self.intents.append(pair.prompt.intent_id)
        self.prompts.append(row.id)
        self.temperatures.append(row.temperature)
        self.seeds.append(row.seed)

    def components(self, level: float) -> VarianceComponents | None:
        if not self.values:
            return None
        return variance_components(
            self.values,
            intents=self.intents,
            prompts=self.prompts,
            temperatures=self.temperatures,
            seeds=self.seeds,
            level=level,
        )
