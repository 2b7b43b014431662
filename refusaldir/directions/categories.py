"""One mean difference per hazard category at one site, and how alike they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from refusaldir.directions.category_sample import category_sample
from refusaldir.directions.effective_rank import effective_rank, within_range
from refusaldir.geometry import mean_products
from refusaldir.records import HARMFUL, HARMLESS, Estimate
from refusaldir.statistics import jackknife

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class CategoryDirections:
    """Mean differences by category at one site.

    Attributes:
        categories: Names, sorted; the order of every axis here.
        left_out: Categories with too few intents of a class to take part.
        vectors: Raw mean differences, ``[category d_model]``.
        n_harmful: Harmful prompts of each category.
        n_harmless: Harmless prompts of each category.
        gram: Unbiased inner products: no intent meets itself, ``[category category]``.
        cosines: ``gram`` over the corrected norms, not limited to ±1; NaN, not estimable, where
            a corrected squared norm is not positive.
        effective_rank: Participation ratio; see `refusaldir.directions.effective_rank`.
        first_share: Largest eigenvalue of ``gram`` over its trace. Choosing the largest among
            noisy eigenvalues pushes it up a little; negative eigenvalues stay in the trace.
    """

    categories: tuple[str, ...]
    left_out: tuple[str, ...]
    vectors: Float[np.ndarray, "category d_model"]
    n_harmful: tuple[int, ...]
    n_harmless: tuple[int, ...]
    gram: Float[np.ndarray, "category category"]
    cosines: Float[np.ndarray, "category category"]
    effective_rank: Estimate
    first_share: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; a cosine that is not estimable becomes None."""
        return {
            "categories": list(self.categories),
            "left_out": list(self.left_out),
            "vectors": self.vectors.tolist(),
            "n_harmful": list(self.n_harmful),
            "n_harmless": list(self.n_harmless),
            "gram": self.gram.tolist(),
            "cosines": [[float(v) if np.isfinite(v) else None for v in r] for r in self.cosines],
            "effective_rank": self.effective_rank.to_dict(),
            "first_share": self.first_share.to_dict(),
        }


def category_directions(
    x: Float[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    categories: Sequence[str],
    intents: Sequence[str],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> CategoryDirections:
    """Mean differences by category, their unbiased Gram matrix and effective rank.

    Args:
        x: Activations at one site.
        labels: 0 harmless, 1 harmful.
        categories: Category of each prompt.
        intents: Intent of each prompt; it may span categories.
        level: Nominal coverage of the intervals (cluster jackknife over intents).
        seed: Seed of the deals into quarters.

    Raises:
        DirectionError: As `category_sample` says.
    """
    sample = category_sample(x, labels, categories, intents)
    n = len(sample.names)
    counts = np.bincount(sample.arms, minlength=2 * n).reshape(n, 2)
    member = np.zeros((len(sample.arms), 2 * n))
    member[np.arange(len(sample.arms)), sample.arms] = 1.0
    products = mean_products(
        np.stack([sample.clusters.sums(column[:, None] * sample.x) for column in member.T]),
        sample.clusters.sums(member).T,
    )
    contrast = np.zeros((n, 2 * n))
    contrast[np.arange(n), 2 * np.arange(n) + HARMFUL] = 1.0
    contrast[np.arange(n), 2 * np.arange(n) + HARMLESS] = -1.0
    gram = contrast @ products.corrected @ contrast.T
    squares = np.where(np.diag(gram) > 0, np.diag(gram), np.nan)
    share, share_left = (
        _first_share(gram),
        _first_share(contrast @ products.corrected_left @ contrast.T),
    )
    return CategoryDirections(
        categories=sample.names,
        left_out=sample.left_out,
        vectors=sample.weights() @ x[sample.kept],
        n_harmful=tuple(int(c) for c in counts[:, HARMFUL]),
        n_harmless=tuple(int(c) for c in counts[:, HARMLESS]),
        gram=gram,
        cosines=gram / np.sqrt(np.outer(squares, squares)),
        effective_rank=effective_rank(sample, level=level, seed=seed),
        first_share=within_range(
            jackknife(float(share), share_left, sample.clusters, level=level), 1 / n, 1.0
        ),
    )


def _first_share(gram: Float[np.ndarray, "*batch category category"]) -> FloatArray:
    """Largest eigenvalue over the trace; NaN where the trace is not positive."""
    trace = np.trace(gram, axis1=-2, axis2=-1)
    usable = np.isfinite(trace) & (trace > 0)
    safe = np.where(usable[..., None, None], gram, np.eye(gram.shape[-1]))
    largest = np.linalg.eigvalsh((safe + np.swapaxes(safe, -1, -2)) / 2)[..., -1]
    share: FloatArray = np.where(usable, largest / np.where(usable, trace, 1.0), np.nan)
    return share
