"""Base against tuned: drift of the refusal direction, layer by layer, with intervals."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from refusaldir.directions.reader import CaptureReader, clusters_of, read_layer, read_site
from refusaldir.directions.site import SiteChoice, choose_sites, fold_count, no_signal
from refusaldir.drift.comparable import Comparable, require_comparable
from refusaldir.drift.context import ContextWalk
from refusaldir.drift.contrasts import Contrasts, Design
from refusaldir.drift.geometry_view import GeometryView, geometry_view
from refusaldir.drift.harmfulness import HarmfulnessDrift, harmfulness_drift
from refusaldir.drift.layer import layer_drift
from refusaldir.drift.layer_result import LayerDrift
from refusaldir.drift.ranking import RANKING_RULE, rank_layers
from refusaldir.drift.result import MARGINS, DriftResult, Margins, SiteRotation
from refusaldir.drift.rotation import rotation, shrinkage
from refusaldir.drift.verdict import findings, question_level, sentences
from refusaldir.errors import DirectionError
from refusaldir.records import HARMFUL, Site
from refusaldir.statistics import Deviations

__all__ = ["DriftResult", "compare"]

FloatArray = NDArray[np.float64]

_METHODS = {
    "rotation": "cosine of the mean-difference directions, corrected for noise shared within "
    "intents; not clipped at 1",
    "rotation_raw": "cosine of the sample directions, biased by noise",
    "shrinkage": "tuned norm over base norm, both corrected for noise",
    "translation": "shift of the class mean along the base direction, in base within-class SDs",
    "auroc": "held out, cross-fitted over folds of intents; intervals for the directions as fitted",
    "d_prime": "held out, cross-fitted over folds of intents; intervals for the directions as "
    "fitted",
    "relative_change": "mean over prompts of the change's norm over the base activation's norm",
    "cka": "unbiased linear CKA over all prompts",
}

#: Spacing of bfloat16: what another precision may do to activations, as a share of their norm.
_COARSE = 2.0**-8

#: With fewer intents than this, intervals are approximate and the result says so.
_FEW_INTENTS = 16


def compare(
    base: CaptureReader,
    tuned: CaptureReader,
    *,
    hook: str = "resid_pre",
    position: int | None = None,
    site: Site | None = None,
    level: float = 0.95,
    seed: int = 0,
    draws: int = 2000,
    folds: int = 10,
    margins: Margins = MARGINS,
    allow_dtype_mismatch: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> DriftResult:
    """Measure the drift of the mean-difference refusal direction between two captures.

    The site is chosen on the base capture alone. At its position every layer gets rotation,
    shrinkage, translation, separability and general disturbance; at every other captured
    position rotation and shrinkage. Prompts of one intent are one independent unit throughout.
    One layer of each capture is in memory at a time.

    It measures geometry on these prompts. It does not show that a direction causes refusal, nor
    which layer's weights were changed, and "no detectable drift" is no evidence of safety.

    Args:
        base: Capture of the base model.
        tuned: Capture of the tuned model, same prompts and rendering.
        hook: Hook point to compare.
        position: Token offset to compare at; by default the one chosen on base.
        site: The site of base to follow, whatever separates best; at ``hook``.
        level: Nominal coverage of single intervals, of the bands over layers, and of the
            findings together.
        seed: Seed of folds and bands.
        draws: Draws of each null, and of the multiplier bootstrap behind the bands.
        folds: Largest number of folds of the held-out figures.
        margins: Changes smaller than these count as small.
        allow_dtype_mismatch: Compare captures of another dtype or quantization, with a note.
        progress: Called with (layers done, layers in all).

    Returns:
        The drift per layer, the ranking of layers, and the verdict in words.

    Raises:
        CaptureMismatchError: When the captures differ in more than the weights.
        DirectionError: When a class has too few intents, or no site of base has any signal.
        CaptureError: When activations are not finite.
    """
    pair = require_comparable(base, tuned, hook, allow_dtype_mismatch=allow_dtype_mismatch)
    labels = pair.base.labels
    clusters = clusters_of(pair.base.prompts, labels)
    choice, instruction = _sites(pair.base, hook, position, folds=folds, seed=seed)
    if site is not None:
        choice = replace(choice, site=site)
    fold = clusters.folds(fold_count(labels, clusters, folds), seed)
    design = Design(labels, clusters, fold)

    walk = ContextWalk(
        design,
        categories=[prompt.category for prompt in pair.base.prompts],
        lengths=pair.base.lengths,
        rounding=_rounding(base, tuned),
        level=level,
        question_level=question_level(level),
        draws=draws,
        seed=seed,
    )
    rows: list[LayerDrift] = []
    grid: list[SiteRotation] = []
    deviations: list[Deviations | None] = []
    for done, layer in enumerate(base.layers):
        b = read_layer(pair.base, hook, layer)
        t = read_layer(pair.tuned, hook, layer)
        for index, offset in enumerate(base.positions.offsets):
            here = Site(hook=hook, layer=layer, position=offset)
            x, y = b[:, index].astype(np.float64), t[:, index].astype(np.float64)
            if offset == choice.site.position:
                row, values = layer_drift(here, design, x, y, level=level)
                rows.append(row)
                deviations.append(values)
                walk.add(row, x, y)
                cos, shrunk = row.rotation, row.shrinkage
            else:
                contrasts = Contrasts.of(design, x, y)
                cos, _ = rotation(contrasts, level=level)
                shrunk = shrinkage(contrasts, level=level)
            grid.append(SiteRotation(site=here, rotation=cos, shrinkage=shrunk))
        if progress is not None:
            progress(done + 1, len(base.layers))

    x, y = (read_site(side, choice.site).astype(np.float64) for side in (pair.base, pair.tuned))
    at_site, _ = layer_drift(choice.site, design, x, y, level=question_level(level))
    row, own = next(
        (row, values)
        for row, values in zip(rows, deviations, strict=True)
        if row.site == choice.site
    )
    answers = findings(at_site, margins)
    ranking = rank_layers(rows, deviations, level=level, seed=seed, draws=draws)
    apart = None
    if instruction is not None:
        apart = _harmfulness(pair, design, instruction, row, own, (x, y), level)
    notes = list(pair.notes)
    if base.provenance.model.weights_hash == tuned.provenance.model.weights_hash:
        notes.append("base and tuned have the same weights hash: this compares a model to itself")
    elif all(row.identical for row in rows):
        notes.append("all activations compared are identical: do the two models differ at all?")
    if clusters.n < _FEW_INTENTS:
        notes.append(f"only {clusters.n} intents: intervals are approximate")
    return DriftResult(
        hook=hook,
        site=choice,
        layers=tuple(rows),
        grid=tuple(grid),
        ranking=ranking,
        ranking_rule=RANKING_RULE,
        findings=answers,
        verdict=sentences(at_site, answers, ranking, level),
        margins=margins,
        harmfulness=apart,
        context=walk.result(choice.site, x, y),
        views=_views(pair, choice.site, x, y),
        deviations=own,
        notes=tuple(notes),
        n_prompts=len(labels),
        n_harmful=int(np.sum(labels == HARMFUL)),
        n_harmless=int(np.sum(labels != HARMFUL)),
        n_clusters=clusters.n,
        level=level,
        seed=seed,
        base=base.provenance,
        tuned=tuned.provenance,
        methods=_METHODS,
    )


def _views(
    pair: Comparable, site: Site, base: FloatArray, tuned: FloatArray
) -> tuple[GeometryView, ...]:
    """Both models in a plane, along base's direction and along its main components."""
    ids = [prompt.id for prompt in pair.base.prompts]
    try:
        return tuple(
            geometry_view(base, tuned, pair.base.labels, ids, site=site, method=method)
            for method in ("direction", "pca")
        )
    except DirectionError:  # base has no signal here, or its prompts lie on one line
        return ()


def _rounding(base: CaptureReader, tuned: CaptureReader) -> float:
    """Share of the activations' norm by which two precisions of one model may differ."""
    kinds = [(c.provenance.model.dtype, c.provenance.model.quantization) for c in (base, tuned)]
    return 0.0 if kinds[0] == kinds[1] else _COARSE


def _sites(
    base: CaptureReader, hook: str, position: int | None, *, folds: int, seed: int
) -> tuple[SiteChoice, Site | None]:
    """The site to follow, and where harmfulness is compared with it, chosen on base."""
    wanted = base.positions.post if position is None else (position,)
    there = base.positions.instruction
    groups = [wanted] if there is None or there in wanted else [wanted, (there,)]
    choice, *rest = choose_sites(base, hook, groups, folds=folds, seed=seed)
    if choice is None:
        raise no_signal(hook, base.layers)
    return choice, rest[0].site if rest and rest[0] is not None else None


def _harmfulness(
    pair: Comparable,
    design: Design,
    site: Site,
    refusal: LayerDrift,
    deviations: Deviations | None,
    activations: tuple[FloatArray, FloatArray],
    level: float,
) -> HarmfulnessDrift:
    """Drift at the last instruction token, beside that at the refusal site."""
    sides = (pair.base, pair.tuned)
    x, y = (read_site(side, site).astype(np.float64) for side in sides)
    row, own = layer_drift(site, design, x, y, level=level)
    beside = replace(refusal.site, position=site.position)
    cosines = [
        rotation(Contrasts.of(design, read_site(side, beside).astype(np.float64), z), level=level)
        for side, z in zip(sides, activations, strict=True)
    ]
    return harmfulness_drift(
        row, refusal, (own, deviations), (cosines[0][0], cosines[1][0]), level=level
    )
