"""Class means of two models at one site, and what follows from their inner products.

Rotation, shrinkage and translation need only the inner products between four class means (base
and tuned, harmless and harmful), unbiased and with every leave-one-intent-out value in closed
form (`refusaldir.geometry.mean_products`).
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse

from refusaldir.directions.site import has_signal
from refusaldir.geometry import Inner, MeanProducts, angle_degrees, mean_products
from refusaldir.records import HARMFUL, HARMLESS, Estimate
from refusaldir.statistics import Clusters, jackknife

FloatArray = NDArray[np.float64]

# Arms of the products: base harmless, base harmful, tuned harmless, tuned harmful.
R_BASE = np.array([-1.0, 1.0, 0.0, 0.0])
R_TUNED = np.array([0.0, 0.0, -1.0, 1.0])
SHIFT = {HARMLESS: np.array([-1.0, 0.0, 1.0, 0.0]), HARMFUL: np.array([0.0, -1.0, 0.0, 1.0])}


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
        parts = [design.sums(base), design.sums(tuned)]
        sums = np.concatenate(parts)
        means = sums.sum(axis=1) / class_size
        signal = (
            has_signal(base, means[HARMFUL] - means[HARMLESS]),
            has_signal(tuned, means[2 + HARMFUL] - means[2 + HARMLESS]),
        )
        origin = (means[HARMFUL] + means[HARMLESS]) / 2
        sums -= design.counts[..., None] * origin
        products = mean_products(sums, design.counts)
        return cls(
            signal=signal,
            identical=bool(np.array_equal(base, tuned)),
            sums=sums,
            origin=origin,
            products=products,
            base=products.inner(R_BASE, R_BASE),
            tuned=products.inner(R_TUNED, R_TUNED),
            cross=products.inner(R_BASE, R_TUNED),
        )

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


def _norm_note(contrasts: Contrasts, clusters: Clusters) -> str:
    """What is wrong with the norms: not positive (not estimable) or barely so (doubtful)."""
    for name, inner in (("base", contrasts.base), ("tuned", contrasts.tuned)):
        if inner.corrected <= 0:
            return (
                f"not estimable: the {name} direction's squared norm, corrected for noise, is "
                f"{inner.corrected:.3g}, not above 0"
            )
    for name, inner in (("base", contrasts.base), ("tuned", contrasts.tuned)):
        error = float(np.sqrt(np.sum(clusters.centre(inner.corrected_left) ** 2)))
        if inner.corrected < 2 * error:
            return f"doubtful: the {name} direction is hardly longer than its noise"
    return ""


def rotation(
    contrasts: Contrasts, clusters: Clusters, *, level: float = 0.95
) -> tuple[Estimate, FloatArray | None]:
    """Corrected cosine ``⟨rᵇ,rᵗ⟩*/√(‖rᵇ‖²*‖rᵗ‖²*)``, and its leave-one-intent-out values.

    It may exceed 1 by sampling noise; it is not clipped. Near 1 its first-order variance
    vanishes and the jackknife interval is wider than it need be, never too narrow.

    Returns:
        The estimate (None with a note when not estimable) and ``[cluster]`` values, or None.
    """
    if contrasts.reason:
        return missing(clusters, level, contrasts.reason), None
    if contrasts.identical:
        return _same(clusters, level), np.ones(clusters.n)
    note = _norm_note(contrasts, clusters)
    if note.startswith("not estimable"):
        return missing(clusters, level, note), None
    value = contrasts.cross.corrected / math.sqrt(
        contrasts.base.corrected * contrasts.tuned.corrected
    )
    left = contrasts.cross.corrected_left / (
        root(contrasts.base.corrected_left) * root(contrasts.tuned.corrected_left)
    )
    if value > 1:
        note = "; ".join(filter(None, [note, "above 1 by noise: no rotation is visible"]))
    bounds = (-1.0, 1.0)
    return jackknife(value, left, clusters, level=level, bounds=bounds, note=note), left


def raw_rotation(contrasts: Contrasts, clusters: Clusters, *, level: float = 0.95) -> Estimate:
    """Cosine of the two sample directions: biased, and so is what its interval covers."""
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


def shrinkage(contrasts: Contrasts, clusters: Clusters, *, level: float = 0.95) -> Estimate:
    """``‖rᵗ‖*/‖rᵇ‖*``, interval on its logarithm; None with a note when not estimable."""
    if contrasts.reason:
        return missing(clusters, level, contrasts.reason)
    if contrasts.identical:
        return _same(clusters, level)
    note = _norm_note(contrasts, clusters)
    if note.startswith("not estimable"):
        return missing(clusters, level, note)
    value = math.sqrt(contrasts.tuned.corrected / contrasts.base.corrected)
    left = root(contrasts.tuned.corrected_left) / root(contrasts.base.corrected_left)
    return jackknife(value, left, clusters, level=level, log=True, note=note)


def direction_norm(
    inner: Inner, contrasts: Contrasts, clusters: Clusters, *, level: float = 0.95
) -> Estimate:
    """Norm of a direction, corrected for noise; ``inner`` is its product with itself."""
    if contrasts.reason:
        return missing(clusters, level, contrasts.reason)
    if inner.corrected <= 0:
        return missing(clusters, level, "not estimable: not above 0 once corrected for noise")
    return jackknife(
        math.sqrt(inner.corrected), root(inner.corrected_left), clusters, level=level, log=True
    )


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
