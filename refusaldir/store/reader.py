"""Reading captures: every refusal names the file and what to do about it."""

from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from refusaldir.errors import PromptError, StoreError
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import HARMFUL, HARMLESS, Positions, Provenance
from refusaldir.store import hdf5
from refusaldir.store.blocks import Activations
from refusaldir.store.columns import JSON_COLUMNS, TEXT_COLUMNS, prompt_set
from refusaldir.store.encoding import to_float32
from refusaldir.store.header import Header, incomplete, read_header
from refusaldir.store.schema import DIRECTIONS

_LABELS = {"harmful": HARMFUL, "harmless": HARMLESS}


class Capture:
    """A complete capture, open for reading.

    Open it with `open` and use it as a context manager, or `close` it. Values are read when
    asked for, one layer at a time.

    Example:
        ::

            with Capture.open("activations/base.h5") as base:
                x = base.read("resid_pre", layer=18, position=-1)  # [prompt, d_model]
                r = x[base.labels == 1].mean(0) - x[base.labels == 0].mean(0)
    """

    def __init__(self, file: Any, path: Path, header: Header) -> None:
        """Check the datasets of an open file; use `open` instead."""
        self._file = file
        self._header = header
        self._path = path
        self._activations = {
            hook: Activations.find(file, hook, header, path, lambda: self.ids)
            for hook in header.provenance.hooks
        }
        for hook in header.provenance.hooks:
            for name in DIRECTIONS:
                self._direction(name, hook)
        for name in TEXT_COLUMNS:
            shape = (header.layout.n_prompts,)
            hdf5.dataset(file, f"prompts/{name}", path, shape=shape, dtype=None)
        for name in JSON_COLUMNS:
            hdf5.dataset(file, f"prompts/{name}", path, shape=None, dtype=np.dtype("u1"))

    @classmethod
    def open(cls, path: str | Path) -> "Capture":
        """Open a complete capture.

        Args:
            path: The HDF5 file.

        Raises:
            StoreError: It is missing, foreign, newer, incomplete, truncated or damaged.
        """
        path = Path(path)
        file = hdf5.open_file(path, "r")
        try:
            header = read_header(file, path)
            if not header.complete:
                raise incomplete(file, path, header)
            return cls(file, path, header)
        except BaseException:
            file.close()
            raise

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def provenance(self) -> Provenance:
        """What decided the values."""
        return self._header.provenance

    @property
    def hooks(self) -> tuple[str, ...]:
        """Hook points captured."""
        return self.provenance.hooks

    @property
    def layers(self) -> tuple[int, ...]:
        """Block indices captured, ascending."""
        return self.provenance.layers

    @property
    def positions(self) -> Positions:
        """Token positions captured."""
        return self.provenance.positions

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self._header.layout.d_model

    @property
    def storage_dtype(self) -> str:
        """``"float32"`` or ``"bfloat16"``: the precision of the values on disk."""
        return self._header.layout.storage_dtype

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Prompt ids, in the order of the prompt axis."""
        return tuple(self._column("id"))

    @cached_property
    def labels(self) -> Int64[np.ndarray, " prompt"]:
        """Harmless 0, harmful 1."""
        column = self._column("label")
        unknown = sorted(set(column) - set(_LABELS))
        if unknown:
            raise StoreError(
                "The capture file has an unknown label",
                expected=" or ".join(_LABELS),
                got=repr(unknown[0])[:40],
                where=self._path,
                next_step=hdf5.RECAPTURE,
            )
        return np.array([_LABELS[label] for label in column], dtype=np.int64)

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " prompt"]:
        """Rendered length of each prompt in tokens."""
        self._require_open()
        shape = (self._header.layout.n_prompts,)
        name = "prompts/n_tokens"
        counts = hdf5.array(self._file, name, self._path, shape=shape, dtype="<i8")
        return counts.astype(np.int64)

    @cached_property
    def prompts(self) -> PromptSet:
        """The prompts as they were captured.

        Raises:
            StoreError: They are not the prompts that the provenance names.
        """
        columns = {name: self._column(name) for name in (*TEXT_COLUMNS, *JSON_COLUMNS)}
        try:
            with hdf5.guarded(self._path, "The prompts of the capture cannot be read"):
                found = prompt_set(self.provenance.prompts_name, columns, self._header.notes)
        except PromptError as error:
            raise StoreError(
                "The prompts of the capture cannot be read",
                got=error,
                where=self._path,
                next_step=hdf5.RECAPTURE,
            ) from error
        if found.hash != self.provenance.prompts_hash:
            raise StoreError(
                "The prompts in the capture file are not those that were captured",
                expected=f"hash {self.provenance.prompts_hash}",
                got=found.hash,
                where=self._path,
                next_step=hdf5.RECAPTURE,
            )
        return found

    def read(
        self, hook: str, *, layer: int, position: int | None = None
    ) -> Float32[np.ndarray, "prompt ... d_model"]:
        """Read one layer of every prompt.

        Args:
            hook: One of `hooks`.
            layer: Block index, one of `layers`.
            position: Offset from the end, one of ``positions.offsets``; None for all of them.

        Returns:
            ``[prompt, pos, d_model]``, or ``[prompt, d_model]`` for one position.

        Raises:
            CaptureError: A value is NaN or infinite; names the prompt, layer and position.
            StoreError: The site was not captured, or the file is damaged.
        """
        self._require_open()
        activations = self._activations[self._known("hook point", hook, self.hooks)]
        at = self.layers.index(self._known("layer", layer, self.layers))
        everyone = slice(0, self._header.layout.n_prompts)
        offsets = self.positions.offsets
        if position is None:
            return to_float32(activations.read(everyone, at)[:, 0])
        pos = offsets.index(self._known("position", position, offsets))
        return to_float32(activations.read(everyone, at, pos)[:, 0, 0])

    def mean_diff(self, hook: str) -> Float32[np.ndarray, "layer pos d_model"]:
        """Mean of harmful minus mean of harmless activations at every site, raw.

        Accumulated in float64, stored in float32. Over *all* prompts, whatever their split.
        """
        return self._vectors("mean_diff", hook)

    def class_mean(self, hook: str, label: int) -> Float32[np.ndarray, "layer pos d_model"]:
        """Mean activation of the harmless (0) or harmful (1) prompts at every site."""
        return self._vectors("mean_harmful" if label == HARMFUL else "mean_harmless", hook)

    def close(self) -> None:
        """Close the file; nothing can be read afterwards but what was read before."""
        self._file.close()

    def __enter__(self) -> "Capture":
        """Return the capture."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def __repr__(self) -> str:
        """Name the model and the file."""
        return f"<Capture of {self.provenance.model.name} in {self._path}>"

    def _require_open(self) -> None:
        if not self._file:
            raise StoreError(
                "The capture is closed", where=self._path, next_step="Open it again to read more"
            )

    def _column(self, name: str) -> list[str]:
        self._require_open()
        n = self._header.layout.n_prompts
        read = hdf5.json_lines if name in JSON_COLUMNS else hdf5.text_column
        return read(self._file, f"prompts/{name}", self._path, n)

    def _direction(self, name: str, hook: str) -> Any:
        return hdf5.dataset(
            self._file,
            f"directions/{name}/{hook}",
            self._path,
            shape=self._header.layout.shape[1:],
            dtype=np.dtype("<f4"),
        )

    def _vectors(self, name: str, hook: str) -> Float32[np.ndarray, "layer pos d_model"]:
        self._require_open()
        self._known("hook point", hook, self.hooks)
        node = self._direction(name, hook)
        with hdf5.guarded(self._path):
            vectors = np.asarray(node[...], dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise StoreError(
                f"The capture file has a {name} that is not finite",
                where=f"{self._path}, {hook}",
                next_step=hdf5.RECAPTURE,
            )
        return vectors

    def _known(self, what: str, value: Any, known: tuple[Any, ...]) -> Any:
        if value not in known:
            raise StoreError(
                f"The capture does not hold this {what}",
                expected=", ".join(map(str, known)),
                got=value,
                where=self._path,
                next_step="Capture it with 'refusaldir extract'",
            )
        return value
