"""Drift at one site alone, where the rest of two captures is not asked for."""

import numpy as np

from refusaldir.directions.reader import CaptureReader, clusters_of, read_site
from refusaldir.directions.site import fold_count
from refusaldir.drift.comparable import Rows, require_comparable
from refusaldir.drift.contrasts import Design
from refusaldir.drift.layer import layer_drift
from refusaldir.drift.layer_result import LayerDrift
from refusaldir.records import Site
from refusaldir.statistics import Deviations


def drift_at(
    base: CaptureReader,
    tuned: CaptureReader,
    site: Site,
    *,
    level: float = 0.95,
    seed: int = 0,
    folds: int = 10,
    allow_dtype_mismatch: bool = False,
) -> tuple[LayerDrift, Deviations | None]:
    """Measure at one site what `refusaldir.drift.compare.compare` measures at every layer.

    Args:
        base: Capture of the base model.
        tuned: Capture of the tuned model, same prompts and rendering.
        site: Where.
        level: Nominal coverage of each interval.
        seed: Seed of the folds.
        folds: Largest number of folds of the held-out figures.
        allow_dtype_mismatch: Compare captures of another dtype or quantization.

    Returns:
        The figures, and what the variance of the corrected cosine is made of (None when it is
        not estimable), for bands over several comparisons.

    Raises:
        CaptureMismatchError: When the captures differ in more than the weights.
        DirectionError: When a class has too few intents, or the site was not captured.
        CaptureError: When activations are not finite.
    """
    pair = require_comparable(base, tuned, site.hook, allow_dtype_mismatch=allow_dtype_mismatch)
    labels = pair.base.labels
    clusters = clusters_of(pair.base.prompts, labels)
    design = Design(labels, clusters, clusters.folds(fold_count(labels, clusters, folds), seed))

    def read(side: Rows) -> np.ndarray:
        return read_site(side, site).astype(np.float64)

    return layer_drift(site, design, read(pair.base), read(pair.tuned), level=level)
