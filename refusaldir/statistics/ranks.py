"""Rank correlations of many draws at once: Kendall's τ-b and Spearman's ρ."""

import numpy as np
from jaxtyping import Float
from scipy import stats


def kendall(
    x: Float[np.ndarray, "draw row"], y: Float[np.ndarray, "draw row"]
) -> Float[np.ndarray, " draw"]:
    """Kendall's τ-b of each draw; NaN where a column is constant.

    scipy's takes one pair of columns a call; a bootstrap needs thousands. The cost is quadratic
    in rows, which are layers or categories.

    Args:
        x: Figures of every row, a draw each.
        y: The same of the other column.
    """
    i, j = np.triu_indices(x.shape[1], 1)
    a, b = np.sign(x[:, i] - x[:, j]), np.sign(y[:, i] - y[:, j])
    untied = np.sum(a**2, axis=1) * np.sum(b**2, axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sum(a * b, axis=1) / np.sqrt(untied))


def spearman(
    x: Float[np.ndarray, "draw row"], y: Float[np.ndarray, "draw row"]
) -> Float[np.ndarray, " draw"]:
    """Spearman's ρ of each draw, tied ranks averaged; NaN where a column is constant.

    Args:
        x: Figures of every row, a draw each.
        y: The same of the other column.
    """
    a, b = (stats.rankdata(v, axis=1) for v in (x, y))
    a, b = (r - r.mean(axis=1, keepdims=True) for r in (a, b))
    with np.errstate(invalid="ignore"):
        return np.asarray(
            np.sum(a * b, axis=1) / np.sqrt(np.sum(a**2, axis=1) * np.sum(b**2, axis=1))
        )
