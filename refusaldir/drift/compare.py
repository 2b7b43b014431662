"""Base against tuned: drift of the refusal direction, layer by layer, with intervals."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from refusaldir.directions.reader import CaptureReader, clusters_of, read_layer
from refusaldir.directions.site import choose_site, fold_count
from refusaldir.drift.comparable import require_comparable
from refusaldir.drift.contrasts import Contrasts, Design, rotation, shrinkage
from refusaldir.drift.layer import layer_drift
from refusaldir.drift.result import DriftResult, LayerDrift, SiteRotation
from refusaldir.drift.verdict import RANKING_RULE, findings, question_level, rank_layers, sentences
from refusaldir.records import HARMFUL, Site

__all__ = ["DriftResult", "compare"]

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
    n_boot: int = 2000,
    folds: int = 10,
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
        n_boot: Draws of the multiplier bootstrap behind the bands.
        folds: Largest number of folds of the held-out figures.
        allow_dtype_mismatch: Compare captures of another dtype or quantization, with a note.
        progress: Called with (layers done, layers in all).

    Returns:
        The drift per layer, the ranking of layers, and the verdict in words.

    Raises:
        CaptureMismatchError: When the captures differ in more than the weights.
        DirectionError: When a class has too few intents, or no site of base has any signal.
        CaptureError: When activations are not finite.
    """
    alignment = require_comparable(base, tuned, hook, allow_dtype_mismatch=allow_dtype_mismatch)
    labels = np.asarray(base.labels)
    clusters = clusters_of(base.prompts, labels)
    wanted = None if position is None else (position,)
    choice = choose_site(base, hook, positions=wanted, folds=folds, seed=seed)
    if site is not None:
        choice = replace(choice, site=site)
    fold = clusters.folds(fold_count(labels, clusters, folds), seed)
    design = Design(labels, clusters, fold)
    offsets = base.positions.offsets

    rows: list[LayerDrift] = []
    grid: list[SiteRotation] = []
    left = []
    at_site: LayerDrift | None = None
    for done, layer in enumerate(base.layers):
        b = read_layer(base, hook, layer)
        t = read_layer(tuned, hook, layer)[alignment.order]
        for index, offset in enumerate(offsets):
            here = Site(hook=hook, layer=layer, position=offset)
            x, y = b[:, index].astype(np.float64), t[:, index].astype(np.float64)
            if offset != choice.site.position:
                contrasts = Contrasts.of(design, x, y)
                cos, _ = rotation(contrasts, clusters, level=level)
                shrunk = shrinkage(contrasts, clusters, level=level)
            else:
                row, values = layer_drift(here, design, x, y, level=level)
                rows.append(row)
                left.append(values)
                cos, shrunk = row.rotation, row.shrinkage
                if here == choice.site:
                    at_site, _ = layer_drift(here, design, x, y, level=question_level(level))
            grid.append(SiteRotation(site=here, rotation=cos, shrinkage=shrunk))
        if progress is not None:
            progress(done + 1, len(base.layers))

    assert at_site is not None  # the site is one of the sites captured
    answers = findings(at_site)
    ranking = rank_layers(rows, left, clusters, level=level, seed=seed, n_boot=n_boot)
    notes = list(alignment.notes)
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
