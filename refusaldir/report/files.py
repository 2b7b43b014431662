"""Writing report files so that a reader never sees half of one."""

import contextlib
import os
import tempfile
from pathlib import Path

from refusaldir.errors import OutputExistsError, StoreError


def write_atomic(path: str | Path, data: bytes, *, force: bool = True) -> Path:
    """Write ``data`` to ``path``: either the whole file is there afterwards, or nothing changed.

    The bytes go to a temporary file in the same folder, are flushed to disk, and the file is
    then renamed over ``path``. Missing parent folders are made.

    Args:
        path: Where to write.
        data: The file's contents.
        force: Whether an existing file is replaced.

    Returns:
        The path written.

    Raises:
        OutputExistsError: The file exists and ``force`` is False.
        StoreError: The folder cannot be made or the file cannot be written.
    """
    path = Path(path)
    if not force and path.exists():
        raise OutputExistsError(
            "The output file exists already",
            where=path,
            next_step="Choose another name or pass --force",
        )
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(
            "The file cannot be written",
            got=error.strerror or str(error),
            where=path,
            next_step="Check that the folder is writable and has room",
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
    return path


def _umask() -> int:
    """Return the process's file mode mask; reading it needs setting it for a moment."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
