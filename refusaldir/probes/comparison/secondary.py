"""Further scores of the replies, such as toxicity: their mean in base and in tuned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refusaldir.probes.behaviour import BehaviourRow
from refusaldir.probes.comparison.paired_prompt import PairedPrompt
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, mean


@dataclass(frozen=True, kw_only=True)
class SecondaryChange:
    """One score, over the prompts that have it in both models.

    Attributes:
        name: The score, e.g. ``"toxicity"``.
        scorer: What made it, by name and version.
        n: Prompts.
        base: Mean over prompts of the mean over base's replies, in the score's own unit.
        tuned: The same of tuned's.
        difference: Tuned − base, paired.
    """

    name: str
    scorer: str
    n: int
    base: Estimate
    tuned: Estimate
    difference: Estimate


def compare_secondary(
    pairs: Sequence[PairedPrompt], scorers: Mapping[str, str], level: float
) -> tuple[SecondaryChange, ...]:
    """Compare every score that both models have.

    Args:
        pairs: The prompts of one axis.
        scorers: Score to what made it, alike in both models.
        level: Nominal coverage of the intervals.
    """
    found = []
    for name, scorer in sorted(scorers.items()):
        known = [
            (pair.prompt.intent_id, base, tuned)
            for pair in pairs
            if (base := _mean(pair.base, name)) is not None
            and (tuned := _mean(pair.tuned, name)) is not None
        ]
        if not known:
            continue
        clusters = Clusters.of([intent for intent, _, _ in known])
        found.append(
            SecondaryChange(
                name=name,
                scorer=scorer,
                n=len(known),
                base=mean([base for _, base, _ in known], clusters, level=level),
                tuned=mean([tuned for _, _, tuned in known], clusters, level=level),
                difference=mean([t - b for _, b, t in known], clusters, level=level),
            )
        )
    return tuple(found)


def _mean(rows: Sequence[BehaviourRow], name: str) -> float | None:
    values = [row.secondary[name] for row in rows if name in row.secondary]
    return sum(values) / len(values) if values else None
