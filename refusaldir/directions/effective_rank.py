"""How many dimensions the mean differences of several categories span, noise apart.

With ``r_c = μ₁c − μ₀c`` the mean difference of category c and ``G = [⟨r_c, r_d⟩]`` their Gram
matrix with eigenvalues λ, the **effective rank** is the participation ratio

    (Σλ)² / Σλ² = (tr G)² / ‖G‖²_F :

1 when all categories share one direction (up to sign and size), and the number of categories
when their directions are orthogonal and equally long. Noise in the means looks like extra
dimensions, so both parts are estimated without bias, each product from means of *different*
intents: the intents are dealt into quarters, with ``r_c^q`` the mean difference in quarter q,

    (tr G)²  ←  Σ_c ⟨r_c¹, r_c²⟩ · Σ_d ⟨r_d³, r_d⁴⟩
    ‖G‖²_F   ←  Σ_cd ⟨r_c¹, r_d²⟩ ⟨r_c³, r_d⁴⟩

averaged over the pairings of the quarters and over many deals. No eigenvalue is computed and
none is clipped: negative eigenvalues of a corrected Gram matrix, which noise makes, count in
both parts as they are.

Intervals are cluster jackknives over intents; in simulation they covered more often than they
promise, being up to twice as wide as needed where noise is large.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from refusaldir.directions.category_sample import CategorySample
from refusaldir.records import HARMFUL, Estimate
from refusaldir.statistics import jackknife

FloatArray = NDArray[np.float64]

#: Deals of the intents into quarters behind an effective rank.
DEALS = 50

#: The three ways to pair four quarters.
_PAIRINGS = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))


def effective_rank(sample: CategorySample, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """Participation ratio of the category directions, from unbiased parts.

    Both parts are linear in the means of each quarter, so leaving an intent out of its quarter
    changes them by an inner product: the jackknife costs no second pass.
    """
    parts, left = np.zeros(2), np.zeros((sample.clusters.n, 2))
    deals = 0
    for deal in range(DEALS):
        quarter = sample.dealt.folds(4, seed + deal)
        weights = np.stack([sample.weights(quarter == q) for q in range(4)])
        if not np.all(np.isfinite(weights)):
            continue  # intents that span categories left a quarter without a class
        value, change = _from_quarters(sample, quarter, weights)
        parts, left, deals = parts + value, left + value + change, deals + 1
    if not deals:
        return Estimate(
            value=None, n=sample.clusters.n, level=level,
            note="not estimable: the intents cannot be dealt into four parts with every category",
        )  # fmt: skip
    estimate = jackknife(float(_ratio(parts)), _ratio(left), sample.clusters, level=level)
    return within_range(estimate, 1.0, float(len(sample.names)))


def within_range(estimate: Estimate, least: float, most: float) -> Estimate:
    """Limit the interval to the range of the parameter; the value is never moved.

    At an end of the range (one direction only) the estimate scatters around it with an interval
    that is too short and may lie wholly outside: it then reaches the end.
    """
    if estimate.lower is None or estimate.upper is None:
        return estimate
    lower, upper = (min(max(end, least), most) for end in (estimate.lower, estimate.upper))
    if (lower, upper) == (estimate.lower, estimate.upper):
        return estimate
    method = f"{estimate.method}, ends limited to the possible range"
    return replace(estimate, lower=lower, upper=upper, method=method)


def _ratio(parts: Float[np.ndarray, "*batch 2"]) -> FloatArray:
    """First part over the second; NaN where either is not positive (pure noise)."""
    good = np.all(parts > 0, axis=-1)
    ratio: FloatArray = np.where(good, parts[..., 0] / np.where(good, parts[..., 1], 1.0), np.nan)
    return ratio


def _from_quarters(
    sample: CategorySample,
    quarter: Int[np.ndarray, " prompt"],
    weights: Float[np.ndarray, "quarter category prompt"],
) -> tuple[FloatArray, FloatArray]:
    """``(tr G)²`` and ``‖G‖²_F`` of one deal, and their change without each intent."""
    r = weights @ sample.x
    parts, slopes = np.zeros(2), np.zeros((2, *r.shape))
    for pairs in _PAIRINGS:
        for (a, b), (c, d) in (pairs, pairs[::-1]):
            other = r[c] @ r[d].T
            trace, both = np.trace(other), (other + other.T) / 2
            parts += [
                float(np.sum(r[a] * r[b])) * trace / 6,
                float(np.sum((r[a] @ r[b].T) * both)) / 6,
            ]
            slopes[0, a] += trace * r[b] / 3
            slopes[0, b] += trace * r[a] / 3
            slopes[1, a] += both @ r[b] / 3
            slopes[1, b] += both @ r[a] / 3
    # Without its prompts of intent g, the mean of an arm in a quarter moves by
    # −Σ_{i∈g} (x_i − mean) / (n − n_g).
    category, sign = sample.arms // 2, np.where(sample.arms % 2 == HARMFUL, -1.0, 1.0)
    cell = quarter * (2 * len(sample.names)) + sample.arms
    _, cell = np.unique(cell, return_inverse=True)
    cell = cell.reshape(-1)
    size = np.bincount(cell).astype(np.float64)
    member = np.zeros((len(size), len(cell)))
    member[cell, np.arange(len(cell))] = 1.0
    pair = sample.clusters.codes * len(size) + cell
    _, inverse, own = np.unique(pair, return_inverse=True, return_counts=True)
    rest = size[cell] - own[inverse.reshape(-1)]
    moved = sample.x - (member @ sample.x / size[:, None])[cell]
    steps = np.stack([np.einsum("pd,pd->p", moved, s[quarter, category]) for s in slopes], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps *= np.where(rest > 0, sign / rest, np.nan)[:, None]
    return parts, sample.clusters.sums(steps)
