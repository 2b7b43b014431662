"""How the candidates of a selection are scored: by which tokens, where, and on which prompts."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from refusaldir.errors import DirectionError
from refusaldir.pipeline.criteria import Criteria
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.progress import ProgressFn, counter
from refusaldir.pipeline.splits import Indices
from refusaldir.records import HARMFUL, HARMLESS

if TYPE_CHECKING:
    from refusaldir.directions.candidates import CausalChoice
    from refusaldir.models.bridge import HookedModel
    from refusaldir.probes.refusal_tokens import RefusalTokens


#: How the names of files end that hold scores of a selection that is not finished.
PARTIAL = ".partial.jsonl"


@dataclass(frozen=True, kw_only=True, eq=False)
class Scoring:
    """What scores the candidates of every estimator alike.

    Attributes:
        model: The model.
        material: Its capture and prompts.
        criteria: What is asked of a direction.
        offsets: Positions of the candidates.
        validation: The prompts that score them.
        tokens: Refusal tokens; there may be none.
        folder: Where scores are kept while candidates are scored.
        progress: Called with stage, done and total.
    """

    model: "HookedModel"
    material: Material
    criteria: Criteria
    offsets: tuple[int, ...]
    validation: Indices
    tokens: "RefusalTokens"
    folder: Path
    progress: ProgressFn

    @property
    def criterion(self) -> str:
        """The one asked for; without refusal tokens there is no refusal score, and COSMIC does."""
        return self.criteria.criterion if self.tokens else "cosmic"

    def choose(
        self, directions: Float[np.ndarray, "layer pos d_model"], estimator: str
    ) -> "CausalChoice":
        """Choose among one estimator's directions, a column for each of `offsets`.

        Raises:
            RefusaldirError: As `refusaldir.directions.causal.select_causal` says.
        """
        from refusaldir.directions.causal import select_causal

        layers, labels = self.material.provenance.layers, self.material.labels[self.validation]
        several = len(self.criteria.estimators) > 1
        stage = f"Candidates {estimator}" if several else "Candidates"
        return select_causal(
            self.model,
            directions,
            layers=layers,
            offsets=self.offsets,
            harmful=self.material.ids(self.validation[labels == HARMFUL]),
            harmless=self.material.ids(self.validation[labels == HARMLESS]),
            refusal_tokens=self.tokens.ids,
            thresholds=self.criteria.thresholds,
            criterion=self.criterion,
            exhaustive=self.criteria.exhaustive,
            journal=self.folder / f"candidates-{estimator}{PARTIAL}",
            on_progress=lambda done, total: self.progress(stage, done, total),
        )


def searched(material: Material, criteria: Criteria) -> tuple[int, ...]:
    """Positions of the candidates, ascending: by default those after the instruction.

    Raises:
        DirectionError: One of them was not captured, or none is left.
    """
    if criteria.positions is None:
        return material.provenance.positions.post
    there = material.provenance.positions.offsets
    missing = sorted(set(criteria.positions) - set(there))
    if missing or not criteria.positions:
        raise DirectionError(
            "A position to search was not captured",
            expected=there,
            got=missing or "none",
            where="--at",
            next_step="Choose among those, or capture more with --positions",
        )
    return tuple(sorted(set(criteria.positions)))


def refusal_tokens(
    model: "HookedModel",
    material: Material,
    rows: Indices,
    criteria: Criteria,
    path: Path,
    *,
    batch_size: int | None,
    force: bool,
    progress: ProgressFn,
) -> "RefusalTokens":
    """Refusal tokens: the user's, or those of the model's own refusals of some prompts.

    Args:
        model: The model.
        material: Its capture and prompts.
        rows: The prompts that are asked.
        criteria: Names the tokens, or says how long the responses are that they are read off.
        path: Where the responses are written.
        batch_size: Prompts a batch; None finds a good size by itself.
        force: Overwrite responses made otherwise.
        progress: Called with stage, done and total.

    Raises:
        RefusaldirError: As `refusaldir.probes.measure.measure` says, or a token that is none.
    """
    from refusaldir.probes.measure import measure
    from refusaldir.probes.plan import SamplingPlan
    from refusaldir.probes.refusal_tokens import given_refusal_tokens

    if criteria.refusal_tokens:
        return given_refusal_tokens(model.tokenizer, criteria.refusal_tokens)
    return measure(
        material.host(model, batch_size),
        material.prompts(rows),
        SamplingPlan(max_new_tokens=criteria.max_new_tokens),
        path=path,
        force=force,
        on_rows=counter(progress, "Respond", len(rows)),
    ).refusal_tokens
