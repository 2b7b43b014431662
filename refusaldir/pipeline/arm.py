"""The sides of a comparison: where each capture is or will be, and what both have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from refusaldir.errors import CaptureMismatchError
from refusaldir.models.options import QUANTIZATIONS, LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.opening import Opening
from refusaldir.pipeline.plan import Plan, Rendering
from refusaldir.pipeline.progress import ProgressFn
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import ModelIdentity, Provenance
from refusaldir.store import Capture, default_path, default_store, find_capture

if TYPE_CHECKING:
    from refusaldir.models.bridge import HookedModel


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What both sides of a comparison have in common.

    Attributes:
        prompts: The prompts.
        rendering: How they become tokens.
        hooks: Hook points.
        layers: Block indices; None for all.
        positions: Positions, as in `refusaldir.pipeline.extract`.
    """

    prompts: PromptSet
    rendering: Rendering
    hooks: tuple[str, ...]
    layers: tuple[int, ...] | None
    positions: str

    @classmethod
    def of_capture(cls, path: Path, hook: str, template: str | None) -> "Terms":
        """Those of a capture, for one hook point."""
        with Capture.open(path) as capture:
            prompts, found = capture.prompts, capture.provenance
        return cls(
            prompts=prompts,
            rendering=Rendering.of_capture(found, template),
            hooks=(hook,),
            layers=found.layers,
            positions=",".join(map(str, found.positions.offsets)),
        )

    def plan(self, opening: Opening, batch_size: int | None) -> Plan:
        """A capture of a model on these terms.

        Raises:
            RefusaldirError: As `refusaldir.pipeline.plan.Plan.make` says.
        """
        return Plan.make(
            opening,
            self.prompts,
            self.rendering,
            hooks=self.hooks,
            layers=self.layers,
            positions=self.positions,
            batch_size=batch_size,
        )


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of a comparison.

    Attributes:
        role: ``base`` or ``tuned``.
        path: Its capture.
        opening: How to open its model.
        plan: The capture still to be made; None when ``path`` holds it.
        provenance: What decides the capture's values.
    """

    role: str
    path: Path
    opening: Opening
    plan: Plan | None
    provenance: Provenance

    @classmethod
    def of_capture(cls, role: str, path: Path, options: LoadOptions, backend: str) -> "Arm":
        """Take a capture as it is; its model is opened only when something asks for it."""
        with Capture.open(path) as capture:
            provenance = capture.provenance
        model = provenance.model
        return cls(
            role=role,
            path=path,
            opening=Opening(
                spec=ModelSpec.parse(model.spec),
                # Another quantisation is the checkpoint's own.
                options=replace(
                    options,
                    dtype=model.dtype,
                    quantize=model.quantization if model.quantization in QUANTIZATIONS else None,
                ),
                backend=backend,
            ),
            plan=None,
            provenance=provenance,
        )

    @classmethod
    def of_plan(cls, role: str, opening: Opening, plan: Plan, store: str | Path | None) -> "Arm":
        """Reuse the store's capture of the same provenance, or plan a new one there."""
        there = find_capture(default_store(store), plan.provenance.fingerprint())
        return cls(
            role=role,
            path=there or default_path(plan.provenance, store),
            opening=opening,
            plan=plan if there is None else None,
            provenance=plan.provenance,
        )

    @property
    def now(self) -> "Arm":
        """The side as it is now: without a plan once the capture has been made."""
        return self if self.plan is None or not self.path.exists() else replace(self, plan=None)

    @property
    def precision(self) -> str:
        """Dtype and quantization of its model, e.g. ``bfloat16`` or ``bfloat16, 4bit``."""
        model = self.provenance.model
        return model.dtype if model.quantization is None else f"{model.dtype}, {model.quantization}"

    def capture(self, model: "HookedModel", stage: str, progress: ProgressFn) -> None:
        """Make the capture, if it is still to be made; what was cut off is continued.

        Raises:
            RefusaldirError: As `refusaldir.pipeline.plan.Plan.run` says.
        """
        if self.plan is not None:
            self.plan.run(model, self.path, stage, resume=True, force=False, progress=progress)

    def make(self, stage: str, progress: ProgressFn) -> None:
        """Open the model for its capture alone, if that is still to be made.

        Raises:
            RefusaldirError: As `model` and `capture` say.
        """
        if self.now.plan is not None:
            with self.model() as model:
                self.capture(model, stage, progress)
                del model

    @contextmanager
    def reader(self) -> "Iterator[Capture | Plan]":
        """The capture, or its plan, to compare before anything is run."""
        if self.plan is not None:
            yield self.plan
            return
        with Capture.open(self.path) as capture:
            yield capture

    @contextmanager
    def model(self) -> "Iterator[HookedModel]":
        """Open the model, and refuse one that is no longer the one captured.

        Raises:
            CaptureMismatchError: Its weights differ.
        """
        with self.opening.model() as model:
            self.require_unchanged(model.identity)
            yield model
            del model

    def require_unchanged(self, identity: ModelIdentity | None = None) -> None:
        """Refuse a model that is no longer the one captured.

        Args:
            identity: What it is now; None looks at its files.

        Raises:
            CaptureMismatchError: Its weights differ.
            ModelSpecError: It is not there any more.
        """
        now = (identity or self.opening.identity()).weights_hash
        expected = self.provenance.model.weights_hash
        if now != expected:
            raise CaptureMismatchError(
                "The model has changed since it was captured",
                expected=f"weights {expected}",
                got=f"weights {now}",
                where=f"{self.role}: {self.opening.spec}",
                next_step="Extract it again, or compare the captures alone with "
                "--behaviour off --select off --layers off",
            )


def is_capture(side: str | Path | ModelSpec) -> bool:
    """Whether a side names a capture file rather than a model."""
    return not isinstance(side, ModelSpec) and Path(side).suffix in (".h5", ".hdf5")
