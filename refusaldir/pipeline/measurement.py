"""What a comparison needs open models for: captures, selection, responses, directions tried."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.drift.handle import ARMS
from refusaldir.errors import PromptError
from refusaldir.pipeline.arm import Arm
from refusaldir.pipeline.causality import Causality, Trial, conclude
from refusaldir.pipeline.criteria import Criteria
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.plan import Rendering
from refusaldir.pipeline.progress import ProgressFn, counter
from refusaldir.pipeline.selected import find_selected, folder_beside
from refusaldir.pipeline.selection import select_on
from refusaldir.prompts.schema import PromptSet

if TYPE_CHECKING:
    from refusaldir.directions.effect import Effects
    from refusaldir.models.bridge import HookedModel
    from refusaldir.probes.behaviour import Behaviour
    from refusaldir.probes.refusal_tokens import RefusalTokens
    from refusaldir.prompts.render import RenderedSet


@dataclass(kw_only=True)
class Known:
    """What is known of base from an earlier comparison with it.

    Attributes:
        behaviour: Its responses.
        causality: The selection in it.
    """

    behaviour: "Behaviour | None" = None
    causality: Causality | None = None

    @property
    def refusal_tokens(self) -> "RefusalTokens | None":
        """Its refusal tokens, where they were found."""
        from refusaldir.probes.refusal_tokens import RefusalTokens

        if self.behaviour is not None and self.behaviour.refusal_tokens:
            return self.behaviour.refusal_tokens
        if self.causality is None or self.causality.selected is None:
            return None
        return RefusalTokens.from_dict(self.causality.selected.document["refusal_tokens"])


@dataclass(kw_only=True)
class Measurement:
    """What needs open models, one model at a time.

    Args:
        arms: Base and tuned.
        origin: Base in its own precision, where ``arms`` hold it in tuned's; a selection may lie
            beside its capture.
        prompts: The prompts of both captures.
        rendering: How they become tokens.
        criteria: What is asked of a direction. None takes one that lies beside the base capture
            whatever was asked of it, and selects a new one by the published choices.
        select: Whether to select one where none is there.
        read_select: Whether to use one that lies beside the base capture.
        follow_nearest: As in `refusaldir.pipeline.diff`.
        probe: Whether to generate responses.
        refusal_tokens: First tokens of refusals, or None.
        max_new_tokens: Length of the responses.
        batch_size: Prompts a batch, or None.
        folder: Where responses are written.
        base_folder: Where those of base are written.
        known: What is known of base already; what is found here is added.
        force: Overwrite responses made otherwise.
        progress: Called with stage, done and total.

    Attributes:
        responses: Behaviour by arm, as far as it was measured.
        effects: What the directions do, by arm.
    """

    arms: Sequence[Arm]
    origin: Arm | None
    prompts: PromptSet
    rendering: Rendering
    criteria: Criteria | None
    select: bool
    read_select: bool
    follow_nearest: bool
    probe: bool
    refusal_tokens: Sequence[str] | None
    max_new_tokens: int
    batch_size: int | None
    folder: Path
    base_folder: Path
    known: Known
    force: bool
    progress: ProgressFn

    def __post_init__(self) -> None:
        """Start from what is there already."""
        self.responses: dict[str, Behaviour] = {}
        self.effects: dict[str, Effects] = {}
        self._captured = {arm.role for arm in self.arms if arm.plan is None}
        if self.known.behaviour is not None:
            self.responses["base"] = self.known.behaviour
        if self.known.causality is None and self.read_select:
            self.known.causality = self._selected_before()

    @property
    def causality(self) -> Causality | None:
        """The base's selection; None where it was not asked for."""
        return self.known.causality

    def _selected_before(self) -> Causality | None:
        """What lies beside a capture of base."""
        for side in (self.arms[0], self.origin):
            if side is not None and side.plan is None:
                found = find_selected(folder_beside(side.path), side.provenance, self.criteria)
                if found is not None:
                    return Causality(selected=found, nearest=self.follow_nearest)
        return None

    def run(self) -> None:
        """Capture, select, probe, and try directions; each model is opened as seldom as can be."""
        for arm in self.arms:
            selecting = self.select and arm.role == "base" and self.causality is None
            probing = self.probe and arm.role not in self.responses
            if not (probing or arm.plan is not None or selecting):
                continue
            with arm.model() as model:
                self._capture(arm, model)
                if selecting:
                    self._select(arm, model)
                if probing:
                    self.responses[arm.role] = self._respond(arm, model)
                self._try(arm, model)
                del model
        if not (self.probe or self.select):
            return
        for arm in self.arms:
            if self._to_try(arm) is not None:
                with arm.model() as model:
                    self._try(arm, model)
                    del model

    def _capture(self, arm: Arm, model: "HookedModel") -> None:
        arm.capture(model, f"Capture {arm.role}", self.progress)
        self._captured.add(arm.role)

    def _select(self, arm: Arm, model: "HookedModel") -> None:
        if arm.plan is not None:
            material = Material.of_plan(arm.plan, arm.path)
        else:
            material = Material.of_capture(arm.path, model.tokenizer, self.rendering.template)
        try:
            found = select_on(
                model,
                material,
                self.criteria or self._published(),
                folder_beside(arm.path),
                batch_size=self.batch_size,
                force=True,
                progress=self.progress,
            )
        except PromptError as error:
            # Too few prompts left: the comparison goes on with what can be said.
            note = f"No direction was selected. {error}"
            self.known.causality = Causality(selected=None, note=note)
        else:
            self.known.causality = Causality(selected=found, nearest=self.follow_nearest)

    def _published(self) -> Criteria:
        """The published choices, and the refusal tokens given."""
        given = self.refusal_tokens
        return Criteria(refusal_tokens=None if given is None else tuple(given))

    @cached_property
    def _trial(self) -> Trial | None:
        """What there is to try in the models; asked for once base was selected in and captured."""
        if self.causality is None:
            return None
        return self.causality.trial({arm.role: arm.path for arm in self.arms}, self.prompts)

    def _to_try(self, arm: Arm) -> Trial | None:
        """What there is to try in this model, if it is time and has not been done."""
        if arm.role in self.effects or self._captured != set(ARMS):
            return None
        return self._trial

    def _try(self, arm: Arm, model: "HookedModel") -> None:
        trial = self._to_try(arm)
        if trial is None:
            return
        stage, total = f"Try directions in {arm.role}", len(trial.prompts)
        self.progress(stage, 0, total)
        self.effects[arm.role] = trial.run(model, self._render(model, trial.prompts))
        self.progress(stage, total, total)

    def causality_document(self) -> dict[str, Any] | None:
        """The document's ``causality``; None where it was not asked for."""
        if self.causality is None:
            return None
        trial = self._trial if set(self.effects) == set(ARMS) else None
        return conclude(self.causality, trial, self.effects)

    def _render(self, model: "HookedModel", prompts: PromptSet) -> "RenderedSet":
        renderer = self.rendering.renderer(model.tokenizer)
        return renderer.render(prompts, max_length=model.max_length)

    def _respond(self, arm: Arm, model: "HookedModel") -> "Behaviour":
        """Generate and score; the base's refusal tokens serve both arms."""
        from refusaldir.probes.host import Along
        from refusaldir.probes.measure import measure
        from refusaldir.probes.model_host import ModelHost
        from refusaldir.probes.plan import SamplingPlan
        from refusaldir.probes.refusal_tokens import RefusalTokens, given_refusal_tokens

        tokens = None
        if arm.role == "tuned":
            tokens = self.responses["base"].refusal_tokens
        elif self.causality is not None and self.causality.selected is not None:
            tokens = RefusalTokens.from_dict(self.causality.selected.document["refusal_tokens"])
        if not tokens and self.refusal_tokens:
            tokens = given_refusal_tokens(model.tokenizer, self.refusal_tokens)
        # Those that no direction was fitted or chosen on; all where there are no splits.
        asked = self.prompts.select(split="test") or self.prompts
        folder = self.base_folder if arm.role == "base" else self.folder
        found = measure(
            ModelHost(
                hooked=model,
                renderer=self.rendering.renderer(model.tokenizer),
                batch_size=self.batch_size,
            ),
            asked,
            SamplingPlan(max_new_tokens=self.max_new_tokens),
            along=Along(tokens=tokens),
            path=folder / f"responses-{arm.role}.jsonl",
            force=self.force,
            on_rows=counter(self.progress, f"Respond {arm.role}", len(asked)),
        )
        if arm.role == "base":
            self.known.behaviour = found
        return found
