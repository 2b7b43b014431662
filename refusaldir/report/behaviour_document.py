"""The behaviour document: what two models said, compared, where no geometry was measured.

``behaviour.json`` holds the same ``behaviour`` as ``diff.json``, with a verdict on it alone.
``data/behaviour.schema.json`` defines every field with its unit. It holds prompt ids, but neither
prompts nor responses.
"""

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir import __version__
from refusaldir.report.behaviour_verdict import LIMIT, certainty, headline, sentences
from refusaldir.report.document import (
    Document,
    behaviour_part,
    load_document,
    load_kind,
    plain,
)
from refusaldir.report.schema import document_schema

if TYPE_CHECKING:
    from refusaldir.probes.comparison import BehaviourComparison

SCHEMA = "refusaldir.behaviour"
#: Raised when a reader of the previous version could misread a document.
SCHEMA_VERSION = 1

_LIMITS = (
    "No geometry was measured: it does not show what inside the models made the change.",
    LIMIT,
    "A change that was not detected may still be there, and other prompts may show other changes.",
)


def build_behaviour(
    comparison: "BehaviourComparison",
    *,
    options: Mapping[str, Any] | None = None,
    created: str | None = None,
) -> Document:
    """Put a comparison of behaviour into the form that is written, shown and drawn.

    Args:
        comparison: The comparison.
        options: The settings it was made with, JSON-ready.
        created: UTC time in ISO 8601; now by default.

    Returns:
        A dictionary of plain JSON values, equal to what `load_behaviour` reads back.
    """
    behaviour = behaviour_part(comparison)
    return dict(
        plain(
            {
                "schema": SCHEMA,
                "schema_version": SCHEMA_VERSION,
                "created": created or datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "refusaldir_version": __version__,
                "options": dict(options or {}),
                "verdict": {
                    "headline": headline(behaviour),
                    "behaviour": sentences(behaviour),
                    "certainty": certainty(behaviour),
                    "limits": list(_LIMITS),
                },
                **{arm: {"model": behaviour[arm]["model"]} for arm in ("base", "tuned")},
                "behaviour": behaviour,
            }
        )
    )


def load_behaviour(path: str | Path) -> Document:
    """Read a behaviour document and check it against its schema.

    Raises:
        StoreError: As `refusaldir.report.document.load_document` says.
    """
    schema = document_schema("behaviour")
    return load_kind(path, "behaviour", SCHEMA, SCHEMA_VERSION, schema)


def load_compared(path: str | Path) -> Document:
    """Read a diff or behaviour document, or the one in a folder.

    Args:
        path: ``diff.json``, ``behaviour.json``, or a folder with one of them, diff first.

    Raises:
        StoreError: As `refusaldir.report.document.load_document` says.
    """
    path = Path(path)
    if path.is_dir():
        names = ("diff.json", "behaviour.json")
        path = path / next((name for name in names if (path / name).exists()), names[0])
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None  # load_document says what is wrong
    if isinstance(found, dict) and found.get("schema") == SCHEMA:
        return load_behaviour(path)
    return load_document(path)
