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
    """Share of successes with Wilson's score interval (Wilson 1927, J. Am. Stat. Assoc. 22:209).

    Raises:
        ProbeError: When successes are not between 0 and n.
    """
    if not 0 <= successes <= n:
        raise ProbeError("successes must lie between 0 and n", got=f"{successes} of {n}")
    critical = critical_value(level)
    if n == 0:
        return Estimate(value=None, n=0, level=level, note="no units")
    lower, upper = wilson(successes / n, n, critical)
    return Estimate(
        value=successes / n, lower=lower, upper=upper, n=n, level=level, method="Wilson score"
    )


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Check two equally long vectors of shares, float64."""
    first, second = (np.asarray(x, dtype=np.float64) for x in (a, b))
    for name, x in (("base", first), ("tuned", second)):
        if x.ndim != 1 or not np.all((x >= 0) & (x <= 1)):
            raise ProbeError(
                "paired outcomes must be one boolean per prompt, or a share from 0 to 1",
                where=name,
            )
    if first.shape != second.shape:
        raise ProbeError(
            "paired outcomes must cover the same prompts",
            expected=f"{len(first)} outcomes as in base",
            got=f"{len(second)} in tuned",
        )
    return first, second


def _booleans(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Check two equally long vectors of outcomes that are True or False."""
    pair = _paired(a, b)
    for name, x in zip(("base", "tuned"), pair, strict=True):
        if not np.all((x == 0) | (x == 1)):
            raise ProbeError("paired outcomes must be one boolean per prompt", where=name)
    return pair


def tango_z(delta: float, n: float, gained: float, lost: float) -> float:
    """Tango's score statistic for ``p(gained) − p(lost) = delta``; counts need not be whole.

    Args:
        delta: Difference held against the data, −1 to 1.
        n: Pairs.
        gained: Pairs that gained.
        lost: Pairs that lost.

    Returns:
        The statistic, standard normal where ``delta`` is true; it falls as ``delta`` rises.
    """
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
    *,
    replies: float = 1.0,
) -> Estimate:
    """Difference of two paired proportions, ``mean(b) − mean(a)`` (tuned − base).

    Tango's score interval (Tango 1998, Statistics in Medicine 17:891), which holds its level at
    small n and when few pairs differ. With clusters, counts are divided by the design effect
    (variance of the mean difference between clusters over the variance as if pairs were
    independent, never below 1) and Student's t replaces the normal.

    An outcome may be the share of several replies. Of a pair of replies drawn from a prompt,
    ``b (1 − a)`` is then the chance to have gained and ``a (1 − b)`` to have lost, and these take
    the place of counts. Averaging makes the design effect smaller, down to ``1 / replies``.

    Args:
        a: Outcome of each prompt in base, a boolean or a share.
        b: Outcome of the same prompt in tuned.
        clusters: Cluster name of each prompt; None treats prompts as independent.
        level: Nominal coverage.
        replies: Independent replies behind a share.

    Raises:
        ProbeError: When outcomes are not booleans or shares of one length.
    """
    first, second = _paired(a, b)
    n = len(first)
    if n == 0:
        return Estimate(value=None, n=0, level=level, note="no pairs")
    if clusters is not None and len(clusters) != n:
        raise ProbeError("each pair needs one cluster", expected=f"{n} clusters", got=len(clusters))
    gained, lost = float(np.sum(second * (1 - first))), float(np.sum(first * (1 - second)))
    value = (gained - lost) / n
    effect, units, critical, method = 1.0, n, critical_value(level), "Tango score"
    if clusters is not None or replies > 1:
        groups = Clusters.of(range(n) if clusters is None else clusters)
        units = groups.n
        if units < 2:
            return Estimate(
                value=value, n=units, level=level, note="no interval: one cluster only"
            )  # fmt: skip
        critical = critical_value(level, groups.df)
        effect = _design_effect(second - first, gained, lost, groups, replies)
        method = "Tango score, counts divided by the design effect of the clusters"
    counts = (n / effect, gained / effect, lost / effect)
    lower = -1.0 if value <= -1 else _solve(lambda d: tango_z(d, *counts) - critical, -1.0, value)
    upper = 1.0 if value >= 1 else _solve(lambda d: tango_z(d, *counts) + critical, value, 1.0)
    return Estimate(value=value, lower=lower, upper=upper, n=units, level=level, method=method)


def design_effect(
    a: ArrayLike, b: ArrayLike, clusters: Sequence[Hashable], *, replies: float = 1.0
) -> float:
    """Variance of the mean paired difference over that of as many independent single replies.

    Args:
        a: Outcome of each prompt in base, a boolean or a share.
        b: Outcome of the same prompt in tuned.
        clusters: Cluster name of each prompt.
        replies: Independent replies behind a share; the result is never below one over them.

    Raises:
        ProbeError: When outcomes are not booleans or shares of one length.
    """
    first, second = _paired(a, b)
    gained, lost = float(np.sum(second * (1 - first))), float(np.sum(first * (1 - second)))
    return _design_effect(second - first, gained, lost, Clusters.of(clusters), replies)


def _design_effect(
    difference: NDArray[np.float64], gained: float, lost: float, groups: Clusters, replies: float
) -> float:
    n, units = len(difference), groups.n
    independent = (gained + lost - (gained - lost) ** 2 / n) / n**2
    if independent <= 0 or units < 2:
        return n / units
    residual = groups.sums(difference - difference.mean())
    between = units / (units - 1) * float(np.sum(residual**2)) / n**2
    return max(between / independent, 1 / max(replies, 1.0))


def mean_share(
    values: ArrayLike, clusters: Sequence[Hashable] | None = None, *, level: float = 0.95
) -> Estimate:
    """Mean of booleans or shares with Wilson's interval at the effective number of clusters.

    The number of independent units is that at which a plain proportion would have the variance
    seen between clusters (Korn & Graubard 1998, Survey Methodology 24:193), so that the interval
    stays honest at 0 and 1.

    Args:
        values: One number from 0 to 1 a prompt.
        clusters: Cluster name of each prompt; None treats prompts as independent.
        level: Nominal coverage.

    Raises:
        ProbeError: When a value is no share, or clusters and values differ in number.
    """
    x, _ = _paired(values, values)
    n = len(x)
    if n == 0:
        return Estimate(value=None, n=0, level=level, note="no prompts")
    groups = Clusters.of(range(n) if clusters is None else clusters)
    if len(groups.codes) != n:
        raise ProbeError("each share needs one cluster", expected=n, got=len(groups.codes))
    value = float(x.mean())
    if clusters is None and np.all((x == 0) | (x == 1)):
        return proportion(int(x.sum()), n, level=level)
    if groups.n < 2:
        return Estimate(value=value, n=groups.n, level=level, note="no interval: one cluster only")
    effective = float(groups.n)
    residual = groups.sums(x - value)
    variance = groups.n / (groups.n - 1) * float(np.sum(residual**2)) / n**2
    if 0 < value < 1 and variance > 0:
        effective = value * (1 - value) / variance
    lower, upper = wilson(value, effective, critical_value(level, groups.df))
    return Estimate(
        value=value, lower=lower, upper=upper, n=groups.n, level=level,
        method="Wilson score at the effective number of clusters",
    )  # fmt: skip


def wilson(value: float, n: float, critical: float) -> tuple[float, float]:
    """Ends of Wilson's score interval; ``n`` need not be whole.

    Args:
        value: A proportion, 0 to 1.
        n: Independent units behind it.
        critical: Critical value of the normal or of Student's t.
    """
    square = critical**2
    centre = (value + square / (2 * n)) / (1 + square / n)
    half = critical * np.sqrt(value * (1 - value) / n + square / (4 * n**2)) / (1 + square / n)
    return max(float(centre - half), 0.0), min(float(centre + half), 1.0)


def mcnemar(a: ArrayLike, b: ArrayLike, *, method: Literal["exact", "mid-p"] = "exact") -> float:
    """Two-sided p-value that two paired proportions are equal (McNemar).

    Given the number of discordant pairs, those that gained are binomial with p = ½. The exact
    test never exceeds its level; mid-p is closer to it (Fagerland, Lydersen & Laake 2013). Pairs
    are taken as independent: with several prompts per intent, give one outcome per intent.

    Raises:
        ProbeError: When outcomes are not booleans of one length.
    """
    first, second = (x.astype(bool) for x in _booleans(a, b))
    gained, lost = int(np.sum(second & ~first)), int(np.sum(first & ~second))
    if gained + lost == 0:
        return 1.0
    p = float(stats.binomtest(gained, gained + lost).pvalue)
    if method == "mid-p":
        observed = float(stats.binom.pmf(gained, gained + lost, 0.5))
        p -= observed / 2 if gained == lost else observed
    return p
