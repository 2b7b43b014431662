"""How likely a model is to refuse at each projection on the direction: its curve and interval."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from refusaldir.probes.link.logistic import separable
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, critical_value, jackknife

FloatArray = NDArray[np.float64]

#: Points at which a curve is given.
_POINTS = 61


@dataclass(frozen=True, kw_only=True)
class RefusalCurve:
    """P(refuse | z) in one model, for reading and for drawing.

    Attributes:
        model: ``"base"`` or ``"tuned"``.
        intercept: a, in nats of log odds at z = 0.
        slope: b, in nats per unit of z.
        separable: Whether a threshold on z tells every refusal from every answer; the slope is
            then as steep as the ridge lets it be, and says only that.
        z: Projections, ascending, over both models' range.
        probability: P(refuse) at each; empty where the curve cannot be estimated.
        lower: Lower end of its pointwise interval; empty without one.
        upper: Upper end.
        note: Why there is no curve, or what limits it.
    """

    model: str
    intercept: Estimate
    slope: Estimate
    separable: bool
    z: tuple[float, ...]
    probability: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    note: str = ""


def refusal_curve(
    model: str,
    coefficients: FloatArray,
    leave_out: FloatArray,
    both_z: FloatArray,
    y: FloatArray,
    z: FloatArray,
    units: tuple[float, float],
    clusters: Clusters,
    level: float,
) -> RefusalCurve:
    """Put a fitted curve into units of the projection, with intervals.

    Args:
        model: ``"base"`` or ``"tuned"``.
        coefficients: Intercept and slope in SDs, ``[2]``.
        leave_out: The same without each cluster, ``[cluster, 2]``.
        both_z: Projections of both models, for the range.
        y: Share of this model's replies to each prompt that refuse.
        z: Its projections.
        units: Centre and SD that the coefficients are in.
        clusters: The clusters left out.
        level: Nominal coverage.
    """
    why = _why_none(z, y)
    if why:
        none = Estimate(value=None, n=clusters.n, level=level, note=f"not estimable: {why}")
        return RefusalCurve(
            model=model, intercept=none, slope=none, separable=False,
            z=(), probability=(), lower=(), upper=(), note=why,
        )  # fmt: skip
    centre, scale = units
    apart = separable(z, y)
    note = (
        "a threshold on the projection tells every refusal from every answer: the slope is held "
        "finite by a small ridge"
        if apart
        else ""
    )

    def in_units(theta: FloatArray) -> FloatArray:
        slope = theta[..., 1] / scale
        return np.stack([theta[..., 0] - slope * centre, slope], axis=-1)

    value, left = in_units(coefficients), in_units(leave_out)
    grid = np.linspace(both_z.min(), both_z.max(), _POINTS)
    log_odds = value[0] + value[1] * grid
    error = np.sqrt(np.sum(clusters.centre(left[:, :1] + left[:, 1:] * grid) ** 2, axis=0))
    half = critical_value(level, float(clusters.df)) * error
    known = clusters.n > 1 and bool(np.all(np.isfinite(half)))
    intercept, slope = (
        jackknife(float(value[i]), left[:, i], clusters, level=level, note=note) for i in (0, 1)
    )
    return RefusalCurve(
        model=model,
        intercept=intercept,
        slope=slope,
        separable=apart,
        z=_rounded(grid),
        probability=_rounded(expit(log_odds)),
        lower=_rounded(expit(log_odds - half)) if known else (),
        upper=_rounded(expit(log_odds + half)) if known else (),
        note=note,
    )


def _rounded(values: FloatArray) -> tuple[float, ...]:
    """Six digits, which is more than a drawing shows."""
    return tuple(float(f"{value:.6g}") for value in values)


def _why_none(z: FloatArray, y: FloatArray) -> str:
    """Why a curve cannot be estimated; empty when it can."""
    if np.all(y == 1) or not y.any():
        what = "no prompt was refused" if not y.any() else "every prompt was refused"
        return f"{what}, so how refusal depends on the projection cannot be estimated"
    if np.ptp(z) <= 1e-9 * max(1.0, float(np.abs(z).max())):
        return "the projection is the same for every prompt, so refusal cannot depend on it"
    return ""
