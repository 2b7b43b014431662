"""Intervals, paired tests and multiplicity for prompts that come in clusters.

Prompts written from one intent (a harmful request, its harmless twin, its framings) share
noise, so every interval here treats the *cluster* as the independent unit. Three tools make
most of them:

* the **delete-one-cluster jackknife** (`jackknife`), stratified by which classes a cluster
  holds, fed with leave-one-out values that the caller computes in closed form;
* **score intervals** for proportions, paired differences and AUROC, which stay honest at the
  ends of the scale (no zero-width interval because nothing was seen to differ);
* a **multiplier bootstrap** of the jackknife deviations for bands that hold over many sites
  at once (`simultaneous_critical`).

Nothing here is a test of safety: an interval that covers "no change" says only that no change
was detected at this sample size.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from refusaldir.errors import ProbeError, RefusaldirError
from refusaldir.records import Estimate

FloatArray = NDArray[np.float64]

#: Memory for one block of bootstrap weights, in elements.
_BLOCK = 4_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Clusters:
    """Which unit belongs to which independent cluster, and which stratum a cluster is in.

    Attributes:
        names: Sorted cluster names, one per cluster.
        codes: Cluster index of each unit, int64 ``[unit]``.
        strata: Stratum index of each cluster, int64 ``[cluster]``; clusters that hold the same
            set of labels share a stratum, since sampling kept those numbers fixed.
    """

    names: tuple[Hashable, ...]
    codes: Int[np.ndarray, " unit"]
    strata: Int[np.ndarray, " cluster"]

    @classmethod
    def of(cls, ids: Sequence[Hashable], labels: ArrayLike | None = None) -> "Clusters":
        """Group units by id; the order of the units does not matter.

        Args:
            ids: Cluster name of each unit, e.g. ``prompt.intent_id``.
            labels: Class of each unit; without it there is one stratum.

        Raises:
            RefusaldirError: When there is no unit, or ids and labels differ in number.
        """
        if len(ids) == 0:
            raise RefusaldirError("clusters need at least one unit", got="none")
        names = tuple(sorted(set(ids), key=lambda name: (str(type(name)), name)))
        index = {name: i for i, name in enumerate(names)}
        codes = np.fromiter((index[i] for i in ids), dtype=np.int64, count=len(ids))
        strata = np.zeros(len(names), dtype=np.int64)
        if labels is not None:
            y = np.asarray(labels)
            if y.shape != codes.shape:
                raise RefusaldirError(
                    "each unit needs one cluster and one label",
                    expected=f"{len(codes)} labels",
                    got=f"an array of shape {y.shape}",
                )
            kinds = np.unique(y)
            held = np.zeros((len(names), len(kinds)), dtype=np.int64)
            held[codes, np.searchsorted(kinds, y)] = 1
            _, strata = np.unique(held, axis=0, return_inverse=True)
            strata = strata.reshape(-1).astype(np.int64)
            sizes = np.bincount(strata)
            if sizes.min() < 2:  # a lone cluster has no spread of its own: pool all strata
                strata = np.zeros(len(names), dtype=np.int64)
        return cls(names=names, codes=codes, strata=strata)

    @property
    def n(self) -> int:
        """Number of clusters."""
        return len(self.names)

    @property
    def df(self) -> int:
        """Degrees of freedom of a variance between clusters."""
        return max(self.n - len(np.unique(self.strata)), 1)

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.codes, kind="stable")
        starts = np.searchsorted(self.codes[order], np.arange(self.n))
        return order, starts

    def sums(self, values: Float[np.ndarray, " unit *rest"]) -> Float[np.ndarray, " cluster *rest"]:
        """Sum the values of each cluster's units, in float64."""
        order, starts = self._sorted
        total: FloatArray = np.add.reduceat(values[order].astype(np.float64), starts, axis=0)
        return total

    def centre(self, values: Float[np.ndarray, " cluster *rest"]) -> FloatArray:
        """Jackknife deviations ``√((C−1)/C) (θ₍₋c₎ − mean)`` within strata.

        Their sum of squares is the jackknife variance.
        """
        out = np.empty_like(values, dtype=np.float64)
        for stratum in np.unique(self.strata):
            here = self.strata == stratum
            size = int(here.sum())
            out[here] = (values[here] - values[here].mean(axis=0)) * np.sqrt((size - 1) / size)
        return out

    def folds(self, k: int, seed: int = 0) -> NDArray[np.int64]:
        """Assign whole clusters to ``k`` folds, balanced within strata; fold of each unit."""
        rng = np.random.default_rng(seed)
        fold = np.empty(self.n, dtype=np.int64)
        start = 0
        for stratum in np.unique(self.strata):
            members = rng.permutation(np.flatnonzero(self.strata == stratum))
            fold[members] = (start + np.arange(len(members))) % k
            start += len(members)
        assigned: NDArray[np.int64] = fold[self.codes]
        return assigned


def critical_value(level: float, df: float | None = None) -> float:
    """Two-sided critical value of the normal, or of Student's t on ``df`` degrees of freedom.

    Raises:
        RefusaldirError: When the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise RefusaldirError("the confidence level must lie between 0 and 1", got=level)
    tail = 0.5 + level / 2
    return float(stats.norm.ppf(tail) if df is None else stats.t.ppf(tail, df))


# --- means of clustered statistics: the jackknife -----------------------------------------


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


# --- proportions and paired proportions ---------------------------------------------------


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


def holm(pvalues: ArrayLike) -> FloatArray:
    """Holm-adjusted p-values; NaN stays NaN and does not count as a test (Holm 1979)."""
    p = np.asarray(pvalues, dtype=np.float64)
    out = p.copy()
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return out
