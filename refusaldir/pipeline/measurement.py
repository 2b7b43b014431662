"""What a comparison needs open models for: captures, selection, responses, directions tried."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refusaldir.directions.estimates import direction_of
from refusaldir.directions.mean_diff import Direction
from refusaldir.directions.site import choose_site
from refusaldir.drift.handle import ARMS
from refusaldir.errors import DirectionError, PromptError
from refusaldir.pipeline.arm import Arm
from refusaldir.pipeline.battery import Battery
from refusaldir.pipeline.causality import Causality, Trial, conclude
from refusaldir.pipeline.criteria import Criteria
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.model_run import ModelRun
from refusaldir.pipeline.plan import Rendering
from refusaldir.pipeline.progress import ProgressFn
from refusaldir.pipeline.selected import find_selected, folder_beside
from refusaldir.pipeline.selection import select_on
from refusaldir.pipeline.splits import Split
from refusaldir.probes.judged import SURPRISE
from refusaldir.prompts.schema import PromptSet
from refusaldir.store import Capture

if TYPE_CHECKING:
    from refusaldir.directions.effect import Effects
    from refusaldir.models.bridge import HookedModel
    from refusaldir.probes.model_host import ModelHost
    from refusaldir.probes.refusal_tokens import RefusalTokens
    from refusaldir.prompts.render import RenderedSet


@dataclass(kw_only=True)
class Known:
    """What is known of base from an earlier comparison with it.

    Attributes:
        run: Its replies.
        causality: The selection in it.
    """

    run: ModelRun | None = None
    causality: Causality | None = None

    @property
    def refusal_tokens(self) -> "RefusalTokens | None":
        """Its refusal tokens, where they were found."""
        from refusaldir.probes.refusal_tokens import RefusalTokens

        if self.run is not None and self.run.refusal_tokens:
            return self.run.refusal_tokens
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
        hook: Hook point, and ``position`` the token offset, at which a direction to project on is
            looked for where selection gives none.
        position: See there; None for any.
        seed: Seed of a missing split.
        battery: What the models are asked; None measures no behaviour.
        refusal_tokens: First tokens of refusals, or None.
        batch_size: Prompts a batch, or None.
        folder: Replies go to ``tuned`` in there.
        base_folder: Those of base to ``base`` in there.
        known: What is known of base already; what is found here is added.
        force: Overwrite responses made otherwise.
        progress: Called with stage, done and total.

    Attributes:
        runs: Replies by arm, as far as there are any.
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
    hook: str
    position: int | None
    seed: int
    battery: Battery | None
    refusal_tokens: Sequence[str] | None
    batch_size: int | None
    folder: Path
    base_folder: Path
    known: Known
    force: bool
    progress: ProgressFn

    def __post_init__(self) -> None:
        """Start from what is there already."""
        self.runs: dict[str, ModelRun] = {}
        self.effects: dict[str, Effects] = {}
        self._captured = {arm.role for arm in self.arms if arm.plan is None}
        if self.known.run is not None:
            self.runs["base"] = self.known.run
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
        known = "base" in self.runs
        for arm in self.arms:
            selecting = self.select and arm.role == "base" and self.causality is None
            probing = self.battery is not None and arm.role not in self.runs
            if not (probing or arm.plan is not None or selecting):
                continue
            with arm.model() as model:
                self._capture(arm, model)
                if selecting:
                    self._select(arm, model)
                if probing:
                    self._ask(arm, model)
                self._try(arm, model)
                del model
        if self.battery is None and not self.select:
            return
        for arm in self.arms:
            reading = arm.role == "base" and not all(map(self._is_read, self.runs.values()))
            if reading or self._to_try(arm) is not None:
                with arm.model() as model:
                    self._try(arm, model)
                    if reading:
                        self._read(model)
                    del model
        for role, run in self.runs.items():
            if role == "tuned" or not known:
                run.judge(self.arms[0].opening.options)

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

    @cached_property
    def direction(self) -> Direction | None:
        """Base's direction, on which the prompts of both models are projected.

        The one selected; without it, the mean difference of the training prompts where base
        separates best.
        """
        if self.causality is not None and self.causality.direction is not None:
            return self.causality.direction
        with Capture.open(self.arms[0].path) as capture:
            labels = np.asarray(capture.labels)
            wanted = capture.positions.post if self.position is None else (self.position,)
            try:
                site = choose_site(capture, self.hook, positions=wanted, seed=self.seed).site
                split = Split.of(capture.prompts, labels, self.seed)
                found = direction_of(capture, split.train, site, "mean_diff")
            except DirectionError:  # no signal anywhere, or too few prompts
                return None
        return found if found.vector.any() else None

    def _host(self, model: "HookedModel") -> "ModelHost":
        from refusaldir.probes.model_host import ModelHost

        renderer = self.rendering.renderer(model.tokenizer)
        return ModelHost(hooked=model, renderer=renderer, batch_size=self.batch_size)

    def _ask(self, arm: Arm, model: "HookedModel") -> None:
        """Generate and score; base's refusal tokens and direction serve both arms."""
        from refusaldir.probes.host import Along
        from refusaldir.probes.refusal_tokens import RefusalTokens, given_refusal_tokens

        if self.battery is None:
            return
        tokens = None
        if arm.role == "tuned":
            tokens = self.runs["base"].refusal_tokens
        elif self.causality is not None and self.causality.selected is not None:
            tokens = RefusalTokens.from_dict(self.causality.selected.document["refusal_tokens"])
        if not tokens and self.refusal_tokens:
            tokens = given_refusal_tokens(model.tokenizer, self.refusal_tokens)
        folder = self.base_folder if arm.role == "base" else self.folder
        run = ModelRun(
            battery=self.battery,
            folder=folder / arm.role,
            role=arm.role,
            force=self.force,
            progress=self.progress,
        )
        host = self._host(model)
        run.ask(host, Along(tokens=tokens, direction=self.direction))
        self.runs[arm.role] = run
        if arm.role == "base":
            run.surprise(host)
            self.known.run = run

    def _is_read(self, run: ModelRun) -> bool:
        """Whether the replies have been read under base, whichever model they are of."""
        base = self.runs["base"]
        scorers = {part.provenance.scorers.get(SURPRISE) for part in base.found.values()}
        return all(scorer is not None and run.surprised(scorer) for scorer in scorers)

    def _read(self, model: "HookedModel") -> None:
        """Read both models' replies under base."""
        host = self._host(model)
        for run in self.runs.values():
            run.surprise(host)
