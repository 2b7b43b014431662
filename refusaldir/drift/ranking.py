"""Layers in the order of how far the direction has turned, with bands over all of them at once."""

from collections.abc import Sequence
from itertools import pairwise

from refusaldir.drift.layer_result import LayerDrift
from refusaldir.drift.result import RankedLayer
from refusaldir.records import Estimate
from refusaldir.statistics import Deviations, simultaneous_bands

RANKING_RULE = (
    "Layers by the lower end of 1 − corrected cosine, with intervals that hold over all layers at "
    "once. It names where the drift of the direction appears and grows. A change in one layer "
    "carries on to all later ones, so a cosine curve alone cannot tell which layer was changed."
)


def rank_layers(
    rows: Sequence[LayerDrift],
    deviations: Sequence[Deviations | None],
    *,
    level: float = 0.95,
    seed: int = 0,
    draws: int = 2000,
) -> tuple[RankedLayer, ...]:
    """Rank layers by where the direction drifted; see `RANKING_RULE`.

    Args:
        rows: Drift per layer, in order of depth.
        deviations: Of each layer's corrected cosine, or None.
        level: Simultaneous coverage over layers.
        seed: Seed of the multiplier bootstrap.
        draws: Number of draws.

    Returns:
        The layers whose cosine has an interval, most drifted first.
    """
    usable = [
        (row.site.layer, 1 - row.rotation.value, own, _alone(row.rotation))
        for row, own in zip(rows, deviations, strict=True)
        if row.rotation.value is not None and own is not None and own.finite
    ]
    if not usable:
        return ()
    layers, drift, own, alone = (list(column) for column in zip(*usable, strict=True))
    over = f"over {len(own)} layers"
    bands = simultaneous_bands(
        drift, own, over=over, at_least=alone, level=level, seed=seed, draws=draws
    )
    steps = simultaneous_bands(
        [b - a for a, b in pairwise(drift)],
        [b - a for a, b in pairwise(own)],
        over=f"over {len(own) - 1} steps",
        level=level,
        seed=seed,
        draws=draws,
    )
    increments: list[Estimate | None] = [None, *steps]
    order = sorted(range(len(layers)), key=lambda i: (-lower_end(bands[i]), layers[i]))
    return tuple(
        RankedLayer(rank=rank, layer=layers[i], drift=bands[i], increment=increments[i])
        for rank, i in enumerate(order, start=1)
    )


def _alone(cos: Estimate) -> tuple[float, float]:
    """The interval of ``1 − cos``; the value itself where the cosine is above 1."""
    assert cos.value is not None
    lower, upper = ends(cos)
    return 1 - max(upper, cos.value), 1 - lower


def ends(e: Estimate) -> tuple[float, float]:
    """Both ends of an estimate that has an interval."""
    assert e.lower is not None and e.upper is not None
    return e.lower, e.upper


def lower_end(e: Estimate) -> float:
    """The lower end of an estimate that has one."""
    assert e.lower is not None
    return e.lower
