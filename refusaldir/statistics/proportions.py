"""Proportions, paired and not, with score intervals; McNemar's test."""

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from refusaldir.errors import ProbeError
from refusaldir.records import Estimate
from refusaldir.statistics.clusters import Clusters
from refusaldir.statistics.intervals import critical_value


def proportion(successes: int, n: int, *, level: float = 0.95) -> Estimate:
    """Share of successes with Wilson's score interval (Wilson 1927; statsmodels).

    Raises:
        ProbeError: When successes are not between 0 and n.
    """
    if not 0 <= successes <= n:
        raise ProbeError("successes must lie between 0 and n", got=f"{successes} of {n}")
    critical_value(level)
    if n == 0:
        return Estimate(value=None, n=0, level=level, note="no units")
    from statsmodels.stats.proportion import proportion_confint

    lower, upper = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    return Estimate(
        value=successes / n, lower=float(lower), upper=float(upper), n=n, level=level,
        method="Wilson score",
    )  # fmt: skip


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Check two equally long boolean vectors."""
    first, second = np.asarray(a), np.asarray(b)
    for name, x in (("base", first), ("tuned", second)):
        if x.ndim != 1 or not np.all((x == 0) | (x == 1)):
            raise ProbeError("paired outcomes must be one boolean per prompt", where=name)
    if first.shape != second.shape:
        raise ProbeError(
            "paired outcomes must cover the same prompts",
            expected=f"{len(first)} outcomes as in base",
            got=f"{len(second)} in tuned",
        )
    return first.astype(bool), second.astype(bool)


def _tango_z(delta: float, n: float, gained: float, lost: float) -> float:
    """Tango's score statistic for ``p(gained) − p(lost) = delta``."""
    a = 2 * n
    b = -gained - lost + (2 * n - gained + lost) * delta
    c = -lost * delta * (1 - delta)
    p_lost = (np.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * p_lost + delta * (1 - delta))
    distance = gained - lost - n * delta
    if variance <= 0:
        return float(np.copysign(np.inf, distance)) if distance else 0.0
    return float(distance / np.sqrt(variance))


def _solve(function: Any, lower: float, upper: float) -> float:
    """Root of a monotone function, or the end it does not cross."""
    at_lower, at_upper = function(lower), function(upper)
    if at_lower == 0 or np.sign(at_lower) == np.sign(at_upper):
        return lower if abs(at_lower) <= abs(at_upper) else upper
    return float(optimize.brentq(function, lower, upper, xtol=1e-12))


def paired_proportion_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> Estimate:
    """Difference of two paired proportions, ``mean(b) − mean(a)`` (tuned − base).

    Tango's score interval (Tango 1998, Statistics in Medicine 17:891), which holds its level at
    small n and when few pairs differ. With clusters, counts are divided by the design effect
    (variance of the mean difference between clusters over the variance as if pairs were
    independent, never below 1) and Student's t replaces the normal.

    Args:
        a: Outcome of each prompt in base.
        b: Outcome of the same prompt in tuned.
        clusters: Cluster name of each prompt; None treats prompts as independent.
        level: Nominal coverage.

    Raises:
        ProbeError: When outcomes are not booleans of one length.
    """
    first, second = _paired(a, b)
    n = len(first)
    if n == 0:
        return Estimate(value=None, n=0, level=level, note="no pairs")
    difference = second.astype(np.float64) - first
    gained, lost = float(np.sum(difference > 0)), float(np.sum(difference < 0))
    effect, units, critical, method = 1.0, n, critical_value(level), "Tango score"
    if clusters is not None:
        if len(clusters) != n:
            raise ProbeError(
                "each pair needs one cluster", expected=f"{n} clusters", got=len(clusters)
            )
        groups = Clusters.of(clusters)
        units = groups.n
        if units < 2:
            return Estimate(
                value=float(difference.mean()), n=units, level=level,
                note="no interval: one cluster only",
            )  # fmt: skip
        critical = critical_value(level, groups.df)
        independent = float(np.sum((difference - difference.mean()) ** 2)) / n**2
        residual = groups.sums(difference - difference.mean())
        between = units / (units - 1) * float(np.sum(residual**2)) / n**2
        effect = max(between / independent, 1.0) if independent > 0 else n / units
        method = "Tango score, counts divided by the design effect of the clusters"
    counts = (n / effect, gained / effect, lost / effect)
    value = (gained - lost) / n
    lower = -1.0 if value <= -1 else _solve(lambda d: _tango_z(d, *counts) - critical, -1.0, value)
    upper = 1.0 if value >= 1 else _solve(lambda d: _tango_z(d, *counts) + critical, value, 1.0)
    return Estimate(value=value, lower=lower, upper=upper, n=units, level=level, method=method)


def mcnemar(a: ArrayLike, b: ArrayLike, *, method: Literal["exact", "mid-p"] = "exact") -> float:
    """Two-sided p-value that two paired proportions are equal (McNemar).

    Given the number of discordant pairs, those that gained are binomial with p = ½. The exact
    test never exceeds its level; mid-p is closer to it (Fagerland, Lydersen & Laake 2013). Pairs
    are taken as independent: with several prompts per intent, give one outcome per intent.

    Raises:
        ProbeError: When outcomes are not booleans of one length.
    """
    first, second = _paired(a, b)
    gained, lost = int(np.sum(second & ~first)), int(np.sum(first & ~second))
    if gained + lost == 0:
        return 1.0
    p = float(stats.binomtest(gained, gained + lost).pvalue)
    if method == "mid-p":
        observed = float(stats.binom.pmf(gained, gained + lost, 0.5))
        p -= observed / 2 if gained == lost else observed
    return p
