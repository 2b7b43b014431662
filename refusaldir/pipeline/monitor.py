"""Following a model that is in training: drift from where it started, a few prompts at a time.

`Monitor` measures a model that somebody else holds and changes. Every measurement is two forward
passes over a small set of prompts (one of them only up to the site), and leaves the model, its
modes and all random states as they were.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from refusaldir.capture import capture
from refusaldir.directions.reader import clusters_of, read_site
from refusaldir.directions.site import choose_site, fold_count
from refusaldir.drift.contrasts import Design
from refusaldir.drift.layer import layer_drift
from refusaldir.drift.training import ScoreChange, TrainingPoint
from refusaldir.drift.trajectory import Checkpoint, Trajectory, trajectory
from refusaldir.drift.verdict import findings, question_level
from refusaldir.errors import CaptureError
from refusaldir.models.undisturbed import undisturbed
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.monitor_start import (
    MonitorChoices,
    capture_start,
    hook_training,
    require_shape,
    tokens_at_start,
)
from refusaldir.probes.refusal_tokens import RefusalTokens
from refusaldir.records import (
    HARMFUL,
    HARMLESS,
    ModelIdentity,
    Positions,
)
from refusaldir.refusal_score import refusal_scores
from refusaldir.statistics import Clusters, mean
from refusaldir.store import Capture
from refusaldir.store.encoding import to_float32

FloatArray = NDArray[np.float64]

#: Largest number of folds of the held-out figures, as in `refusaldir.drift.compare`.
FOLDS = 10


class Monitor:
    """Measures one model against base, again and again.

    Args:
        choices: What is measured and how.
        model: The model, which may be in training; a PEFT model's inner model. It is hooked with
            plain torch hooks, which are attached for a forward pass at a time.
        tokenizer: Its tokenizer.
        base: Capture of base. Where there is no file yet, one is made of the model as it is now.
        precision: Makes the context of forward passes, e.g. the trainer's autocast.
        state: What `state` gave in an earlier part of the same training run.

    Attributes:
        site: Where the direction is followed.
        tokens: Refusal tokens; there may be none.
        base: Provenance of base's capture.
        points: The measurements so far.

    Raises:
        CaptureMismatchError: The capture is of a model of another shape, or of other tokens.
        RefusaldirError: What else stands in the way of a capture.
    """

    def __init__(
        self,
        choices: MonitorChoices,
        model: PreTrainedModel,
        tokenizer: Any,
        base: Path,
        *,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Capture base where that is still to be done, choose the site, find refusal tokens."""
        self.choices, self._precision = choices, precision
        with undisturbed(model), precision():
            self._model = hook_training(model, tokenizer)
            if not base.exists():
                capture_start(choices, self._model, base)
            material = Material.of_capture(base, tokenizer, choices.rendering.template)
            self.base, self.rendered = material.provenance, material.rendered
            require_shape(self.base.model, self._model.identity)
            self.tokens = (
                tokens_at_start(choices, self._model, material)
                if state is None
                else RefusalTokens.from_dict(state["refusal_tokens"])
            )
        with Capture.open(base) as found:
            if choices.site is None:
                choice = choose_site(found, choices.hook, seed=choices.seed)
                self.site, how = choice.site, f"largest held-out d′ in base, {choice.method}"
            else:
                self.site, how = choices.site, "given"
            self._base_values = read_site(found, self.site).astype(np.float64)
        self.reason = how
        self.labels = material.labels
        self.clusters = clusters_of(self.rendered.prompts, self.labels)
        folds = fold_count(self.labels, self.clusters, FOLDS)
        fold = self.clusters.folds(folds, choices.seed)
        self._design = Design(self.labels, self.clusters, fold)
        self.points: list[TrainingPoint] = []
        self._first: FloatArray | None = None
        if state is not None:
            self.points = [TrainingPoint.from_dict(point) for point in state["points"]]
            first = state["first_scores"]
            self._first = None if first is None else np.asarray(first, dtype=np.float64)

    @property
    def identity(self) -> ModelIdentity:
        """The model as it was when the monitor was made."""
        return self._model.identity

    @property
    def token(self) -> str:
        """The template's token at the site's position, as text."""
        where = self.base.positions
        return where.labels[where.offsets.index(self.site.position)]

    def state(self) -> dict[str, Any]:
        """What a later part of the same run needs to go on, JSON-ready."""
        return {
            "refusal_tokens": self.tokens.to_dict(),
            "first_scores": None if self._first is None else self._first.tolist(),
            "points": [point.to_dict() for point in self.points],
        }

    def measure(self, step: int, epoch: float | None = None) -> TrainingPoint:
        """Measure the model as it is now, and keep the result.

        Raises:
            CaptureError: An activation is not finite.
            ProbeError: A refusal score is not finite.
        """
        with undisturbed(self._model.hf), self._precision():
            values, scores = self._values(), self._scores()
        harmful, harmless = self._changes(scores)
        point = TrainingPoint(
            step=step,
            epoch=epoch,
            drift=self._drift(step, values),
            harmful=harmful,
            harmless=harmless,
        )
        self.points.append(point)
        return point

    def trajectory(self) -> Trajectory:
        """The measurements joined, with bands that hold over all of them at once."""
        return trajectory(
            self.site,
            [point.drift for point in self.points],
            level=self.choices.level,
            seed=self.choices.seed,
        )

    def _values(self) -> FloatArray:
        """Activations at the site, ``[prompt d_model]``."""
        out = np.empty_like(self._base_values)
        for batch in capture(
            self._model,
            self.rendered.ids,
            hooks=(self.site.hook,),
            layers=(self.site.layer,),
            positions=Positions(offsets=(self.site.position,), labels=(self.token,)),
            batch_size=self.choices.batch_size,
        ):
            out[batch.indices] = to_float32(batch.values[self.site.hook])[:, 0, 0]
        if not np.all(np.isfinite(out)):
            raise CaptureError(
                "activations are not finite",
                where=f"{self.site} of the model in training",
                next_step="The training has diverged, or overflows in float16: use bfloat16",
            )
        return out

    def _scores(self) -> FloatArray | None:
        if not self.tokens:
            return None
        size = self.choices.batch_size
        return refusal_scores(self._model, self.rendered.ids, self.tokens.ids, batch_size=size)

    def _drift(self, step: int, values: FloatArray) -> Checkpoint:
        base, level = self._base_values, self.choices.level
        row, deviations = layer_drift(self.site, self._design, base, values, level=level)
        strict = question_level(level)
        answers, _ = layer_drift(self.site, self._design, base, values, level=strict)
        return Checkpoint(
            name=f"checkpoint-{step}",
            step=step,
            rotation=row.rotation,
            angle=row.angle,
            shrinkage=row.shrinkage,
            translation=row.translation,
            d_prime_change=row.d_prime_change.base_direction,
            detected=tuple(found.kind for found in findings(answers) if found.detected),
            # Where nothing has changed yet there is nothing to band.
            deviations=None if row.identical else deviations,
        )

    def _changes(self, scores: FloatArray | None) -> tuple[ScoreChange | None, ScoreChange | None]:
        """The scores of harmful and of harmless prompts."""
        if scores is None:
            return None, None
        if self._first is None:
            self._first = scores
        found = []
        for label in (HARMFUL, HARMLESS):
            here = self.labels == label
            clusters = Clusters.of(self.clusters.codes[here].tolist())
            value, change = (
                mean(each[here], clusters, level=self.choices.level)
                for each in (scores, scores - self._first)
            )
            found.append(ScoreChange(value=value, change=change))
        return found[0], found[1]
