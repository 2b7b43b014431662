"""Intervals that cover many figures at once: layers, components, categories."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from refusaldir.records import Estimate
from refusaldir.statistics.clusters import Clusters
from refusaldir.statistics.intervals import critical_value
from refusaldir.statistics.second_order import Deviations


def simultaneous_critical(
    deviations: Float[np.ndarray, "cluster figure"],
    *,
    level: float = 0.95,
    df: int,
    seed: int = 0,
    n_boot: int = 2000,
) -> float:
    """Critical value for intervals that cover all figures at once (max-statistic).

    Gaussian multiplier bootstrap of the jackknife deviations (Chernozhukov, Chetverikov &
    Kato 2013): the quantile of ``max_j |Σ_c g_c d_cj| / se_j``, taken to Student's t at the same
    tail for few clusters and never below the pointwise value.

    Args:
        deviations: From `Clusters.centre`, one column per figure; columns without spread are
            left out.
        level: Nominal simultaneous coverage.
        df: Degrees of freedom, `Clusters.df`.
        seed: Seed of the multipliers.
        n_boot: Number of draws.
    """
    pointwise = critical_value(level, df)
    scale = np.sqrt(np.sum(deviations**2, axis=0))
    used = np.isfinite(scale) & (scale > 0)
    if not used.any():
        return pointwise
    standard = deviations[:, used] / scale[used]
    rng = np.random.default_rng(seed)
    draws = rng.standard_normal((n_boot, len(standard))) @ standard
    critical = float(np.quantile(np.abs(draws).max(axis=1), level))
    return max(-float(stats.t.ppf(stats.norm.cdf(-critical), df)), pointwise)


def band_widening(
    firsts: Sequence[Float[np.ndarray, " cluster"]],
    clusters: Clusters,
    *,
    level: float = 0.95,
    seed: int = 0,
    draws: int = 2000,
) -> float:
    """How many times wider intervals must be to cover all figures at once (max-statistic).

    Args:
        firsts: First-order deviations of each figure, on the same clusters.
        clusters: The clusters.
        level: Nominal simultaneous coverage.
        seed: Seed of the multiplier bootstrap.
        draws: Number of draws.
    """
    critical = simultaneous_critical(
        np.stack(firsts, axis=1), level=level, df=clusters.df, seed=seed, n_boot=draws
    )
    return critical / critical_value(level, clusters.df)


def simultaneous_bands(
    values: Sequence[float],
    deviations: Sequence[Deviations],
    *,
    over: str,
    at_least: Sequence[tuple[float, float]] | None = None,
    level: float = 0.95,
    seed: int = 0,
    draws: int = 2000,
) -> list[Estimate]:
    """Intervals that cover all values at once, by the max-statistic.

    Args:
        values: The figures.
        deviations: Of each figure, on the same clusters.
        at_least: Interval of each figure alone, made another way; no band is narrower.
        over: What the figures differ in, for `Estimate.method`, e.g. ``"over 30 layers"``.
        level: Nominal simultaneous coverage.
        seed: Seed of the multiplier bootstrap.
        draws: Number of draws.
    """
    if not values:
        return []
    clusters = deviations[0].clusters
    firsts = [d.first for d in deviations]
    wider = band_widening(firsts, clusters, level=level, seed=seed, draws=draws)
    halves = [wider * critical_value(level, d.df) * float(np.sqrt(d.variance)) for d in deviations]
    alone = at_least or [(v, v) for v in values]
    return [
        Estimate(
            value=v,
            lower=float(min(v - h, least)),
            upper=float(max(v + h, most)),
            n=clusters.n,
            level=level,
            method=f"cluster jackknife with second-order variance, max-statistic band {over}",
        )
        for v, h, (least, most) in zip(values, halves, alone, strict=True)
    ]
