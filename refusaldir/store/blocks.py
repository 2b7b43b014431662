"""Activation datasets read piece by piece, so that memory does not depend on their size."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, Num

from refusaldir.errors import CaptureError, StoreError
from refusaldir.store import hdf5
from refusaldir.store.encoding import Index, checksums, first_damaged, first_nonfinite, to_float32
from refusaldir.store.header import Header

_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Activations:
    """The stored activations of one hook, with their checksums.

    Attributes:
        hook: One of `refusaldir.records.HOOKS`.
        header: The file's header.
        path: The file's path, for messages.
        data: HDF5 dataset ``[prompt layer pos d_model]``.
        sums: HDF5 dataset ``[prompt layer pos]``, CRC-32 of each vector.
        ids: Returns the prompt ids, for messages.
    """

    hook: str
    header: Header
    path: Path
    data: Any
    sums: Any
    ids: Callable[[], Sequence[str]]

    @classmethod
    def find(
        cls, file: Any, hook: str, header: Header, path: Path, ids: Callable[[], Sequence[str]]
    ) -> "Activations":
        """Look up both datasets and check their form."""
        shape = header.layout.shape
        data = hdf5.dataset(file, hook, path, shape=shape, dtype=header.layout.dtype)
        name = f"checksums/{hook}"
        sums = hdf5.dataset(file, name, path, shape=shape[:3], dtype=np.dtype("<u4"))
        return cls(hook=hook, header=header, path=path, data=data, sums=sums, ids=ids)

    def read(
        self, prompts: slice, layer: int, pos: int | None = None
    ) -> Num[np.ndarray, "prompt layer pos d_model"]:
        """Read stored values of one layer, checked against their checksums and for finiteness.

        Args:
            prompts: Prompts, as a slice of the prompt axis.
            layer: Index along the layer axis.
            pos: Index along the position axis, or None for all.

        Raises:
            CaptureError: A value is NaN or infinite.
            StoreError: The bytes are not those that were written.
        """
        positions = slice(None) if pos is None else slice(pos, pos + 1)
        where = (prompts, slice(layer, layer + 1), positions)
        with hdf5.guarded(self.path):
            stored = np.asarray(self.data[where])
            sums = np.asarray(self.sums[where])
        start = (prompts.start or 0, layer, pos or 0)
        damaged = first_damaged(stored, sums)
        if damaged is not None:
            raise StoreError(
                "Stored activations do not match their checksum: the file is damaged",
                where=f"{self.path}, {self.site(damaged, start)}",
                next_step=hdf5.RECAPTURE,
            )
        self.refuse_nonfinite(stored, start=start)
        return stored

    def refuse_nonfinite(
        self,
        stored: Num[np.ndarray, "prompt layer pos d_model"],
        *,
        start: Index = (0, 0, 0),
        prompts: Int[np.ndarray, " prompt"] | None = None,
    ) -> None:
        """Raise a CaptureError that names the first vector with a NaN or an infinity.

        Args:
            stored: Values as on disk.
            start: Index of the array's first vector in the dataset.
            prompts: Index of each prompt, where they are not consecutive.
        """
        found = first_nonfinite(stored)
        if found is None:
            return
        vector = to_float32(stored[found])
        value = vector[~np.isfinite(vector)][0]
        if prompts is not None:
            found = (int(prompts[found[0]]), *found[1:])
        raise CaptureError(
            "An activation is not finite",
            expected=f"finite {self.header.layout.storage_dtype} values",
            got=value,
            where=f"{self.site(found, start)}, {self.header.provenance.model.name}",
            next_step="Capture in a wider dtype (--dtype bfloat16 or float32), or mend the model",
        )

    def site(self, index: Index, start: Index = (0, 0, 0)) -> str:
        """Name a vector by prompt id, hook, layer and position."""
        prompt, layer, pos = (i + s for i, s in zip(index, start, strict=True))
        prov = self.header.provenance
        return (
            f"prompt {self.ids()[prompt]!r}, {self.hook}, layer {prov.layers[layer]}, "
            f"position {prov.positions.offsets[pos]}"
        )

    def blocks(self) -> Iterator[tuple[int, slice]]:
        """Layers (as indices) and runs of whole chunks of prompts, about 8 MiB each."""
        layout = self.header.layout
        chunk = layout.chunks[0]
        row = layout.n_positions * layout.d_model * layout.dtype.itemsize
        step = max(1, _BLOCK_BYTES // (row * chunk)) * chunk
        for layer in range(layout.n_layers):
            for first in range(0, layout.n_prompts, step):
                yield layer, slice(first, min(first + step, layout.n_prompts))


def class_means(
    activations: Activations, labels: Int[np.ndarray, " prompt"]
) -> dict[int, Float64[np.ndarray, "layer pos d_model"]]:
    """Mean activation of each class at every site, accumulated in float64.

    The order of summation depends only on the layout, so equal files give equal means.

    Args:
        activations: What to average.
        labels: Harmless 0, harmful 1; both must occur.
    """
    layout = activations.header.layout
    classes = [int(y) for y in np.unique(labels)]
    sums = {y: np.zeros(layout.shape[1:], dtype=np.float64) for y in classes}
    for layer, prompts in activations.blocks():
        values = to_float32(activations.read(prompts, layer)[:, 0])
        for y in classes:
            sums[y][layer] += values[labels[prompts] == y].sum(axis=0, dtype=np.float64)
    return {y: sums[y] / np.count_nonzero(labels == y) for y in classes}


def damaged_prompts(activations: Activations, done: Any) -> set[int]:
    """Prompts marked as done whose stored bytes do not match their checksums."""
    damaged: set[int] = set()
    for layer, prompts in activations.blocks():
        rows = np.flatnonzero(done[prompts]) + prompts.start
        if not len(rows):
            continue
        where = (prompts, slice(layer, layer + 1))
        with hdf5.guarded(activations.path):
            stored = np.asarray(activations.data[where])[rows - prompts.start]
            sums = np.asarray(activations.sums[where])[rows - prompts.start]
        wrong = (checksums(stored) != sums).any(axis=(1, 2))
        damaged.update(int(row) for row in rows[wrong])
    return damaged
