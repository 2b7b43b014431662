"""Intervals of means and of other statistics of clustered prompts."""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import special, stats

from refusaldir.errors import ProbeError, RefusaldirError
from refusaldir.records import Estimate
from refusaldir.statistics.clusters import Clusters

#: Memory for one block of bootstrap weights, in elements.
_BLOCK = 4_000_000


def critical_value(level: float, df: float | None = None) -> float:
    """Two-sided critical value of the normal, or of Student's t on ``df`` degrees of freedom.

    Raises:
        RefusaldirError: When the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise RefusaldirError("the confidence level must lie between 0 and 1", got=level)
    tail = 0.5 + level / 2
    # The functions behind scipy.stats' ppf: a search calls this thousands of times.
    return float(special.ndtri(tail) if df is None else special.stdtrit(df, tail))


def jackknife(
    value: float,
    leave_one_out: Float[np.ndarray, " cluster"],
    clusters: Clusters,
    *,
    level: float = 0.95,
    log: bool = False,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    note: str = "",
) -> Estimate:
    """Interval of a statistic from its values with one cluster left out at a time.

    ``se² = Σ_strata (C_h − 1)/C_h · Σ_c (θ₍₋c₎ − θ̄_h)²`` with Student's t on
    ``C − number of strata`` degrees of freedom (Arvesen 1969; Shao & Tu 1995, ch. 6). For
    U-statistics near a degenerate point the jackknife variance is too large, never too small
    (Efron & Stein 1981), so intervals are conservative there.

    Args:
        value: The statistic on all clusters.
        leave_one_out: The statistic without cluster c, ``[cluster]``.
        clusters: The clusters left out, in the same order.
        level: Nominal coverage.
        log: Work on the logarithm (for ratios); falls back to the plain scale when a value is
            not positive.
        bounds: The range of the parameter; interval ends outside it are moved to it, and
            ``method`` says so. The value itself is never moved.
        note: Carried into the result.

    Returns:
        The estimate; without an interval (and with a note) when a leave-one-out value is not
        finite.
    """
    if not np.isfinite(value):
        return Estimate(value=None, n=clusters.n, level=level, note=note or "not estimable")
    if clusters.n < 2 or not np.all(np.isfinite(leave_one_out)):
        error = float("nan")
    else:
        log = log and value > 0 and bool(np.all(leave_one_out > 0))
        deviations = clusters.centre(np.log(leave_one_out) if log else leave_one_out)
        error = float(np.sqrt(np.sum(deviations**2)))
    return student_interval(
        value,
        error,
        float(clusters.df),
        n=clusters.n,
        level=level,
        log=log,
        bounds=bounds,
        note=note,
        method="cluster jackknife",
    )


def student_interval(
    value: float,
    error: float,
    df: float,
    *,
    n: int,
    level: float = 0.95,
    log: bool = False,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    note: str = "",
    method: str = "",
) -> Estimate:
    """Interval ``value ± t · error``, its ends kept within the range of the parameter.

    Args:
        value: The estimate; it is never moved, even where it lies outside the range.
        error: Standard error, of the logarithm where ``log`` says so; NaN for no interval.
        df: Degrees of freedom of the error.
        n: Number of independent clusters.
        level: Nominal coverage.
        log: Whether the interval is made on the logarithm.
        bounds: The range of the parameter.
        note: Carried into the result.
        method: How the error was made; what was done to the ends is added.
    """
    if not np.isfinite(error):
        reason = (
            "no interval: the figure depends on a single intent"
            if n >= 2
            else "no interval: one intent only"
        )
        note = "; ".join(filter(None, (note, reason)))
        return Estimate(value=float(value), n=n, level=level, note=note)
    centre = np.log(value) if log else value
    half = critical_value(level, df) * error
    lower, upper = centre - half, centre + half
    if half == 0:
        note = "; ".join(filter(None, (note, "no spread between intents: a single point")))
    if log:
        method += " of the logarithm"
        lower, upper = np.exp(lower), np.exp(upper)
    if lower < bounds[0] or upper > bounds[1]:
        method += ", ends limited to the possible range"
        lower = min(max(lower, min(bounds[0], value)), bounds[1])
        upper = max(min(upper, max(bounds[1], value)), bounds[0])
    return Estimate(
        value=float(value),
        lower=float(lower),
        upper=float(upper),
        n=n,
        level=level,
        method=method,
        note=note,
    )


def mean(values: ArrayLike, clusters: Clusters, *, level: float = 0.95, note: str = "") -> Estimate:
    """Mean over units with a cluster-jackknife interval."""
    x = np.asarray(values, dtype=np.float64)
    total, count = clusters.sums(x), clusters.sums(np.ones_like(x))
    with np.errstate(invalid="ignore", divide="ignore"):
        left = (total.sum() - total) / (count.sum() - count)
    return jackknife(float(x.mean()), left, clusters, level=level, note=note)


def cluster_bootstrap_mean(
    values: ArrayLike,
    clusters: Sequence[Hashable],
    seed: int = 0,
    n_boot: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Mean over units, with whole clusters drawn with replacement.

    Percentile interval, its tails widened to Student's t so that few clusters do not make it
    too short (the expanded percentile interval of Hesterberg 2015, §5.3).

    Args:
        values: One number or boolean per unit.
        clusters: Cluster name of each unit, e.g. the intent id.
        seed: Seed of the draws.
        n_boot: Number of draws.
        level: Nominal coverage.

    Raises:
        ProbeError: When values and clusters differ in number, are empty or not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) != len(clusters) or len(x) == 0 or not np.all(np.isfinite(x)):
        raise ProbeError(
            "a mean needs one finite value and one cluster per unit",
            expected=f"{len(clusters)} finite values",
            got=f"shape {x.shape}, {int(np.isfinite(x).sum())} finite",
        )
    groups = Clusters.of(clusters)
    if groups.n < 2:
        return Estimate(
            value=float(x.mean()), n=groups.n, level=level, note="no interval: one cluster only"
        )
    total, count = groups.sums(x), groups.sums(np.ones_like(x))
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, n_boot, step := max(1, _BLOCK // groups.n)):
        rows = min(step, n_boot - start)
        weight = rng.multinomial(groups.n, np.full(groups.n, 1 / groups.n), size=rows)
        parts.append((weight @ total) / (weight @ count))
    means = np.concatenate(parts)
    tail = stats.norm.cdf(-np.sqrt(groups.n / (groups.n - 1)) * critical_value(level, groups.n - 1))
    lower, upper = np.quantile(means, [tail, 1 - tail])
    return Estimate(
        value=float(x.mean()),
        lower=float(lower),
        upper=float(upper),
        n=groups.n,
        level=level,
        method="cluster bootstrap, expanded percentile",
        note="" if lower < upper else "all clusters agree: the interval is a single point",
    )
