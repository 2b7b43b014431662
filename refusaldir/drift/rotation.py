"""How far the direction has turned at one site, and what became of its length."""

import math
from dataclasses import replace

import numpy as np

from refusaldir.drift.contrasts import Contrasts, missing, root
from refusaldir.geometry import angle_degrees
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, Deviations, fieller_ends, jackknife

#: Where the squared norm is less than the first many standard errors above 0, Fieller's interval
#: counts in full; from the second on, not at all.
_FIELLER = (3.0, 4.0)
_TINY = np.finfo(np.float64).tiny


def _same(clusters: Clusters, level: float) -> Estimate:
    """The cosine, and the ratio of norms, of a direction with itself."""
    return Estimate(
        value=1.0,
        lower=1.0,
        upper=1.0,
        n=clusters.n,
        level=level,
        method="exact",
        note="the activations are identical",
    )


def rotation(contrasts: Contrasts, *, level: float = 0.95) -> tuple[Estimate, Deviations | None]:
    """Corrected cosine ``⟨rᵇ,rᵗ⟩*/√(‖rᵇ‖²*‖rᵗ‖²*)``, and what its variance is made of.

    It may exceed 1 by sampling noise; it is not clipped. With ``λ = ‖rᵗ‖*/‖rᵇ‖*`` its error is,
    to second order, that of the U-statistic ``⟨rᵇ,rᵗ⟩* − cos·½(λ‖rᵇ‖²* + ‖rᵗ‖²*/λ)`` over
    ``‖rᵇ‖*‖rᵗ‖*``: an error of λ itself moves nothing to first order.

    Returns:
        The estimate (None with a note when not estimable) and its deviations, or None.
    """
    clusters = contrasts.design.clusters
    if contrasts.reason:
        return missing(clusters, level, contrasts.reason), None
    if contrasts.identical:
        nothing = Deviations(
            first=np.zeros(clusters.n), second=np.zeros((clusters.n,) * 2), clusters=clusters
        )
        return _same(clusters, level), nothing
    if note := contrasts.within_noise:
        return missing(clusters, level, note), None
    b, t = contrasts.base.corrected, contrasts.tuned.corrected
    scale = math.sqrt(b * t)
    value = contrasts.cross.corrected / scale
    cos = float(np.clip(value, -1.0, 1.0))
    deviations = contrasts.deviations(cross=1 / scale, base=-cos / (2 * b), tuned=-cos / (2 * t))
    note = "above 1 by noise: no rotation is visible" if value > 1 else ""
    estimate = deviations.interval(value, level=level, bounds=(-1.0, 1.0), note=note)
    return _widened(estimate, contrasts), deviations


def _widened(cos: Estimate, contrasts: Contrasts) -> Estimate:
    """The cosine's interval, as wide as Fieller's where a direction is hardly above its noise.

    That a direction seems long enough to carry a cosine is then partly chance, which makes the
    cosine too small and the linearised interval too short.
    """
    b, t = contrasts.base.corrected, contrasts.tuned.corrected
    errors = contrasts.norm_errors
    clear = min(b / max(errors["base"], _TINY), t / max(errors["tuned"], _TINY))
    share = float(np.clip((_FIELLER[1] - clear) / (_FIELLER[1] - _FIELLER[0]), 0.0, 1.0))
    if share == 0 or cos.value is None or cos.lower is None or cos.upper is None:
        return cos
    lower, upper = fieller_ends(
        cos.value,
        contrasts.deviations(cross=1 / math.sqrt(b * t)),
        contrasts.deviations(base=1 / (2 * b), tuned=1 / (2 * t)),
        level=cos.level,
        bounds=(-1.0, 1.0),
    )
    return replace(
        cos,
        lower=cos.lower + share * min(lower - cos.lower, 0.0),
        upper=cos.upper + share * max(upper - cos.upper, 0.0),
        method=f"{cos.method}, widened to Fieller's as the direction is short for its noise",
    )


def raw_rotation(contrasts: Contrasts, *, level: float = 0.95) -> Estimate:
    """Cosine of the two sample directions: biased, and so is what its interval covers."""
    clusters = contrasts.design.clusters
    if contrasts.reason:
        return missing(clusters, level, contrasts.reason)
    if contrasts.identical:
        return _same(clusters, level)
    b, t, x = contrasts.base, contrasts.tuned, contrasts.cross
    value = float(np.clip(x.raw / math.sqrt(b.raw * t.raw), -1, 1))
    left = x.raw_left / (root(b.raw_left) * root(t.raw_left))
    return jackknife(
        value, left, clusters, level=level, bounds=(-1.0, 1.0),
        note="not corrected for noise: its interval is about a biased figure",
    )  # fmt: skip


def shrinkage(contrasts: Contrasts, *, level: float = 0.95) -> Estimate:
    """``‖rᵗ‖*/‖rᵇ‖*``, interval on its logarithm; None with a note when not estimable."""
    clusters = contrasts.design.clusters
    if contrasts.reason:
        return missing(clusters, level, contrasts.reason)
    if contrasts.identical:
        return _same(clusters, level)
    if note := contrasts.within_noise:
        return missing(clusters, level, note)
    b, t = contrasts.base.corrected, contrasts.tuned.corrected
    deviations = contrasts.deviations(base=-1 / (2 * b), tuned=1 / (2 * t))
    return deviations.interval(math.sqrt(t / b), level=level, log=True)


def direction_norm(contrasts: Contrasts, side: str, *, level: float = 0.95) -> Estimate:
    """Norm of the direction of ``"base"`` or ``"tuned"``, corrected for noise."""
    clusters = contrasts.design.clusters
    if contrasts.reason:
        return missing(clusters, level, contrasts.reason)
    square = (contrasts.base if side == "base" else contrasts.tuned).corrected
    if not square > 0:
        return missing(clusters, level, "not estimable: not above 0 once corrected for noise")
    deviations = contrasts.deviations(**{side: 1 / (2 * square)})
    return deviations.interval(math.sqrt(square), level=level, log=True)


def angle(cos: Estimate) -> Estimate:
    """The angle of a cosine estimate in degrees, ends exchanged; 0 when the cosine is above 1."""
    if cos.value is None or cos.lower is None or cos.upper is None:
        value = None if cos.value is None else angle_degrees(cos.value)
        return Estimate(value=value, n=cos.n, level=cos.level, note=cos.note)
    return Estimate(
        value=angle_degrees(cos.value),
        lower=angle_degrees(cos.upper),
        upper=angle_degrees(cos.lower),
        n=cos.n,
        level=cos.level,
        method=f"{cos.method}, of the cosine",
        note=cos.note,
    )
