"""The structure of a capture file, complete before the first activation is written."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from refusaldir.errors import StoreError
from refusaldir.store.columns import JSON_COLUMNS, TEXT_COLUMNS, storable
from refusaldir.store.header import Header
from refusaldir.store.image import Image
from refusaldir.store.schema import AXES, DIRECTIONS

# Version 2 of the superblock and of object headers: their checksums reveal damage, and unlike
# version 3 they carry no "open for writing" mark that a killed writer would leave behind.
_LIBVER = ("v108", "v110")

_SLACK = 1 << 20


def required_bytes(header: Header, columns: Mapping[str, Sequence[Any]]) -> int:
    """Upper estimate of the size of the finished file."""
    layout = header.layout
    sites = layout.n_layers * layout.n_positions
    per_hook = (
        layout.nbytes
        + layout.n_prompts * sites * 4  # checksums
        + len(DIRECTIONS) * sites * layout.d_model * 4
    )
    short = sum(layout.n_prompts * _width(columns[name]) for name in TEXT_COLUMNS)
    # A string in HDF5's global heap costs up to 48 bytes more than its text.
    long = sum(48 + len(v.encode()) for name in (*JSON_COLUMNS, "text") for v in columns[name])
    provenance = 4 * len(json.dumps(header.provenance.to_dict()))
    return len(header.provenance.hooks) * per_hook + short + long + provenance + _SLACK


def check_space(folder: Path, needed: int, path: Path) -> None:
    """Refuse to begin what cannot fit.

    Raises:
        StoreError: Less than ``needed`` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            "There is too little disk space for this capture",
            expected=f"{_size(needed)} free",
            got=_size(free),
            where=path,
            next_step="Free some space, choose another --store, or capture fewer layers",
        )


def create_skeleton(path: Path, header: Header, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write everything but the activations, allocate those, and reserve the disk space.

    Raises:
        OSError: The file cannot be written.
    """
    image = Image()
    with h5py.File(image, "w", libver=_LIBVER, rdcc_nbytes=0) as file:
        for name, value in header.needed().items():
            file.attrs[name] = _text([value])[0] if isinstance(value, str) else value
        for name, value in header.readable().items():
            file.attrs[name] = value
        _write_prompts(file, columns)
        _write_axes(file, header)
        layout = header.layout
        sites = (layout.n_layers, layout.n_positions)
        for hook in header.provenance.hooks:
            _allocate(file, hook, layout.shape, layout.dtype, layout.chunks)
            _allocate(file, f"checksums/{hook}", (layout.n_prompts, *sites), np.dtype("<u4"))
            for direction in DIRECTIONS:
                name = f"directions/{direction}/{hook}"
                _allocate(file, name, (*sites, layout.d_model), np.dtype("<f4"))
                file[name].attrs["unit"] = "residual norm"
                _label(file, name, AXES[1:])
            file[hook].attrs["dtype"] = layout.storage_dtype
            _label(file, hook, AXES)
            _label(file, f"checksums/{hook}", AXES[:3])
        file.create_dataset("done", data=np.zeros(layout.n_prompts, dtype="u1"))
    image.save(path)


def sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_prompts(file: Any, columns: Mapping[str, Sequence[Any]]) -> None:
    prompts = file.create_group("prompts")
    for name in TEXT_COLUMNS:
        prompts.create_dataset(name, data=_text(columns[name]))
    for name in JSON_COLUMNS:
        lines = "".join(f"{value}\n" for value in columns[name]).encode("ascii")
        prompts.create_dataset(name, data=np.frombuffer(lines, dtype="u1"))
        prompts[name].attrs["encoding"] = "JSON Lines: one ASCII line per prompt"
    prompts.create_dataset("n_tokens", data=np.array(columns["n_tokens"], dtype="<i8"))
    text = np.array(columns["text"], dtype=object)
    prompts.create_dataset("text", data=text, dtype=h5py.string_dtype("utf-8"))


def _write_axes(file: Any, header: Header) -> None:
    prov = header.provenance
    coordinates = {
        "prompt": np.arange(header.layout.n_prompts, dtype="<i8"),
        "layer": np.array(prov.layers, dtype="<i8"),
        "pos": np.array(prov.positions.offsets, dtype="<i8"),
        "d_model": np.arange(header.layout.d_model, dtype="<i8"),
    }
    axes = file.create_group("axes")
    for name, values in coordinates.items():
        axes.create_dataset(name, data=values).make_scale(name)
    axes.create_dataset("pos_label", data=_text([storable(t) for t in prov.positions.labels]))


def _width(column: Sequence[str]) -> int:
    return max(1, *(len(value.encode()) for value in column))


def _text(column: Sequence[str]) -> Any:
    """UTF-8 strings of fixed length.

    What refusaldir reads back is never of variable length: HDF5 keeps that in a heap without
    checksums, and a damaged heap can make it loop for ever.
    """
    kind = h5py.string_dtype("utf-8", _width(column))
    return np.array([value.encode() for value in column], dtype=kind)


def _label(file: Any, name: str, axes: Sequence[str]) -> None:
    for dim, axis in zip(file[name].dims, axes, strict=True):
        dim.label = axis
        dim.attach_scale(file[f"axes/{axis}"])


def _allocate(
    file: Any,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    chunks: tuple[int, ...] | None = None,
) -> None:
    """Create a dataset whose storage is allocated now and not filled."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    if chunks is not None:
        creation.set_chunk(chunks)
    group, _, leaf = name.rpartition("/")
    parent = file.require_group(group) if group else file
    space = h5py.h5s.create_simple(shape)
    kind = h5py.h5t.py_create(dtype)
    h5py.h5d.create(parent.id, leaf.encode(), kind, space, creation)


def _size(n: int) -> str:
    amount = float(n)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"
