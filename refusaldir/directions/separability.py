"""How well one direction separates harmful from harmless: held-out scores, AUROC and d′.

Scores are always cross-fitted: a prompt is scored with a direction and a midpoint from other
intents. AUROC intervals are score intervals: the variance of the Mann–Whitney statistic as a
function of the true AUROC has the shape of Hanley & McNeil (1982), as in Newcombe's method 5
(2006, Statistics in Medicine 25:559), scaled to the clustered variance of DeLong's components
(Obuchowski 1997, Biometrics 53:567). They keep a width when every pair is ordered correctly.
Intervals hold for the directions as fitted; that a direction from other prompts would differ
is not part of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import optimize, stats

from refusaldir.records import HARMFUL, HARMLESS, Estimate
from refusaldir.statistics import Clusters, critical_value, jackknife

FloatArray = NDArray[np.float64]

#: Weight, in intents, of the variance that one prompt per intent would give an AUROC.
_PRIOR = 3


def fold_means(
    x: Float[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    fold: Int[np.ndarray, " prompt"],
) -> Float[np.ndarray, "fold 2 d_model"]:
    """Class means (harmless, harmful) of the prompts *outside* each fold, float64."""
    k = int(fold.max()) + 1
    member = np.zeros((k, 2, len(x)))
    member[fold, labels, np.arange(len(x))] = 1.0
    sums, counts = member @ x, member.sum(axis=2)
    means: FloatArray = (sums.sum(axis=0) - sums) / (counts.sum(axis=0) - counts)[..., None]
    return means


def held_out_scores(
    x: Float[np.ndarray, "prompt d_model"],
    fold: Int[np.ndarray, " prompt"],
    directions: Float[np.ndarray, "fold d_model"],
    midpoints: Float[np.ndarray, "fold d_model"],
) -> Float[np.ndarray, " prompt"]:
    """Scores ``(x − m_f)·r̂_f`` of each prompt with the direction of its own held-out fold.

    Subtracting the midpoint of the training classes puts the folds on one scale, so that
    scores can be pooled (without it, fold offsets distort a pooled AUROC).
    """
    rows = np.arange(len(x))
    offsets = np.einsum("fd,fd->f", midpoints, directions)
    scores: FloatArray = (x @ directions.T)[rows, fold] - offsets[fold]
    return scores


def d_prime_left(
    scores: Float[np.ndarray, " prompt"], labels: Int[np.ndarray, " prompt"], clusters: Clusters
) -> tuple[float, FloatArray]:
    """``d′ = (m₁ − m₀)/√(½(s₁² + s₀²))`` and its leave-one-cluster-out values.

    Infinite when the classes differ without any spread; 0 when nothing differs at all.
    """
    centred = scores - scores.mean()
    means, variances = [], []
    for label in (HARMLESS, HARMFUL):
        here = (labels == label).astype(np.float64)
        parts = clusters.sums(np.stack([here, here * centred, here * centred**2], axis=1))
        whole = parts.sum(axis=0)
        n, s, q = np.concatenate([whole[None], whole - parts]).T
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append(s / n)
            variances.append(np.maximum(q - s * s / n, 0.0) / (n - 1))
    gap, spread = means[1] - means[0], np.sqrt((variances[0] + variances[1]) / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where((gap == 0) & (spread == 0), 0.0, gap / spread)
    return float(values[0]), values[1:]


@dataclass(frozen=True, kw_only=True, eq=False)
class Auroc:
    """Area under the ROC curve with the influence of each cluster.

    Attributes:
        value: P(harmful score > harmless score) + ½ P(equal).
        influence: Deviation caused by each cluster, ``[cluster]``; sums to 0.
        lower: Lower end of the score interval.
        upper: Upper end of the score interval.
        level: Nominal coverage.
        n: Number of clusters.
    """

    value: float
    influence: Float[np.ndarray, " cluster"]
    lower: float
    upper: float
    level: float
    n: int

    @property
    def estimate(self) -> Estimate:
        """As an estimate with its interval."""
        return Estimate(
            value=self.value,
            lower=self.lower,
            upper=self.upper,
            n=self.n,
            level=self.level,
            method="score interval on clustered DeLong variance",
            note="every pair is ordered correctly" if self.value == 1 else "",
        )


def auroc_value(scores: Float[np.ndarray, " prompt"], labels: Int[np.ndarray, " prompt"]) -> float:
    """AUROC of scores, ties counting ½ (Mann–Whitney)."""
    n1 = int(np.sum(labels == HARMFUL))
    ranks = stats.rankdata(scores)
    above = float(np.sum(ranks[labels == HARMFUL])) - n1 * (n1 + 1) / 2
    return above / (n1 * (len(labels) - n1))


def auroc(
    scores: Float[np.ndarray, " prompt"],
    labels: Int[np.ndarray, " prompt"],
    clusters: Clusters,
    *,
    level: float = 0.95,
) -> Auroc:
    """AUROC with a clustered score interval; see the module docstring for the method."""
    harmful, harmless = labels == HARMFUL, labels == HARMLESS
    n1, n0 = int(harmful.sum()), int(harmless.sum())
    ranks = stats.rankdata(scores)
    placement = np.empty(len(scores))
    placement[harmful] = (ranks[harmful] - stats.rankdata(scores[harmful])) / n0
    placement[harmless] = 1 - (ranks[harmless] - stats.rankdata(scores[harmless])) / n1
    value = float(placement[harmful].mean())
    influence = clusters.sums((placement - value) / np.where(harmful, n1, n0))
    variance = float(np.sum(influence**2)) * clusters.n / (clusters.n - 1)
    units = [len(np.unique(clusters.codes[here])) for here in (harmful, harmless)]
    reference = _hanley_mcneil(value, *units)
    scale = variance / reference if reference > 0 else 1.0
    # Few intents in misordered pairs say little about the variance: lean on one unit per intent.
    worse = placement < 1 if value >= 0.5 else placement > 0
    informative = len(np.unique(clusters.codes[worse]))
    scale = max(scale, (informative * scale + _PRIOR) / (informative + _PRIOR))
    critical = critical_value(level, clusters.df)

    def excess(theta: float) -> float:
        return (theta - value) ** 2 - critical**2 * scale * _hanley_mcneil(theta, *units)

    lower = 0.0 if value <= 0 else _outer_root(excess, value, 0.0)
    upper = 1.0 if value >= 1 else _outer_root(excess, value, 1.0)
    return Auroc(
        value=value,
        influence=influence * np.sqrt(clusters.n / (clusters.n - 1)),
        lower=lower,
        upper=upper,
        level=level,
        n=clusters.n,
    )


def _outer_root(excess: Callable[[float], float], inside: float, end: float) -> float:
    """End of the region around ``inside`` where ``excess`` is negative, or ``end``."""
    nudge = inside + (end - inside) * 1e-9
    if excess(nudge) >= 0:
        return inside
    if excess(end) <= 0:
        return end
    return float(optimize.brentq(excess, nudge, end, xtol=1e-12))


def _hanley_mcneil(theta: float, n1: int, n0: int) -> float:
    """Variance of an AUROC under the negative-exponential model (Hanley & McNeil 1982)."""
    q1, q2 = theta / (2 - theta), 2 * theta**2 / (1 + theta)
    square = theta**2
    return (theta * (1 - theta) + (n1 - 1) * (q1 - square) + (n0 - 1) * (q2 - square)) / (n1 * n0)


def auroc_change(before: Auroc, after: Auroc) -> Estimate:
    """``after − before`` on the same prompts, from both intervals and their correlation.

    MOVER (Zou & Donner 2008): the two score intervals are combined with the correlation of the
    clusters' influences, so the interval keeps a width when both AUROCs are 1.
    """
    spread = np.sqrt(np.sum(before.influence**2) * np.sum(after.influence**2))
    rho = float(np.sum(before.influence * after.influence) / spread) if spread > 0 else 0.0
    change = after.value - before.value

    def combine(a: float, b: float) -> float:
        return float(np.sqrt(max(a * a + b * b - 2 * rho * a * b, 0.0)))

    if spread > 0 and np.array_equal(before.influence, after.influence):
        return Estimate(
            value=change,
            lower=change,
            upper=change,
            n=before.n,
            level=before.level,
            method="exact",
            note="both order the prompts alike",
        )
    saturated = before.value == 1 and after.value == 1
    return Estimate(
        value=change,
        lower=change - combine(after.value - after.lower, before.upper - before.value),
        upper=change + combine(after.upper - after.value, before.value - before.lower),
        n=before.n,
        level=before.level,
        method="MOVER on score intervals",
        note="both are 1: AUROC cannot tell them apart, see d′" if saturated else "",
    )


def d_prime(
    scores: Float[np.ndarray, " prompt"],
    labels: Int[np.ndarray, " prompt"],
    clusters: Clusters,
    *,
    level: float = 0.95,
) -> Estimate:
    """d′ of given scores with a cluster-jackknife interval."""
    value, left = d_prime_left(scores, labels, clusters)
    return jackknife(value, left, clusters, level=level)
