"""How far the class means have moved along base's direction, in base's own spread."""

import math

import numpy as np
from numpy.typing import NDArray

from refusaldir.drift.contrasts import R_BASE, SHIFT, Contrasts, Design, missing, root
from refusaldir.drift.layer_result import ByClass
from refusaldir.records import HARMFUL, HARMLESS
from refusaldir.statistics import jackknife

FloatArray = NDArray[np.float64]


def within_sd(design: Design, contrasts: Contrasts, base: FloatArray) -> tuple[float, FloatArray]:
    """Pooled within-class SD of base along its direction, each intent projected on others' r̂.

    Returns the SD and its leave-one-intent-out values (the projections held fixed).
    """
    clusters, labels = design.clusters, design.labels
    sums, counts = contrasts.sums[:2], design.counts[:2]
    left = (sums.sum(axis=1, keepdims=True) - sums) / (counts.sum(axis=1)[:, None] - counts)[
        ..., None
    ]
    r = left[HARMFUL] - left[HARMLESS]
    r /= np.linalg.norm(r, axis=1, keepdims=True)
    middle = (left[HARMFUL] + left[HARMLESS]) / 2
    held_out = base - contrasts.origin - middle[clusters.codes]
    scores = np.einsum("pd,pd->p", held_out, r[clusters.codes])
    squares, freedom = np.zeros(clusters.n + 1), np.zeros(clusters.n + 1)
    for label in (HARMLESS, HARMFUL):
        here = (labels == label).astype(np.float64)
        parts = clusters.sums(np.stack([here, here * scores, here * scores**2], axis=1))
        whole = parts.sum(axis=0)
        n, s, q = np.concatenate([whole[None], whole - parts]).T
        squares += np.maximum(q - s * s / n, 0.0)
        freedom += n - 1
    sd = np.sqrt(squares / freedom)
    return float(sd[0]), sd[1:]


def translation(
    design: Design, contrasts: Contrasts, base: FloatArray, *, level: float = 0.95
) -> ByClass:
    """``⟨r̂ᵇ, μᵗ_y − μᵇ_y⟩*/σᵇ`` per class; no intent meets itself in the product."""
    clusters = design.clusters
    reason = contrasts.reason
    if not reason and contrasts.base.corrected <= 0:
        reason = "not estimable: the base direction is within its noise"
    if reason:
        absent = missing(clusters, level, reason)
        return ByClass(harmful=absent, harmless=absent)
    sd, sd_left = within_sd(design, contrasts, base)
    if sd == 0:
        absent = missing(clusters, level, "not estimable: base has no spread along its direction")
        return ByClass(harmful=absent, harmless=absent)
    results = {}
    for label, shift in SHIFT.items():
        product = contrasts.products.inner(R_BASE, shift)
        value = product.corrected / math.sqrt(contrasts.base.corrected) / sd
        left = product.corrected_left / root(contrasts.base.corrected_left) / sd_left
        results[label] = jackknife(value, left, clusters, level=level)
    return ByClass(harmful=results[HARMFUL], harmless=results[HARMLESS])
