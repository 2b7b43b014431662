"""Pure vector maths on float64 numpy arrays: unit, cosine, project, subspaces, inner products.

Inner products of *sample* means are biased. If ``m̂ₐ`` and ``m̂ᵦ`` average noisy activations of the
same prompts, then ``E[m̂ₐ·m̂ᵦ] = mₐ·mᵦ + tr Cov(m̂ₐ, m̂ᵦ)``: noise inflates norms, and noise shared
between two models pushes their cosine towards 1 while independent noise pushes it towards 0.
`mean_products` removes the bias by leaving out every product of a cluster with itself::

    ⟨mₐ, mᵦ⟩* = Σ_{c≠c'} sₐ_c · sᵦ_c' / Σ_{c≠c'} nₐ_c nᵦ_c'

with ``s_c`` the sum and ``n_c`` the number of prompts in cluster c. With one prompt per cluster
this is exactly ``m̂ₐ·m̂ᵦ − tr(Sₐᵦ)/n`` with the unbiased (cross-)covariance, and for two classes
with separate prompts ``‖r‖²* = ‖r‖² − tr(S₁)/n₁ − tr(S₀)/n₀``. When a harmful prompt and its
harmless twin form one cluster, the noise they share is left out as well, which that formula
would over-correct.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from refusaldir.errors import DirectionError

FloatArray = NDArray[np.float64]


def unit(vector: Float[np.ndarray, " d_model"]) -> Float[np.ndarray, " d_model"]:
    """Return ``v / ‖v‖`` in float64.

    Raises:
        DirectionError: When the norm is zero or not finite.
    """
    v = np.asarray(vector, dtype=np.float64)
    largest = float(np.max(np.abs(v), initial=0.0))
    if not np.isfinite(largest) or largest == 0:
        raise DirectionError(
            "a vector cannot be normalised",
            expected="a finite, non-zero norm",
            got="norm 0" if largest == 0 else "values that are not finite",
            next_step="Look for a site with signal, or for NaN in the activations",
        )
    v = v / largest  # so that squares neither overflow nor underflow
    result: FloatArray = v / np.linalg.norm(v)
    return result


def signed_root(x: Float[np.ndarray, "*any"] | float) -> Float[np.ndarray, "*any"]:
    """``sign(x)·√|x|``: the length behind an unbiased square, which may be negative."""
    result: FloatArray = np.sign(x) * np.sqrt(np.abs(x))
    return result


def cosine(a: Float[np.ndarray, " d_model"], b: Float[np.ndarray, " d_model"]) -> float:
    """Cosine of the angle between two vectors, in [−1, 1]; biased if they are sample means.

    Raises:
        DirectionError: When a norm is zero or not finite.
    """
    return float(np.clip(unit(a) @ unit(b), -1.0, 1.0))


def project(
    x: Float[np.ndarray, "*batch d_model"], direction: Float[np.ndarray, " d_model"]
) -> Float[np.ndarray, "*batch"]:
    """Scalar projections ``x · unit(direction)``, in units of the residual norm.

    Raises:
        DirectionError: When the direction's norm is zero or not finite.
    """
    result: FloatArray = np.asarray(x, dtype=np.float64) @ unit(direction)
    return result


def angle_degrees(cos: float) -> float:
    """Angle of a cosine in degrees, in [0, 180]; a corrected cosine beyond ±1 gives the end."""
    return float(np.degrees(np.arccos(np.clip(cos, -1.0, 1.0))))


def principal_angles(
    a: Float[np.ndarray, "j d_model"], b: Float[np.ndarray, "k d_model"]
) -> Float[np.ndarray, " angle"]:
    """Principal angles in radians, ascending, between the spans of the rows of two matrices.

    Small angles come from sines and large ones from cosines (Knyazev & Argentati 2002, SIAM J.
    Sci. Comput. 23:2008), so that neither end loses digits; ``scipy.linalg.subspace_angles``
    mixes the two up when angles of both kinds occur. The rows need not be orthonormal.

    Raises:
        DirectionError: When a matrix has no rows, rows that are linearly dependent, or values
            that are not finite.
    """
    for rows in (a, b):
        if rows.size == 0 or not np.all(np.isfinite(rows)):
            raise DirectionError(
                "a subspace needs finite rows", got=f"{len(rows)} rows of {rows.shape[1]} values"
            )
        if (rank := int(np.linalg.matrix_rank(rows))) < len(rows):
            raise DirectionError(
                "the rows that span a subspace are linearly dependent",
                expected=f"{len(rows)} independent rows",
                got=f"rank {rank}",
            )
    small, large = (np.linalg.qr(m.T)[0] for m in sorted((a, b), key=len))
    cross = large.T @ small
    cosines = np.minimum(np.linalg.svd(cross, compute_uv=False), 1.0)
    sines = np.minimum(np.linalg.svd(small - large @ cross, compute_uv=False), 1.0)[::-1]
    angles: FloatArray = np.where(cosines**2 >= 0.5, np.arcsin(sines), np.arccos(cosines))
    return angles


def overlap(a: Float[np.ndarray, "j d_model"], b: Float[np.ndarray, "k d_model"]) -> float:
    """Share of the smaller subspace inside the larger, ``‖A Bᵀ‖²_F / min(j, k)``, in [0, 1].

    It is the mean squared cosine of the principal angles. Two random subspaces of d dimensions
    overlap by max(j, k)/d; noise in few dimensions overlaps more, so compare with its own null.

    Args:
        a: Orthonormal rows.
        b: Orthonormal rows.

    Raises:
        DirectionError: When the rows are not orthonormal.
    """
    for rows in (a, b):
        gram = rows @ rows.T
        if rows.size == 0 or not np.allclose(gram, np.eye(len(rows)), rtol=0, atol=1e-6):
            raise DirectionError(
                "an overlap needs orthonormal bases",
                expected="rows of norm 1 at right angles to each other",
                got=f"{len(rows)} rows that are not",
            )
    return float(np.sum((a @ b.T) ** 2)) / min(len(a), len(b))


@dataclass(frozen=True, kw_only=True, eq=False)
class Inner:
    """One inner product of two contrasts of means, with its leave-one-cluster-out values."""

    raw: float
    """Product of the sample contrasts (biased)."""
    corrected: float
    """Unbiased product: no cluster meets itself."""
    raw_left: FloatArray
    """`raw` without cluster c, ``[cluster]``."""
    corrected_left: FloatArray
    """`corrected` without cluster c, ``[cluster]``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanProducts:
    """Inner products between the means of several arms (model × class), raw and corrected.

    Attributes:
        raw: ``m̂ₐ·m̂ᵦ``, ``[arm arm]``.
        corrected: Unbiased ``⟨mₐ, mᵦ⟩*``, ``[arm arm]``; NaN where one cluster holds everything.
        raw_left: `raw` without cluster c, ``[cluster arm arm]``.
        corrected_left: `corrected` without cluster c, ``[cluster arm arm]``.
    """

    raw: Float[np.ndarray, "arm arm"]
    corrected: Float[np.ndarray, "arm arm"]
    raw_left: Float[np.ndarray, "cluster arm arm"]
    corrected_left: Float[np.ndarray, "cluster arm arm"]

    def inner(self, first: Float[np.ndarray, " arm"], second: Float[np.ndarray, " arm"]) -> Inner:
        """Inner product of two contrasts ``Σₐ firstₐ mₐ`` and ``Σₐ secondₐ mₐ``."""
        return Inner(
            raw=float(first @ self.raw @ second),
            corrected=float(first @ self.corrected @ second),
            raw_left=np.einsum("a,cab,b->c", first, self.raw_left, second),
            corrected_left=np.einsum("a,cab,b->c", first, self.corrected_left, second),
        )


def mean_products(
    sums: Float[np.ndarray, "arm cluster d_model"],
    counts: Float[np.ndarray, "arm cluster"] | Int[np.ndarray, "arm cluster"],
) -> MeanProducts:
    """Raw and corrected inner products of arm means, with every leave-one-cluster-out value.

    Everything follows from three numbers per cluster and pair of arms (``sₐ_c·sᵦ_c``,
    ``sₐ_c·Sᵦ``, ``Sₐ·sᵦ_c``), so the cost is O(clusters × d_model): no Gram matrix and no
    resampling. Corrected products do not depend on the origin when clusters are of equal size;
    with unequal sizes they depend on it by O(1/clusters) of a standard error, so subtract a
    vector near the means first, which also avoids cancellation.

    Args:
        sums: Sum of the activations of each arm's prompts in each cluster, float64.
        counts: Number of prompts of each arm in each cluster; may be zero.

    Returns:
        The products between all arms.
    """
    n = counts.astype(np.float64)
    total, size = sums.sum(axis=1), n.sum(axis=1)
    by_cluster = np.ascontiguousarray(sums.transpose(1, 0, 2))
    own = by_cluster @ by_cluster.transpose(0, 2, 1)
    cross = by_cluster @ total.T
    own_n = np.einsum("ac,bc->cab", n, n)
    cross_n = np.einsum("ac,b->cab", n, size)

    grand, grand_n = total @ total.T, np.outer(size, size)
    left = grand - cross - cross.transpose(0, 2, 1) + own
    left_n = grand_n - cross_n - cross_n.transpose(0, 2, 1) + own_n
    with np.errstate(invalid="ignore", divide="ignore"):
        return MeanProducts(
            raw=grand / grand_n,
            corrected=(grand - own.sum(axis=0)) / _positive(grand_n - own_n.sum(axis=0)),
            raw_left=left / _positive(left_n),
            corrected_left=(left - own.sum(axis=0) + own)
            / _positive(left_n - own_n.sum(axis=0) + own_n),
        )


def _positive(weights: FloatArray) -> FloatArray:
    """Weights with NaN where nothing is left to average (they are whole numbers)."""
    return np.where(weights > 0.5, weights, np.nan)
