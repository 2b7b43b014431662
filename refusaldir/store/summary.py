"""What is in a capture, as plain numbers and text."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from refusaldir.store.reader import Capture
from refusaldir.store.schema import AXES, VERSION


def summary(path: str | Path) -> dict[str, Any]:
    """Describe a complete capture without loading its activations.

    Args:
        path: The HDF5 file.

    Returns:
        A JSON-ready dictionary: ``path``, ``size_bytes``, ``format_version``, ``fingerprint``,
        ``storage_dtype``, ``shape`` (axis → length), ``hooks``, ``layers``, ``positions``
        (``offset`` and ``label`` of each), ``prompts`` (name, counts per class, per class and
        category, per class and split, number of intents, token counts, loader's notes),
        ``mean_diff_norm`` (hook → ``[layer][pos]``, residual norm) and ``provenance``.

    Raises:
        StoreError: The file is missing, foreign, newer, incomplete, truncated or damaged.
    """
    with Capture.open(path) as capture:
        prompts = capture.prompts
        positions = capture.positions
        n = (len(prompts), len(capture.layers), len(positions.offsets), capture.d_model)
        norms = {
            hook: np.linalg.norm(capture.mean_diff(hook).astype(np.float64), axis=-1).tolist()
            for hook in capture.hooks
        }
        lengths = capture.lengths
        return {
            "path": str(capture.path),
            "size_bytes": capture.path.stat().st_size,
            "format_version": VERSION,
            "fingerprint": capture.provenance.fingerprint(),
            "storage_dtype": capture.storage_dtype,
            "shape": dict(zip(AXES, n, strict=True)),
            "hooks": list(capture.hooks),
            "layers": list(capture.layers),
            "positions": [
                {"offset": offset, "label": label}
                for offset, label in zip(positions.offsets, positions.labels, strict=True)
            ],
            "prompts": {
                "name": prompts.name,
                "classes": _count((p.label, "all") for p in prompts)["all"],
                "categories": _count((p.label, p.category) for p in prompts),
                "splits": _count((p.label, p.split or "none") for p in prompts),
                "n_intents": len({p.intent_id for p in prompts}),
                "n_tokens": {
                    "min": int(lengths.min()),
                    "median": float(np.median(lengths)),
                    "max": int(lengths.max()),
                },
                "notes": list(prompts.notes),
            },
            "mean_diff_norm": norms,
            "provenance": capture.provenance.to_dict(),
        }


def _count(pairs: Any) -> dict[str, dict[str, int]]:
    """Count harmful and harmless prompts by group, in the order in which groups occur."""
    counts: dict[str, Counter[str]] = {}
    for label, group in pairs:
        counts.setdefault(group, Counter(harmful=0, harmless=0))[label] += 1
    return {group: dict(counter) for group, counter in counts.items()}
