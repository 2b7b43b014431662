"""Where captures live and how they are found again."""

import os
import re
from pathlib import Path

from refusaldir.errors import StoreError
from refusaldir.records import Provenance
from refusaldir.store.header import complete_header

SUFFIX = ".h5"


def default_store(option: str | Path | None = None) -> Path:
    """Folder for captures: the option, else ``REFUSALDIR_STORE``, else ``./activations``.

    Args:
        option: What the user gave as ``--store``, if anything.

    Returns:
        The folder, which need not exist.
    """
    return Path(option or os.environ.get("REFUSALDIR_STORE") or "activations").expanduser()


def default_path(provenance: Provenance, store: str | Path | None = None) -> Path:
    """Path of a capture in the store: ``<model name>-<fingerprint>.h5``.

    Args:
        provenance: What decides the capture's values.
        store: The store's folder; see `default_store`.
    """
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", provenance.model.name).strip(".-")[:80] or "model"
    return default_store(store) / f"{name}-{provenance.fingerprint()}{SUFFIX}"


def find_capture(
    store: str | Path, fingerprint: str, *, storage_dtype: str | None = None
) -> Path | None:
    """Find a complete capture with this fingerprint, whatever its name.

    Only headers are read. Files that are not complete captures are passed over.

    Args:
        store: Folder to search, not its subfolders.
        fingerprint: See `refusaldir.records.Provenance.fingerprint`.
        storage_dtype: Accept only captures stored so (``"float32"`` or ``"bfloat16"``).

    Returns:
        The capture's path, or None.
    """
    store = Path(store)
    if not store.is_dir():
        return None
    named: list[Path] = []
    others: list[Path] = []
    for path in sorted(store.glob(f"*{SUFFIX}")):
        (named if path.stem.endswith(f"-{fingerprint}") else others).append(path)
    for path in (*named, *others):
        try:
            header = complete_header(path)
        except StoreError:
            continue
        stored_alike = storage_dtype in (None, header.layout.storage_dtype)
        if stored_alike and header.provenance.fingerprint() == fingerprint:
            return path
    return None
