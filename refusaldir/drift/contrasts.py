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
from refusaldir.geometry import Inner, MeanProducts, angle_degrees, mean_products
from refusaldir.records import HARMFUL, HARMLESS, Estimate
from refusaldir.statistics import Clusters, Deviations, centred_kernel, jackknife

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


def _same(clusters: Clusters, level: float) -> Estimate:
    """The cosine, and the ratio of norms, of a direction with itself."""
    return Estimate(
        value=1.0,
        lower=1.0,
        upper=1.0,
        n=clusters.n,
        level=level,
        method="exact",
        note="the activations are identical",
    )


def root(x: FloatArray) -> FloatArray:
    """Square root, NaN where the argument is not positive."""
    return np.sqrt(np.where(x > 0, x, np.nan))


def rotation(contrasts: Contrasts, *, level: float = 0.95) -> tuple[Estimate, Deviations | None]:
    """Corrected cosine ``⟨rᵇ,rᵗ⟩*/√(‖rᵇ‖²*‖rᵗ‖²*)``, and what its variance is made of.

    It may exceed 1 by sampling noise; it is not clipped. With ``λ = ‖rᵗ‖*/‖rᵇ‖*`` its error is,
    to second order, that of the U-statistic ``⟨rᵇ,rᵗ⟩* − cos·½(λ‖rᵇ‖²* + ‖rᵗ‖²*/λ)`` over
    ``‖rᵇ‖*‖rᵗ‖*``: an error of λ itself moves nothing to first order.

    Returns:
        The estimate (None with a note when not estimable) and its deviations, or None.
    """
    clusters = contrasts.design.clusters
    if contrasts.reason:
        return missing(clusters, level, contrasts.reason), None
    if contrasts.identical:
        nothing = Deviations(
            first=np.zeros(clusters.n), second=np.zeros((clusters.n,) * 2), clusters=clusters
        )
        return _same(clusters, level), nothing
    if note := contrasts.within_noise:
        return missing(clusters, level, note), None
    b, t = contrasts.base.corrected, contrasts.tuned.corrected
    scale = math.sqrt(b * t)
    value = contrasts.cross.corrected / scale
    cos = float(np.clip(value, -1.0, 1.0))
    deviations = contrasts.deviations(cross=1 / scale, base=-cos / (2 * b), tuned=-cos / (2 * t))
    note = "above 1 by noise: no rotation is visible" if value > 1 else ""
    return deviations.interval(value, level=level, bounds=(-1.0, 1.0), note=note), deviations


def raw_rotation(contrasts: Contrasts, *, level: float = 0.95) -> Estimate:
    """Cosine of the two sample directions: biased, and so is what its interval covers."""
    clusters = contrasts.design.clusters
    if contrasts.reason:
        return missing(clusters, level, contrasts.reason)
    if contrasts.identical:
        return _same(clusters, level)
    b, t, x = contrasts.base, contrasts.tuned, contrasts.cross
    value = float(np.clip(x.raw / math.sqrt(b.raw * t.raw), -1, 1))
    left = x.raw_left / (root(b.raw_left) * root(t.raw_left))
    return jackknife(
        value, left, clusters, level=level, bounds=(-1.0, 1.0),
        note="not corrected for noise: its interval is about a biased figure",
    )  # fmt: skip


def shrinkage(contrasts: Contrasts, *, level: float = 0.95) -> Estimate:
    """``‖rᵗ‖*/‖rᵇ‖*``, interval on its logarithm; None with a note when not estimable."""
    clusters = contrasts.design.clusters
    if contrasts.reason:
        return missing(clusters, level, contrasts.reason)
    if contrasts.identical:
        return _same(clusters, level)
    if note := contrasts.within_noise:
        return missing(clusters, level, note)
    b, t = contrasts.base.corrected, contrasts.tuned.corrected
    deviations = contrasts.deviations(base=-1 / (2 * b), tuned=1 / (2 * t))
    return deviations.interval(math.sqrt(t / b), level=level, log=True)


def direction_norm(contrasts: Contrasts, side: str, *, level: float = 0.95) -> Estimate:
    """Norm of the direction of ``"base"`` or ``"tuned"``, corrected for noise."""
    clusters = contrasts.design.clusters
    if contrasts.reason:
        return missing(clusters, level, contrasts.reason)
    square = (contrasts.base if side == "base" else contrasts.tuned).corrected
    if not square > 0:
        return missing(clusters, level, "not estimable: not above 0 once corrected for noise")
    deviations = contrasts.deviations(**{side: 1 / (2 * square)})
    return deviations.interval(math.sqrt(square), level=level, log=True)


def angle(cos: Estimate) -> Estimate:
    """The angle of a cosine estimate in degrees, ends exchanged; 0 when the cosine is above 1."""
    if cos.value is None or cos.lower is None or cos.upper is None:
        value = None if cos.value is None else angle_degrees(cos.value)
        return Estimate(value=value, n=cos.n, level=cos.level, note=cos.note)
    return Estimate(
        value=angle_degrees(cos.value),
        lower=angle_degrees(cos.upper),
        upper=angle_degrees(cos.lower),
        n=cos.n,
        level=cos.level,
        method=f"{cos.method}, of the cosine",
        note=cos.note,
    )
