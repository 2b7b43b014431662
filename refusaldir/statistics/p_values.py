"""P-values: from random draws, and adjusted for many tests."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

#: What counts as equal, as a share of the largest value: rounding.
_SLACK = 1e-9


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
