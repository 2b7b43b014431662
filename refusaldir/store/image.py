"""An HDF5 file made in memory first, because HDF5 does not survive a disk that fills up.

When a metadata write fails, HDF5 can crash the process as it closes the file. So the structure
of a capture is written to an `Image`, which cannot fail, and the image to the disk in plain
Python, where every error is an OSError.
"""

import errno
import os
from pathlib import Path
from typing import Any

_PAGE = 1 << 16
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class Image:
    """A file in memory that keeps only the pages written, however large it is.

    It is what h5py calls a Python file-like object: ``h5py.File(Image(), "w")``.
    """

    def __init__(self) -> None:
        """Make an empty image."""
        self._pages: dict[int, bytearray] = {}
        self._size = 0
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset from the start (`os.SEEK_SET`) or the end (`os.SEEK_END`)."""
        self._at = offset + (self._size if whence == os.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        """Return the current offset."""
        return self._at

    def write(self, data: Any) -> int:
        """Write a buffer at the current offset."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            page, start = divmod(self._at, _PAGE)
            part = view[done : done + _PAGE - start]
            self._pages.setdefault(page, bytearray(_PAGE))[start : start + len(part)] = part
            done += len(part)
            self._at += len(part)
        self._size = max(self._size, self._at)
        return done

    def readinto(self, buffer: Any) -> int:
        """Read at the current offset; what was never written is zero."""
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._at))
        done = 0
        while done < wanted:
            page, start = divmod(self._at, _PAGE)
            part = min(_PAGE - start, wanted - done)
            held = self._pages.get(page)
            view[done : done + part] = held[start : start + part] if held else bytes(part)
            done += part
            self._at += part
        return done

    def read(self, size: int) -> bytes:
        """Read at the current offset."""
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(buffer)])

    def truncate(self, size: int | None = None) -> int:
        """Set the size; only growing is supported, as HDF5 needs it."""
        self._size = max(self._size, self._at if size is None else size)
        return self._size

    def flush(self) -> None:
        """Do nothing; h5py asks for it."""

    def save(self, path: Path) -> None:
        """Write the image to a new file whose disk space is reserved, and sync it.

        Where the file system cannot reserve space, the file is sparse.

        Raises:
            OSError: There is too little space, or the file cannot be written.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(fd, "wb") as file:
            file.truncate(self._size)
            _reserve(fd, self._size)
            for page, content in sorted(self._pages.items()):
                file.seek(page * _PAGE)
                file.write(content[: self._size - page * _PAGE])
            file.flush()
            os.fsync(fd)


def _reserve(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
