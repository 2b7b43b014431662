"""How much the activations changed at all, whatever the direction: relative change and CKA."""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, jackknife, mean

FloatArray = NDArray[np.float64]


def relative_change(
    base: Float[np.ndarray, "prompt d_model"],
    tuned: Float[np.ndarray, "prompt d_model"],
    clusters: Clusters,
    *,
    level: float = 0.95,
) -> Estimate:
    """Mean over prompts of ``‖xᵗ − xᵇ‖ / ‖xᵇ‖``; 0 means that nothing changed."""
    norms = np.linalg.norm(base, axis=1)
    if np.any(norms == 0):
        return Estimate(
            value=None, n=clusters.n, level=level, note="an activation of base has norm 0"
        )
    return mean(np.linalg.norm(tuned - base, axis=1) / norms, clusters, level=level)


def linear_cka(
    base: Float[np.ndarray, "prompt d_model"],
    tuned: Float[np.ndarray, "prompt d_model"],
    clusters: Clusters,
    *,
    level: float = 0.95,
) -> Estimate:
    """Linear CKA from unbiased HSIC (Song et al. 2012; Kornblith et al. 2019).

    1 when one set of activations is the other up to rotation, shift and scale. It looks at all
    prompts together and is insensitive to changes that leave their mutual geometry alone, a
    common shift among them. Products of a prompt with itself are left out; those of twins are
    not. The interval is a cluster jackknife in closed form.

    Returns:
        The estimate; None where the prompts do not differ from one another.
    """
    if len(base) < 5:
        return Estimate(value=None, n=clusters.n, level=level, note="fewer than 5 prompts")
    kernels = [_Kernel(x, clusters) for x in (base, tuned)]
    values = {(i, j): _hsic(kernels[i], kernels[j], clusters) for i, j in ((0, 0), (0, 1), (1, 1))}
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = values[0, 1] / np.sqrt(values[0, 0] * values[1, 1])
    estimable = all(values[i, i][0] > kernels[i].noise and values[i, i][0] > 0 for i in (0, 1))
    if not estimable:
        return Estimate(
            value=None, n=clusters.n, level=level, note="no signal: the prompts do not differ"
        )
    return jackknife(float(ratio[0]), ratio[1:], clusters, level=level, bounds=(0.0, 1.0))


class _Kernel:
    """Gram matrix without its diagonal, its row sums and its sums over clusters."""

    def __init__(self, x: FloatArray, clusters: Clusters) -> None:
        centred = x - x.mean(axis=0)
        gram = centred @ centred.T
        # Rounding of float32 activations, as HSIC would see it.
        power = float(np.mean(x * x)) * x.shape[1]
        self.noise = (float(np.finfo(np.float32).eps) ** 2 * power) ** 2
        np.fill_diagonal(gram, 0.0)
        self.gram = gram
        self.rows = gram.sum(axis=1)
        self.columns = clusters.sums(gram)  # [cluster, prompt]: K summed over the cluster


def _hsic(k: _Kernel, other: _Kernel, clusters: Clusters) -> FloatArray:
    """Unbiased HSIC on all prompts, then without each cluster, ``[1 + cluster]``."""
    n_all, count = len(k.rows), clusters.sums(np.ones(len(k.rows)))
    product = k.gram * other.gram
    trace, grand, grand_other, mixed = (
        np.full(clusters.n + 1, v)
        for v in (product.sum(), k.rows.sum(), other.rows.sum(), k.rows @ other.rows)
    )
    own = clusters.codes[None, :] == np.arange(clusters.n)[:, None]
    trace[1:] -= 2 * clusters.sums(product.sum(axis=1)) - np.where(
        own, clusters.sums(product), 0.0
    ).sum(axis=1)
    for total, kernel in ((grand, k), (grand_other, other)):
        total[1:] -= 2 * clusters.sums(kernel.rows) - np.where(own, kernel.columns, 0.0).sum(axis=1)
    kept = (k.rows - k.columns) * (other.rows - other.columns)
    mixed[1:] = np.where(own, 0.0, kept).sum(axis=1)
    n = n_all - np.concatenate([[0.0], count])
    with np.errstate(invalid="ignore", divide="ignore"):
        result: FloatArray = (
            trace + grand * grand_other / ((n - 1) * (n - 2)) - 2 * mixed / (n - 2)
        ) / (n * (n - 3))
    return np.where(n > 3, result, np.nan)
