"""What every instrument says of the same replies: each judge, and the first-token score."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from refusaldir.probes.behaviour import BehaviourRow
from refusaldir.probes.comparison.group import Settings, mean_replies, score_change
from refusaldir.probes.comparison.paired_prompt import PairedPrompt, primary_label
from refusaldir.probes.instruments import Disagreement, disagreement
from refusaldir.probes.outcomes import is_authoritative
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, mean, paired_proportion_difference

#: Name of the first-token score among the instruments.
SCORE = "refusal score"


@dataclass(frozen=True, kw_only=True)
class GroupChange:
    """One category by one instrument."""

    name: str
    change: Estimate


@dataclass(frozen=True, kw_only=True)
class Instrument:
    """One instrument's changes, tuned − base; up is more refusal.

    Attributes:
        name: The judge's name and version, or ``"refusal score"``.
        unit: ``"share"`` of replies refused, or ``"nats"``.
        authoritative: Whether it may decide whether a reply refuses; phrases and scores may not.
        primary: Whether the comparison's labels are its.
        overall: All prompts of the axis.
        categories: Each category, by name.
    """

    name: str
    unit: str
    authoritative: bool
    primary: bool
    overall: Estimate
    categories: tuple[GroupChange, ...]


@dataclass(frozen=True, kw_only=True)
class AxisInstruments:
    """All instruments of one axis.

    Attributes:
        instruments: The primary judge, the others, the score.
        disagreement: How differently they order the categories, and in how many they disagree on
            the direction; None with one instrument.
    """

    instruments: tuple[Instrument, ...]
    disagreement: Disagreement | None


def compare_instruments(
    groups: Mapping[str, Sequence[PairedPrompt]], judges: Sequence[str], settings: Settings
) -> AxisInstruments:
    """Compare what instruments say of each category.

    Args:
        groups: Prompts of one axis by category.
        judges: Names of the judges, the primary first; another counts where it labelled every
            reply.
        settings: How groups are compared.
    """
    rows = [row for pairs in groups.values() for p in pairs for row in (*p.base, *p.tuned)]
    primary, *others = judges
    instruments = [_by_judge(primary, primary_label, True, groups, settings)]
    instruments += [
        _by_judge(name, _label_of(name), False, groups, settings)
        for name in others
        if all(name in row.others for row in rows)
    ]
    if settings.scores and (by_score := _by_score(groups, settings)) is not None:
        instruments.append(by_score)
    return AxisInstruments(
        instruments=tuple(instruments),
        disagreement=None
        if len(instruments) < 2
        else disagreement(
            {one.name: [group.change.value for group in one.categories] for one in instruments},
            list(groups),
            level=settings.level,
            seed=settings.seed,
            draws=settings.n_boot,
        ),
    )


def _label_of(judge: str) -> Callable[[BehaviourRow], str]:
    return lambda row: row.others[judge].label


def _by_judge(
    name: str,
    label: Callable[[BehaviourRow], str],
    primary: bool,
    groups: Mapping[str, Sequence[PairedPrompt]],
    settings: Settings,
) -> Instrument:
    labelled = {key: [pair.labelled(label) for pair in pairs] for key, pairs in groups.items()}
    return Instrument(
        name=name,
        unit="share",
        authoritative=is_authoritative(name),
        primary=primary,
        overall=_change([pair for pairs in labelled.values() for pair in pairs], settings.level),
        categories=tuple(
            GroupChange(name=key, change=_change(pairs, settings.level))
            for key, pairs in labelled.items()
        ),
    )


def _change(pairs: Sequence[PairedPrompt], level: float) -> Estimate:
    usable = [pair for pair in pairs if pair.usable]
    intents = [pair.prompt.intent_id for pair in usable]
    replies = mean_replies(usable)
    return paired_proportion_difference(
        [pair.shares[0] for pair in usable],
        [pair.shares[1] for pair in usable],
        intents if replies > 1 or len(set(intents)) < len(intents) else None,
        level,
        replies=replies,
    )


def _by_score(
    groups: Mapping[str, Sequence[PairedPrompt]], settings: Settings
) -> Instrument | None:
    pairs = [pair for of_group in groups.values() for pair in of_group]
    overall = _mean_score(pairs, settings.level)
    if overall.value is None:
        return None
    return Instrument(
        name=SCORE,
        unit="nats",
        authoritative=False,
        primary=False,
        overall=overall,
        categories=tuple(
            GroupChange(name=key, change=_mean_score(of_group, settings.level))
            for key, of_group in groups.items()
        ),
    )


def _mean_score(pairs: Sequence[PairedPrompt], level: float) -> Estimate:
    found = [(pair.prompt.intent_id, score_change(pair)) for pair in pairs]
    changes = [(intent, change) for intent, change in found if change is not None]
    if not changes:
        return Estimate(value=None, n=0, level=level, note="no scores")
    clusters = Clusters.of([intent for intent, _ in changes])
    return mean([change for _, change in changes], clusters, level=level)
