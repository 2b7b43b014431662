"""`show`: every file that refusaldir writes, read and put into tables; loads no model."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.errors import StoreError

if TYPE_CHECKING:
    from rich.console import RenderableType

Row = Mapping[str, Any]

#: What a folder may hold, the first one found.
NAMES = (
    "select.json",
    "trajectory.json",
    "diff.json",
    "behaviour.json",
    "layers.json",
    "probe.json",
)

#: What needs no showing, and what to do with it.
_OTHERS = {
    ".partial": ("unfinished", "Repeat the command that was making it; it goes on from here"),
    ".html": ("a page", "Open it in a browser"),
    ".png": ("a picture", "Open it as one"),
    ".svg": ("a picture", "Open it as one"),
    ".csv": ("a table", "Open it as one; refusaldir show reads the JSON beside it"),
}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is in a file.

    Attributes:
        document: Its content, JSON-ready.
        draw: Makes tables of it for a terminal.
    """

    document: dict[str, Any]
    draw: "Callable[[Row], RenderableType]"


def shown(path: str | Path) -> Shown:
    """Read a file that refusaldir wrote, or the one that a folder is about.

    Args:
        path: A capture, a document, responses, a direction, or a folder.

    Raises:
        StoreError: It is missing, damaged, or nothing that refusaldir wrote.
        ProbeError: Responses are damaged.
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in NAMES if (path / name).exists()), path / "diff.json")
    readers = {
        ".json": _document,
        ".jsonl": _responses,
        ".safetensors": _direction,
        ".h5": _capture,
        ".hdf5": _capture,
    }
    reader = readers.get(path.suffix)
    if reader is not None:
        return reader(path)
    if path.suffix in _OTHERS:
        what, next_step = _OTHERS[path.suffix]
        raise StoreError(f"This is {what}", where=path, next_step=next_step)
    return _capture(path)


def _document(path: Path) -> Shown:
    """A JSON document, by what it says it is, whatever it is called."""
    readers = dict(_documents())
    try:
        found = json.loads(path.read_text("utf-8"))
        kind = found.get("schema") or found.get("format") if isinstance(found, dict) else None
    except (OSError, ValueError):
        kind = None
    # What cannot be read is reported by the reader of a diff.
    load, draw = readers.get(str(kind), readers["refusaldir.diff"])
    return Shown(document=load(path), draw=draw)


def _documents() -> (
    "Iterator[tuple[str, tuple[Callable[[Path], dict[str, Any]], Callable[[Row], RenderableType]]]]"
):
    """How each kind of document is read and drawn."""
    from refusaldir.pipeline import selected
    from refusaldir.report import (
        behaviour_document,
        document,
        layers_document,
        probe_document,
        trajectory_document,
    )
    from refusaldir.report.behaviour_table import behaviour_report
    from refusaldir.report.layers_table import layers_report
    from refusaldir.report.probe_table import probe_report
    from refusaldir.report.selection_table import selection_report
    from refusaldir.report.tables import diff_report
    from refusaldir.report.trajectory_table import trajectory_report

    yield document.SCHEMA, (document.load_document, diff_report)
    yield behaviour_document.SCHEMA, (behaviour_document.load_behaviour, behaviour_report)
    yield layers_document.SCHEMA, (layers_document.load_layers, layers_report)
    yield trajectory_document.SCHEMA, (trajectory_document.load_trajectory, trajectory_report)
    yield probe_document.SCHEMA, (probe_document.load_probe, probe_report)
    yield selected.FORMAT, (selected.read_document, selection_report)


def _responses(path: Path) -> Shown:
    """One file of a run, summed up."""
    from refusaldir.probes.behaviour import Behaviour
    from refusaldir.probes.run import ProbeRun
    from refusaldir.probes.summary import summarise
    from refusaldir.report.probe_document import build_probe
    from refusaldir.report.probe_table import probe_report

    part = Behaviour.from_jsonl(path)
    run = ProbeRun(**{part.provenance.mode or "single": part})
    document = build_probe(summarise(run), created=part.provenance.created)
    return Shown(document=document, draw=probe_report)


def _direction(path: Path) -> Shown:
    from refusaldir.directions.exchange import load_direction
    from refusaldir.report.direction_table import direction_table

    about = load_direction(path).to_dict()
    del about["vector"]
    return Shown(document=about, draw=direction_table)


def _capture(path: Path) -> Shown:
    from refusaldir.report.capture_table import capture_table
    from refusaldir.store import summary

    return Shown(document=summary(path), draw=capture_table)
