"""The link to the mechanism of two whole runs: prompts, and escalations turn by turn.

Replies are paired by prompt, turn, temperature, seed and sample. Where a prompt has several, it
enters once, with the share of them that refuse. Escalations are linked apart from prompts by
themselves, frozen apart from live: in frozen mode both models read the same words up to every
turn; in live mode they read their own earlier replies, so that the projection also moves because
the conversation did. The opening turns that a script shares with its harmless twin ask for
nothing harmful and are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refusaldir.probes.behaviour import Behaviour, BehaviourRow
from refusaldir.probes.category_link import LIMIT, CategoryLink, Measure, category_links
from refusaldir.probes.link import SUBJECTS, LinkParts, MechanismLink, link_to_mechanism
from refusaldir.probes.outcomes import is_refused
from refusaldir.probes.run import FILES, ProbeRun
from refusaldir.records import Estimate

#: What the groups of each part are.
GROUPS = {"single": "category", "frozen": "turn", "live": "turn"}

_PARTS = {"single": "", "frozen": " in escalations (frozen)", "live": " in escalations (live)"}

_LIVE = (
    "in live mode each model reads its own earlier replies: from the second turn on, encoding "
    "holds what those did to the projection"
)


@dataclass(frozen=True, kw_only=True)
class PartLink:
    """The link in one part of two runs.

    Attributes:
        link: Curves and parts; None where they cannot be made.
        group_kind: What the groups are: ``"category"`` or ``"turn"``.
        n_replies: Pairs of replies behind the figures.
        n_without_projection: Prompts (or turns) left out because a projection is missing.
        note: Why there is no link, if so.
    """

    link: MechanismLink | None
    group_kind: str
    n_replies: int = 0
    n_without_projection: int = 0
    note: str = ""

    def to_dict(self) -> dict[str, Any] | None:
        """Return a JSON-ready dictionary; None where there is no link."""
        if self.link is None:
            return None
        return {
            **self.link.to_dict(),
            "group_kind": self.group_kind,
            "n_replies": self.n_replies,
            "n_without_projection": self.n_without_projection,
        }


@dataclass(frozen=True, kw_only=True)
class RunLink:
    """Refusal against the projection on base's direction, in everything two models said.

    Attributes:
        direction: Site and hash of the direction; None where the two runs differ in it.
        parts: By part of the runs, those that both have.
        categories: Drift against behaviour over the categories of each axis.
        level: Nominal coverage.
    """

    direction: str | None
    parts: Mapping[str, PartLink]
    categories: tuple[CategoryLink, ...]
    level: float

    @property
    def sentences(self) -> tuple[str, ...]:
        """What it says, in words."""
        said = [
            _split_sentence(parts, _PARTS[name], part.link.notes)
            for name, part in self.parts.items()
            if part.link is not None
            for parts in part.link.axes
            if parts.axis == "refusal" or name == "single"
        ]
        said += [f"{reason}." for reason in self._reasons]
        said += [_category_sentence(found) for found in self.categories]
        if any(c.kendall.value is not None for f in self.categories for c in f.correlations):
            said.append(f"{LIMIT[0].upper()}{LIMIT[1:]}.")
        return tuple(said)

    @property
    def _reasons(self) -> list[str]:
        """Why a part has no link."""
        return [
            f"How refusal hangs on the direction{_PARTS[name]} cannot be told: {part.note}"
            for name, part in self.parts.items()
            if part.link is None
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        axes = {found.axis: found.to_dict() for found in self.categories}
        return {
            "direction": self.direction,
            "level": self.level,
            **{name: self.parts[name].to_dict() if name in self.parts else None for name in FILES},
            "categories": {"axes": {name: axes.get(name) for name in SUBJECTS}, "note": LIMIT},
            "note": "; ".join(self._reasons),
            "sentences": list(self.sentences),
        }


def link_runs(
    base: ProbeRun,
    tuned: ProbeRun,
    *,
    level: float = 0.95,
    seed: int = 0,
    measures: Sequence[Measure] = (),
) -> RunLink | None:
    """Split what changed in two runs into encoding and readout, part by part.

    Args:
        base: Base's run; its rows hold projections on base's direction.
        tuned: Tuned's, on the same prompts, with projections on the same direction.
        level: Nominal coverage of the intervals.
        seed: Seed of the correlations' draws.
        measures: What happened to the activations of each category, where that is known.

    Returns:
        The link; None where no row of either run has a projection.
    """
    pairs = {
        name: (first, second)
        for name, first in base.parts()
        if (second := getattr(tuned, name)) is not None
    }
    rows = [row for first, second in pairs.values() for row in (*first.rows, *second.rows)]
    if all(row.projection is None for row in rows):
        return None
    sites = {part.provenance.direction for both in pairs.values() for part in both}
    found = {name: _part(name, *both, level=level) for name, both in pairs.items()}
    single = found["single"].link if "single" in found else None
    return RunLink(
        direction=next(iter(sites)) if len(sites) == 1 else None,
        parts=found,
        categories=()
        if single is None
        else category_links(single.groups, measures, level=level, seed=seed),
        level=level,
    )


def _part(name: str, base: Behaviour, tuned: Behaviour, *, level: float) -> PartLink:
    kind = GROUPS[name]
    along = [part.provenance.direction for part in (base, tuned)]
    if along[0] != along[1]:
        note = (
            f"the projections are on different directions: {along[0]} in base, {along[1]} in tuned"
        )
        return PartLink(link=None, group_kind=kind, note=note)
    opening = _opening(base.rows)
    units = [unit for unit in _units(base.rows, tuned.rows) if unit.key not in opening]
    usable = [unit for unit in units if unit.projections is not None]
    lacking = len(units) - len(usable)
    if not any(unit.shares is not None for unit in usable):
        note = (
            "no prompt has a projection in both models"
            if not usable
            else "no prompt has replies of both models that could be judged"
        )
        return PartLink(link=None, group_kind=kind, n_without_projection=lacking, note=note)
    z = np.array([unit.projections for unit in usable], dtype=np.float64)
    shares = [(None, None) if unit.shares is None else unit.shares for unit in usable]
    link = link_to_mechanism(
        base_z=z[:, 0],
        tuned_z=z[:, 1],
        base_refused=[share for share, _ in shares],
        tuned_refused=[share for _, share in shares],
        harmful=[unit.row.harmful for unit in usable],
        intents=[unit.row.intent_id for unit in usable],
        groups=[unit.row.category for unit in usable]
        if kind == "category"
        else [unit.row.turn or 1 for unit in usable],
        level=level,
    )
    notes = [*link.notes, *([_LIVE] if name == "live" else [])]
    if opening:
        notes.append(
            f"{len(opening)} opening turns that a script shares with its twin are left out"
        )
    temperatures = sorted({row.temperature for row in base.rows})
    if len(temperatures) > 1:
        notes.append(
            f"replies at temperatures {', '.join(f'{t:g}' for t in temperatures)} are taken "
            "together, each reply once"
        )
    if lacking:
        what = "prompts" if kind == "category" else "turns"
        notes.append(f"{lacking} {what} are left out: a projection of theirs is missing")
    return PartLink(
        link=replace(link, notes=tuple(notes)),
        group_kind=kind,
        n_replies=sum(unit.replies for unit in usable),
        n_without_projection=lacking,
    )


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """A prompt, or one turn of an escalation, in both models.

    Attributes:
        row: One of base's rows of it.
        replies: Pairs of replies that could be judged.
        shares: Share of these that base refuses, and that tuned does; None without any.
        projections: In base and in tuned; None where one is missing.
    """

    row: BehaviourRow
    replies: int
    shares: tuple[float, float] | None
    projections: tuple[float, float] | None

    @property
    def key(self) -> tuple[str, int | None]:
        """The prompt, and the turn of an escalation."""
        return self.row.id, self.row.turn


def _opening(rows: Sequence[BehaviourRow]) -> set[tuple[str, int | None]]:
    """First turns of escalations that say what those of the script's twin say."""
    said: dict[str, dict[int, str]] = {}
    twins: dict[str, str] = {}
    for row in rows:
        if row.turn is not None:
            said.setdefault(row.id, {})[row.turn] = row.prompt
            if row.twin_of is not None:
                twins[row.id] = row.twin_of
    shared: set[tuple[str, int | None]] = set()
    for name, twin in twins.items():
        for turn in sorted(said[name]):
            if said.get(twin, {}).get(turn) != said[name][turn]:
                break
            shared.add((name, turn))
    return shared


def _units(base: Sequence[BehaviourRow], tuned: Sequence[BehaviourRow]) -> list[_Unit]:
    """Prompts (and turns) that both models were given, in base's order."""
    other = {row.key: row for row in tuned}
    pairs: dict[tuple[str, int | None], list[tuple[BehaviourRow, BehaviourRow]]] = {}
    for row in base:
        if row.key in other:
            pairs.setdefault((row.id, row.turn), []).append((row, other[row.key]))
    return [_unit(replies) for replies in pairs.values()]


def _unit(replies: Sequence[tuple[BehaviourRow, BehaviourRow]]) -> _Unit:
    judged = [
        (was, now)
        for was, now in ((is_refused(b.label), is_refused(t.label)) for b, t in replies)
        if was is not None and now is not None
    ]
    z = [(b.projection, t.projection) for b, t in replies]
    known = [(first, second) for first, second in z if first is not None and second is not None]
    return _Unit(
        row=replies[0][0],
        replies=len(judged),
        shares=_means(judged) if judged else None,
        projections=_means(known) if len(known) == len(z) else None,
    )


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    first, second = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return first, second


def _split_sentence(parts: LinkParts, where: str, why: Sequence[str]) -> str:
    """The parts of one axis."""
    what = f"{SUBJECTS[parts.axis]}{where}"
    observed, encoding, readout = parts.observed.value, parts.encoding, parts.readout
    residual = parts.residual.value
    if observed is None or encoding.value is None or readout.value is None or residual is None:
        return (
            f"How much of the change of {what} goes through the direction cannot be told: "
            f"{'; '.join(why) or encoding.note}."
        )
    return (
        f"Of the change of {what} ({100 * observed:+.1f} points), {_points(encoding)} is encoding, "
        f"prompts that lie elsewhere along base's direction, and {_points(readout)} is readout, "
        f"another answer at the same place; {100 * residual:+.1f} is in neither."
    ).replace("-", "−")


def _points(estimate: Estimate) -> str:
    """A part in points with its interval."""
    assert estimate.value is not None
    text = f"{100 * estimate.value:+.1f}"
    if estimate.lower is None or estimate.upper is None:
        return f"{text} ({estimate.note})"
    ends = f"{100 * estimate.lower:+.1f} to {100 * estimate.upper:+.1f}"
    return f"{text} ({100 * estimate.level:.3g} % interval {ends})"


def _category_sentence(found: CategoryLink) -> str:
    """Which measures order the categories as their behaviour does."""
    known = [c for c in found.correlations if c.kendall.value is not None]
    what = f"the change of {SUBJECTS[found.axis]}"
    if not known:
        return (
            f"Whether drift orders the categories as {what} does cannot be told: "
            f"{found.correlations[0].kendall.note}."
        )
    named = ", ".join(each.words for each in known)
    return f"Over {len(found.rows)} categories, Kendall's τ-b with {what}: {named}."
