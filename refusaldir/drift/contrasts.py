"""Class means of two models at one site, and what follows from their inner products.

Rotation, shrinkage and translation need only the inner products between four class means (base
and tuned, harmless and harmful), unbiased and with every leave-one-intent-out value in closed
form (`refusaldir.geometry.mean_products`).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse

from refusaldir.directions.site import has_signal
from refusaldir.geometry import Inner, MeanProducts, mean_products
from refusaldir.records import HARMFUL, HARMLESS, Estimate
from refusaldir.statistics import Clusters, Deviations, centred_kernel

FloatArray = NDArray[np.float64]
SingleArray = NDArray[np.float32]

# Arms of the products: base harmless, base harmful, tuned harmless, tuned harmful.
R_BASE = np.array([-1.0, 1.0, 0.0, 0.0])
R_TUNED = np.array([0.0, 0.0, -1.0, 1.0])
SHIFT = {HARMLESS: np.array([-1.0, 0.0, 1.0, 0.0]), HARMFUL: np.array([0.0, -1.0, 0.0, 1.0])}

#: A direction carries a ratio when its squared norm is this many standard errors above 0.
CLEAR = 2.0


class Design:
    """Which prompt is in which class, intent and fold; the same at every site.

    Args:
        labels: 0 harmless, 1 harmful.
        clusters: Prompts grouped by intent.
        fold: Held-out fold of each prompt.
    """

    def __init__(
        self,
        labels: Int[np.ndarray, " prompt"],
        clusters: Clusters,
        fold: Int[np.ndarray, " prompt"],
    ) -> None:
        """Prepare the sums over class × intent."""
        self.labels, self.clusters, self.fold = labels, clusters, fold
        n, groups = len(labels), 2 * clusters.n
        member = (np.ones(n), (labels * clusters.n + clusters.codes, np.arange(n)))
        self._member = sparse.csr_array(member, shape=(groups, n))
        counts = np.asarray(self._member.sum(axis=1)).reshape(2, clusters.n)
        self.counts: FloatArray = np.concatenate([counts, counts])

    def sums(self, x: Float[np.ndarray, "prompt d_model"]) -> FloatArray:
        """Sums over class × intent, ``[2, cluster, d_model]``."""
        total: FloatArray = np.asarray(self._member @ x)
        return total.reshape(2, self.clusters.n, -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Contrasts:
    """Inner products at one site that rotation, shrinkage and translation are made of."""

    design: Design
    signal: tuple[bool, bool]
    """Whether base and tuned activations differ between the classes at all."""
    identical: bool
    """Whether the two models' activations are the same, bit by bit."""
    sums: FloatArray
    """Sums of each arm's activations per intent, from `origin`, ``[arm cluster d_model]``."""
    origin: FloatArray
    """Midpoint of the base class means, ``[d_model]``."""
    products: MeanProducts
    base: Inner
    tuned: Inner
    cross: Inner

    @classmethod
    def of(
        cls,
        design: Design,
        base: Float[np.ndarray, "prompt d_model"],
        tuned: Float[np.ndarray, "prompt d_model"],
    ) -> "Contrasts":
        """Compute them from both models' activations, float64."""
        class_size = design.counts.sum(axis=1)[:, None]
        sums = np.empty((4, design.clusters.n, base.shape[1]))
        sums[:2], sums[2:] = design.sums(base), design.sums(tuned)
        means = sums.sum(axis=1) / class_size
        signal = (
            has_signal(base, means[HARMFUL] - means[HARMLESS]),
            has_signal(tuned, means[2 + HARMFUL] - means[2 + HARMLESS]),
        )
        origin = (means[HARMFUL] + means[HARMLESS]) / 2
        for arm, count in zip(sums, design.counts, strict=True):  # one arm's temporary at a time
            arm -= np.outer(count, origin)
        products = mean_products(sums, design.counts)
        return cls(
            design=design,
            signal=signal,
            identical=bool(np.array_equal(base, tuned)),
            sums=sums,
            origin=origin,
            products=products,
            base=products.inner(R_BASE, R_BASE),
            tuned=products.inner(R_TUNED, R_TUNED),
            cross=products.inner(R_BASE, R_TUNED),
        )

    @cached_property
    def _grams(self) -> tuple[SingleArray, SingleArray, SingleArray]:
        """Products of the intents' noise in ``r``: base by base, base by tuned, tuned by tuned.

        Intent c enters r with ``s̃_c1/√N₁ − s̃_c0/√N₀``: its sums about the class means, N the
        number of ordered pairs of prompts of a class that belong to two intents. Single
        precision will do, since only variances are made of these.
        """
        counts = self.design.counts
        size = counts.sum(axis=1)
        pairs = np.sqrt(np.maximum(size**2 - (counts**2).sum(axis=1), 1.0))
        means = self.sums.sum(axis=1) / size[:, None]
        n = counts.shape[1]
        parts = np.zeros((2 * n, self.sums.shape[2]), dtype=np.float32)
        for arm, (sign, rows) in enumerate(
            zip((-1.0, 1.0, -1.0, 1.0), (parts[:n], parts[:n], parts[n:], parts[n:]), strict=True)
        ):
            centred = self.sums[arm] - np.outer(counts[arm], means[arm])
            rows += (sign / pairs[arm] * centred).astype(np.float32)
        gram: SingleArray = parts @ parts.T
        cross: SingleArray = (gram[:n, n:] + gram[n:, :n]) / np.float32(2)
        return gram[:n, :n], cross, gram[n:, n:]

    def deviations(
        self, *, base: float = 0.0, cross: float = 0.0, tuned: float = 0.0
    ) -> Deviations:
        """Deviations of ``base ‖rᵇ‖²* + cross ⟨rᵇ,rᵗ⟩* + tuned ‖rᵗ‖²*``."""
        clusters = self.design.clusters
        weights = (base, cross, tuned)
        inner = (self.base, self.cross, self.tuned)
        left = sum(w * i.corrected_left for w, i in zip(weights, inner, strict=True) if w)
        gram = sum(w * g for w, g in zip(weights, self._grams, strict=True) if w)
        return Deviations(
            first=clusters.centre(np.asarray(left, dtype=np.float64)),
            second=centred_kernel(np.asarray(gram), clusters),
            clusters=clusters,
        )

    @cached_property
    def norm_errors(self) -> dict[str, float]:
        """Standard error of each model's ``‖r‖²*``, by ``"base"`` and ``"tuned"``."""
        return {
            name: math.sqrt(self.deviations(**{name: 1.0}).variance) for name in ("base", "tuned")
        }

    @cached_property
    def within_noise(self) -> str:
        """Why the norms do not carry a ratio; empty when both stand out of their noise."""
        for name, inner in (("base", self.base), ("tuned", self.tuned)):
            if not inner.corrected > 0:
                return (
                    f"not estimable: the {name} direction's squared norm, corrected for noise, is "
                    f"{inner.corrected:.3g}, not above 0"
                )
            if inner.corrected < CLEAR * self.norm_errors[name]:
                return (
                    f"not estimable: the {name} direction's squared norm, corrected for noise, is "
                    f"{inner.corrected:.3g}, less than {CLEAR:g} standard errors above 0"
                )
        return ""

    @property
    def reason(self) -> str:
        """Why the direction is not estimable at all; empty when it may be."""
        match self.signal:
            case (True, True):
                return ""
            case (False, False):
                which = "both models"
            case (False, True):
                which = "base"
            case _:
                which = "tuned"
        return f"no signal: harmful and harmless activations are the same in {which}"


def missing(clusters: Clusters, level: float, note: str) -> Estimate:
    """An estimate without a value, with the reason."""
    return Estimate(value=None, n=clusters.n, level=level, note=note)


def root(x: FloatArray) -> FloatArray:
    """Square root, NaN where the argument is not positive."""
    return np.sqrt(np.where(x > 0, x, np.nan))
