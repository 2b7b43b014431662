"""The lenses of `which_layers`, run on one pair of models in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from refusaldir.errors import ProbeError
from refusaldir.pipeline.criteria import Criteria
from refusaldir.pipeline.layer_choices import NAMES, UNITS, Asked
from refusaldir.pipeline.layer_direction import Stream, compare_weights
from refusaldir.pipeline.layer_prompts import Along, OutcomePrompts
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.opening import Opening
from refusaldir.pipeline.progress import ProgressFn, counter
from refusaldir.pipeline.scoring import refusal_tokens
from refusaldir.statistics import Clusters

if TYPE_CHECKING:
    from refusaldir.layers.exchange.repair import Repair
    from refusaldir.layers.exchange.transplant import Transplant
    from refusaldir.layers.measured import Measured
    from refusaldir.layers.outcomes import Outcome, RefusalRate
    from refusaldir.layers.path.attribution import PathAttribution
    from refusaldir.layers.result import LayersResult
    from refusaldir.layers.weight_pair import WeightPair
    from refusaldir.models.bridge import HookedModel
    from refusaldir.probes.refusal_tokens import RefusalTokens

#: Base's answers that refusal tokens are read off; not those of `diff`, which are others.
RESPONSES = "layers-responses.jsonl"

#: Most prompts a class that refusal tokens are read off.
_READ_OFF = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerRun:
    """A pair of models and what the lenses need beside them.

    Attributes:
        pair: The models.
        openings: How base and tuned are opened.
        material: Base's capture, and the prompts as tokens.
        along: The direction.
        chosen: The prompts.
        asked: What was asked for.
        known_tokens: Base's refusal tokens where they are known already.
        folder: Where responses are written.
        progress: Called with stage, done and total.
    """

    pair: "WeightPair"
    openings: tuple[Opening, Opening]
    material: Material
    along: Along
    chosen: OutcomePrompts
    asked: Asked
    known_tokens: "RefusalTokens | None"
    folder: Path
    progress: ProgressFn

    def run(self) -> "LayersResult":
        """Run every lens asked for and put them together.

        Raises:
            ProbeError: The outcome needs refusal tokens or a direction, and there are none.
            RefusaldirError: As the lenses say.
        """
        from refusaldir.layers.conclude import conclude

        outcome = self._outcome()
        notes: list[str] = []
        weights = compare_weights(self.openings, self.along, notes, self.progress)
        residual, order = Stream(
            pair=self.pair,
            material=self.material,
            along=self.along,
            chosen=self.chosen,
            asked=self.asked,
            progress=self.progress,
        ).decompose(notes)
        path = self._path(outcome)
        transplant = self._transplant(outcome)

        def together(repair: "Repair | None") -> "LayersResult":
            return conclude(
                self._measured(),
                self.clusters,
                path=path,
                transplant=transplant,
                residual=residual,
                residual_order=order,
                weights=weights,
                repair=repair,
                notes=notes,
                seed=self.asked.seed,
            )

        found = together(None)
        if not self.asked.repair or found.ranking is None:
            return found
        ranked = [
            row.layer
            for row in found.ranking.layers
            if row.layer is not None and (row.share.value or 0) > 0
        ]
        return together(self._repair(outcome, ranked))

    @cached_property
    def tokens(self) -> "RefusalTokens | None":
        """Refusal tokens of base; None where the outcome needs none.

        Those given, those of a selection, or those found in base's own refusals.

        Raises:
            ProbeError: There are none.
        """
        from refusaldir.probes.refusal_tokens import RefusalTokens

        if self.asked.outcome != "score":
            return None
        found = self.known_tokens
        if not found and self.asked.refusal_tokens is None and self.along.selected is not None:
            found = RefusalTokens.from_dict(self.along.selected.document["refusal_tokens"])
        if not found:
            self.pair.set_base()
            rows = self.along.split.at_most(_READ_OFF, self.material.labels, self.asked.seed)
            found = refusal_tokens(
                self.pair.model,
                self.material,
                rows.validation,
                Criteria(refusal_tokens=self.asked.refusal_tokens, seed=self.asked.seed),
                self.folder / RESPONSES,
                batch_size=self.asked.batch_size,
                force=self.asked.force,
                progress=self.progress,
            )
        if not found:
            raise ProbeError(
                "Base has no refusal tokens, so there is no refusal score",
                got=found.note,
                where=self.openings[0].spec.name,
                next_step="Name them with --refusal-token, or use --outcome projection or rate",
            )
        return found

    @cached_property
    def ids(self) -> list[tuple[int, ...]]:
        """Token ids of the harmful prompts."""
        return self.material.ids(self.chosen.harmful)

    @cached_property
    def requests(self) -> dict[tuple[int, ...], str]:
        """What each of them asks, by its token ids: the judge reads request and response."""
        prompts = self.material.rendered.prompts
        rows = zip(self.ids, self.chosen.harmful, strict=True)
        return {ids: prompts[int(row)].text for ids, row in rows}

    @cached_property
    def clusters(self) -> Clusters:
        """Their intents."""
        prompts = self.material.rendered.prompts
        return Clusters.of([prompts[int(row)].intent_id for row in self.chosen.harmful])

    def _measured(self) -> "Measured":
        from refusaldir.layers.measured import Measured

        kind, n, category = self.asked.outcome, len(self.ids), self.asked.category
        site = "" if self.along.direction is None else str(self.along.direction.site)
        subject = {
            "score": f"the refusal score of {n} harmful prompts",
            "projection": f"the projection on the direction at {site} of {n} harmful prompts",
            "rate": f"the refusal rate on {n} harmful prompts",
        }[kind]
        return Measured(
            name=NAMES[kind],
            unit=UNITS[kind],
            subject=subject + ("" if category is None else f" of category {category}"),
            n_prompts=n,
            n_clusters=self.clusters.n,
            n_layers=self.pair.model.n_layers,
            changed=self.pair.layers,
            outside=self.pair.outside,
        )

    def _outcome(self) -> "Outcome | RefusalRate":
        from refusaldir.geometry import unit
        from refusaldir.layers.outcomes import Projection, RefusalRate, RefusalScore

        if self.tokens is not None:
            return RefusalScore(self.tokens.ids)
        if self.asked.outcome == "rate":
            return RefusalRate(self._refused)
        direction = self.along.direction
        if direction is None:
            raise ProbeError(
                "There is no direction to project on",
                got=self.along.reason,
                where=self.openings[0].spec.name,
                next_step="Name a --site, or use --outcome score",
            )
        return Projection(direction.site, unit(direction.vector))

    def _refused(self, model: "HookedModel", sequences: Sequence[Sequence[int]]) -> list[float]:
        """1 for a refusal; what cannot be judged counts as none, as in refusal rates."""
        from refusaldir.probes.generation.generate import generate
        from refusaldir.probes.outcomes import is_refused
        from refusaldir.probes.phrases import judge

        said = generate(
            model,
            sequences,
            max_new_tokens=self.asked.max_new_tokens,
            batch_size=self.asked.batch_size,
        )
        texts = {response.index: response.text for response in said}
        return [
            float(bool(is_refused(judge(texts[i], self.requests[tuple(ids)]).label)))
            for i, ids in enumerate(sequences)
        ]

    def _path(self, outcome: "Outcome | RefusalRate") -> "PathAttribution | None":
        from refusaldir.layers.outcomes import RefusalRate
        from refusaldir.layers.path.attribution import attribute

        if isinstance(outcome, RefusalRate):
            return None
        return attribute(
            self.pair,
            self.ids,
            outcome,
            batch_size=self.asked.batch_size,
            on_progress=lambda done, total: self.progress("Path attribution", done, total),
        )

    def _transplant(self, outcome: "Outcome | RefusalRate") -> "Transplant | None":
        from refusaldir.layers.exchange.transplant import transplant

        if self.asked.mode != "full":
            return None
        return transplant(
            self.pair,
            self.ids,
            outcome,
            fronts=self.asked.outcome != "rate",
            batch_size=self.asked.batch_size,
            on_progress=lambda done, total: self.progress("Transplant", round(done), round(total)),
        )

    def _repair(self, outcome: "Outcome | RefusalRate", ranked: Sequence[int]) -> "Repair":
        from refusaldir.layers.exchange.repair import repair
        from refusaldir.layers.exchange.repair_cost import AnswerChange, Cost, TextLoss

        cost: Cost | None = None
        texts = self.asked.task_texts
        if texts:
            tokenizer = self.pair.model.tokenizer
            cost = TextLoss([tokenizer(text).input_ids for text in texts])
        elif len(self.chosen.harmless):
            cost = AnswerChange(self.material.ids(self.chosen.harmless), self.asked.batch_size)
        count = counter(self.progress, "Repair", len(ranked) + 1)
        return repair(
            self.pair,
            self.ids,
            outcome,
            ranked,
            self.clusters,
            cost=cost,
            batch_size=self.asked.batch_size,
            on_attempt=lambda _: count(1),
        )
