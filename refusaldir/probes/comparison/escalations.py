"""Escalations compared, turn by turn and as whole conversations.

Steps are user turns counted from the one in which a conversation parts from its twin; those
before are the same for both and harmless. Frozen and live conversations answer two questions and
are never joined: frozen, what the model says to the same conversation; live, where its own
conversation ends up.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from refusaldir.errors import ProbeError
from refusaldir.probes.behaviour import Behaviour, BehaviourProvenance
from refusaldir.probes.comparison.group import GroupComparison, Settings, adjusted, compare_group
from refusaldir.probes.comparison.pairing import Allowed, pair_rows
from refusaldir.probes.courses import Course, courses
from refusaldir.probes.hazard import HazardDifference, compare_hazards
from refusaldir.records import Estimate
from refusaldir.statistics import (
    Clusters,
    mean,
    mean_share,
    paired_proportion_difference,
    sign_flip_p,
)


@dataclass(frozen=True, kw_only=True)
class StepComparison:
    """One step of all conversations that have it.

    Attributes:
        step: Number of the step, from 1: the turn in which a conversation parts from its twin.
        comparison: Refusals at this step; p-values are adjusted over the steps.
        hazard: Chance of the first compliance at this step, and the share that has complied by
            it.
    """

    step: int
    comparison: GroupComparison
    hazard: HazardDifference


@dataclass(frozen=True, kw_only=True)
class PairedMeasure:
    """One summary of whole conversations, over those where it is known of both models.

    Attributes:
        base: Its mean in base.
        tuned: Its mean in tuned.
        difference: Tuned − base, paired.
        p_value: Two-sided, by flipped signs of whole intents; None without conversations.
        n: Conversations.
    """

    base: Estimate
    tuned: Estimate
    difference: Estimate
    p_value: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class EscalationAxis:
    """The escalations of one side.

    Attributes:
        axis: ``"refusal"`` (harmful escalations) or ``"over_refusal"`` (their harmless twins).
        n: Conversations.
        n_intents: Intents that they come from.
        opening: Fewest and most turns left out because twins share them.
        steps: Every step.
        any_complied: Share of conversations in which some turn complied.
        last_complied: Share in which the last turn did.
        recovered: Share that refused again after having complied, of those that complied in both
            models and went on.
        turns_held: Turns before the first that complied; all where none did.
        note: What limits these figures, if anything.
    """

    axis: str
    n: int
    n_intents: int
    opening: tuple[int, int]
    steps: tuple[StepComparison, ...]
    any_complied: PairedMeasure
    last_complied: PairedMeasure
    recovered: PairedMeasure
    turns_held: PairedMeasure
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class EscalationComparison:
    """The escalations of one mode.

    Attributes:
        mode: ``"frozen"`` or ``"live"``.
        base: Where base's responses come from.
        tuned: Where tuned's come from.
        axes: The axes that have conversations, refusal first.
    """

    mode: str
    base: BehaviourProvenance
    tuned: BehaviourProvenance
    axes: tuple[EscalationAxis, ...]

    def axis(self, name: str) -> EscalationAxis | None:
        """The axis of that name, or None when there were no such conversations."""
        return next((axis for axis in self.axes if axis.axis == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "mode": self.mode,
            "base": self.base.to_dict(),
            "tuned": self.tuned.to_dict(),
            "axes": {
                name: None if (axis := self.axis(name)) is None else asdict(axis)
                for name in ("refusal", "over_refusal")
            },
        }


def compare_escalations(
    base: Behaviour, tuned: Behaviour, allowed: Allowed, settings: Settings
) -> EscalationComparison:
    """Compare two models' escalations of one mode.

    Args:
        base: Base's replies, one a user turn.
        tuned: Tuned's, to the same escalations.
        allowed: What may differ between the two.
        settings: How groups are compared.

    Raises:
        ProbeError: The two may not be compared, or a conversation lacks a turn.
    """
    pairs = {(pair.prompt.id, pair.prompt.turn): pair for pair in pair_rows(base, tuned, allowed)}
    first, second = courses(base), courses(tuned)
    keys = [key for key in first if key in second]
    axes = []
    for name, harmful in (("refusal", True), ("over_refusal", False)):
        matched = [(first[key], second[key]) for key in keys if first[key].harmful == harmful]
        if not matched:
            continue
        most = max(len(b.outcome.complied) for b, _ in matched)
        openings = {b.outcome.prompt_id: b.outcome.opening for b, _ in matched}
        compared = []
        for step in range(1, most + 1):
            here = [
                pairs[name_, opening + step]
                for name_, opening in openings.items()
                if (name_, opening + step) in pairs
            ]
            compared.append(compare_group(str(step), here, settings, groups=most))
        hazards = compare_hazards(
            [b.outcome.complied for b, _ in matched],
            [t.outcome.complied for _, t in matched],
            [b.outcome.intent_id for b, _ in matched],
            level=settings.level,
        )
        axes.append(_axis(name, matched, compared, hazards, settings))
    if not axes:
        raise ProbeError("base and tuned have no escalation in common")
    mode = base.provenance.mode
    return EscalationComparison(
        mode=str(mode), base=base.provenance, tuned=tuned.provenance, axes=tuple(axes)
    )


def _axis(
    name: str,
    matched: Sequence[tuple[Course, Course]],
    compared: Sequence[GroupComparison],
    hazards: Sequence[HazardDifference],
    settings: Settings,
) -> EscalationAxis:
    openings = [b.outcome.opening for b, _ in matched]
    alone = sum(not b.twin for b, _ in matched)

    def measure(attribute: str) -> PairedMeasure:
        values = [tuple(getattr(c.outcome, attribute) for c in pair) for pair in matched]
        return _shares(values, matched, settings)

    return EscalationAxis(
        axis=name,
        n=len(matched),
        n_intents=len({b.outcome.intent_id for b, _ in matched}),
        opening=(min(openings), max(openings)),
        steps=tuple(
            StepComparison(step=hazard.step, comparison=replace(group, name=None), hazard=hazard)
            for group, hazard in zip(adjusted(compared), hazards, strict=True)
        ),
        any_complied=measure("any_complied"),
        last_complied=measure("last_complied"),
        recovered=measure("recovered"),
        turns_held=_means(matched, settings),
        note=(
            f"{alone} of {len(matched)} conversations have no twin here, so that all their turns "
            "count, harmless first ones among them"
            if alone
            else ""
        ),
    )


def _shares(
    values: Sequence[tuple[bool | None, ...]],
    matched: Sequence[tuple[Course, Course]],
    settings: Settings,
) -> PairedMeasure:
    known = [
        (before, after, b.outcome.intent_id)
        for (before, after), (b, _) in zip(values, matched, strict=True)
        if before is not None and after is not None
    ]
    first, second = [b for b, _, _ in known], [t for _, t, _ in known]
    intents = [intent for _, _, intent in known]
    clusters = intents if len(set(intents)) < len(intents) else None
    return PairedMeasure(
        base=mean_share(first, clusters, level=settings.level),
        tuned=mean_share(second, clusters, level=settings.level),
        difference=paired_proportion_difference(first, second, clusters, settings.level),
        p_value=_p([t - b for b, t, _ in known], intents, settings),
        n=len(known),
    )


def _means(matched: Sequence[tuple[Course, Course]], settings: Settings) -> PairedMeasure:
    level = settings.level
    known = [
        (b.turns_held, t.turns_held, b.outcome.intent_id)
        for b, t in matched
        if b.turns_held is not None and t.turns_held is not None
    ]
    if not known:
        nothing = Estimate(value=None, n=0, level=level, note="no conversation known of both")
        return PairedMeasure(base=nothing, tuned=nothing, difference=nothing, p_value=None, n=0)
    intents = [intent for _, _, intent in known]
    clusters = Clusters.of(intents)
    changes = [t - b for b, t, _ in known]
    return PairedMeasure(
        base=mean([b for b, _, _ in known], clusters, level=level),
        tuned=mean([t for _, t, _ in known], clusters, level=level),
        difference=mean(changes, clusters, level=level),
        p_value=_p(changes, intents, settings),
        n=len(known),
    )


def _p(changes: Sequence[float], intents: Sequence[str], settings: Settings) -> float | None:
    if not changes:
        return None
    net: dict[str, float] = {}
    for change, intent in zip(changes, intents, strict=True):
        net[intent] = net.get(intent, 0.0) + change
    return sign_flip_p(list(net.values()), method=settings.test)
