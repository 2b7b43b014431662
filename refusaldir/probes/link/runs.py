"""The link to the mechanism of two whole runs: prompts, and escalations turn by turn.

Where a prompt has several replies, it enters once, with the share of them that refuse, as in the
comparison of behaviour. Escalations are linked apart from prompts by
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
from refusaldir.probes.comparison.paired_prompt import PairedPrompt
from refusaldir.probes.courses import courses
from refusaldir.probes.link.categories import (
    LIMIT,
    SHIFT,
    CategoryLink,
    Measure,
    category_links,
)
from refusaldir.probes.link.mechanism import SUBJECTS, LinkParts, MechanismLink, link_to_mechanism
from refusaldir.probes.rank_correlation import DriftCorrelation
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
        n_replies: Replies that could be judged behind the figures, of the model with fewer.
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
    units = _units(kind, base, tuned)
    usable = [unit for unit in units if unit.projections is not None]
    lacking = len(units) - len(usable)
    if not any(unit.pair.usable for unit in usable):
        note = (
            "no prompt has a projection in both models"
            if not usable
            else "no prompt has replies of both models that could be judged"
        )
        return PartLink(link=None, group_kind=kind, n_without_projection=lacking, note=note)
    z = np.array([unit.projections for unit in usable], dtype=np.float64)
    link = link_to_mechanism(
        base_z=z[:, 0],
        tuned_z=z[:, 1],
        base_refused=[unit.shares[0] for unit in usable],
        tuned_refused=[unit.shares[1] for unit in usable],
        harmful=[unit.pair.prompt.harmful for unit in usable],
        intents=[unit.pair.prompt.intent_id for unit in usable],
        groups=[unit.group for unit in usable],
        level=level,
    )
    notes = [*link.notes, *([_LIVE] if name == "live" else [])]
    temperatures = sorted({row.temperature for row in base.rows})
    if len(temperatures) > 1:
        notes.append(
            f"replies at temperatures {', '.join(f'{t:g}' for t in temperatures)} are taken "
            "together, temperatures weighing alike"
        )
    if lacking:
        what = "prompts" if kind == "category" else "turns"
        notes.append(f"{lacking} {what} are left out: a projection of theirs is missing")
    return PartLink(
        link=replace(link, notes=tuple(notes)),
        group_kind=kind,
        n_replies=sum(s.replies for unit in usable for s in unit.pair.temperatures if s.usable),
        n_without_projection=lacking,
    )


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """A prompt, or one turn of an escalation, in both models.

    Attributes:
        pair: Its replies.
        projections: In base and in tuned; None where one is missing.
        group: Its category, or its turn from the one in which the script parts from its twin.
    """

    pair: PairedPrompt
    projections: tuple[float, float] | None
    group: str | int

    @property
    def shares(self) -> tuple[float | None, float | None]:
        """Share of the replies that refuse; None where none could be judged."""
        return self.pair.shares if self.pair.usable else (None, None)


def _units(kind: str, base: Behaviour, tuned: Behaviour) -> list[_Unit]:
    """Prompts, or turns after the opening, that both models were given, in base's order."""
    opening = {}
    if kind == "turn":
        opening = {course.key[0]: course.outcome.opening for course in courses(base).values()}
    sides: list[dict[tuple[str, int | None], list[BehaviourRow]]] = [{}, {}]
    for side, arm in zip(sides, (base, tuned), strict=True):
        for row in arm.rows:
            if row.turn is None or row.turn > opening.get(row.id, 0):
                side.setdefault((row.id, row.turn), []).append(row)
    first, second = sides
    units = []
    for key, rows in first.items():
        if key not in second:
            continue
        z = [_projection(replies) for replies in (rows, second[key])]
        units.append(
            _Unit(
                pair=PairedPrompt(prompt=rows[0], base=tuple(rows), tuned=tuple(second[key])),
                projections=None if z[0] is None or z[1] is None else (z[0], z[1]),
                group=rows[0].category if key[1] is None else key[1] - opening[key[0]],
            )
        )
    return units


def _projection(rows: Sequence[BehaviourRow]) -> float | None:
    """Mean over the replies, which are all to the same prompt (not in live escalations)."""
    known = [row.projection for row in rows if row.projection is not None]
    return sum(known) / len(known) if len(known) == len(rows) else None


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
    named = [each for each in known if each.measure == SHIFT or _leaves_out_none(each)]
    words = ", ".join(each.words for each in named)
    rest = len(known) - len(named)
    more = {0: "", 1: "; the interval of the other measure holds 0"}.get(
        rest, f"; the intervals of the {rest} other measures hold 0"
    )
    return f"Over {len(found.rows)} categories, Kendall's τ-b with {what}: {words}{more}."


def _leaves_out_none(each: DriftCorrelation) -> bool:
    low, high = each.kendall.lower, each.kendall.upper
    return low is not None and high is not None and (low > 0 or high < 0)
