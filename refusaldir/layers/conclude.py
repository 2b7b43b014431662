"""From what the lenses gave, prompt by prompt, to shares, an order of layers and a verdict."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from refusaldir.layers.agreement import Order, agreements, weight_changes, weight_order
from refusaldir.layers.effects import (
    Effects,
    OutcomeChange,
    Share,
    effects_alone,
    outcome_change,
    shares,
)
from refusaldir.layers.lenses import (
    INJECT,
    PATH,
    RESTORE,
    PathLike,
    TransplantLike,
    combine,
    component_effects,
    path_effects,
    transplant_effects,
)
from refusaldir.layers.measured import Measured
from refusaldir.layers.ranking import rank_layers
from refusaldir.layers.result import (
    LayersResult,
    MatrixEffect,
    PathLens,
    PlaceShare,
    TransplantLens,
)
from refusaldir.layers.verdict import verdict
from refusaldir.statistics import Clusters

if TYPE_CHECKING:
    from refusaldir.layers.exchange.repair import Repair
    from refusaldir.layers.residual.decomposition import ResidualDecomposition
    from refusaldir.layers.weights.alignment import WeightAlignment


class Sharing:
    """Turns effects into shares of one change, on the same prompts throughout.

    Args:
        base: Outcome of base.
        tuned: Outcome of tuned.
        clusters: The prompts' independent clusters.
        level: Nominal coverage.
        seed: Seed of the bands.
    """

    def __init__(
        self,
        base: Float[np.ndarray, " prompt"],
        tuned: Float[np.ndarray, " prompt"],
        clusters: Clusters,
        *,
        level: float = 0.95,
        seed: int = 0,
    ) -> None:
        """Compare the outcome first: without a change there are no shares."""
        self.change: OutcomeChange = outcome_change(base, tuned, clusters, level=level)
        self.differences = tuned - base
        self.clusters, self.level, self.seed = clusters, level, seed

    def of(self, effects: Float[np.ndarray, "prompt figure"], over: str) -> list[Share]:
        """Shares, or the effects alone where there is no change to share out."""
        if not self.change.attributable:
            return effects_alone(effects, self.clusters, level=self.level)
        return shares(
            effects, self.differences, self.clusters, over=over, level=self.level, seed=self.seed
        )

    def by_layer(self, effects: Effects) -> tuple[PlaceShare, ...]:
        """Shares of the layers of a lens."""
        found = self.of(effects.values, f"over {len(effects.layers)} layers")
        return tuple(
            PlaceShare(layer=layer, effect=each.effect, share=each.share, band=each.band)
            for layer, each in zip(effects.layers, found, strict=True)
        )

    def path_lens(self, found: PathLike) -> PathLens:
        """Path attribution by layer, component, and matrix."""
        places, values = component_effects(found.changes, found.values)
        kinds = sorted({kind for _, kind in places if kind is not None})
        totals = np.stack(
            [values[:, [k == kind for _, k in places]].sum(axis=1) for kind in kinds], axis=1
        ) if kinds else np.zeros((len(values), 0))  # fmt: skip
        each = found.values.astype(np.float64)
        whole = float(self.differences.mean())
        gap = float(each.sum(axis=1).mean()) - whole
        means = each.mean(axis=0)
        return PathLens(
            layers=self.by_layer(path_effects(found.changes, each)),
            components=self._places(places, values, f"over {len(places)} components"),
            totals=self._places(
                [(None, kind) for kind in kinds], totals, f"over {len(kinds)} components"
            ),
            matrices=tuple(
                MatrixEffect(
                    layer=change.layer,
                    component=change.component or "other",
                    name=change.name,
                    effect=float(value),
                    share=float(value / whole) if self.change.attributable else None,
                )
                for change, value in zip(found.changes, means, strict=True)
            ),
            nodes=found.nodes,
            gap_absolute=abs(gap),
            gap_relative=abs(gap / whole) if whole else None,
        )

    def transplant_lens(self, found: TransplantLike) -> TransplantLens:
        """Restoring, injecting and fronts as shares of the change."""
        restored, injected = transplant_effects(found)
        fronts: list[Share] = []
        depth = None
        if found.fronts is not None and self.change.attributable:
            back = found.tuned[:, None] - found.fronts
            fronts = self.of(back, f"over {back.shape[1]} fronts")
            depth = found.recovery_depth
        return TransplantLens(
            restored=self.by_layer(restored),
            injected=self.by_layer(injected),
            fronts=tuple(each.share for each in fronts),
            recovery_depth=depth,
        )

    def _places(
        self,
        places: Sequence[tuple[int | None, str | None]],
        values: Float[np.ndarray, "prompt place"],
        over: str,
    ) -> tuple[PlaceShare, ...]:
        return tuple(
            PlaceShare(
                layer=layer,
                component=component or "other",
                effect=each.effect,
                share=each.share,
                band=each.band,
            )
            for (layer, component), each in zip(places, self.of(values, over), strict=True)
        )


def conclude(
    measured: Measured,
    clusters: Clusters,
    *,
    path: PathLike | None = None,
    transplant: TransplantLike | None = None,
    residual: "ResidualDecomposition | None" = None,
    residual_order: Order | None = None,
    weights: "WeightAlignment | None" = None,
    repair: "Repair | None" = None,
    notes: Sequence[str] = (),
    level: float = 0.95,
    seed: int = 0,
) -> LayersResult:
    """Put the lenses together.

    Path attribution and transplants decide the order of the layers. The residual decomposition
    says where a change is written, which a block does too whose weights are as before, and the
    weights say nothing of what a change does: both are shown beside, and compared.

    Args:
        measured: What was measured.
        clusters: The prompts' independent clusters.
        path: Path attribution; at least one of this and the next is given.
        transplant: Blocks exchanged, on the same prompts.
        residual: Residual decomposition.
        residual_order: Its figures by prompt and layer.
        weights: Change of the weight matrices.
        repair: Restored layers.
        notes: What is to be known besides.
        level: Nominal coverage of intervals and bands.
        seed: Seed of bands and resamples.
    """
    causal = path if path is not None else transplant
    if causal is None:
        raise ValueError("an order of layers needs path attribution or a transplant")
    sharing = Sharing(causal.base, causal.tuned, clusters, level=level, seed=seed)
    effects: dict[str, Effects] = {}
    if path is not None:
        effects[PATH] = path_effects(path.changes, path.values)
    if transplant is not None:
        effects[RESTORE], effects[INJECT] = transplant_effects(transplant)
    ranking = None
    if sharing.change.attributable:
        combined, names = combine(effects.get(PATH), effects.get(RESTORE), effects.get(INJECT))
        if combined.layers:
            ranking = rank_layers(
                combined, sharing.differences, clusters, lenses=names, level=level, seed=seed
            )
    orders = [
        Order(lens=e.lens, layers=e.layers, values=e.values, clusters=clusters)
        for e in effects.values()
    ]
    orders += [order for order in (residual_order, weight_order(weights)) if order is not None]
    compared = () if ranking is None else agreements(
        orders, top=max(1, min(len(ranking.smallest_set), 5)), level=level, seed=seed
    )  # fmt: skip
    path_lens = None if path is None else sharing.path_lens(path)
    transplant_lens = None if transplant is None else sharing.transplant_lens(transplant)
    words = verdict(
        measured,
        sharing.change,
        ranking,
        agreement=compared,
        heaviest=_heaviest(weights),
        repair=repair,
        path=path_lens,
        transplant=transplant_lens,
    )
    return LayersResult(
        measured=measured,
        change=sharing.change,
        ranking=ranking,
        residual=residual,
        weights=weights,
        agreement=compared,
        repair=repair,
        verdict=words,
        notes=tuple(notes),
        level=level,
        seed=seed,
        path=path_lens,
        transplant=transplant_lens,
    )


def _heaviest(weights: "WeightAlignment | None") -> list[int]:
    changes = {} if weights is None else weight_changes(weights)
    return sorted(changes, key=lambda layer: (-changes[layer], layer))
