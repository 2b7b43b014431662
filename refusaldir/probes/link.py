"""How much of a change of the refusal rate goes through the direction.

In each model the refusal of a prompt is read off its projection z at one site::

    P_b(refuse | z) = σ(a_b + b_b z)          P_t(refuse | z) = σ(a_t + b_t z)

With ``R_mk`` the mean over an axis's prompts of model m's curve at the projections of model k,
the change the two curves imply splits into two parts that sum to it exactly::

    encoding = ½ (R_bt − R_bb) + ½ (R_tt − R_tb)     z moved, the reading of it stayed
    readout  = ½ (R_tb − R_bb) + ½ (R_tt − R_bt)     same z, another answer

each averaged over the two orders in which the models can be exchanged (Kitagawa 1955, J. Am.
Stat. Assoc. 50:1168; for two factors this is Shapley's value). What the curves do not reproduce
of the observed change is the residual.

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
from refusaldir.probes.logistic import fit_logistic
from refusaldir.probes.refusal_curve import BoolArray, FloatArray, RefusalCurve, refusal_curve
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, critical_value, jackknife

#: Memory for one block of refits, in elements.
_BLOCK = 2_000_000

#: Share of projections beyond the other model's range that is worth a sentence.
_MUCH_BEYOND = 0.1


@dataclass(frozen=True, kw_only=True)
class AxisParts:
    """The change of one axis's refusal rate and its parts, all as shares from −1 to 1.

    Attributes:
        axis: ``"refusal"`` (harmful prompts) or ``"over_refusal"`` (harmless ones).
        n: Prompts where both responses could be judged.
        observed: Change of the refusal rate, tuned − base, with an interval made as those of its
            parts are, so that they can be compared (`refusaldir.probes.compare` has Tango's).
        modelled: Change that the two curves imply; ``encoding + readout`` exactly.
        encoding: Part of it because z moved.
        readout: Part of it because the same z is answered otherwise.
        residual: ``observed − modelled``.
        rates: Mean of each model's curve at each model's projections: ``base_at_base``,
            ``base_at_tuned``, ``tuned_at_base``, ``tuned_at_tuned``; empty without curves.
    """

    axis: str
    n: int
    observed: Estimate
    modelled: Estimate
    encoding: Estimate
    readout: Estimate
    residual: Estimate
    rates: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class MechanismLink:
    """Refusal against the projection on the direction, in base and in tuned.

    Attributes:
        base: Base's curve.
        tuned: Tuned's.
        axes: The axes that have prompts, refusal first.
        n: Prompts where both responses could be judged.
        n_left_out: Prompts where one could not; they are in nothing here.
        extrapolated: Share of tuned's projections outside the range of base's.
        level: Nominal coverage of the intervals.
        notes: What a reader should know before using the figures.
    """

    base: RefusalCurve
    tuned: RefusalCurve
    axes: tuple[AxisParts, ...]
    n: int
    n_left_out: int
    extrapolated: float
    level: float
    notes: tuple[str, ...]

    def axis(self, name: str) -> AxisParts | None:
        """The parts of one axis, or None when there were no such prompts."""
        return next((parts for parts in self.axes if parts.axis == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def link_to_mechanism(
    *,
    base_z: ArrayLike,
    tuned_z: ArrayLike,
    base_refused: Sequence[bool | None],
    tuned_refused: Sequence[bool | None],
    harmful: Sequence[bool],
    intents: Sequence[Hashable],
    level: float = 0.95,
) -> MechanismLink:
    """Split the change of each axis's refusal rate into encoding and readout.

    Each model's curve is fitted on all prompts given, harmful and harmless together, since one
    side alone seldom has both outcomes; give one side only for curves of that side. Intervals
    leave out one intent at a time and refit both curves. In simulations at 20 to 100 intents
    those of a nominal 95 % covered in 92 to 99 %, a cluster bootstrap's in 91 to 96 %.

    Args:
        base_z: Projection of each prompt in base on the direction, at its site.
        tuned_z: The same prompts in tuned, on the same direction at the same site.
        base_refused: Whether base refused; None where its response could not be judged
            (`refusaldir.probes.outcomes.is_refused`).
        tuned_refused: The same of tuned.
        harmful: Side of each prompt.
        intents: What each prompt asks for; prompts of one intent are not independent.
        level: Nominal coverage.

    Raises:
        ProbeError: The columns differ in length, hold nothing, or a projection is not finite.
    """
    critical_value(level)
    z, y, side, names, left_out = _judged(
        base_z, tuned_z, base_refused, tuned_refused, harmful, intents
    )
    clusters = Clusters.of(names, side)
    centre, scale = float(z.mean()), float(z.std())
    unit = (z - centre) / (scale if scale > 0 else 1.0)
    coefficients, leave_out = _fits(unit, y, clusters)
    beyond = (z[1] < z[0].min()) | (z[1] > z[0].max())
    curves = [
        refusal_curve(
            model, coefficients[m], leave_out[m], z, y[m], z[m], (centre, scale), clusters, level
        )
        for m, model in enumerate(("base", "tuned"))
    ]
    axes = tuple(
        _axis(name, side == is_harmful, unit, y, coefficients, leave_out, clusters, level)
        for name, is_harmful in (("refusal", True), ("over_refusal", False))
        if np.any(side == is_harmful)
    )
    extrapolated = float(beyond.mean())
    notes = [f"{curve.model}: {curve.note}" for curve in curves if curve.note]
    if extrapolated > _MUCH_BEYOND:
        notes.append(
            f"{extrapolated:.0%} of tuned's projections lie outside the range of base's, where "
            "base's curve is extended, not observed: the parts rest on its form there"
        )
    if left_out:
        notes.append(f"{left_out} prompts are left out: a response of theirs could not be judged")
    return MechanismLink(
        base=curves[0],
        tuned=curves[1],
        axes=axes,
        n=len(side),
        n_left_out=left_out,
        extrapolated=extrapolated,
        level=level,
        notes=tuple(notes),
    )


def _judged(
    base_z: ArrayLike,
    tuned_z: ArrayLike,
    base_refused: Sequence[bool | None],
    tuned_refused: Sequence[bool | None],
    harmful: Sequence[bool],
    intents: Sequence[Hashable],
) -> tuple[FloatArray, BoolArray, BoolArray, list[Hashable], int]:
    """Projections ``[model, prompt]``, outcomes, sides and intents where both were judged."""
    columns = {
        "projections of base": np.asarray(base_z, dtype=np.float64),
        "projections of tuned": np.asarray(tuned_z, dtype=np.float64),
    }
    n = len(intents)
    lengths = {name: column.shape for name, column in columns.items()} | {
        "outcomes of base": (len(base_refused),),
        "outcomes of tuned": (len(tuned_refused),),
        "sides": (len(harmful),),
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
    y = np.array([[bool(a[i]) for i in kept] for a in (base_refused, tuned_refused)])
    z = np.stack([column[kept] for column in columns.values()])
    side = np.array([bool(harmful[i]) for i in kept])
    return z, y, side, [intents[i] for i in kept], n - len(kept)


def _fits(unit: FloatArray, y: BoolArray, clusters: Clusters) -> tuple[FloatArray, FloatArray]:
    """Coefficients ``[model, 2]`` and those without each cluster, ``[model, cluster, 2]``."""
    n = unit.shape[1]
    whole = np.stack([fit_logistic(unit[m], y[m], np.ones((1, n)))[0] for m in (0, 1)])
    left = np.full((2, clusters.n, 2), np.nan)
    for rows in _blocks(clusters.n, n):
        weights = (clusters.codes[None] != rows[:, None]).astype(np.float64)
        for m in (0, 1):
            left[m, rows] = fit_logistic(unit[m], y[m], weights)
    return whole, left


def _blocks(clusters: int, n: int) -> list[NDArray[np.intp]]:
    step = max(1, _BLOCK // n)
    return [np.arange(i, min(i + step, clusters)) for i in range(0, clusters, step)]


def _axis(
    name: str,
    chosen: BoolArray,
    unit: FloatArray,
    y: BoolArray,
    coefficients: FloatArray,
    leave_out: FloatArray,
    clusters: Clusters,
    level: float,
) -> AxisParts:
    change = np.where(chosen, y[1].astype(np.float64) - y[0], 0.0)
    total, count = clusters.sums(change), clusters.sums(chosen.astype(np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = total.sum() / count.sum(), (total.sum() - total) / (count.sum() - count)
        means = _rates(unit, chosen, coefficients[:, None], np.zeros((1, len(chosen)), bool))
        left = np.full((2, 2, clusters.n), np.nan)
        for rows in _blocks(clusters.n, len(chosen)):
            without = clusters.codes[None] == rows[:, None]
            left[:, :, rows] = _rates(unit, chosen, leave_out[:, rows], without)
    whole = {key: float(value[0]) for key, value in _split(means).items()}
    parts = _split(left)
    note = "" if np.all(np.isfinite(means)) else "not estimable: a model's curve is missing"

    def estimate(value: float, without: FloatArray, note: str = note) -> Estimate:
        return jackknife(
            float(value), without, clusters, level=level, bounds=(-1.0, 1.0), note=note
        )

    keys = ("base_at_base", "base_at_tuned", "tuned_at_base", "tuned_at_tuned")
    return AxisParts(
        axis=name,
        n=int(chosen.sum()),
        observed=estimate(*observed, note=""),
        modelled=estimate(whole["modelled"], parts["modelled"]),
        encoding=estimate(whole["encoding"], parts["encoding"]),
        readout=estimate(whole["readout"], parts["readout"]),
        residual=estimate(observed[0] - whole["modelled"], observed[1] - parts["modelled"]),
        rates={} if note else dict(zip(keys, means[:, :, 0].ravel().tolist(), strict=True)),
    )


def _rates(
    unit: FloatArray, chosen: BoolArray, coefficients: FloatArray, without: BoolArray
) -> FloatArray:
    """``R[m, k, draw]``: mean of model m's curve at model k's projections over the axis."""
    kept = (~without & chosen).astype(np.float64)[:, chosen]
    out = np.empty((2, 2, len(kept)))
    for m in (0, 1):
        for k in (0, 1):
            a, b = coefficients[m, :, :1], coefficients[m, :, 1:]
            out[m, k] = np.sum(kept * expit(a + b * unit[k][chosen]), axis=1) / kept.sum(axis=1)
    return out


def _split(rate: FloatArray) -> dict[str, FloatArray]:
    """The parts from ``R[m, k, draw]``; they sum to the modelled change."""
    (bb, bt), (tb, tt) = rate
    encoding = ((bt - bb) + (tt - tb)) / 2
    readout = ((tb - bb) + (tt - bt)) / 2
    return {"encoding": encoding, "readout": readout, "modelled": encoding + readout}
