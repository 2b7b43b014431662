"""One side of a comparison: where its capture is or will be, and how to open its model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from refusaldir.errors import CaptureMismatchError
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.plan import Opening, Plan
from refusaldir.records import Provenance
from refusaldir.store import Capture, default_path, default_store, find_capture

if TYPE_CHECKING:
    from refusaldir.models.bridge import HookedModel


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
                options=replace(options, dtype=model.dtype, quantize=model.quantization),
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
            expected = self.provenance.model.weights_hash
            if model.identity.weights_hash != expected:
                raise CaptureMismatchError(
                    "The model has changed since it was captured",
                    expected=f"weights {expected}",
                    got=f"weights {model.identity.weights_hash}",
                    where=f"{self.role}: {self.opening.spec}",
                    next_step="Extract it again, or compare the captures alone with "
                    "--behaviour off --select off",
                )
            yield model
            del model


def is_capture(side: str | Path | ModelSpec) -> bool:
    """Whether a side names a capture file rather than a model."""
    return not isinstance(side, ModelSpec) and Path(side).suffix in (".h5", ".hdf5")
