"""Layers in the order of how much of the change they account for, and how concentrated that is.

The order is that of the absolute share. Which layers disturb is said by the band over all layers
at once; how far the order itself could be another one, by resampling whole clusters.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from refusaldir.layers.effects import LEAST_SHARE, Effects, Layer, Share, shares
from refusaldir.statistics import Clusters

FloatArray = NDArray[np.float64]

#: Part of the positive shares that the smallest set of layers, or band of layers, holds.
HOLDING = 0.8


@dataclass(frozen=True, kw_only=True)
class RankedLayer(Share):
    """One layer in the order of `rank_layers`.

    Attributes:
        rank: From 1.
        layer: Block index; None for what lies outside the blocks.
        held: Share of resamples of the clusters in which the layer is in the smallest set.
    """

    rank: int
    layer: Layer
    held: float


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The layers in the order of how much they did.

    Attributes:
        lenses: What the effects were combined from.
        layers: Every changed layer, the largest absolute share first.
        smallest_set: Fewest layers that hold `HOLDING` of the positive shares, by share.
        band: First and last of the fewest consecutive blocks that do; None where what lies
            outside the blocks is needed for that, or nothing is positive.
        band_mass: Part of the positive shares inside that band.
        effective_layers: Participation ratio ``(Σ|share|)² / Σ share²``: k for k equal ones.
        first_held: Share of resamples in which the first layer is the first.
        unseen: Largest share, of either sign, that a layer whose band holds 0 may have by that
            band; None where there is no such layer.
    """

    lenses: tuple[str, ...]
    layers: tuple[RankedLayer, ...]
    smallest_set: tuple[Layer, ...]
    band: tuple[int, int] | None
    band_mass: float
    effective_layers: float
    first_held: float
    unseen: float | None

    @property
    def disturbing(self) -> tuple[RankedLayer, ...]:
        """Layers that disturb, the largest first."""
        return tuple(row for row in self.layers if row.disturbs)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, with ``disturbs`` of each layer and the least share."""
        rows = [{**asdict(row), "disturbs": row.disturbs} for row in self.layers]
        return {**asdict(self), "layers": rows, "least_share": LEAST_SHARE}


def rank_layers(
    effects: Effects,
    change: Float[np.ndarray, " prompt"],
    clusters: Clusters,
    *,
    lenses: tuple[str, ...],
    level: float = 0.95,
    seed: int = 0,
    draws: int = 1000,
) -> Ranking:
    """Rank layers by their absolute share.

    Args:
        effects: Of every changed layer.
        change: Outcome of tuned less base, per prompt; its mean is not 0.
        clusters: The prompts' independent clusters.
        lenses: What the effects were combined from.
        level: Nominal coverage of each interval, and of the band as a whole.
        seed: Seed of band and resamples.
        draws: Number of resamples.
    """
    layers = effects.layers
    over = f"over {len(layers)} layers"
    found = shares(effects.values, change, clusters, over=over, level=level, seed=seed)
    values = np.array([each.band.value for each in found], dtype=np.float64)
    order = sorted(range(len(layers)), key=lambda i: (-abs(values[i]), i))
    chosen = smallest_set(values)
    held, first = _held(effects.values, change, clusters, order[0], seed=seed, draws=draws)
    band, mass = _band(layers, values)
    ranked = tuple(
        RankedLayer(
            rank=rank,
            layer=layers[i],
            held=float(held[i]),
            effect=found[i].effect,
            share=found[i].share,
            band=found[i].band,
        )
        for rank, i in enumerate(order, start=1)
    )
    ends = [(row.band.lower, row.band.upper) for row in ranked if not row.told]
    bounds = [abs(end) for pair in ends for end in pair if end is not None]
    return Ranking(
        lenses=lenses,
        layers=ranked,
        smallest_set=tuple(layers[i] for i in chosen),
        band=band,
        band_mass=mass,
        effective_layers=participation_ratio(values),
        first_held=first,
        unseen=max(bounds) if bounds else None,
    )


def smallest_set(values: Float[np.ndarray, " layer"], holding: float = HOLDING) -> list[int]:
    """Indices of the fewest layers that hold a part of the positive shares, the largest first."""
    mass = np.maximum(values, 0.0)
    order = np.argsort(-mass, kind="stable")
    if mass.sum() <= 0:
        return []
    # A hair less, so that rounding of the sum asks for no layer more.
    count = int(np.searchsorted(np.cumsum(mass[order]), holding * mass.sum() * (1 - 1e-12))) + 1
    return [int(i) for i in order[:count]]


def smallest_band(
    values: Float[np.ndarray, " block"], holding: float = HOLDING
) -> tuple[int, int] | None:
    """First and last of the fewest consecutive blocks that hold a part of the positive shares.

    Of several as short, the one that holds most. None where nothing is positive.
    """
    mass = np.maximum(values, 0.0)
    total = np.concatenate([[0.0], np.cumsum(mass)])
    if total[-1] <= 0:
        return None
    for width in range(1, len(values) + 1):
        inside = total[width:] - total[:-width]
        best = int(np.argmax(inside))
        if inside[best] >= holding * total[-1] * (1 - 1e-12):
            return best, best + width - 1
    raise AssertionError("all blocks together hold everything")


def participation_ratio(values: Float[np.ndarray, " layer"]) -> float:
    """``(Σ|v|)² / Σv²``: over how many layers the shares are spread; 0 where all are 0."""
    square = float(np.sum(values**2))
    return float(np.abs(values).sum() ** 2 / square) if square > 0 else 0.0


def _band(layers: tuple[Layer, ...], values: FloatArray) -> tuple[tuple[int, int] | None, float]:
    """The fewest consecutive blocks, unchanged ones between them counted, and what they hold."""
    blocks = {layer: v for layer, v in zip(layers, values, strict=True) if layer is not None}
    mass = float(np.maximum(values, 0.0).sum())
    if not blocks or mass <= 0:
        return None, 0.0
    first = min(blocks)
    dense = np.array([blocks.get(layer, 0.0) for layer in range(first, max(blocks) + 1)])
    inside = float(np.maximum(dense, 0.0).sum())
    holding = HOLDING * mass / inside if inside > 0 else np.inf
    found = smallest_band(dense, holding) if holding <= 1 else None
    if found is None:
        return None, 0.0
    held = float(np.maximum(dense[found[0] : found[1] + 1], 0.0).sum()) / mass
    return (first + found[0], first + found[1]), held


def _held(
    effects: FloatArray,
    change: FloatArray,
    clusters: Clusters,
    first: int,
    *,
    seed: int,
    draws: int,
) -> tuple[FloatArray, float]:
    """How often each layer is in the smallest set, and the first one first, over resamples."""
    parts, whole = clusters.sums(effects), clusters.sums(change)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(clusters.n, np.full(clusters.n, 1 / clusters.n), size=draws)
    means = (weights @ parts) * np.sign(weights @ whole)[:, None]
    counts = np.zeros(effects.shape[1])
    for row in means:
        counts[smallest_set(row)] += 1
    same = float(np.mean(np.argmax(np.abs(means), axis=1) == first))
    return counts / draws, same
