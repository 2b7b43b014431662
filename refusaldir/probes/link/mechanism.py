"""How much of a change of the refusal rate goes through the direction.

In each model the refusal of a prompt is read off its projection z at one site::

    P_b(refuse | z) = σ(a_b + b_b z)          P_t(refuse | z) = σ(a_t + b_t z)

With ``R_mk`` the mean over some prompts of model m's curve at the projections of model k, the
change the two curves imply splits into two parts that sum to it exactly::

    encoding = ½ (R_bt − R_bb) + ½ (R_tt − R_tb)     z moved, the reading of it stayed
    readout  = ½ (R_tb − R_bb) + ½ (R_tt − R_bt)     same z, another answer

each averaged over the two orders in which the models can be exchanged (Kitagawa 1955, J. Am.
Stat. Assoc. 50:1168; for two factors this is Shapley's value). What the curves do not reproduce
of the observed change is the residual. The curves are fitted on all prompts and read in every
group of them, so a group that is answered in a way of its own shows that in its residual.

It is an account, not a cause: z stands for all that moves with it, and where tuned's projections
lie beyond those that base ever had, base's curve is extended, not observed (`extrapolated`).
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from refusaldir.errors import ProbeError
from refusaldir.probes.link.logistic import fit_logistic
from refusaldir.probes.link.refusal_curve import FloatArray, RefusalCurve, refusal_curve
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, critical_value, student_interval

BoolArray = NDArray[np.bool_]

#: Name of each axis, and whether it is that of harmful prompts.
AXES = (("refusal", True), ("over_refusal", False))

#: What the rate of each axis is called in sentences.
SUBJECTS = {
    "refusal": "refusals of harmful prompts",
    "over_refusal": "refusals of harmless prompts",
}

#: Memory for one block of refits, in elements.
_BLOCK = 2_000_000

#: Share of projections beyond the other model's range that is worth a sentence.
_MUCH_BEYOND = 0.1

#: Bins of the histograms of projections.
_BINS = 30


@dataclass(frozen=True, kw_only=True)
class LinkParts:
    """The change of a refusal rate and its parts, all as shares from −1 to 1.

    Attributes:
        axis: ``"refusal"`` (harmful prompts) or ``"over_refusal"`` (harmless ones).
        group: The group of prompts: a category or a turn; None for all of the axis.
        n: Prompts where both responses could be judged.
        observed: Change of the refusal rate, tuned − base, with an interval made as those of its
            parts are, so that they can be compared (`refusaldir.probes.comparison` has Tango's).
        modelled: Change that the two curves imply; ``encoding + readout`` exactly.
        encoding: Part of it because z moved.
        readout: Part of it because the same z is answered otherwise.
        residual: ``observed − modelled``.
        shift: Mean change of z, tuned − base, in units of the residual stream.
        rates: Mean of each model's curve at each model's projections: ``base_at_base``,
            ``base_at_tuned``, ``tuned_at_base``, ``tuned_at_tuned``; empty without curves.
    """

    axis: str
    group: str | int | None
    n: int
    observed: Estimate
    modelled: Estimate
    encoding: Estimate
    readout: Estimate
    residual: Estimate
    shift: Estimate
    rates: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ProjectionHistogram:
    """How the projections of both models lie, for drawing.

    Attributes:
        edges: Ends of the bins, ascending, over both models' range.
        base: Prompts in each bin in base, by side: ``"harmful"`` and ``"harmless"``.
        tuned: The same in tuned.
    """

    edges: tuple[float, ...]
    base: Mapping[str, tuple[int, ...]]
    tuned: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class MechanismLink:
    """Refusal against the projection on the direction, in base and in tuned.

    Attributes:
        base: Base's curve.
        tuned: Tuned's.
        axes: Parts of the axes that have prompts, refusal first.
        groups: Parts of every group on either axis, in the same order, groups by name.
        histogram: Where the projections lie.
        n: Prompts where both responses could be judged.
        n_left_out: Prompts where one could not; they are in nothing here.
        extrapolated: Share of tuned's projections outside the range of base's.
        level: Nominal coverage of the intervals.
        notes: What a reader should know before using the figures.
    """

    base: RefusalCurve
    tuned: RefusalCurve
    axes: tuple[LinkParts, ...]
    groups: tuple[LinkParts, ...]
    histogram: ProjectionHistogram
    n: int
    n_left_out: int
    extrapolated: float
    level: float
    notes: tuple[str, ...]

    def axis(self, name: str) -> LinkParts | None:
        """The parts of one axis, or None when there were no such prompts."""
        return next((parts for parts in self.axes if parts.axis == name), None)

    def group(self, axis: str, name: str | int) -> LinkParts | None:
        """The parts of one group on one axis, or None when there were no such prompts."""
        return next((p for p in self.groups if (p.axis, p.group) == (axis, name)), None)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def link_to_mechanism(
    *,
    base_z: ArrayLike,
    tuned_z: ArrayLike,
    base_refused: Sequence[float | None],
    tuned_refused: Sequence[float | None],
    harmful: Sequence[bool],
    intents: Sequence[Hashable],
    groups: Sequence[str | int] | None = None,
    level: float = 0.95,
) -> MechanismLink:
    """Split the change of each axis's refusal rate into encoding and readout.

    Each model's curve is fitted on all prompts given, harmful and harmless together, since one
    side alone seldom has both outcomes; give one side only for curves of that side. Intervals
    leave out one intent at a time and refit both curves. In simulations at 20 to 100 intents
    those of a nominal 95 % covered in 92 to 99 %, a cluster bootstrap's in 91 to 96 %; those of
    groups of 8 to 24 intents in 94 to 99 %.

    Args:
        base_z: Projection of each prompt in base on the direction, at its site.
        tuned_z: The same prompts in tuned, on the same direction at the same site.
        base_refused: Whether base refused, or the share of its replies to the prompt that refuse;
            None where none could be judged (`refusaldir.probes.outcomes.is_refused`).
        tuned_refused: The same of tuned.
        harmful: Side of each prompt.
        intents: What each prompt asks for; prompts of one intent are not independent.
        groups: Each prompt's group, e.g. its category or its turn; None for none.
        level: Nominal coverage.

    Raises:
        ProbeError: The columns differ in length, hold nothing, a projection is not finite, or a
            share lies outside 0 and 1.
    """
    critical_value(level)
    found = _judged(base_z, tuned_z, base_refused, tuned_refused, harmful, intents, groups)
    z, y, side = found.z, found.y, found.side
    clusters = Clusters.of(found.intents, side)
    centre, scale = float(z.mean()), float(z.std())
    unit = (z - centre) / (scale if scale > 0 else 1.0)
    coefficients, leave_out = _fits(unit, y, clusters)
    curves = [
        refusal_curve(
            model, coefficients[m], leave_out[m], z, y[m], z[m], (centre, scale), clusters, level
        )
        for m, model in enumerate(("base", "tuned"))
    ]
    split = _Split(z, unit, y, coefficients, leave_out, clusters, level)
    names = [] if groups is None else sorted(set(found.groups))
    member = np.array(found.groups, dtype=object)
    here = [(name, side == is_harmful) for name, is_harmful in AXES if np.any(side == is_harmful)]
    beyond = float(np.mean((z[1] < z[0].min()) | (z[1] > z[0].max())))
    return MechanismLink(
        base=curves[0],
        tuned=curves[1],
        axes=tuple(split.parts(axis, None, chosen) for axis, chosen in here),
        groups=tuple(
            split.parts(axis, name, chosen & (member == name))
            for axis, chosen in here
            for name in names
            if np.any(chosen & (member == name))
        ),
        histogram=_histogram(z, side),
        n=len(side),
        n_left_out=found.left_out,
        extrapolated=beyond,
        level=level,
        notes=tuple(_notes(curves, beyond, found.left_out)),
    )


def _notes(curves: Sequence[RefusalCurve], beyond: float, left_out: int) -> list[str]:
    notes = [f"{curve.model}: {curve.note}" for curve in curves if curve.note]
    for curve in curves:
        low, high = curve.slope.lower, curve.slope.upper
        if low is not None and high is not None and low <= 0 <= high:
            notes.append(
                f"{curve.model}: refusal does not detectably depend on the projection, so what "
                "moves the projection cannot be told to move refusal"
            )
    if beyond > _MUCH_BEYOND:
        notes.append(
            f"{100 * beyond:.0f} % of tuned's projections lie outside the range of base's, where "
            "base's curve is extended, not observed: the parts rest on its form there"
        )
    if left_out:
        notes.append(f"{left_out} prompts are left out: a response of theirs could not be judged")
    return notes


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judged:
    """Prompts where both responses were judged; arrays are ``[model, prompt]`` or ``[prompt]``."""

    z: FloatArray
    y: FloatArray
    side: BoolArray
    intents: Sequence[Hashable]
    groups: Sequence[Any]
    left_out: int


def _judged(
    base_z: ArrayLike,
    tuned_z: ArrayLike,
    base_refused: Sequence[float | None],
    tuned_refused: Sequence[float | None],
    harmful: Sequence[bool],
    intents: Sequence[Hashable],
    groups: Sequence[str | int] | None,
) -> _Judged:
    columns = {
        "projections of base": np.asarray(base_z, dtype=np.float64),
        "projections of tuned": np.asarray(tuned_z, dtype=np.float64),
    }
    n = len(intents)
    lengths = {name: column.shape for name, column in columns.items()} | {
        "outcomes of base": (len(base_refused),),
        "outcomes of tuned": (len(tuned_refused),),
        "sides": (len(harmful),),
        "groups": (n if groups is None else len(groups),),
    }
    for name, shape in lengths.items():
        if shape != (n,):
            raise ProbeError(
                "each prompt needs one value in every column",
                expected=f"{n} values, as there are intents",
                got=f"an array of shape {shape}" if len(shape) != 1 else shape[0],
                where=name,
            )
    for name, column in columns.items():
        if not np.all(np.isfinite(column)):
            raise ProbeError(
                "a projection is not finite",
                got=f"{int(np.sum(~np.isfinite(column)))} of {n}",
                where=name,
            )
    both = [
        a is not None and b is not None for a, b in zip(base_refused, tuned_refused, strict=True)
    ]
    kept = [i for i, judged in enumerate(both) if judged]
    if not kept:
        raise ProbeError(
            "refusal cannot be linked to the direction",
            expected="prompts where both responses could be judged",
            got=f"none of {n}",
        )
    y = np.array([[a[i] for i in kept] for a in (base_refused, tuned_refused)], dtype=np.float64)
    if not np.all((y >= 0) & (y <= 1)):
        raise ProbeError("a share of refusals lies between 0 and 1", got=f"{y.min()} to {y.max()}")
    return _Judged(
        z=np.stack([column[kept] for column in columns.values()]),
        y=y,
        side=np.array([bool(harmful[i]) for i in kept]),
        intents=[intents[i] for i in kept],
        groups=[None if groups is None else groups[i] for i in kept],
        left_out=n - len(kept),
    )


def _histogram(z: FloatArray, side: BoolArray) -> ProjectionHistogram:
    low, high = float(z.min()), float(z.max())
    room = 0.5 if low == high else 0.0
    edges = np.linspace(low - room, high + room, _BINS + 1)
    base, tuned = (
        {
            name: tuple(np.histogram(own[side == harmful], edges)[0].tolist())
            for name, harmful in (("harmful", True), ("harmless", False))
        }
        for own in z
    )
    return ProjectionHistogram(edges=tuple(edges.tolist()), base=base, tuned=tuned)


def _fits(unit: FloatArray, y: FloatArray, clusters: Clusters) -> tuple[FloatArray, FloatArray]:
    """Coefficients ``[model, 2]`` and those without each cluster, ``[model, cluster, 2]``."""
    n = unit.shape[1]
    whole = np.stack([fit_logistic(unit[m], y[m], np.ones((1, n)))[0] for m in (0, 1)])
    left = np.full((2, clusters.n, 2), np.nan)
    for rows in _blocks(clusters.n, n):
        weights = (clusters.codes[None] != rows[:, None]).astype(np.float64)
        for m in (0, 1):
            left[m, rows] = fit_logistic(unit[m], y[m], weights, start=whole[m])
    return whole, left


def _blocks(clusters: int, n: int) -> list[NDArray[np.intp]]:
    step = max(1, _BLOCK // n)
    return [np.arange(i, min(i + step, clusters)) for i in range(0, clusters, step)]


class _Split:
    """Splits the change of any group of prompts with one pair of curves.

    Args:
        z: Projections, ``[model, prompt]``.
        unit: The same in SDs.
        y: Shares of refusals, ``[model, prompt]``.
        coefficients: ``[model, 2]``.
        leave_out: ``[model, cluster, 2]``.
        clusters: Intents of all prompts.
        level: Nominal coverage.
    """

    def __init__(
        self,
        z: FloatArray,
        unit: FloatArray,
        y: FloatArray,
        coefficients: FloatArray,
        leave_out: FloatArray,
        clusters: Clusters,
        level: float,
    ) -> None:
        self.changes = {"observed": y[1] - y[0], "shift": z[1] - z[0]}
        self.unit, self.clusters, self.level = unit, clusters, level
        self.coefficients, self.leave_out = coefficients, leave_out

    def parts(self, axis: str, group: str | int | None, chosen: BoolArray) -> LinkParts:
        """The parts over some prompts."""
        clusters = self.clusters
        members = np.unique(clusters.codes[chosen])
        plain = {name: self._mean(change, chosen) for name, change in self.changes.items()}
        means = self._rates(chosen, self.coefficients[:, None], np.full((1, len(chosen)), True))
        left = np.full((2, 2, clusters.n), np.nan)
        for rows in _blocks(clusters.n, int(chosen.sum())):
            kept = clusters.codes[None] != rows[:, None]
            left[:, :, rows] = self._rates(chosen, self.leave_out[:, rows], kept)
        whole = {name: float(value[0]) for name, value in _parts(means).items()}
        without = _parts(left)
        note = "" if np.all(np.isfinite(means)) else "not estimable: a model's curve is missing"

        def estimate(
            value: float, left: FloatArray, note: str = note, bound: float = 1.0
        ) -> Estimate:
            if not np.isfinite(value):
                return Estimate(value=None, n=len(members), level=self.level, note=note)
            error = float(np.sqrt(np.sum(clusters.centre(left) ** 2)))
            return student_interval(
                value,
                error if len(members) > 1 else float("nan"),
                # Intents outside the group say little of it.
                float(max(min(clusters.df, len(members) - 1), 1)),
                n=len(members),
                level=self.level,
                bounds=(-bound, bound),
                note=note,
                method="cluster jackknife",
            )

        observed, observed_left = plain["observed"]
        keys = ("base_at_base", "base_at_tuned", "tuned_at_base", "tuned_at_tuned")
        return LinkParts(
            axis=axis,
            group=group,
            n=int(chosen.sum()),
            observed=self._observed(estimate(observed, observed_left, note="")),
            modelled=estimate(whole["modelled"], without["modelled"]),
            encoding=estimate(whole["encoding"], without["encoding"]),
            readout=estimate(whole["readout"], without["readout"]),
            residual=estimate(observed - whole["modelled"], observed_left - without["modelled"]),
            shift=estimate(*plain["shift"], note="", bound=np.inf),
            rates={} if note else dict(zip(keys, means[:, :, 0].ravel().tolist(), strict=True)),
        )

    @staticmethod
    def _observed(change: Estimate) -> Estimate:
        """A change of outcomes; that all are alike is no reason to be sure."""
        if change.lower is None or change.lower != change.upper:
            return change
        note = "no interval: the change is the same in every intent"
        return Estimate(value=change.value, n=change.n, level=change.level, note=note)

    def _mean(self, change: FloatArray, chosen: BoolArray) -> tuple[float, FloatArray]:
        """Mean over the prompts, and without each cluster."""
        total = self.clusters.sums(np.where(chosen, change, 0.0))
        count = self.clusters.sums(chosen.astype(np.float64))
        with np.errstate(invalid="ignore", divide="ignore"):
            left = (total.sum() - total) / (count.sum() - count)
        return float(total.sum() / count.sum()), left

    def _rates(self, chosen: BoolArray, coefficients: FloatArray, kept: BoolArray) -> FloatArray:
        """``R[m, k, draw]``: mean of model m's curve at model k's projections over the prompts."""
        weights = kept[:, chosen].astype(np.float64)
        out = np.empty((2, 2, len(weights)))
        with np.errstate(invalid="ignore", divide="ignore"):
            for m in (0, 1):
                for k in (0, 1):
                    a, b = coefficients[m, :, :1], coefficients[m, :, 1:]
                    p = expit(a + b * self.unit[k][chosen])
                    out[m, k] = np.sum(weights * p, axis=1) / weights.sum(axis=1)
        return out


def _parts(rate: FloatArray) -> dict[str, FloatArray]:
    """The parts from ``R[m, k, draw]``; they sum to the modelled change."""
    (bb, bt), (tb, tt) = rate
    encoding = ((bt - bb) + (tt - tb)) / 2
    readout = ((tb - bb) + (tt - bt)) / 2
    return {"encoding": encoding, "readout": readout, "modelled": encoding + readout}
