"""The noise of translations at one site, per intent, in base SDs; and what all noise is made of."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from refusaldir.drift.contrasts import CLEAR, R_BASE, SHIFT, Contrasts, root
from refusaldir.errors import DirectionError
from refusaldir.records import HARMFUL, HARMLESS
from refusaldir.statistics import Deviations, centred_kernel

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Variance of one figure, ``first/n + second/(n (n − 1))`` with n intents."""

    first: float
    second: float

    def variance(self, n: int, *, counted: float = 1.0, extra: float = 0.0) -> float:
        """Variance with n intents.

        Args:
            n: Number of intents.
            counted: How often the second-order part is counted; the jackknife counts it twice.
            extra: Added to the first-order part.
        """
        return (self.first + extra) / n + counted * self.second / (n * (n - 1))


@dataclass(frozen=True, kw_only=True)
class ShiftNoise:
    """Noise of the translations, in base SDs.

    Attributes:
        harmful: Of harmful prompts, where they did not move.
        harmless: Of harmless prompts, where they did not move.
        unit: Variance, times n, of the logarithm of what translations are measured in (the
            length of base's direction times base's SD).
    """

    harmful: Spread
    harmless: Spread
    unit: float

    def of(self, label: int) -> Spread:
        """The noise of one class."""
        return self.harmful if label == HARMFUL else self.harmless


def measure_shift_noise(
    contrasts: Contrasts, base: Float[np.ndarray, "prompt d_model"]
) -> ShiftNoise:
    """Noise of the translations of a comparison, whatever became of the tuned direction.

    Args:
        contrasts: Both models at the site.
        base: Activations of base there, float64.

    Raises:
        DirectionError: Base's direction is not clearly longer than its noise.
    """
    require_clear(contrasts, ("base",))
    clusters, b = contrasts.design.clusters, contrasts.base
    projected = _Projected(contrasts, base)
    sums = _arm_noise(contrasts)
    spreads = {}
    for label, shift in SHIFT.items():
        product = contrasts.products.inner(R_BASE, shift)
        left = product.corrected_left / root(b.corrected_left)
        kernel = _product_kernel(
            contrasts, sums[HARMFUL] - sums[HARMLESS], sums[2 + label] - sums[label]
        )
        spreads[label] = spread_of(
            Deviations(
                first=clusters.centre(left) / projected.sd,
                second=kernel / (math.sqrt(b.corrected) * projected.sd),
                clusters=clusters,
            )
        )
    return _shift_noise(contrasts, spreads, projected)


def assume_shift_noise(
    contrasts: Contrasts, base: Float[np.ndarray, "prompt d_model"], *, shared: float
) -> ShiftNoise:
    """Noise of the translations where only base was captured; see `assume_noise`.

    Args:
        contrasts: Base against itself at the site.
        base: Activations of base there, float64.
        shared: Share of the noise that the two models have in common.
    """
    clusters, b = contrasts.design.clusters, contrasts.base.corrected
    projected = _Projected(contrasts, base)
    sums = _arm_noise(contrasts)
    apart = 2 * (1 - shared)
    spreads = {}
    for label in (HARMFUL, HARMLESS):
        kernel = _product_kernel(contrasts, sums[HARMFUL] - sums[HARMLESS], sums[label])
        own = spread_of(
            Deviations(
                first=np.zeros(clusters.n),
                second=kernel / (math.sqrt(b) * projected.sd),
                clusters=clusters,
            )
        )
        first = clusters.n * projected.mean_variance(label) / projected.sd**2
        spreads[label] = Spread(first=apart * first, second=apart * own.second)
    return _shift_noise(contrasts, spreads, projected)


def _shift_noise(
    contrasts: Contrasts, spreads: dict[int, Spread], projected: "_Projected"
) -> ShiftNoise:
    length = spread_of(contrasts.deviations(base=0.5 / contrasts.base.corrected))
    return ShiftNoise(
        harmful=spreads[HARMFUL],
        harmless=spreads[HARMLESS],
        unit=length.first + projected.unit_variance,
    )


def require_clear(contrasts: Contrasts, sides: tuple[str, ...] = ("base", "tuned")) -> None:
    """Check that directions stand out of their noise.

    Raises:
        DirectionError: One does not, or there is no signal at all.
    """
    if contrasts.reason:
        raise DirectionError(contrasts.reason, next_step="Choose another site")
    for name, inner in (("base", contrasts.base), ("tuned", contrasts.tuned)):
        error = contrasts.norm_errors[name]
        if name in sides and not inner.corrected > CLEAR * error:
            raise DirectionError(
                f"the {name} direction is not clearly longer than its noise",
                expected=f"a squared norm {CLEAR:g} standard errors above 0",
                got=f"{inner.corrected:.3g} with a standard error of {error:.3g}",
                next_step="Choose another site, or capture more prompts",
            )


def spread_of(deviations: Deviations) -> Spread:
    """Both parts of a figure's variance, per intent."""
    n = deviations.clusters.n
    second, excess = deviations.second_order
    first = max(float(np.sum(deviations.first**2)) - second - excess, 0.0)
    return Spread(first=n * first, second=n * (n - 1) * second)


def _arm_noise(contrasts: Contrasts) -> FloatArray:
    """What each intent adds to the noise of each arm's mean, ``[arm cluster d_model]``."""
    counts = contrasts.design.counts
    size = counts.sum(axis=1)
    pairs = np.sqrt(np.maximum(size**2 - (counts**2).sum(axis=1), 1.0))
    means = contrasts.sums.sum(axis=1) / size[:, None]
    noise: FloatArray = contrasts.sums - counts[..., None] * means[:, None]
    noise /= pairs[:, None, None]
    return noise


def _product_kernel(contrasts: Contrasts, first: FloatArray, second: FloatArray) -> FloatArray:
    """Kernel of the product of two contrasts."""
    gram = first @ second.T
    kernel: FloatArray = centred_kernel((gram + gram.T) / 2, contrasts.design.clusters)
    return kernel


class _Projected:
    """Base's prompts along its direction, each intent on the direction of the others."""

    def __init__(self, contrasts: Contrasts, base: FloatArray) -> None:
        design = contrasts.design
        self.labels, self.clusters = design.labels, design.clusters
        sums, counts = contrasts.sums[:2], design.counts[:2]
        total, size = sums.sum(axis=1, keepdims=True), counts.sum(axis=1)[:, None]
        left = (total - sums) / (size - counts)[..., None]
        r = left[HARMFUL] - left[HARMLESS]
        r /= np.linalg.norm(r, axis=1, keepdims=True)
        centred = base - contrasts.origin
        scores = np.einsum("pd,pd->p", centred, r[self.clusters.codes])
        for label in (HARMLESS, HARMFUL):
            scores[self.labels == label] -= scores[self.labels == label].mean()
        self.scores: FloatArray = scores
        self.sd = math.sqrt(float(np.sum(scores**2)) / (len(scores) - 2))
        if self.sd == 0:
            raise DirectionError("base has no spread along its direction")

    def mean_variance(self, label: int) -> float:
        """Variance of a class mean between intents."""
        here = self.labels == label
        parts = self.clusters.sums(np.where(here, self.scores, 0.0)) / here.sum()
        k = len(np.unique(self.clusters.codes[here]))
        return k / (k - 1) * float(np.sum(parts**2))

    @property
    def unit_variance(self) -> float:
        """Variance, times n, of the logarithm of the SD."""
        n, count = self.clusters.n, len(self.scores)
        parts = self.clusters.sums(self.scores**2 / self.sd**2 - 1) / count
        return n * n / (n - 1) * float(np.sum(parts**2)) / 4
