"""Groups of prompts compared in one figure: each against the others, and all at once.

Groups may share intents and may share an error; both show in the products of their jackknife
deviations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, band_widening, critical_value

FloatArray = NDArray[np.float64]

#: Least share of a category's variance that is taken as its own.
_OWN = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupFigure:
    """A group's figure, and what its error is made of, on all intents.

    Attributes:
        estimate: The figure with its interval.
        value: The figure, its logarithm for a ratio.
        first: Jackknife deviations, 0 for intents that do not take part, ``[cluster]``.
        variance: Its variance.
        df: Degrees of freedom of that.
    """

    estimate: Estimate
    value: float = math.nan
    first: FloatArray | None = None
    variance: float = math.nan
    df: float = math.nan


def versus_others(
    column: Sequence[GroupFigure], n: int, level: float, *, tests: int, log: bool
) -> list[tuple[Estimate | None, float | None, float | None]]:
    """Each group against the mean of the others: difference, p-value, adjusted p-value.

    Args:
        column: One figure of each group.
        n: Number of intents.
        level: Nominal coverage; a group found at 1 − level leaves the mean of the others.
        tests: Number of figures tested, for Bonferroni.
        log: The values are logarithms; give ratios.
    """
    result: list[tuple[Estimate | None, float | None, float | None]]
    result = [(None, None, None)] * len(column)
    left = [i for i, figure in enumerate(column) if figure.first is not None]
    least = 0.0
    while len(left) > 1:
        compared = {i: _against([column[j] for j in left], left.index(i), n, level, log=log)
                    for i in left}  # fmt: skip
        order = sorted(left, key=lambda i: compared[i][1])
        for rank, i in enumerate(order):
            estimate, p = compared[i]
            least = min(1.0, max(least, tests * (len(left) - rank) * p))
            result[i] = estimate, p, least
            if rank == 0 and least <= 1 - level:
                break
        if least > 1 - level:
            break
        left.remove(order[0])
    return result


def _against(
    figures: Sequence[GroupFigure], at: int, n: int, level: float, *, log: bool
) -> tuple[Estimate, float]:
    """One figure against the mean of the others, Student's t with Satterthwaite's freedom."""
    variances = np.array([figure.variance for figure in figures])
    first = np.stack([figure.first for figure in figures if figure.first is not None])
    covariance = first @ first.T
    np.fill_diagonal(covariance, variances)
    weights = np.full(len(figures), -1 / (len(figures) - 1))
    weights[at] = 1.0
    difference = float(weights @ np.array([figure.value for figure in figures]))
    error = math.sqrt(max(float(weights @ covariance @ weights), 0.0))
    own = weights**2 * variances
    parts = float(np.sum(own**2 / np.array([figure.df for figure in figures])))
    df = float(own.sum()) ** 2 / parts if parts > 0 else 1.0
    half = critical_value(level, df) * error
    ends = [difference, difference - half, difference + half]
    value, lower, upper = (math.exp(e) if log else e for e in ends)
    estimate = Estimate(
        value=value, lower=lower, upper=upper, n=n, level=level,
        method=f"against the mean of {len(figures) - 1} others, Student's t",
    )  # fmt: skip
    return estimate, float(2 * stats.t.sf(abs(difference) / error, df)) if error > 0 else 1.0


def alike_p_value(column: Sequence[GroupFigure]) -> float | None:
    """P-value of Welch's test that all figures are the same."""
    used = [figure for figure in column if figure.first is not None]
    if len(used) < 2:
        return None
    variances = np.array([figure.variance for figure in used])
    if not np.all(variances > 0):
        return 1.0 if np.ptp([figure.value for figure in used]) == 0 else None
    first = np.stack([figure.first for figure in used if figure.first is not None])
    shared = first @ first.T
    np.fill_diagonal(shared, 0.0)
    each = shared.sum(axis=0) / (len(used) - 1)
    variances = np.maximum(variances - 2 * each + each.mean(), _OWN * variances)
    m, weights = len(used), 1 / variances
    values = np.array([figure.value for figure in used])
    share = weights / weights.sum()
    between = float(np.sum(weights * (values - share @ values) ** 2)) / (m - 1)
    spread = float(np.sum((1 - share) ** 2 / np.array([figure.df for figure in used])))
    f = between / (1 + 2 * (m - 2) / (m**2 - 1) * spread)
    return float(stats.f.sf(f, m - 1, (m**2 - 1) / (3 * spread)))


def group_bands(
    column: Sequence[GroupFigure], clusters: Clusters, level: float, seed: int, *, log: bool
) -> tuple[Estimate | None, ...]:
    """Intervals that hold over all groups at once (max-statistic)."""
    firsts = [figure.first for figure in column if figure.first is not None]
    if not firsts:
        return (None,) * len(column)
    wider = band_widening(firsts, clusters, level=level, seed=seed)
    bands: list[Estimate | None] = []
    for figure in column:
        if figure.first is None:
            bands.append(None)
            continue
        half = wider * critical_value(level, figure.df) * math.sqrt(figure.variance)
        ends = [figure.value, figure.value - half, figure.value + half]
        value, lower, upper = (math.exp(e) if log else e for e in ends)
        method = f"max-statistic band over {len(firsts)} categories"
        bands.append(
            Estimate(
                value=value,
                lower=lower,
                upper=upper,
                n=figure.estimate.n,
                level=level,
                method=method,
            )
        )
    return tuple(bands)
