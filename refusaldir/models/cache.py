"""The cache directory: converted weights, and hashes remembered by size and time.

The root is ``REFUSALDIR_CACHE``, else the platform's user cache directory. Everything in it can
be deleted at any time. Nothing here imports torch.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from refusaldir.errors import ModelLoadError

#: Written last into a directory of the cache: its presence means that the directory is complete.
MARKER = "refusaldir.json"
_CHUNK = 1 << 22


def cache_root() -> Path:
    """Return the cache directory (it may not exist yet)."""
    override = os.environ.get("REFUSALDIR_CACHE")
    if override:
        return Path(override).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("refusaldir")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content in hex, streamed, and remembered while the file is unchanged.

    "Unchanged" is judged by real path, size and modification time in nanoseconds. Where the
    cache cannot be written, the hash is computed anew each time.

    Args:
        path: The file.
    """
    real = path.resolve()
    stat = real.stat()
    stamp = [str(real), stat.st_size, stat.st_mtime_ns]
    memo = cache_root() / "hashes" / hashlib.sha256(str(real).encode()).hexdigest()[:32]
    try:
        known = json.loads(memo.read_text(encoding="utf-8"))
        if known["stamp"] == stamp:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = hashlib.sha256()
    with real.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        partial = memo.with_name(f"{memo.name}.{os.getpid()}")
        text = json.dumps({"stamp": stamp, "sha256": digest.hexdigest()})
        partial.write_text(text, encoding="utf-8")
        partial.replace(memo)
    except OSError:
        pass
    return digest.hexdigest()


def read_marker(directory: Path) -> dict[str, str] | None:
    """The marker of a finished directory made by `build_once`, or None for any other one."""
    try:
        data = json.loads((directory / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) and "source_sha256" in data else None


def build_once(name: str, build: Callable[[Path], dict[str, str]]) -> Path:
    """Return a directory of the cache, building it first unless it is complete.

    The directory appears whole or not at all: it is built under a temporary name and renamed.
    Processes that ask for the same one at the same time wait for the first.

    Args:
        name: Name of the directory under ``models/`` in the cache.
        build: Fills the (empty) directory it is given and returns the marker's content, which
            must have a ``source_sha256``.

    Raises:
        ModelLoadError: The cache cannot be written (no space, no permission).
    """
    target = cache_root() / "models" / name
    if read_marker(target) is not None:
        return target
    import filelock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.with_name(f".{name}.lock")):
            if read_marker(target) is not None:
                return target
            _build(target, build)
    except OSError as error:
        raise ModelLoadError(
            "The cache of converted models cannot be written",
            got=error.strerror or str(error),
            where=target.parent,
            next_step="Free some space, or set REFUSALDIR_CACHE to a directory with room",
        ) from error
    return target


def _build(target: Path, build: Callable[[Path], dict[str, str]]) -> None:
    for stale in target.parent.glob(f".{target.name}-*"):  # left by a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        marker = build(partial)
        (partial / MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")
        for path in (partial, *partial.iterdir()):  # temporary files are private
            path.chmod(0o755 if path.is_dir() else 0o644)
        if target.exists():
            shutil.rmtree(target)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
