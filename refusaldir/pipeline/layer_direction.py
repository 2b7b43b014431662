"""The lenses of `which_layers` that follow a direction: weights on disk and residual stream."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from refusaldir.directions.mean_diff import Direction
from refusaldir.errors import CaptureError, ModelLoadError, ModelSpecError
from refusaldir.pipeline.layer_choices import Asked
from refusaldir.pipeline.layer_prompts import Along, OutcomePrompts
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.opening import Opening
from refusaldir.pipeline.progress import ProgressFn, counter
from refusaldir.statistics import Clusters

if TYPE_CHECKING:
    from refusaldir.layers.agreement import Order
    from refusaldir.layers.residual.components import Contributions
    from refusaldir.layers.residual.decomposition import ResidualDecomposition
    from refusaldir.layers.weight_pair import WeightPair
    from refusaldir.layers.weights.alignment import WeightAlignment


def compare_weights(
    openings: tuple[Opening, Opening], along: Along, notes: list[str], progress: ProgressFn
) -> "WeightAlignment | None":
    """Change of the weights on disk; None, with a note, where they cannot be compared.

    Args:
        openings: How base and tuned are opened.
        along: The direction.
        notes: Where the note goes.
        progress: Called with stage, done and total.
    """
    from refusaldir.layers.weights.alignment import weight_alignment
    from refusaldir.models.resolve import resolve

    if along.direction is None:
        notes.append(f"No direction, so no decomposition and alignment: {along.reason}")
        return None
    trust = openings[0].options.trust_remote_code
    base, tuned = (resolve(o.spec, trust_remote_code=trust) for o in openings)
    progress("Compare weights", 0, 1)
    try:
        found = weight_alignment(base, tuned, along.direction.vector)
    except (ModelSpecError, ModelLoadError) as error:
        notes.append(f"The weights on disk could not be compared. {error}")
        return None
    progress("Compare weights", 1, 1)
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """The residual stream of a pair of models, to be taken apart at the direction's site.

    Attributes:
        pair: The models.
        material: Base's capture, and the prompts as tokens.
        along: The direction.
        chosen: The prompts.
        asked: What was asked for.
        progress: Called with stage, done and total.
    """

    pair: "WeightPair"
    material: Material
    along: Along
    chosen: OutcomePrompts
    asked: Asked
    progress: ProgressFn

    def decompose(self, notes: list[str]) -> "tuple[ResidualDecomposition | None, Order | None]":
        """Decomposition, and the order of layers by it; None, with a note, where there is none.

        Where the heads do not add up, as with activations of eight bits, they are left out.
        """
        direction = self.along.direction
        if direction is None or not len(self.chosen.harmless):
            return None, None
        failed = ""
        for heads in dict.fromkeys((self.asked.heads, False)):
            try:
                found = self._decompose(direction, heads)
            except CaptureError as error:
                failed = str(error)
                continue
            if failed:
                notes.append(f"The residual stream was decomposed without heads. {failed}")
            return found
        notes.append(f"The residual stream could not be decomposed. {failed}")
        return None, None

    def _decompose(
        self, direction: Direction, heads: bool
    ) -> "tuple[ResidualDecomposition, Order]":
        from refusaldir.geometry import unit
        from refusaldir.layers.agreement import residual_order
        from refusaldir.layers.residual.contributions import collect_contributions
        from refusaldir.layers.residual.decomposition import decompose

        harmful, seed = self.chosen.harmful, self.asked.seed
        rows = np.concatenate([harmful, self.chosen.harmless])
        ids, labels = self.material.ids(rows), self.material.labels[rows]
        intents = [self.material.rendered.prompts[int(row)].intent_id for row in rows]
        count = counter(self.progress, "Residual stream", 2 * len(ids))

        def collect() -> "Contributions":
            return collect_contributions(
                self.pair.model,
                ids,
                unit(direction.vector),
                direction.site,
                heads=heads,
                batch_size=self.asked.batch_size,
                on_batch=count,
            )

        self.pair.set_base()
        base = collect()
        self.pair.set_tuned()
        tuned = collect()
        whole = decompose(base, tuned, labels, Clusters.of(intents, labels), seed=seed)
        clusters = Clusters.of(intents[: len(harmful)])
        return whole, residual_order(base, tuned, range(len(harmful)), clusters)
