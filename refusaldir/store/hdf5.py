"""Guarded access to HDF5 files: every failure becomes a StoreError that names the file.

HDF5 lets a file redirect reads elsewhere (soft and external links, external storage, virtual
datasets) or declare data that it does not hold. A capture uses none of this, so `dataset`
refuses all of it.
"""

import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from refusaldir.errors import RefusaldirError, StoreError

RECAPTURE = "Run 'refusaldir extract' again with --force"

# DEFLATE cannot shrink data by more than a factor of about 1032.
_MAX_COMPRESSION = 1032

_MAX_ATTRIBUTE = 1 << 26


@contextmanager
def guarded(path: Path, what: str = "The capture file cannot be read") -> Iterator[None]:
    """Turn what h5py raises on damaged or foreign files into a StoreError."""
    try:
        yield
    except RefusaldirError:
        raise
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreError(what, got=reason.strip("'\""), where=path, next_step=RECAPTURE) from error


def open_file(path: Path, mode: str) -> Any:
    """Open an existing HDF5 file, ``"r"`` or ``"r+"``.

    The chunk cache is off: chunks are read and written in large contiguous pieces, faster
    without it, and a write reaches the system at once. HDF5's own locks are off: complete
    files never change, unfinished ones have a `FileLock`.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # Opening a pipe would wait for ever.
            raise StoreError("A capture is a regular file", got="something else", where=path)
        with path.open("rb"):  # The system says more clearly than HDF5 what is wrong.
            pass
    except FileNotFoundError:
        raise StoreError(
            "The capture file does not exist",
            where=path,
            next_step="Make it with 'refusaldir extract'",
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError("The capture file cannot be opened", got=reason, where=path) from error
    with guarded(path):
        if not h5py.is_hdf5(path):
            raise StoreError(
                "The file is not a capture",
                expected="an HDF5 file",
                got=f"{path.stat().st_size} bytes of something else",
                where=path,
            )
        return h5py.File(path, mode, rdcc_nbytes=0, locking=False)


def check_format(file: Any, expected: str, path: Path) -> None:
    """Refuse an HDF5 file that some other program wrote."""
    with guarded(path):
        known = _attribute(file, "format", str) == expected
    if not known:
        raise StoreError(
            "The HDF5 file is not a capture",
            expected=f"the root attribute format = '{expected}'",
            got="none or another",
            where=path,
        )


def attribute(file: Any, name: str, kind: type, path: Path) -> Any:
    """Read a scalar root attribute of the given Python kind (str, int or bool)."""
    with guarded(path):
        value = _attribute(file, name, kind)
    if value is None:
        raise StoreError(
            f"The capture file has no usable attribute '{name}'",
            expected=kind.__name__,
            where=path,
            next_step=RECAPTURE,
        )
    return value


def dataset(
    file: Any, name: str, path: Path, *, shape: tuple[int, ...] | None, dtype: np.dtype[Any] | None
) -> Any:
    """Return a dataset that lies whole inside this file and has this shape and dtype.

    Args:
        file: An open h5py file.
        name: Path inside the file, without a leading slash.
        path: The file's path, for messages.
        shape: Shape required; None means any number of elements on one axis.
        dtype: Dtype required; None means UTF-8 strings of fixed length.

    Raises:
        StoreError: It is missing, reached by a link, stored elsewhere, or of another form.
    """
    with guarded(path):
        node = file
        for part in name.split("/"):
            # Asked of the link itself: looking the name up would already follow it.
            if not isinstance(node, h5py.Group) or not node.id.links.exists(part.encode()):
                raise _unusable(f"lacks '{name}'", path)
            if node.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
                raise _unusable(f"has a link in place of '{name}'", path)
            node = node[part]
        if not isinstance(node, h5py.Dataset):
            raise _unusable(f"has no dataset '{name}'", path)
        if node.is_virtual or node.external:
            raise _unusable(f"keeps '{name}' outside itself", path)
        if node.shape != shape and not (shape is None and node.ndim == 1):
            raise _unusable(f"has another shape for '{name}'", path, shape, node.shape)
        if dtype is None:
            info = h5py.check_string_dtype(node.dtype)
            if info is None or info.encoding != "utf-8" or info.length is None:
                raise _unusable(f"has no text in '{name}'", path, "UTF-8", node.dtype)
        elif node.dtype != dtype:
            raise _unusable(f"has another dtype for '{name}'", path, dtype, node.dtype)
        nbytes = math.prod(node.shape) * node.dtype.itemsize
        filtered = node.chunks is not None and node.id.get_create_plist().get_nfilters()
        held = path.stat().st_size * _MAX_COMPRESSION if filtered else node.id.get_storage_size()
        if nbytes > held:
            raise _unusable(f"holds only part of '{name}'", path, f"{nbytes} bytes", held)
        return node


def text_column(file: Any, name: str, path: Path, n: int) -> list[str]:
    """Read a column of ``n`` UTF-8 strings."""
    node = dataset(file, name, path, shape=(n,), dtype=None)
    with guarded(path):
        return [str(value) for value in node.asstr()[...]]


def json_lines(file: Any, name: str, path: Path, n: int) -> list[str]:
    """Read a column of ``n`` lines of ASCII text."""
    node = dataset(file, name, path, shape=None, dtype=np.dtype("u1"))
    with guarded(path):
        *lines, rest = np.asarray(node[...]).tobytes().decode("ascii").split("\n")
    if len(lines) != n or rest:
        raise _unusable(f"holds only part of '{name}'", path, f"{n} lines", len(lines))
    return lines


def array(
    file: Any, name: str, path: Path, *, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Read a whole numeric dataset."""
    node = dataset(file, name, path, shape=shape, dtype=np.dtype(dtype))
    with guarded(path):
        return np.asarray(node[...])


def _attribute(file: Any, name: str, kind: type) -> Any:
    if not h5py.h5a.exists(file.id, name.encode()):
        return None
    # Text of variable length is not read: a damaged heap can make HDF5 loop for ever.
    attr = h5py.h5a.open(file.id, name.encode())
    stored = attr.dtype
    if attr.shape != () or stored.kind not in "Sbiu" or stored.itemsize > _MAX_ATTRIBUTE:
        return None
    value = file.attrs[name].item()
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    return value if type(value) is kind else None


def _unusable(what: str, path: Path, expected: object = None, got: object = None) -> StoreError:
    return StoreError(
        f"The capture file {what}", expected=expected, got=got, where=path, next_step=RECAPTURE
    )
