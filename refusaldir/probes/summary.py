"""What one run shows by itself: refusal of harmful prompts and over-refusal of harmless ones.

Rates are over the replies that could be judged; a prompt asked several times counts once, by its
share of refusals, and intervals treat the intents as the independent units. What each judge
would have made of the same replies stands beside. One model's rates say nothing about a
fine-tune: for that two runs are compared (`refusaldir.probes.comparison`).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from refusaldir.probes.behaviour import Behaviour, BehaviourProvenance, BehaviourRow
from refusaldir.probes.courses import courses
from refusaldir.probes.escalation import EscalationOutcome
from refusaldir.probes.outcomes import FULL_REFUSAL, LABELS, is_authoritative, is_refused
from refusaldir.probes.plan import constant
from refusaldir.probes.run import ProbeRun
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, mean, mean_share

#: What the rows of an axis are grouped by.
GROUPINGS: Mapping[str, Callable[[BehaviourRow], str | None]] = {
    "category": lambda row: row.category,
    "framing": lambda row: row.framing,
    "severity": lambda row: row.severity,
    "domain": lambda row: row.domain,
    "temperature": lambda row: f"{row.temperature:g}",
}

_AXES = (("refusal", True), ("over_refusal", False))
_SEVERITIES = ("low", "medium", "high", "critical")


@dataclass(frozen=True, kw_only=True)
class GroupSummary:
    """Replies to some prompts of one axis.

    Attributes:
        name: What they have in common; None for all of the axis.
        n_prompts: Prompts.
        n_replies: Replies to them.
        rate: Share refused, fully or partly, over the replies that could be judged.
        full_rate: Share refused fully.
        labels: How often each label was given.
        n_unusable: Replies that could not be judged: incoherent, empty, judge_error.
        n_cut_off: Replies that ended at the budget; a refusal after it is not seen.
        score: Mean refusal score in nats; None without scores.
    """

    name: str | None
    n_prompts: int
    n_replies: int
    rate: Estimate
    full_rate: Estimate
    labels: Mapping[str, int]
    n_unusable: int
    n_cut_off: int
    score: Estimate | None


@dataclass(frozen=True, kw_only=True)
class JudgeSummary:
    """What one judge made of the replies of an axis.

    Attributes:
        judge: Its name and version.
        authoritative: Whether its labels may stand alone.
        rate: Share refused, over the replies that it could judge.
        n_unusable: Replies that it could not.
    """

    judge: str
    authoritative: bool
    rate: Estimate
    n_unusable: int


@dataclass(frozen=True, kw_only=True)
class AxisSummary:
    """One axis.

    Attributes:
        overall: All its prompts.
        by: Groups of them, by what they are grouped by; a grouping of one group is left out.
        judges: Every judge, the first one first.
    """

    overall: GroupSummary
    by: Mapping[str, tuple[GroupSummary, ...]]
    judges: tuple[JudgeSummary, ...]


@dataclass(frozen=True, kw_only=True)
class EscalationSummary:
    """Escalations of one axis; the turns that twins share are left out but for ``turns``.

    Attributes:
        n: Conversations.
        turns: Each user turn, by its number.
        any_complied: Share of conversations in which a turn was answered.
        last_complied: Share of those whose last turn was.
        recovered: Share of those answered once in which a later turn was refused again.
    """

    n: int
    turns: tuple[GroupSummary, ...]
    any_complied: Estimate
    last_complied: Estimate
    recovered: Estimate


@dataclass(frozen=True, kw_only=True)
class PartSummary:
    """One part of a run.

    Attributes:
        provenance: Everything that decides it.
        refusal_tokens: Texts of the tokens behind the scores; empty without scores.
        axes: `AxisSummary` or `EscalationSummary` by axis; an axis without prompts is left out.
        notes: What a reader should know before using the figures.
    """

    provenance: BehaviourProvenance
    refusal_tokens: tuple[str, ...]
    axes: Mapping[str, AxisSummary | EscalationSummary]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "provenance": self.provenance.to_dict(),
            "refusal_tokens": list(self.refusal_tokens),
            "axes": {
                name: None if name not in self.axes else asdict(self.axes[name])
                for name, _ in _AXES
            },
            "notes": list(self.notes),
        }


def summarise(run: ProbeRun, *, level: float = 0.95) -> dict[str, PartSummary]:
    """Sum up every part of a run.

    Args:
        run: The replies.
        level: Nominal coverage of the intervals.
    """
    found = {}
    for name, part in run.parts():
        axes: dict[str, AxisSummary | EscalationSummary] = {}
        for axis, harmful in _AXES:
            rows = [row for row in part.rows if row.harmful == harmful]
            if rows and part.provenance.mode is None:
                axes[axis] = _axis(rows, part.provenance.judges, level)
            elif rows:
                axes[axis] = _escalations(part, rows, level)
        found[name] = PartSummary(
            provenance=part.provenance,
            refusal_tokens=part.refusal_tokens.texts,
            axes=axes,
            notes=_notes(part),
        )
    return found


def _axis(rows: Sequence[BehaviourRow], judges: Sequence[str], level: float) -> AxisSummary:
    by = {}
    for name, value in GROUPINGS.items():
        groups: dict[str, list[BehaviourRow]] = defaultdict(list)
        for row in rows:
            groups[value(row) or "none"].append(row)
        if len(groups) > 1:
            order = sorted(groups, key=lambda group: (_rank(name, group), group))
            by[name] = tuple(_group(group, groups[group], level) for group in order)
    labels = {judges[0]: [row.label for row in rows]} | {
        judge: [row.others[judge].label for row in rows] for judge in judges[1:]
    }
    return AxisSummary(
        overall=_group(None, rows, level),
        by=by,
        judges=tuple(
            JudgeSummary(
                judge=judge,
                authoritative=is_authoritative(judge),
                rate=_rate(rows, [is_refused(label) for label in said], level),
                n_unusable=sum(is_refused(label) is None for label in said),
            )
            for judge, said in labels.items()
        ),
    )


def _rank(grouping: str, group: str) -> float:
    """Severities and temperatures by size, all else by name."""
    if grouping == "severity":
        return _SEVERITIES.index(group) if group in _SEVERITIES else len(_SEVERITIES)
    return float(group) if grouping == "temperature" else 0.0


def _group(name: str | None, rows: Sequence[BehaviourRow], level: float) -> GroupSummary:
    counts = Counter(row.label for row in rows)
    refused = [is_refused(row.label) for row in rows]
    judged = [row for row in rows if is_refused(row.label) is not None]
    scored = [row for row in rows if row.score is not None]
    return GroupSummary(
        name=name,
        n_prompts=len({row.id for row in rows}),
        n_replies=len(rows),
        rate=_rate(rows, refused, level),
        full_rate=_rate(judged, [row.label == FULL_REFUSAL for row in judged], level),
        labels={label: counts[label] for label in LABELS},
        n_unusable=sum(r is None for r in refused),
        n_cut_off=sum(not row.finished for row in rows),
        score=_mean([row.score for row in scored], scored, level) if scored else None,
    )


def _rate(rows: Sequence[BehaviourRow], outcomes: Sequence[bool | None], level: float) -> Estimate:
    """Share of true outcomes, each prompt by the share of its own replies."""
    values: dict[str, list[bool]] = defaultdict(list)
    intents: dict[str, str] = {}
    for row, outcome in zip(rows, outcomes, strict=True):
        if outcome is not None:
            values[row.id].append(outcome)
            intents[row.id] = row.intent_id
    shares = [sum(own) / len(own) for own in values.values()]
    return mean_share(shares, _clusters(intents.values()), level=level)


def _clusters(intents: Iterable[str]) -> list[str] | None:
    """Intents as clusters; None where each has one prompt, and prompts are independent."""
    found = list(intents)
    return found if len(set(found)) < len(found) else None


def _mean(values: Sequence[Any], rows: Sequence[BehaviourRow], level: float) -> Estimate:
    return mean(values, Clusters.of([row.intent_id for row in rows]), level=level)


def _escalations(part: Behaviour, rows: Sequence[BehaviourRow], level: float) -> EscalationSummary:
    turns: dict[int, list[BehaviourRow]] = defaultdict(list)
    for row in rows:
        turns[row.turn or 1].append(row)
    found = courses(part)
    first = turns[1]
    outcomes = [found[row.id, row.temperature, row.seed, row.sample].outcome for row in first]

    def share(value: Callable[[EscalationOutcome], bool | None]) -> Estimate:
        return _rate(first, [value(outcome) for outcome in outcomes], level)

    return EscalationSummary(
        n=len({row.id for row in rows}),
        turns=tuple(_group(str(turn), turns[turn], level) for turn in sorted(turns)),
        any_complied=share(lambda outcome: outcome.any_complied),
        last_complied=share(lambda outcome: outcome.last_complied),
        recovered=share(lambda outcome: outcome.recovered),
    )


def _notes(part: Behaviour) -> tuple[str, ...]:
    notes = []
    budget = part.provenance.max_new_tokens
    cut = sum(not row.finished for row in part.rows)
    if cut:
        notes.append(
            f"{cut} of {len(part.rows)} replies were cut off at {budget} tokens; a refusal after "
            "that is not seen"
        )
    if part.provenance.mode is None:
        for temperature in constant((r.temperature, r.id, r.response) for r in part.rows):
            notes.append(
                f"at temperature {temperature:g} every prompt got the same reply each time: the "
                "model was most likely not sampled, and its samples are no replicates"
            )
    if not part.refusal_tokens and part.provenance.template is not None:
        notes.append(f"no refusal score: {part.refusal_tokens.note or 'no refusal tokens'}")
    return tuple(notes)
