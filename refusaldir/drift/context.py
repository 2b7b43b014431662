"""What a comparison's figures are to be held against: is there drift, is it refusal's, how small.

Beside the figures of each layer stand a test of "no drift at all", rulers from nulls, whether
refusal was singled out, the categories and the subspace they span, and the smallest changes that
this comparison would have shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from refusaldir.drift.categories.category_drift import CategoryDrift, category_drift
from refusaldir.drift.categories.subspaces import SubspaceDrift, subspace_drift
from refusaldir.drift.contrasts import Contrasts, Design
from refusaldir.drift.floors import FLOOR_SIZE
from refusaldir.drift.layer_result import LayerDrift
from refusaldir.drift.nulls.drift_test import DriftTest, SignFlipTest
from refusaldir.drift.nulls.nulls import Nulls
from refusaldir.drift.nulls.rulers import NullsResult
from refusaldir.drift.power.detectable import MinimumDetectable, minimum_detectable
from refusaldir.drift.selectivity.meter import SelectivityMeter
from refusaldir.drift.selectivity.result import SelectivityResult
from refusaldir.records import HARMFUL, HARMLESS, Estimate, Site

#: Draws of the rulers, which are read as quantiles; the test takes as many as it is given.
_RULER_DRAWS = 500


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the figures are to be held against.

    Attributes:
        test: Whether there is drift at all, at any layer and at the site.
        nulls: Rulers by layer, and over all layers.
        selectivity: Whether refusal was singled out, layer by layer.
        categories: Drift by category at the site.
        subspaces: Drift of the subspace that the categories span, at the site.
        detectable: The smallest changes at the site that would have been shown.
        site: The site.
        rotation: Corrected cosine of the refusal direction there.
    """

    test: DriftTest
    nulls: NullsResult
    selectivity: SelectivityResult
    categories: CategoryDrift
    subspaces: SubspaceDrift
    detectable: MinimumDetectable
    site: Site
    rotation: Estimate

    @property
    def sentences(self) -> tuple[str, ...]:
        """What all of them say, in words."""
        return (
            self._tested(),
            self.detectable.sentence,
            *self._length(),
            *self._selectivity(),
            self.categories.sentence,
            self.subspaces.sentence,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "test": self.test.to_dict(),
            "nulls": self.nulls.to_dict(),
            "selectivity": self.selectivity.to_dict(),
            "categories": self.categories.to_dict(),
            "subspaces": self.subspaces.to_dict(),
            "detectable": self.detectable.to_dict(),
            "sentences": list(self.sentences),
        }

    def _tested(self) -> str:
        here = self.test.at(self.site)
        return (
            f"That the direction is the same in both models up to {100 * self.test.floor:.1g} % of "
            f"its length: p = {here.p_value:.2g} at the site, p = {self.test.p_value:.2g} over "
            f"{len(self.test.by_layer)} layers together ({self.test.draws} sign flips of whole "
            "intents)."
        )

    def _length(self) -> tuple[str, ...]:
        """The direction of prompt length at the site, where it was measured."""
        for row in self.nulls.layers:
            if row.site == self.site and row.length is not None:
                e, own = row.length.cosine, self.rotation.value
                if e.value is None or e.lower is None or e.upper is None:
                    return ()
                return (
                    "As a ruler, the direction from short to long prompts has corrected cosine "
                    f"{e.value:.3f} ({e.lower:.3f} to {e.upper:.3f}) from base to tuned"
                    + ("." if own is None else f", refusal's {own:.3f}."),
                )
        return ()

    def _selectivity(self) -> tuple[str, ...]:
        here = [r.sentence for r in self.selectivity.layers if r.site == self.site]
        return (*here, self.selectivity.sentence)


class ContextWalk:
    """Takes the layers of a comparison one by one, then the site.

    Args:
        design: Classes, intents and folds.
        categories: Category of each prompt.
        lengths: Tokens of each prompt; None leaves prompt length out.
        rounding: Share of the activations' norm up to which a change is precision's.
        level: Nominal coverage of intervals.
        question_level: Level of the intervals of the findings.
        draws: Draws of the test, and at most of each null.
        seed: Seed of the draws.
    """

    def __init__(
        self,
        design: Design,
        *,
        categories: Sequence[str],
        lengths: Int[np.ndarray, " prompt"] | None,
        rounding: float,
        level: float,
        question_level: float,
        draws: int,
        seed: int,
    ) -> None:
        """Draw what every layer uses."""
        self._design, self._categories = design, categories
        self._level, self._question_level, self._seed = level, question_level, seed
        self._test = SignFlipTest(
            design, floor=FLOOR_SIZE, rounding=rounding, draws=draws, seed=seed
        )
        self._nulls = Nulls(design, lengths=lengths, draws=min(draws, _RULER_DRAWS), seed=seed)
        self._selectivity = SelectivityMeter(design, level=level, seed=seed)
        self._rotation: dict[Site, Estimate] = {}

    def add(
        self,
        row: LayerDrift,
        base: Float[np.ndarray, "prompt d_model"],
        tuned: Float[np.ndarray, "prompt d_model"],
    ) -> None:
        """Add one layer, with its drift and the activations of both models in float64."""
        shift = {
            HARMFUL: row.translation.harmful.value,
            HARMLESS: row.translation.harmless.value,
        }
        self._rotation[row.site] = row.rotation
        self._test.add(row.site, base, tuned)
        self._nulls.add(row.site, base, tuned, translation=shift)
        self._selectivity.add(row.site, base, tuned)

    def result(
        self,
        site: Site,
        base: Float[np.ndarray, "prompt d_model"],
        tuned: Float[np.ndarray, "prompt d_model"],
    ) -> Context:
        """All of it, with the activations at the site."""
        design = self._design
        intents = [design.clusters.names[c] for c in design.clusters.codes]
        contrasts = Contrasts.of(design, base, tuned)
        return Context(
            test=self._test.result(),
            nulls=self._nulls.result(),
            selectivity=self._selectivity.result(),
            categories=category_drift(
                design, base, tuned, self._categories, level=self._level, seed=self._seed
            ),
            subspaces=subspace_drift(
                base,
                tuned,
                design.labels,
                self._categories,
                [str(name) for name in intents],
                level=self._level,
                seed=self._seed,
            ),
            detectable=minimum_detectable(contrasts, base, level=self._question_level),
            site=site,
            rotation=self._rotation[site],
        )
