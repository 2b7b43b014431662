"""The probe document: what one model refuses, as one JSON file.

``probe.json`` sums up a run's folder and is written last, so that a folder that holds it is
complete. ``data/probe.schema.json`` defines every field with its unit. It holds neither prompts
nor responses; those are in the files beside it.
"""

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir import __version__
from refusaldir.report.document import Document, load_kind, plain
from refusaldir.report.schema import document_schema

if TYPE_CHECKING:
    from refusaldir.probes.summary import PartSummary

SCHEMA = "refusaldir.probe"
#: Raised when a reader of the previous version could misread a document.
SCHEMA_VERSION = 1


def build_probe(
    parts: "Mapping[str, PartSummary]",
    *,
    options: Mapping[str, Any] | None = None,
    created: str | None = None,
) -> Document:
    """Put the summary of a run into the form that is written and shown.

    Args:
        parts: Every part of the run, by name.
        options: The settings it was made with, JSON-ready.
        created: UTC time in ISO 8601; now by default.

    Returns:
        A dictionary of plain JSON values, equal to what `load_probe` reads back.
    """
    cells = {name: part.to_dict() for name, part in parts.items()}
    first = next(iter(cells.values()))["provenance"]
    return dict(
        plain(
            {
                "schema": SCHEMA,
                "schema_version": SCHEMA_VERSION,
                "created": created or datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "refusaldir_version": __version__,
                "options": dict(options or {}),
                "model": first["model"],
                "judges": first["judges"],
                "sampling": first["sampling"],
                "single": cells.get("single"),
                "escalations": {mode: cells.get(mode) for mode in ("frozen", "live")},
            }
        )
    )


def load_probe(path: str | Path) -> Document:
    """Read a probe document and check it against its schema.

    Raises:
        StoreError: As `refusaldir.report.document.load_document` says.
    """
    return load_kind(path, "probe", SCHEMA, SCHEMA_VERSION, document_schema("probe"))
