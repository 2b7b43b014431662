"""What a comparison needs open models for: captures, selection, responses, directions tried."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refusaldir.errors import PromptError
from refusaldir.pipeline.arm import Arm
from refusaldir.pipeline.causality import Causality, try_directions
from refusaldir.pipeline.criteria import Criteria
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.plan import ProgressFn, Rendering
from refusaldir.pipeline.selected import find_selected, folder_beside
from refusaldir.pipeline.selection import select_on
from refusaldir.prompts.schema import PromptSet

if TYPE_CHECKING:
    from refusaldir.directions.effect import Effects
    from refusaldir.directions.mean_diff import Direction
    from refusaldir.models.bridge import HookedModel
    from refusaldir.probes.behaviour import Behaviour
    from refusaldir.prompts.render import RenderedSet


@dataclass(kw_only=True)
class Measurement:
    """What needs open models, one model at a time.

    Args:
        arms: Base and tuned.
        prompts: The prompts of both captures.
        rendering: How they become tokens.
        criteria: What is asked of a direction.
        select: Whether to select one where none is there.
        read_select: Whether to use one that lies beside the base capture.
        given_criteria: Whether what lies there must have been selected by ``criteria``.
        follow_nearest: As in `refusaldir.pipeline.diff`.
        probe: Whether to generate responses.
        refusal_tokens: First tokens of refusals, or None.
        max_new_tokens: Length of the responses.
        batch_size: Prompts a batch, or None.
        folder: Where responses are written.
        force: Overwrite responses made otherwise.
        progress: Called with stage, done and total.

    Attributes:
        responses: Behaviour by arm, as far as it was measured.
        causality: The base's selection; None where it was not asked for.
        effects: What the directions do, by arm.
        held: Prompts that directions are tried on.
        held_out: What these prompts are, in words.
    """

    arms: Sequence[Arm]
    prompts: PromptSet
    rendering: Rendering
    criteria: Criteria
    select: bool
    read_select: bool
    given_criteria: bool
    follow_nearest: bool
    probe: bool
    refusal_tokens: Sequence[str] | None
    max_new_tokens: int
    batch_size: int | None
    folder: Path
    force: bool
    progress: ProgressFn

    def __post_init__(self) -> None:
        """Start from what is there already."""
        self.responses: dict[str, Behaviour] = {}
        self.effects: dict[str, Effects] = {}
        self.causality: Causality | None = None
        self.held, self.held_out = self.prompts, ""
        self._captured = {arm.role for arm in self.arms if arm.plan is None}
        self._directions: dict[str, Direction] | None = None
        base = self.arms[0]
        if self.read_select and base.plan is None:
            criteria = self.criteria if self.given_criteria else None
            found = find_selected(folder_beside(base.path), base.provenance, criteria)
            if found is not None:
                self.causality = Causality(selected=found, nearest=self.follow_nearest)

    def run(self) -> None:
        """Capture, select, probe, and try directions; each model is opened as seldom as can be."""
        for arm in self.arms:
            selecting = self.select and arm.role == "base" and self.causality is None
            if not (self.probe or arm.plan is not None or selecting):
                continue
            with arm.model() as model:
                self._capture(arm, model)
                if selecting:
                    self._select(arm, model)
                if self.probe:
                    self.responses[arm.role] = self._respond(arm, model)
                self._try(arm, model)
                del model
        if not (self.probe or self.select):
            return
        for arm in self.arms:
            if self._can_try(arm):
                with arm.model() as model:
                    self._try(arm, model)
                    del model

    def _capture(self, arm: Arm, model: "HookedModel") -> None:
        if arm.plan is not None:
            arm.plan.run(
                model,
                arm.path,
                f"Capture {arm.role}",
                resume=True,
                force=False,
                progress=self.progress,
            )
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
                self.criteria,
                folder_beside(arm.path),
                batch_size=self.batch_size,
                force=True,
                progress=self.progress,
            )
        except PromptError as error:
            # Too few prompts left: the comparison goes on with what can be said.
            note = f"No direction was selected. {error}"
            self.causality = Causality(selected=None, note=note)
        else:
            self.causality = Causality(selected=found, nearest=self.follow_nearest)

    def _can_try(self, arm: Arm) -> bool:
        """Whether directions are there to be tried in this model, and have not been."""
        if self.causality is None or self.causality.selected is None or arm.role in self.effects:
            return False
        if self._captured != {"base", "tuned"} or not self.causality.selected.refusal_tokens:
            return False
        if self._directions is None:
            paths = {each.role: each.path for each in self.arms}
            self._directions = self.causality.directions(paths)
            self.held, self.held_out = self.causality.unused(self.prompts)
        return self._directions is not None

    def _try(self, arm: Arm, model: "HookedModel") -> None:
        if not self._can_try(arm):
            return
        assert self._directions is not None and self.causality is not None
        assert self.causality.selected is not None
        stage = f"Try directions in {arm.role}"
        self.progress(stage, 0, len(self.held))
        self.effects[arm.role] = try_directions(
            model,
            self._render(model, self.held),
            self._directions,
            self.causality.selected.refusal_tokens,
        )
        self.progress(stage, len(self.held), len(self.held))

    def _render(self, model: "HookedModel", prompts: PromptSet) -> "RenderedSet":
        from refusaldir.prompts.render import ChatRenderer

        renderer = ChatRenderer(
            model.tokenizer,
            system=self.rendering.system,
            thinking=self.rendering.thinking,
            template=self.rendering.template,
        )
        return renderer.render(prompts, max_length=model.max_length)

    def _respond(self, arm: Arm, model: "HookedModel") -> "Behaviour":
        """Generate and score; the base's refusal tokens serve both arms."""
        from refusaldir.probes.measure import measure
        from refusaldir.probes.refusal_tokens import RefusalTokens, given_refusal_tokens

        tokens = None
        if arm.role == "tuned":
            tokens = self.responses["base"].refusal_tokens
        elif self.causality is not None and self.causality.selected is not None:
            tokens = RefusalTokens.from_dict(self.causality.selected.document["refusal_tokens"])
        if not tokens and self.refusal_tokens:
            tokens = given_refusal_tokens(model.tokenizer, self.refusal_tokens)
        heldout = _heldout(self.prompts)
        done = 0

        def on_batch(count: int) -> None:
            nonlocal done
            done += count
            self.progress(f"Respond {arm.role}", done, len(heldout))

        return measure(
            model,
            self._render(model, heldout),
            refusal_tokens=tokens,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            path=self.folder / f"responses-{arm.role}.jsonl",
            force=self.force,
            on_batch=on_batch,
        )


def _heldout(prompts: PromptSet) -> PromptSet:
    """The prompts that no direction was fitted or chosen on; all where there are no splits."""
    held = prompts.select(split="test")
    return held if len(held) else prompts
