"""The trajectory document: a series of checkpoints against one base, as one JSON file.

It is to a series what ``diff.json`` is to one comparison: the interface to other tools, from which
table and figure are drawn. ``data/trajectory.schema.json`` defines every field with its unit. Each
checkpoint's own ``diff.json`` lies in the folder of its name beside it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir import __version__
from refusaldir.report.behaviour_verdict import AXES
from refusaldir.report.document import Document, load_kind, plain
from refusaldir.report.schema import document_schema
from refusaldir.report.text import number, percent

if TYPE_CHECKING:
    from refusaldir.drift.trajectory import Trajectory
    from refusaldir.probes.link.series import SeriesLink

Row = Mapping[str, Any]

SCHEMA = "refusaldir.trajectory"
#: Raised when a reader of the previous version could misread a document.
SCHEMA_VERSION = 2

_LIMITS = (
    "Checkpoints share base and prompts, so their errors are alike: a step between two of them "
    "can be real although their intervals overlap.",
    "It follows one direction, at one site chosen on base. It shows when that direction drifts, "
    "not what in the training data made it.",
)


def build_trajectory(
    trajectory: "Trajectory",
    documents: Sequence[Row],
    link: "SeriesLink | None" = None,
    *,
    options: Row | None = None,
    created: str | None = None,
) -> Document:
    """Put a series into the form that is written, shown and drawn.

    Args:
        trajectory: Drift over the checkpoints.
        documents: The diff document of each.
        link: Drift against behaviour over the checkpoints, or None where that was not measured.
        options: The settings it was made with, JSON-ready.
        created: UTC time in ISO 8601; now by default.

    Returns:
        A dictionary of plain JSON values, equal to what `load_trajectory` reads back.
    """
    parts = trajectory.to_dict()
    points = [
        {
            **point,
            "model": document["tuned"]["model"],
            "headline": document["verdict"]["headline"],
            **{name: _rates(document["behaviour"], name) for name in AXES},
        }
        for point, document in zip(parts["checkpoints"], documents, strict=True)
    ]
    firsts = {
        key: None if parts[key] is None else points[parts[key]]["name"]
        for key in ("first_rotation", "first_drift")
    }
    first = documents[0]
    headline, *rest = parts["sentences"]
    return dict(
        plain(
            {
                "schema": SCHEMA,
                "schema_version": SCHEMA_VERSION,
                "created": created or datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "refusaldir_version": __version__,
                "options": dict(options or {}),
                "verdict": {
                    "headline": headline,
                    "sentences": [
                        *rest,
                        *_behaviour(points),
                        *(() if link is None else link.sentences),
                    ],
                    "limits": list(_LIMITS),
                },
                "base": first["base"],
                "site": first["drift"]["site"],
                "level": parts["level"],
                **{key: first["drift"][key] for key in ("n_harmful", "n_harmless", "n_clusters")},
                "checkpoints": points,
                **firsts,
                "link": None if link is None else link.to_dict(),
                "notes": _notes([point["name"] for point in points], documents),
            }
        )
    )


def load_trajectory(path: str | Path) -> Document:
    """Read a trajectory document and check it against its schema.

    Raises:
        StoreError: As `refusaldir.report.document.load_document` says.
    """
    return load_kind(path, "trajectory", SCHEMA, SCHEMA_VERSION, document_schema("trajectory"))


def _notes(names: Sequence[str], documents: Sequence[Row]) -> list[str]:
    """The notes of the comparisons, once each, with the checkpoints where not all have them."""
    about: dict[str, list[str]] = {}
    for name, document in zip(names, documents, strict=True):
        precision = document["precision"]
        said = [] if precision is None else [precision["sentence"]]
        for note in (*document["drift"]["notes"], *said):
            about.setdefault(note, []).append(name)
    return [
        note if len(having) == len(names) else f"{', '.join(having)}: {note}"
        for note, having in about.items()
    ]


def _rates(behaviour: Row | None, name: str) -> dict[str, Any] | None:
    axis = None if behaviour is None else behaviour["axes"][name]
    if axis is None:
        return None
    return {key: axis["overall"][key] for key in ("base_rate", "tuned_rate", "difference")}


def _behaviour(points: Sequence[Row]) -> list[str]:
    """Since when refusals are fewer or more, each checkpoint taken by itself."""
    sentences = []
    for name, subject in AXES.items():
        measured = [point for point in points if point[name] is not None]
        changed = [point for point in measured if _leaves_out_none(point[name]["difference"])]
        if changed:
            rates = changed[0][name]
            word = "rose" if rates["difference"]["value"] > 0 else "fell"
            both = [percent(rates[key]["value"], 1) for key in ("base_rate", "tuned_rate")]
            low, high = (
                number(rates["difference"][end], 1, scale=100.0, signed=True)
                for end in ("lower", "upper")
            )
            sentences.append(
                f"The rate of {subject} first {word} at {changed[0]['name']}: {both[0]} → "
                f"{both[1]} ({percent(rates['difference']['level'])} interval of the change "
                f"{low} to {high} points, each checkpoint taken by itself)."
            )
        elif measured:
            sentences.append(f"At no checkpoint was a change of the rate of {subject} detected.")
    return sentences


def _leaves_out_none(change: Row) -> bool:
    low, high = change["lower"], change["upper"]
    return low is not None and high is not None and bool(low > 0 or high < 0)
