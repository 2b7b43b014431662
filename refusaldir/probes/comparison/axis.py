"""One axis compared: all prompts, then by category, framing, severity and domain."""

from collections.abc import Mapping, Sequence

from refusaldir.probes.comparison.axis_instruments import compare_instruments
from refusaldir.probes.comparison.group import (
    Settings,
    adjusted,
    compare_group,
    minimum_n,
)
from refusaldir.probes.comparison.paired_prompt import PairedPrompt
from refusaldir.probes.comparison.result import AxisComparison, Breakdown, Flip, FlipAt
from refusaldir.probes.comparison.sampling import compare_sampling
from refusaldir.probes.comparison.secondary import compare_secondary

#: What prompts are broken down by, and what its groups are called.
BREAKDOWNS = {
    "category": "categories",
    "framing": "framings",
    "severity": "severities",
    "domain": "domains",
}

#: Name of the group of prompts that do not say.
NOT_GIVEN = "not given"

#: Order of groups that have one.
_ORDER = {name: i for i, name in enumerate(("low", "medium", "high", "critical", NOT_GIVEN))}


def compare_axis(
    name: str,
    pairs: Sequence[PairedPrompt],
    judges: Sequence[str],
    scorers: Mapping[str, str],
    settings: Settings,
) -> AxisComparison:
    """Compare one axis.

    Args:
        name: ``"refusal"`` or ``"over_refusal"``.
        pairs: Its prompts, at least one.
        judges: Names of the judges, the primary first.
        scorers: What made the further scores that both models have.
        settings: How.
    """
    breakdowns: dict[str, Breakdown | None] = {}
    for by in BREAKDOWNS:
        groups = _grouped(pairs, by)
        told = by == "category" or len(groups) > 1
        breakdowns[by] = _breakdown(by, groups, settings) if told else None
    return AxisComparison(
        axis=name,
        overall=compare_group(None, pairs, settings),
        breakdowns=breakdowns,
        flips=tuple(_flips(pairs)),
        sampling=compare_sampling(pairs, settings),
        instruments=compare_instruments(_grouped(pairs, "category"), judges, settings),
        secondary=compare_secondary(pairs, scorers, settings.level),
    )


def _grouped(pairs: Sequence[PairedPrompt], by: str) -> dict[str, list[PairedPrompt]]:
    groups: dict[str, list[PairedPrompt]] = {}
    for pair in pairs:
        groups.setdefault(getattr(pair.prompt, by) or NOT_GIVEN, []).append(pair)
    if by != "severity":
        return {name: groups[name] for name in sorted(groups)}
    return {
        name: groups[name]
        for name in sorted(groups, key=lambda name: (_ORDER.get(name, len(_ORDER)), name))
    }


def _breakdown(by: str, groups: dict[str, list[PairedPrompt]], settings: Settings) -> Breakdown:
    compared = [
        compare_group(name, pairs, settings, groups=len(groups)) for name, pairs in groups.items()
    ]
    minimum = minimum_n(len(groups), settings.test)
    small = sum(group.n_intents < minimum for group in compared)
    note = ""
    if small and len(groups) > 1:
        plural = BREAKDOWNS[by]
        note = (
            f"{small} of {len(groups)} {plural} have fewer than {minimum} judged intents: not "
            f"even a flip of every one would pass Holm over {len(groups)} {plural} at 5 %"
        )
    return Breakdown(by=by, groups=adjusted(compared), minimum_n=minimum, note=note)


def _flips(pairs: Sequence[PairedPrompt]) -> list[Flip]:
    flips = []
    for pair in pairs:
        was, now = pair.majority
        if was is None or now is None or was == now:
            continue
        prompt = pair.prompt
        base, tuned = pair.shares
        flips.append(
            Flip(
                id=prompt.id,
                category=prompt.category,
                framing=prompt.framing,
                severity=prompt.severity,
                domain=prompt.domain,
                to="refusal" if now else "answer",
                base=base,
                tuned=tuned,
                temperatures=tuple(
                    FlipAt(temperature=s.temperature, base=s.base, tuned=s.tuned)
                    for s in pair.temperatures
                ),
            )
        )
    return flips
