"""Shrunk covariances of few prompts in many features, without a d × d matrix."""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import linalg

FloatArray = NDArray[np.float64]


def ledoit_wolf(x: Float[np.ndarray, "prompt feature"]) -> float:
    """Ledoit–Wolf shrinkage of the covariance of centred rows, from their Gram matrix.

    The figure of scikit-learn's ``ledoit_wolf_shrinkage``, which sums over a d × d matrix: here
    ``Σ_ij Σ_t x²_ti x²_tj = Σ_t ‖x_t‖⁴`` and ``‖XᵀX‖²_F = ‖XXᵀ‖²_F`` cost O(n²d) instead.

    Args:
        x: Rows with mean zero.

    Returns:
        Weight of ``tr(S)/d · I`` in [0, 1].
    """
    n, d = x.shape
    gram = x @ x.T if n < d else x.T @ x
    squares = np.einsum("pd,pd->p", x, x)
    fourth, frobenius = float(squares @ squares) / n, float(np.sum(gram**2)) / n**2
    spread = frobenius - float(squares.sum() / n) ** 2 / d
    noise = (fourth - frobenius) / n
    return float(np.clip(noise / spread, 0.0, 1.0)) if spread > 0 and noise > 0 else 0.0


def solve_low_rank(
    factors: Float[np.ndarray, "row d_model"],
    diagonal: Float[np.ndarray, " d_model"],
    right: Float[np.ndarray, " d_model"],
) -> Float[np.ndarray, " d_model"]:
    """Solve ``(diag(t) + FᵀF) w = b`` in the smaller of the two dimensions of ``F``.

    With more features than rows by Woodbury's identity, without a d × d matrix.

    Args:
        factors: ``F``.
        diagonal: ``t``, positive.
        right: ``b``.
    """
    root = np.sqrt(diagonal)
    scaled, target = factors / root, right / root
    n, d = scaled.shape
    if d <= n:
        inner = scaled.T @ scaled + np.eye(d)
        solution: FloatArray = linalg.solve(inner, target, assume_a="pos")
    else:
        inner = scaled @ scaled.T + np.eye(n)
        solution = target - scaled.T @ linalg.solve(inner, scaled @ target, assume_a="pos")
    result: FloatArray = solution / root
    return result
