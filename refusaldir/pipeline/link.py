"""What happened to the activations of each category, for the link to behaviour."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from refusaldir.directions.reader import CaptureReader, read_site
from refusaldir.drift.comparable import Rows, require_comparable
from refusaldir.drift.disturbance import linear_cka, relative_change
from refusaldir.probes.link.categories import Measure
from refusaldir.records import HARMFUL, HARMLESS, Estimate
from refusaldir.statistics import Clusters

if TYPE_CHECKING:
    from refusaldir.drift.categories.category_drift import CategoryDrift
    from refusaldir.drift.result import DriftResult

_SIDES = {"refusal": HARMFUL, "over_refusal": HARMLESS}

#: Name and meaning of each figure of `category_drift`, and the axes of behaviour it is about.
_OWN = {
    "rotation": (
        "own rotation",
        "one minus the corrected cosine of the category's own direction in base and in tuned",
        tuple(_SIDES),
    ),
    "shrinkage": (
        "own norm ratio",
        "norm of the category's own direction in tuned over that in base",
        tuple(_SIDES),
    ),
    "translation": (
        "captured shift",
        "shift of the harmful prompts captured along base's direction, base SDs",
        ("refusal",),
    ),
}


def category_measures(
    base: CaptureReader,
    tuned: CaptureReader,
    drift: "DriftResult",
    *,
    allow_dtype_mismatch: bool = True,
) -> tuple[Measure, ...]:
    """Measures of drift by category at the site of a comparison, and their rivals.

    The rivals know nothing of refusal: one minus the linear CKA of base's and tuned's activations
    of the category's prompts, and the relative change of these. Weight distance is one number for
    the pair and has no place here.

    Args:
        base: Capture of base.
        tuned: Capture of tuned, comparable with it.
        drift: What comparing the two found.
        allow_dtype_mismatch: Accept another precision, as the comparison did.

    Returns:
        The measures, each for the axes of behaviour whose prompts it is about.
    """
    pair = require_comparable(base, tuned, drift.hook, allow_dtype_mismatch=allow_dtype_mismatch)
    x, y = (read_site(side, drift.site.site).astype(np.float64) for side in (pair.base, pair.tuned))
    rivals: dict[str, dict[str, dict[str, Estimate]]] = {"CKA": {}, "relative change": {}}
    for axis, label in _SIDES.items():
        changed, moved = _rivals(pair.base, x, y, label, drift.level)
        rivals["CKA"][axis], rivals["relative change"][axis] = changed, moved
    own = [] if drift.context is None else _own(drift.context.categories)
    return (
        *own,
        Measure(
            name="1 − CKA",
            said="one minus linear CKA between base's and tuned's activations of its prompts",
            rival=True,
            axes=rivals["CKA"],
        ),
        Measure(
            name="relative change",
            said="mean norm of the change of an activation over the norm in base",
            rival=True,
            axes=rivals["relative change"],
        ),
    )


def _rivals(
    rows: Rows,
    base: Float[np.ndarray, "prompt d_model"],
    tuned: Float[np.ndarray, "prompt d_model"],
    label: int,
    level: float,
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """One minus CKA, and relative change, of one side's prompts by category."""
    kinds = np.array([prompt.category for prompt in rows.prompts], dtype=object)
    changed, moved = {}, {}
    for name in sorted(set(kinds)):
        here = (kinds == name) & (rows.labels == label)
        if not here.any():
            continue
        clusters = Clusters.of(
            [prompt.intent_id for prompt, own in zip(rows.prompts, here, strict=True) if own]
        )
        cka = linear_cka(base[here], tuned[here], clusters, level=level)
        changed[name] = _one_minus(cka)
        moved[name] = relative_change(base[here], tuned[here], clusters, level=level)
    return changed, moved


def _own(found: "CategoryDrift") -> list[Measure]:
    """Drift of each category's own direction, and its shift along the common one."""
    measures = []
    for row in found.figures:
        name, said, axes = _OWN[row.figure]
        column: Mapping[str, Estimate] = {
            category: _one_minus(estimate) if row.figure == "rotation" else estimate
            for category, estimate in zip(found.categories, row.estimates, strict=True)
        }
        measures.append(
            Measure(name=name, said=said, rival=False, axes=dict.fromkeys(axes, column))
        )
    return measures


def _one_minus(estimate: Estimate) -> Estimate:
    """One minus a figure, its interval turned round."""
    if estimate.value is None:
        return estimate
    ends = [None if end is None else 1 - end for end in (estimate.upper, estimate.lower)]
    return Estimate(
        value=1 - estimate.value,
        lower=ends[0],
        upper=ends[1],
        n=estimate.n,
        level=estimate.level,
        method=estimate.method,
        note=estimate.note,
    )
