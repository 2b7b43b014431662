"""Whether two lenses order the layers alike.

Kendall's τ-b over the layers whose weights changed (those that did not are 0 in every causal lens
and would only flatter the figure), and how many of the k largest they share. Lenses are taken
with their sign, except against one that has none (the relative weight change), where absolute
values are compared.

The interval resamples whole clusters of prompts, in both lenses at once where both are over the
same prompts; a lens without prompts stays as it is. τ of noisy figures is drawn towards 0, so the
percentile interval lies low rather than high: it does not make lenses agree that do not.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from refusaldir.layers.effects import Layer
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, kendall

if TYPE_CHECKING:
    from refusaldir.layers.residual.components import Contributions
    from refusaldir.layers.weights.alignment import WeightAlignment

FloatArray = NDArray[np.float64]

#: What lenses that have no effects are called.
RESIDUAL, WEIGHTS = "residual decomposition", "relative weight change"

#: Fewest layers for an order to be compared.
FEWEST_LAYERS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """What a lens says of each layer, as far as its order goes.

    Attributes:
        lens: Which one.
        layers: The layers it speaks of.
        values: One a prompt and layer, or, without prompts, one row.
        clusters: Of the prompts; None without.
        signed: Whether the sign means what it does in the shares; if not, values are ≥ 0.
    """

    lens: str
    layers: tuple[Layer, ...]
    values: Float[np.ndarray, "prompt layer"]
    clusters: Clusters | None
    signed: bool = True


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How alike two lenses order the layers.

    Attributes:
        first: A lens.
        second: Another.
        n_layers: Layers both speak of.
        tau: Kendall's τ-b; no value with fewer than `FEWEST_LAYERS`.
        top: How many largest layers were compared.
        shared: How many of these are the same.
    """

    first: str
    second: str
    n_layers: int
    tau: Estimate
    top: int
    shared: int

    @property
    def alike(self) -> bool | None:
        """Whether τ is above 0 by its interval; None where it has none."""
        return None if self.tau.lower is None else self.tau.lower > 0

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def agreements(
    orders: Sequence[Order],
    *,
    top: int = 3,
    level: float = 0.95,
    seed: int = 0,
    draws: int = 1000,
) -> tuple[Agreement, ...]:
    """Compare every two lenses.

    Args:
        orders: The lenses; those over prompts have the same clusters where their numbers of
            prompts are equal.
        top: How many largest layers to compare.
        level: Nominal coverage.
        seed: Seed of the resamples.
        draws: Number of resamples.
    """
    return tuple(
        agreement(a, b, top=top, level=level, seed=seed, draws=draws)
        for a, b in combinations(orders, 2)
    )


def agreement(
    a: Order, b: Order, *, top: int = 3, level: float = 0.95, seed: int = 0, draws: int = 1000
) -> Agreement:
    """Compare two lenses; see `agreements`."""
    common = [layer for layer in a.layers if layer in b.layers]
    signed = a.signed and b.signed
    left, right = (_columns(order, common) for order in (a, b))
    point = [_figure(values.mean(axis=0), signed) for values in (left, right)]
    top = min(top, len(common))
    largest = [set(np.argsort(-np.abs(values), kind="stable")[:top].tolist()) for values in point]
    n = min((o.clusters.n for o in (a, b) if o.clusters is not None), default=0)
    return Agreement(
        first=a.lens,
        second=b.lens,
        n_layers=len(common),
        tau=_tau(point, (a, b), (left, right), signed, n, level, seed, draws),
        top=top,
        shared=len(largest[0] & largest[1]),
    )


def _columns(order: Order, layers: Sequence[Layer]) -> FloatArray:
    return order.values[:, [order.layers.index(layer) for layer in layers]].astype(np.float64)


def _figure(values: FloatArray, signed: bool) -> FloatArray:
    return values if signed else np.abs(values)


def _tau(
    point: Sequence[FloatArray],
    orders: tuple[Order, Order],
    columns: tuple[FloatArray, FloatArray],
    signed: bool,
    n: int,
    level: float,
    seed: int,
    draws: int,
) -> Estimate:
    if len(point[0]) < FEWEST_LAYERS:
        note = f"not estimable: fewer than {FEWEST_LAYERS} layers changed"
        return Estimate(value=None, n=n, level=level, note=note)
    value = float(kendall(point[0][None], point[1][None])[0])
    if not np.isfinite(value):
        return Estimate(value=None, n=n, level=level, note="not estimable: a lens is constant")
    if n < 2:
        note = "no interval: one intent only" if n else "no interval: neither lens is over prompts"
        return Estimate(value=value, n=n, level=level, note=note)
    seeds = [seed, seed]
    clustered = [order.clusters for order in orders]
    if None not in clustered and clustered[0] is not clustered[1]:
        seeds[1] = seed + 1  # other prompts: resampled apart
    left, right = (
        _resampled(values, order.clusters, draws, own)
        for values, order, own in zip(columns, orders, seeds, strict=True)
    )
    taus = kendall(_figure(left, signed), _figure(right, signed))
    taus = taus[np.isfinite(taus)]
    lower, upper = np.quantile(taus, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(
        value=value,
        lower=float(min(lower, value)),
        upper=float(max(upper, value)),
        n=n,
        level=level,
        method="cluster bootstrap, percentile",
    )


def _resampled(
    values: FloatArray, clusters: Clusters | None, draws: int, seed: int
) -> Float[np.ndarray, "draw layer"]:
    """Means over resampled clusters; the same row again where there are none."""
    if clusters is None:
        return np.repeat(values.mean(axis=0, keepdims=True), draws, axis=0)
    sums, counts = clusters.sums(values), clusters.sums(np.ones(len(values)))
    rng = np.random.default_rng(seed)
    weight = rng.multinomial(clusters.n, np.full(clusters.n, 1 / clusters.n), size=draws)
    return np.asarray((weight @ sums) / (weight @ counts)[:, None])


def residual_order(
    base: "Contributions", tuned: "Contributions", rows: Sequence[int], clusters: Clusters
) -> Order:
    """Change of what each layer writes along the direction, on some of the prompts.

    Args:
        base: Of base.
        tuned: Of tuned.
        rows: The prompts.
        clusters: The clusters of these.
    """
    changes = (tuned.terms - base.terms)[list(rows)]
    layers = tuple(sorted({layer for _, layer in base.names if layer is not None}))
    columns = [
        changes[:, [i for i, (_, own) in enumerate(base.names) if own == layer]].sum(axis=1)
        for layer in layers
    ]
    return Order(lens=RESIDUAL, layers=layers, values=np.stack(columns, axis=1), clusters=clusters)


def weight_changes(weights: "WeightAlignment") -> dict[int, float]:
    """Relative change of each block's changed matrices together, ``√(Σ‖ΔW‖² / Σ‖W‖²)``."""
    change: dict[int, float] = {}
    whole: dict[int, float] = {}
    for matrix in weights.matrices:
        change[matrix.layer] = change.get(matrix.layer, 0.0) + matrix.change_norm**2
        whole[matrix.layer] = whole.get(matrix.layer, 0.0) + matrix.base_norm**2
    return {
        layer: (square / whole[layer]) ** 0.5 for layer, square in change.items() if whole[layer]
    }


def weight_order(weights: "WeightAlignment | None") -> Order | None:
    """The relative change of each block's matrices as an order; None where none changed."""
    changes = {} if weights is None else weight_changes(weights)
    if not changes:
        return None
    return Order(
        lens=WEIGHTS,
        layers=tuple(changes),
        values=np.array([list(changes.values())]),
        clusters=None,
        signed=False,
    )
