"""Directions as files: safetensors with a JSON header, nothing that could run code."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from refusaldir.directions.mean_diff import Direction
from refusaldir.errors import StoreError
from refusaldir.records import Provenance, Site

FORMAT, FORMAT_VERSION = "refusaldir-direction", 1


def direction_bytes(direction: Direction) -> bytes:
    """The content of a direction file: tensor ``direction`` ``[d_model]`` float32, raw.

    The metadata entry ``refusaldir`` is JSON: format, site, estimator, counts, provenance.
    """
    from safetensors.numpy import save

    header = {k: v for k, v in direction.to_dict().items() if k != "vector"}
    about = {"format": FORMAT, "format_version": FORMAT_VERSION, **header}
    content: bytes = save(
        {"direction": direction.vector.astype(np.float32)},
        metadata={"refusaldir": json.dumps(about, sort_keys=True)},
    )
    return content


def load_direction(path: str | Path) -> Direction:
    """Read a direction file.

    Raises:
        StoreError: It is missing, not safetensors, not a direction, or of a newer format.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("refusaldir", "{}"))
            names = list(file.keys())
            vector = file.get_tensor("direction") if names == ["direction"] else None
    except (OSError, SafetensorError, TypeError, json.JSONDecodeError) as error:
        raise _refused(path, "a safetensors file with a direction", str(error)) from error
    if not isinstance(about, dict) or about.get("format") != FORMAT or vector is None:
        raise _refused(path, f"format {FORMAT}", "another safetensors file")
    version = about.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        expected = f"format version {FORMAT_VERSION} or older"
        raise _refused(path, expected, f"format version {version}")
    if vector.ndim != 1 or not np.all(np.isfinite(vector)):
        raise _refused(path, "one finite vector", f"shape {list(vector.shape)}")
    try:
        provenance = about["provenance"]
        return Direction(
            vector=vector.astype(np.float64),
            site=Site(**about["site"]),
            estimator=about["estimator"],
            n_harmful=about["n_harmful"],
            n_harmless=about["n_harmless"],
            provenance=None if provenance is None else Provenance.from_dict(provenance),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(path, "a complete header", f"{type(error).__name__}: {error}") from error


def _refused(path: Path, expected: str, got: Any) -> StoreError:
    return StoreError(
        "This is not a direction that can be read",
        expected=expected,
        got=got,
        where=path,
        next_step="Make one with refusaldir select or refusaldir direction import",
    )
