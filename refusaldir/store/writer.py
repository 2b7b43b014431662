"""Writing a capture: aside, resumably, and atomically under its own name at the end.

The file's structure is complete before the first value is written: every chunk is allocated and
the disk space reserved. From then on only raw bytes change, in an order that a kill at any moment
cannot spoil: values and their checksums, then the mark that the prompt is done. A resumed run
checks what is marked against the checksums, so that not even a power cut leaves wrong values
behind.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Int, Num

from refusaldir.errors import OutputExistsError, StoreError
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import HARMFUL, HARMLESS, Provenance
from refusaldir.store import hdf5
from refusaldir.store.blocks import Activations, class_means, damaged_prompts
from refusaldir.store.columns import prompt_columns
from refusaldir.store.encoding import checksums, encode
from refusaldir.store.header import Header
from refusaldir.store.lock import FileLock
from refusaldir.store.partial import begin, differences, make_header, writing
from refusaldir.store.skeleton import sync


class CaptureWriter:
    """Writes one capture to ``NAME.h5.partial`` and renames it when it is finished.

    Make one with `create` and use it as a context manager. Leaving the block without `finish`,
    by an exception or otherwise, keeps the partial file for a later ``resume``.

    Attributes:
        path: Where the finished capture will be.
        partial: The file being written.
    """

    def __init__(
        self,
        *,
        path: Path,
        partial: Path,
        header: Header,
        columns: Mapping[str, Sequence[Any]],
        lock: FileLock,
        force: bool,
    ) -> None:
        """Open an existing partial file; use `create` instead."""
        self.path = path
        self.partial = partial
        self._header = header
        self._ids: Sequence[str] = columns["id"]
        self._labels = np.array(
            [HARMFUL if label == "harmful" else HARMLESS for label in columns["label"]]
        )
        self._lock = lock
        self._force = force
        self._file = hdf5.open_file(partial, "r+")
        try:
            self._activations = {
                hook: Activations.find(self._file, hook, header, partial, lambda: self._ids)
                for hook in header.provenance.hooks
            }
            shape = (header.layout.n_prompts,)
            self._mask = hdf5.array(self._file, "done", partial, shape=shape, dtype="u1")
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        provenance: Provenance,
        prompts: PromptSet,
        lengths: Sequence[int],
        d_model: int,
        storage_dtype: str = "float32",
        force: bool = False,
        resume: bool = False,
    ) -> "CaptureWriter":
        """Begin a capture, or take up one that was cut off.

        Args:
            path: Where the finished capture will be; missing folders are made.
            provenance: What decides the values.
            prompts: The prompts, in the order of the prompt axis; both classes must occur.
            lengths: Rendered length of each prompt in tokens.
            d_model: Width of the residual stream.
            storage_dtype: ``"float32"``, or ``"bfloat16"`` (its 16 bits, half the space).
            force: Replace a finished capture (only once the new one is finished) and discard an
                unfinished one.
            resume: Continue an unfinished capture if there is one; what it has is kept.

        Returns:
            The writer; `done` says which prompts need no forward pass.

        Raises:
            OutputExistsError: The capture, or an unfinished one, exists and neither ``force``
                nor ``resume`` allows for it.
            PromptError: A class is missing, or a prompt cannot be stored.
            StoreError: The space does not suffice, another writer is at work, the unfinished
                capture is of something else, or the file cannot be written.
        """
        path = Path(path)
        prompts.require_both_classes()
        header = make_header(provenance, prompts, d_model, storage_dtype)
        columns = prompt_columns(prompts, lengths)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise StoreError("The output is a folder", expected="a file name", where=path)
            lock = FileLock(path.with_name(path.name + ".lock"))
        try:
            partial = path.with_name(path.name + ".partial")
            if path.exists() and not force:
                raise OutputExistsError(
                    "The capture exists already",
                    where=path,
                    next_step="Overwrite it with --force, or write to another file",
                )
            if not (resume and partial.exists()):
                begin(partial, header, columns, force=force)
                resume = False
            elif differing := differences(partial, header, columns):
                raise StoreError(
                    "The unfinished capture is of something else",
                    got="; ".join(differing),
                    where=partial,
                    next_step="Discard it with --force (without --resume), or write elsewhere",
                )
            writer = cls(
                path=path,
                partial=partial,
                header=header,
                columns=columns,
                lock=lock,
                force=force,
            )
            if resume:
                writer._drop_damaged()
            return writer
        except BaseException:
            lock.release()
            raise

    @property
    def done(self) -> frozenset[int]:
        """Indices of the prompts already written."""
        return frozenset(np.flatnonzero(self._mask).tolist())

    def write(
        self,
        indices: Int[np.ndarray, " batch"] | Sequence[int],
        values: Mapping[str, Num[np.ndarray, "batch layer pos d_model"]],
    ) -> None:
        """Write the activations of some prompts; on return a kill cannot lose them.

        Args:
            indices: Index of each prompt on the prompt axis, in any order, none written before.
            values: Per hook the activations in float32, or bfloat16 as its 16 bits (uint16).
                They are converted to the storage dtype: to bfloat16 by rounding to nearest,
                ties to even.

        Raises:
            CaptureError: A value is NaN or infinite; nothing of the batch is written.
            StoreError: The batch does not fit the capture, or the file cannot be written.
        """
        rows = self._check_indices(indices)
        stored = {hook: self._encode(hook, values, rows) for hook in self._check_hooks(values)}
        with writing(self.partial, self._kept):
            for hook, array in stored.items():
                activations, sums = self._activations[hook], checksums(array)
                for i, row in enumerate(rows.tolist()):
                    activations.data[row] = array[i]
                    activations.sums[row] = sums[i]
            self._file.flush()
            self._mark(rows)

    def finish(self) -> Path:
        """Compute the mean differences, close the file and give it its own name.

        Every value is read back once, checked against its checksum, and accumulated in float64.

        Returns:
            The path of the finished capture.

        Raises:
            OutputExistsError: The output appeared in the meantime.
            StoreError: Prompts are missing, or the file cannot be written.
        """
        n = self._header.layout.n_prompts
        if not self._mask.all():
            missing = np.flatnonzero(self._mask == 0)
            raise StoreError(
                "The capture is not complete",
                expected=f"{n} prompts",
                got=n - len(missing),
                where=f"{self.partial}, first missing: prompt {self._ids[missing[0]]!r}",
            )
        if self.path.exists() and not self._force:
            raise OutputExistsError(
                "The capture appeared while it was being written",
                where=self.path,
                next_step="Remove one of the two, then run again with --resume",
            )
        with writing(self.partial, self._kept):
            for hook, activations in self._activations.items():
                means = class_means(activations, self._labels)
                harmful, harmless = means[HARMFUL], means[HARMLESS]
                self._put_direction("mean_diff", hook, harmful - harmless)
                self._put_direction("mean_harmful", hook, harmful)
                self._put_direction("mean_harmless", hook, harmless)
            self._file.flush()
            self._file.attrs.modify("complete", np.bool_(True))
            self._file.close()
            sync(self.partial)
            self.partial.replace(self.path)
            with contextlib.suppress(OSError):  # Not every system can sync a folder.
                sync(self.path.parent)
        self._lock.release()
        return self.path

    def close(self) -> None:
        """Close the file and drop the lock; an unfinished capture stays for ``resume``."""
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            self._file.close()
        self._lock.release()

    def __enter__(self) -> "CaptureWriter":
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file; see `close`."""
        self.close()

    def _check_indices(self, indices: Any) -> Int[np.ndarray, " batch"]:
        rows = np.asarray(indices)
        n = self._header.layout.n_prompts
        if rows.ndim != 1 or not len(rows) or rows.dtype.kind not in "iu":
            raise StoreError("A batch needs a list of prompt indices", got=repr(indices)[:80])
        rows = rows.astype(np.int64)
        if rows.min() < 0 or rows.max() >= n or len(np.unique(rows)) < len(rows):
            raise StoreError(
                "A batch has wrong prompt indices",
                expected=f"different ones from 0 to {n - 1}",
                got=rows.tolist()[:16],
                where=self.partial,
            )
        if self._mask[rows].any():
            again = int(rows[self._mask[rows] == 1][0])
            raise StoreError(
                "A prompt is written twice", got=repr(self._ids[again]), where=self.partial
            )
        return rows

    def _check_hooks(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        hooks = self._header.provenance.hooks
        if set(values) != set(hooks):
            raise StoreError(
                "A batch has other hook points than the capture",
                expected=", ".join(hooks),
                got=", ".join(sorted(values)) or "none",
                where=self.partial,
            )
        return hooks

    def _encode(
        self, hook: str, values: Mapping[str, Any], rows: Int[np.ndarray, " batch"]
    ) -> Num[np.ndarray, "batch layer pos d_model"]:
        array = np.asarray(values[hook])
        shape = (len(rows), *self._header.layout.shape[1:])
        if array.shape != shape:
            raise StoreError(
                f"A batch of '{hook}' has another shape than the capture",
                expected=f"{shape} (batch, layer, pos, d_model)",
                got=array.shape,
                where=self.partial,
            )
        activations = self._activations[hook]
        stored = encode(array, self._header.layout.dtype)
        if stored.dtype != array.dtype and array.dtype.itemsize == 4:
            activations.refuse_nonfinite(array, prompts=rows)
        activations.refuse_nonfinite(stored, prompts=rows)
        return stored

    def _mark(self, rows: Any, done: int = 1) -> None:
        mask = self._mask.copy()
        mask[rows] = done
        self._file["done"][...] = mask
        self._file.flush()
        self._mask = mask

    def _drop_damaged(self) -> None:
        """Forget prompts that a power cut marked as done before their values were on disk."""
        damaged: set[int] = set()
        for activations in self._activations.values():
            damaged |= damaged_prompts(activations, self._mask)
        if damaged:
            with writing(self.partial, self._kept):
                self._mark(sorted(damaged), done=0)

    def _put_direction(self, name: str, hook: str, vectors: Any) -> None:
        self._file[f"directions/{name}/{hook}"][...] = vectors.astype("<f4")

    def _kept(self) -> str:
        n = int(np.count_nonzero(self._mask))
        return (
            f"{n} of {len(self._mask)} prompts are safe in it: mend the cause and run again with "
            "--resume"
        )
