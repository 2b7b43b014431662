"""When a model gives way: discrete-time hazard over the turns of escalations, and its change.

A conversation is *at risk* at a step when it complied at no earlier one and every outcome up to
this one is known. Its hazard there is the chance to comply now::

    h(k) = complied(k) / at_risk(k)            share complied by step k = 1 − Π_{j ≤ k} (1 − h(j))

the life table of survival analysis (Kaplan & Meier 1958; in discrete time Allison 1982,
Sociological Methodology 13:61). An outcome that is unknown ends the time at risk there
(censoring), since whether a later compliance is the first cannot be told; so does the end of the
script.

Intents are the independent units. The delete-one-intent jackknife gives the standard error; it
is turned into an effective number of units, and that into Wilson's score interval (Korn &
Graubard 1998, Survey Methodology 24:193), which stays honest at 0 and 1. For tuned − base the two
intervals are joined by the method of variance estimates recovery (Zou & Donner 2008, Statistics
in Medicine 27:1693) with the jackknife's correlation. Intervals hold for each step by itself.

A hazard compares conversations that came so far: after a change of early hazards, those left in
the two models are not the same ones. The share complied by a step has no such limit.
"""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from refusaldir.errors import ProbeError
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, critical_value, wilson

#: Whether each step complied; None where that is unknown.
Course = Sequence[bool | None]


@dataclass(frozen=True, kw_only=True)
class StepHazard:
    """One step of a life table.

    Attributes:
        step: Number of the step, from 1.
        n: Conversations that have it.
        at_risk: Those at risk there.
        complied: Those that comply there for the first time.
        unknown: Those that leave the table there because the outcome is unknown.
        hazard: ``complied / at_risk``.
        complied_by: Share that has complied by this step, from the hazards up to it.
    """

    step: int
    n: int
    at_risk: int
    complied: int
    unknown: int
    hazard: Estimate
    complied_by: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class HazardDifference:
    """Change from base to tuned at one step.

    Attributes:
        step: Number of the step, from 1.
        base: The step in base.
        tuned: The same in tuned.
        hazard: Hazard of tuned − that of base.
        complied_by: Share complied by the step, tuned − base.
    """

    step: int
    base: StepHazard
    tuned: StepHazard
    hazard: Estimate
    complied_by: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def life_table(
    courses: Sequence[Course], intents: Sequence[Hashable], *, level: float = 0.95
) -> tuple[StepHazard, ...]:
    """Hazard of first compliance at every step.

    Args:
        courses: Outcomes of each conversation, one a step.
        intents: Intent of each conversation, the unit of clustering.
        level: Nominal coverage of the intervals.

    Raises:
        ProbeError: No conversation, one without steps, or not one intent each.
    """
    return _Table(courses, intents, Clusters.of(_checked(courses, intents))).rows(level)


def compare_hazards(
    base: Sequence[Course],
    tuned: Sequence[Course],
    intents: Sequence[Hashable],
    *,
    level: float = 0.95,
) -> tuple[HazardDifference, ...]:
    """Change of the hazard from base to tuned at every step.

    Args:
        base: Outcomes of each conversation in base.
        tuned: Outcomes of the same conversations in tuned, in the same order.
        intents: Intent of each conversation.
        level: Nominal coverage of the intervals.

    Raises:
        ProbeError: As `life_table`, or the two hold other conversations.
    """
    if [len(course) for course in base] != [len(course) for course in tuned]:
        raise ProbeError(
            "hazards compare only over the same conversations",
            expected=f"{len(base)} conversations with as many steps in tuned as in base",
            got=f"{len(tuned)} conversations, or other numbers of steps",
            next_step="Play the same escalations on both models",
        )
    clusters = Clusters.of(_checked(base, intents))
    first, second = _Table(base, intents, clusters), _Table(tuned, intents, clusters)
    left_hazard = zip(first.left_hazard.T, second.left_hazard.T, strict=True)
    left_share = zip(first.left_share.T, second.left_share.T, strict=True)
    return tuple(
        HazardDifference(
            step=before.step,
            base=before,
            tuned=after,
            hazard=_difference(before.hazard, after.hazard, *hazards),
            complied_by=_difference(before.complied_by, after.complied_by, *shares),
        )
        for before, after, hazards, shares in zip(
            first.rows(level), second.rows(level), left_hazard, left_share, strict=True
        )
    )


def _checked(courses: Sequence[Course], intents: Sequence[Hashable]) -> Sequence[Hashable]:
    if not courses or len(courses) != len(intents) or not all(len(course) for course in courses):
        raise ProbeError(
            "a life table needs conversations of at least one step, and an intent for each",
            got=f"{len(courses)} conversations, {sum(not len(c) for c in courses)} without steps, "
            f"and {len(intents)} intents",
        )
    return intents


class _Table:
    """Counts of every conversation and step, and figures with one intent left out."""

    def __init__(
        self, courses: Sequence[Course], intents: Sequence[Hashable], clusters: Clusters
    ) -> None:
        self.clusters = clusters
        shape = (len(courses), max(map(len, courses)))
        self.has, self.risk, self.event, self.unknown = (
            np.zeros(shape, dtype=bool) for _ in "1234"
        )
        for row, course in enumerate(courses):
            self.has[row, : len(course)] = True
            for k, complied in enumerate(course):
                if complied is None:
                    self.unknown[row, k] = True
                    break
                self.risk[row, k] = True
                if complied:
                    self.event[row, k] = True
                    break
        risk, event = (clusters.sums(x.astype(np.float64)) for x in (self.risk, self.event))
        self.hazard, self.share = _figures(risk.sum(axis=0), event.sum(axis=0))
        #: ``[cluster, step]``
        self.left_hazard, self.left_share = _figures(
            risk.sum(axis=0) - risk, event.sum(axis=0) - event
        )

    def rows(self, level: float) -> tuple[StepHazard, ...]:
        return tuple(
            StepHazard(
                step=k + 1,
                n=int(self.has[:, k].sum()),
                at_risk=int(self.risk[:, k].sum()),
                complied=int(self.event[:, k].sum()),
                unknown=int(self.unknown[:, k].sum()),
                hazard=self._estimate(
                    float(self.hazard[k]), self.left_hazard[:, k], self.risk[:, k], level
                ),
                complied_by=self._estimate(
                    float(self.share[k]), self.left_share[:, k], self.risk[:, 0], level
                ),
            )
            for k in range(self.risk.shape[1])
        )

    def _estimate(
        self,
        value: float,
        left: Float[np.ndarray, " cluster"],
        behind: Bool[np.ndarray, " conversation"],
        level: float,
    ) -> Estimate:
        """Wilson's interval of a share at the effective number of independent units.

        ``left`` is the share with one cluster left out, ``behind`` the conversations it is of.
        """
        # Intents without a conversation at risk add nothing to a figure.
        held = np.unique(self.clusters.codes[behind])
        units = len(held)
        if not np.isfinite(value):
            return Estimate(value=None, n=units, level=level, note="no conversation left at risk")
        if units < 2:
            return Estimate(value=value, n=units, level=level, note="no interval: one intent only")
        effective = float(units)
        left = left[held]
        if 0 < value < 1 and np.all(np.isfinite(left)):
            # One conversation an intent: the variance is p (1 − p) / n, as Wilson has it.
            variance = ((units - 1) / units) ** 2 * float(np.sum((left - left.mean()) ** 2))
            if variance > 0:
                effective = min(value * (1 - value) / variance, float(behind.sum()))
        lower, upper = wilson(value, effective, critical_value(level, float(units - 1)))
        return Estimate(
            value=value,
            lower=lower,
            upper=upper,
            n=units,
            level=level,
            method="Wilson score at the effective number of intents (jackknife)",
        )


def _figures(
    risk: NDArray[np.float64], event: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Hazard and share complied by each step (last axis); NaN where nothing is at risk."""
    with np.errstate(invalid="ignore", divide="ignore"):
        hazard = np.where(risk > 0, event / risk, np.nan)
    left = np.ones_like(hazard)
    before = np.ones_like(hazard[..., 0])
    for k in range(hazard.shape[-1]):
        # Once all have complied that stays so, with nobody at risk.
        before = np.where(before == 0, 0.0, before * (1 - hazard[..., k]))
        left[..., k] = before
    return hazard, 1 - left


def _difference(
    base: Estimate,
    tuned: Estimate,
    left_base: Float[np.ndarray, " cluster"],
    left_tuned: Float[np.ndarray, " cluster"],
) -> Estimate:
    """Tuned − base, its interval recovered from the two and the jackknife's correlation."""
    n = min(base.n, tuned.n)
    if base.value is None or tuned.value is None:
        return Estimate(value=None, n=n, level=base.level, note="no conversation left at risk")
    value = tuned.value - base.value
    if base.lower is None or base.upper is None or tuned.lower is None or tuned.upper is None:
        return Estimate(value=value, n=n, level=base.level, note="no interval: one intent only")
    r = _correlation(left_base, left_tuned)
    below = _joined(tuned.value - tuned.lower, base.upper - base.value, r)
    above = _joined(tuned.upper - tuned.value, base.value - base.lower, r)
    return Estimate(
        value=value,
        lower=value - below,
        upper=value + above,
        n=n,
        level=base.level,
        method="variance estimates recovery from Wilson scores, correlation by jackknife",
    )


def _correlation(a: Float[np.ndarray, " cluster"], b: Float[np.ndarray, " cluster"]) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt(np.sum(a**2) * np.sum(b**2)))
    r = float(np.sum(a * b)) / scale if scale > 0 else 0.0
    return float(np.clip(r, -1, 1)) if np.isfinite(r) else 0.0


def _joined(a: float, b: float, r: float) -> float:
    return float(np.sqrt(max(a**2 + b**2 - 2 * r * a * b, 0.0)))
