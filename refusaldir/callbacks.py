"""Watching refusal while a model is trained with the Hugging Face Trainer, or with TRL.

    from refusaldir.callbacks import RefusalDriftCallback

    trainer = Trainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    trainer.add_callback(RefusalDriftCallback(trainer))
    trainer.train()

Every so many steps it measures, on a small set of prompts, how far the refusal direction has
drifted from where training started, and the first-token refusal score. Figures go to whatever the
trainer logs to, and with their intervals to ``refusal-drift/`` in the output folder. The trained
weights are those of a run without it, to the last bit.

It watches one direction on a few prompts. That nothing moves is no evidence that the model still
refuses: compare the finished model with `refusaldir.diff`.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from refusaldir.errors import RefusaldirError, StoreError
from refusaldir.pipeline.monitor import Monitor
from refusaldir.pipeline.monitor_start import MonitorChoices
from refusaldir.pipeline.plan import Rendering, prompt_set
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import HARMFUL, HARMLESS, Site
from refusaldir.report.document import write_json
from refusaldir.report.files import write_atomic
from refusaldir.report.monitor_document import build_monitor, monitor_csv
from refusaldir.report.trajectory_document import load_trajectory

if TYPE_CHECKING:
    from refusaldir.drift.training import TrainingPoint

#: Folder for the results in the trainer's output folder, and what is in it.
FOLDER = "refusal-drift"
BASE, DOCUMENT, TABLE = "base.h5", "trajectory.json", "trajectory.csv"

_log = logging.getLogger(__name__)


class RefusalDriftCallback(TrainerCallback):  # type: ignore[misc]
    """Measures drift of the refusal direction and the refusal score while a model is trained.

    The first measurement is made before the first step and the last one after the last step; those
    between at most every ``every`` steps, and only while all of them together, the first and
    the last included, take less than ``max_overhead`` of the time spent training. Only the first
    process measures. Works with full fine-tuning and PEFT adapters, gradient accumulation and
    checkpointing, mixed precision and data-parallel training; not where the weights themselves are
    spread over processes (FSDP, DeepSpeed ZeRO-3).

    Args:
        trainer: The trainer, whose model, tokenizer, precision and loggers are used.
        prompts: A built-in set, a labelled file, any set that `refusaldir.load_prompts` takes, or
            a `PromptSet`.
        limit: At most this many prompts of each class; None for all, as of a `PromptSet`.
        every: Steps between two measurements, at least.
        max_overhead: Largest share of the training time to spend; None for no limit.
        base: Capture to measure drift from; None takes the model as training starts.
        site: Where the direction is followed; None chooses it on base.
        refusal_tokens: Texts that begin a refusal, e.g. ``["I"]``; None reads them off the model's
            own replies as training starts.
        max_rotation: Stop when the direction is rotated by more than this many degrees.
        max_score_drop: Stop when the refusal score of harmful prompts has dropped by more than
            this many nats. Both limits act when the whole interval lies past them.
        system: As for `refusaldir.extract`.
        thinking: As for `refusaldir.extract`.
        template: As for `refusaldir.extract`.
        batch_size: Prompts a batch; None finds a good size by itself.
        seed: Seed of folds and bands.

    Attributes:
        history: The measurements, `refusaldir.drift.training.TrainingPoint`.
        stopped: Why training was stopped, in a sentence; empty while it was not.
        seconds: Time spent measuring.
        trained_seconds: Time spent training.

    Raises:
        RefusaldirError: A limit that is none; when training starts, whatever stands in the way of
            measuring.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        prompts: str | Path | PromptSet = "contrast",
        limit: int | None = 32,
        every: int = 20,
        max_overhead: float | None = 0.05,
        base: str | Path | None = None,
        site: Site | None = None,
        refusal_tokens: Sequence[str] | None = None,
        max_rotation: float | None = None,
        max_score_drop: float | None = None,
        system: str = "default",
        thinking: bool | None = None,
        template: str | None = None,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        """Load the prompts and check the limits; see the class docstring."""
        for name, value in (
            ("every", every),
            ("max_overhead", max_overhead),
            ("max_rotation", max_rotation),
            ("max_score_drop", max_score_drop),
        ):
            if value is not None and not value > 0:
                raise RefusaldirError(f"{name} must be above 0", got=value)
        self.trainer = trainer
        self.every, self.max_overhead = every, max_overhead
        self.max_rotation, self.max_score_drop = max_rotation, max_score_drop
        self._base = None if base is None else Path(base)
        self._choices = MonitorChoices(
            prompts=prompt_set(prompts, None, None, None, limit),
            rendering=Rendering(system=system, thinking=thinking, template=template),
            site=site,
            refusal_tokens=refusal_tokens,
            seed=seed,
            batch_size=batch_size,
        )
        self.monitor: Monitor | None = None
        self.stopped = ""
        self.seconds = 0.0
        self._began = self._ended = 0.0
        self._cost = 0.0

    @property
    def folder(self) -> Path:
        """Where the results are written."""
        return Path(self.trainer.args.output_dir) / FOLDER

    @property
    def history(self) -> "tuple[TrainingPoint, ...]":
        """The measurements so far."""
        return () if self.monitor is None else tuple(self.monitor.points)

    @property
    def trained_seconds(self) -> float:
        """Time since training began, without that spent measuring."""
        now = self._ended or time.perf_counter()
        return now - self._began - self.seconds if self._began else 0.0

    @property
    def overhead(self) -> float:
        """Time spent measuring over time spent training."""
        return self.seconds / max(self.trained_seconds, 1e-9)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find out where training starts from.

        Raises:
            RefusaldirError: The model cannot be measured.
        """
        _require_whole_weights(self.trainer)
        self.monitor, self.stopped, self.seconds = None, "", 0.0
        self._began, self._ended = time.perf_counter(), 0.0
        if not state.is_world_process_zero:
            return
        began = self._clock()
        self.monitor = self._open(state.global_step)
        self.seconds = self._clock() - began
        if not self.monitor.points:
            self._measure(self.monitor, state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Measure where one is due, and stop training past a limit."""
        last = state.global_step >= state.max_steps
        if not last and state.global_step % self.every:
            return control
        if self.monitor is not None and (last or self._affordable()):
            self._measure(self.monitor, state)
        return self._agree(control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure what came of it, where something else ended training."""
        if self.monitor is not None and self.history[-1].step != state.global_step:
            self._measure(self.monitor, state)
        self._ended = time.perf_counter()

    def document(self) -> dict[str, Any]:
        """The results so far, as written to ``trajectory.json``.

        Raises:
            RefusaldirError: Nothing has been measured.
        """
        monitor = self.monitor
        if monitor is None or not monitor.points:
            raise RefusaldirError(
                "nothing has been measured", next_step="Train first, and ask the first process"
            )
        labels = monitor.labels
        return build_monitor(
            monitor.trajectory(),
            monitor.points,
            model=monitor.identity,
            base=monitor.base,
            token=monitor.token,
            reason=monitor.reason,
            counts={
                "n_harmful": int((labels == HARMFUL).sum()),
                "n_harmless": int((labels == HARMLESS).sum()),
                "n_clusters": monitor.clusters.n,
            },
            monitor={
                **monitor.state(),
                "seconds": self.seconds,
                "trained_seconds": self.trained_seconds,
                "overhead": self.overhead,
                "stopped": self.stopped,
            },
            options={
                "prompts": self._choices.prompts.name,
                "every": self.every,
                "max_overhead": self.max_overhead,
                "max_rotation": self.max_rotation,
                "max_score_drop": self.max_score_drop,
                "base": None if self._base is None else str(self._base),
                "seed": self._choices.seed,
                **asdict(self._choices.rendering),
            },
        )

    def _open(self, step: int) -> Monitor:
        """The monitor of a run that begins, or goes on.

        Raises:
            RefusaldirError: The run goes on, and where it started is not known.
        """
        model, tokenizer = _inner(self.trainer), _tokenizer(self.trainer)
        base = self._base or self.folder / BASE
        earlier: dict[str, Any] | None = None
        if step:
            if not base.exists():
                raise RefusaldirError(
                    f"Training goes on from step {step}, and the model it started from was not "
                    "measured",
                    where=base,
                    next_step="Give base=CAPTURE, made with refusaldir extract",
                )
            document = self.folder / DOCUMENT
            if document.exists():
                earlier = _until(load_trajectory(document)["monitor"], step)
        elif self._base is None:
            base.unlink(missing_ok=True)  # of another run in the same folder
        elif not base.exists():
            raise StoreError("There is no such capture", where=base)
        return Monitor(
            self._choices,
            model,
            tokenizer,
            base,
            precision=self.trainer.accelerator.autocast,
            state=earlier,
        )

    def _measure(self, monitor: Monitor, state: Any) -> None:
        """Measure, log and write."""
        began = self._clock()
        point = monitor.measure(state.global_step, state.epoch)
        self.stopped = self.stopped or self._past(point)
        logs = {name: e.value for name, e in point.figures().items() if e.value is not None}
        # Logging takes back the trainer's own intention to log at this step.
        intended = self.trainer.control.should_log
        self.trainer.log({f"refusal/{name}": value for name, value in logs.items()})
        self.trainer.control.should_log = intended
        measured = self._clock()
        self.seconds += measured - began
        write_json(self.document(), self.folder / DOCUMENT)
        write_atomic(self.folder / TABLE, monitor_csv(self.history).encode())
        written = self._clock()
        self.seconds += written - measured
        self._cost = written - began

    def _clock(self) -> float:
        """Seconds, once the device has done what it was given before."""
        device = self.trainer.args.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def _affordable(self) -> bool:
        """Whether this measurement, and the last one, stay within the limit."""
        if self.max_overhead is None:
            return True
        spent = self.seconds + 2 * self._cost
        return spent <= self.max_overhead * self.trained_seconds

    def _past(self, point: "TrainingPoint") -> str:
        """The sentence for a limit that was passed; empty where none was."""
        angle = point.drift.angle
        if self.max_rotation is not None and (angle.lower or 0.0) > self.max_rotation:
            return f"{point.headline[:-1]}, past the limit of {self.max_rotation:g}° of rotation."
        change = None if point.harmful is None else point.harmful.change.upper
        if self.max_score_drop is not None and change is not None:
            if change < -self.max_score_drop:
                limit = f"{self.max_score_drop:g} nats of refusal score lost"
                return f"{point.headline[:-1]}, past the limit of {limit}."
        return ""

    def _agree(self, control: Any) -> Any:
        """Stop in every process when the first one says so."""
        if self.max_rotation is None and self.max_score_drop is None:
            return control
        stop = bool(self.stopped)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            flag = torch.tensor([int(stop)], device=self.trainer.args.device)
            torch.distributed.broadcast(flag, src=0)
            stop = bool(flag.item())
        if stop and not control.should_training_stop:
            control.should_training_stop = True
            if self.stopped:
                _log.warning("Training is stopped: %s", self.stopped)
        return control


def _until(earlier: dict[str, Any], step: int) -> dict[str, Any]:
    """The earlier part of a run, up to the checkpoint that training goes on from."""
    return {**earlier, "points": [point for point in earlier["points"] if point["step"] <= step]}


def _require_whole_weights(trainer: Any) -> None:
    """Refuse to measure where no process holds the whole model.

    Raises:
        RefusaldirError: The weights are spread over processes.
    """
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    sharded = trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)
    if sharded:
        raise RefusaldirError(
            "Refusal cannot be measured while the weights are spread over processes",
            expected="one process, DDP, or DeepSpeed ZeRO stage 1 or 2",
            got="FSDP" if trainer.is_fsdp_enabled else "DeepSpeed ZeRO-3",
            next_step="Compare the saved checkpoints instead: refusaldir diff BASE OUTPUT_DIR",
        )


def _inner(trainer: Any) -> Any:
    """The Hugging Face model that is trained, inside whatever wraps it.

    Raises:
        RefusaldirError: An adapter that lives in the prompt, not in the model.
    """
    from peft import PeftModel

    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            raise RefusaldirError(
                "An adapter that is part of the prompt cannot be watched",
                expected="LoRA or another adapter of weights",
                got=model.active_peft_config.peft_type.value,
            )
        model = model.get_base_model()
    return model


def _tokenizer(trainer: Any) -> Any:
    """The trainer's tokenizer, or that of its processor.

    Raises:
        RefusaldirError: It has none.
    """
    found = trainer.processing_class
    found = getattr(found, "tokenizer", found)
    if found is None:
        raise RefusaldirError(
            "The trainer has no tokenizer to render prompts with",
            next_step="Give it one: Trainer(..., processing_class=tokenizer)",
        )
    return found
