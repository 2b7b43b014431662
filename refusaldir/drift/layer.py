"""Drift figures at one site, from the activations of both models on the same prompts."""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from refusaldir.directions.separability import (
    Auroc,
    auroc,
    auroc_change,
    d_prime_left,
    fold_means,
    held_out_scores,
)
from refusaldir.drift.contrasts import R_BASE, R_TUNED, Contrasts, Design, missing
from refusaldir.drift.disturbance import linear_cka, relative_change
from refusaldir.drift.layer_result import Change, Crossed, LayerDrift, TopDimension
from refusaldir.drift.rotation import angle, direction_norm, raw_rotation, rotation, shrinkage
from refusaldir.drift.translation import translation
from refusaldir.geometry import mean_products
from refusaldir.records import HARMFUL, HARMLESS, Estimate, Site
from refusaldir.statistics import Deviations, jackknife

FloatArray = NDArray[np.float64]

_CROSSED = (
    "base_direction_on_base",
    "base_direction_on_tuned",
    "tuned_direction_on_base",
    "tuned_direction_on_tuned",
)


def _top(contrasts: Contrasts, design: Design, side: int, level: float) -> TopDimension | None:
    """The largest coordinate of one model's direction and its share of ``‖r‖²*``."""
    if not contrasts.signal[side]:
        return None
    clusters = design.clusters
    whole = contrasts.tuned if side else contrasts.base
    sizes = design.counts.sum(axis=1)[:, None]
    means = contrasts.sums.sum(axis=1) / sizes
    index = int(np.argmax(np.abs(means[2 * side + HARMFUL] - means[2 * side + HARMLESS])))
    weights = R_TUNED if side else R_BASE
    one = mean_products(contrasts.sums[:, :, [index]], design.counts).inner(weights, weights)
    if whole.corrected <= 0:
        share = missing(
            clusters, level, "not estimable: the direction is not longer than its noise"
        )
    else:
        share = jackknife(
            one.corrected / whole.corrected,
            one.corrected_left / np.where(whole.corrected_left > 0, whole.corrected_left, np.nan),
            clusters,
            level=level,
            bounds=(0.0, 1.0),
        )
    return TopDimension(index=index, share=share)


def _separability(
    design: Design, contrasts: Contrasts, base: FloatArray, tuned: FloatArray, level: float
) -> tuple[Crossed, Crossed, Change, Change]:
    """AUROC and d′ of both directions on both models' activations, and their changes."""
    clusters, labels, fold = design.clusters, design.labels, design.fold
    reason = contrasts.reason
    units: list[FloatArray] = []
    middles: list[FloatArray] = []
    if not reason:
        for x in (base, tuned):
            means = fold_means(x, labels, fold)
            r = means[:, HARMFUL] - means[:, HARMLESS]
            norms = np.linalg.norm(r, axis=1, keepdims=True)
            if not np.all(norms > 0):
                reason = "no signal: a fold's direction is zero"
                break
            units.append(r / norms)
            middles.append(means.mean(axis=1))
    if reason:
        absent = missing(clusters, level, reason)
        crossed = Crossed(**dict.fromkeys(_CROSSED, absent))
        change = Change(own=absent, base_direction=absent)
        return crossed, crossed, change, change
    areas: list[Auroc] = []
    primes: list[tuple[float, FloatArray]] = []
    for direction in units:
        for x, middle in zip((base, tuned), middles, strict=True):
            scores = held_out_scores(x, fold, direction, middle)
            areas.append(auroc(scores, labels, clusters, level=level))
            primes.append(d_prime_left(scores, labels, clusters))

    def prime(value: float, left: FloatArray) -> Estimate:
        note = "" if np.isfinite(value) else "not estimable: no spread within the classes"
        return jackknife(value, left, clusters, level=level, note=note)

    def prime_change(i: int) -> Estimate:
        with np.errstate(invalid="ignore"):
            return prime(primes[i][0] - primes[0][0], primes[i][1] - primes[0][1])

    return (
        Crossed(**dict(zip(_CROSSED, (a.estimate for a in areas), strict=True))),
        Crossed(**dict(zip(_CROSSED, (prime(*p) for p in primes), strict=True))),
        Change(
            own=auroc_change(areas[0], areas[3]), base_direction=auroc_change(areas[0], areas[1])
        ),
        Change(own=prime_change(3), base_direction=prime_change(1)),
    )


def layer_drift(
    site: Site,
    design: Design,
    base: Float[np.ndarray, "prompt d_model"],
    tuned: Float[np.ndarray, "prompt d_model"],
    *,
    level: float = 0.95,
) -> tuple[LayerDrift, Deviations | None]:
    """All drift figures at one site.

    Args:
        site: Where the activations come from.
        design: Classes, intents and folds.
        base: Activations of base, float64.
        tuned: Activations of tuned on the same prompts, float64.
        level: Nominal coverage of each interval.

    Returns:
        The figures, and the deviations of the corrected cosine (None when it is not estimable)
        for bands over layers.
    """
    clusters = design.clusters
    contrasts = Contrasts.of(design, base, tuned)
    cos, deviations = rotation(contrasts, level=level)
    areas, primes, area_change, prime_change = _separability(design, contrasts, base, tuned, level)
    return LayerDrift(
        site=site,
        signal=all(contrasts.signal),
        identical=contrasts.identical,
        rotation=cos,
        rotation_raw=raw_rotation(contrasts, level=level),
        angle=angle(cos),
        shrinkage=shrinkage(contrasts, level=level),
        norm_base=direction_norm(contrasts, "base", level=level),
        norm_tuned=direction_norm(contrasts, "tuned", level=level),
        translation=translation(design, contrasts, base, level=level),
        auroc=areas,
        d_prime=primes,
        auroc_change=area_change,
        d_prime_change=prime_change,
        top_base=_top(contrasts, design, 0, level),
        top_tuned=_top(contrasts, design, 1, level),
        relative_change=relative_change(base, tuned, clusters, level=level),
        cka=linear_cka(base, tuned, clusters, level=level),
    ), deviations
