"""P-values: from random draws and flipped signs, and adjusted for many tests."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

#: What counts as equal, as a share of the largest value: rounding.
_SLACK = 1e-9

#: Most steps of the grid on which sums of flipped signs are counted out.
_GRID = 100_000

#: Shares of up to ten replies are whole multiples of one over this.
_WHOLE = 5040


def randomisation_p(observed: float, drawn: ArrayLike) -> float:
    """Share of draws that reach what was seen, itself among them (Phipson & Smyth 2010).

    Equal but for rounding counts as reached. Draws that are NaN have no value and are left out.

    Args:
        observed: The statistic; large speaks against the null. Where it is not finite nothing
            was seen, and p is 1.
        drawn: The statistic of each draw under the null.
    """
    if not np.isfinite(observed):
        return 1.0
    values = np.asarray(drawn, dtype=np.float64)
    values = values[~np.isnan(values)]
    finite = values[np.isfinite(values)]
    largest = max(abs(observed), float(np.max(np.abs(finite), initial=0.0)))
    reached = values >= observed - _SLACK * largest
    return (1 + int(np.sum(reached))) / (1 + len(values))


def holm(pvalues: ArrayLike) -> FloatArray:
    """Holm-adjusted p-values; NaN stays NaN and does not count as a test (Holm 1979)."""
    p = np.asarray(pvalues, dtype=np.float64)
    out = p.copy()
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return out


def sign_flip_p(net: ArrayLike, *, method: Literal["exact", "mid-p"] = "exact") -> float:
    """Two-sided p-value that changes are centred at 0, by flipping the signs of whole clusters.

    Where nothing changed, base and tuned may be exchanged within each cluster, so that every
    combination of signs is as likely as that seen; p is the share of them whose sum is at least
    as far from 0. All combinations are counted, none is drawn. With changes of one size this is
    McNemar's exact test; ``"mid-p"`` counts half of those as far as what was seen.

    Args:
        net: Change of each independent cluster, summed over its prompts.
        method: ``"exact"`` never exceeds its level; ``"mid-p"`` is closer to it.
    """
    x = np.asarray(net, dtype=np.float64)
    x = x[np.abs(x) > _SLACK]
    if not len(x):
        return 1.0
    sizes = _on_grid(np.abs(x))
    observed = abs(int(np.sum(np.sign(x) * sizes)))
    centre = int(sizes.sum())
    chance = np.zeros(2 * centre + 1)  # of each sum, from −centre to centre
    chance[centre] = 1.0
    reach = 0
    for size in sizes:
        low, high = centre - reach, centre + reach + 1
        half = chance[low:high] / 2
        chance[low:high] = 0.0
        chance[low - size : high - size] += half
        chance[low + size : high + size] += half
        reach += int(size)
    far = np.abs(np.arange(-centre, centre + 1))
    equal = float(np.sum(chance[far == observed]))
    p = float(np.sum(chance[far > observed])) + (equal if method == "exact" else equal / 2)
    return min(p, 1.0)


def _on_grid(x: FloatArray) -> IntArray:
    """Sizes as whole numbers in proportion; rounded where their sum would be too large."""
    sizes = np.round(x * _WHOLE).astype(np.int64)
    if np.allclose(x * _WHOLE, sizes, atol=1e-6):
        sizes //= np.gcd.reduce(sizes)
        if sizes.sum() <= _GRID:
            return sizes
    rounded: IntArray = np.maximum(np.round(x * (_GRID / x.sum())), 1).astype(np.int64)
    return rounded


def benjamini_hochberg(pvalues: ArrayLike) -> FloatArray:
    """P-values adjusted for the false discovery rate; NaN stays NaN and is no test.

    Benjamini & Hochberg 1995, J. R. Stat. Soc. B 57:289.
    """
    p = np.asarray(pvalues, dtype=np.float64)
    out = p.copy()
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(-p[tested], kind="stable")]
    steps = p[order] * len(order) / np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.minimum.accumulate(steps), 1.0)
    return out
