"""What selection found, and where it lies: a folder beside the capture."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.directions.exchange import direction_bytes, load_direction
from refusaldir.directions.mean_diff import Direction
from refusaldir.errors import OutputExistsError, StoreError
from refusaldir.pipeline.criteria import Criteria
from refusaldir.records import Provenance

if TYPE_CHECKING:
    from refusaldir.directions.candidates import CausalChoice

FORMAT, FORMAT_VERSION = "refusaldir-select", 2

#: The direction file of a valid direction, and of the nearest candidate without one.
DIRECTION, NEAREST = "direction.safetensors", "nearest-invalid.safetensors"


@dataclass(frozen=True, kw_only=True)
class Selected:
    """What `select` found.

    Attributes:
        document: The content of ``select.json``.
        direction: The direction chosen, raw, or None.
        nearest: Without a valid direction, the candidate that came closest, or None.
        folder: Where everything was written.
        files: What was written, by name.
        choice: Every candidate with its scores; None when it was read from a folder.
        reused: True when it was there already.
    """

    document: dict[str, Any] = field(repr=False)
    direction: Direction | None
    nearest: Direction | None
    folder: Path
    files: Mapping[str, Path]
    choice: "CausalChoice | None" = field(default=None, repr=False)
    reused: bool = False

    @property
    def refusal_tokens(self) -> tuple[int, ...]:
        """Ids of the refusal tokens; empty when none was found."""
        return tuple(self.document["refusal_tokens"]["ids"])

    def _repr_html_(self) -> str:
        from refusaldir.report.notebook import as_html
        from refusaldir.report.selection_table import selection_report

        return as_html(selection_report(self.document), self.files)


def folder_beside(capture: Path) -> Path:
    """Where the selection of a capture lies: ``base.h5`` has ``base-select/``."""
    return capture.with_name(f"{capture.stem}-select")


def refuse_existing(folder: Path) -> None:
    """Refuse to overwrite a finished selection.

    Raises:
        OutputExistsError: The folder holds one.
    """
    if (folder / "select.json").exists():
        raise OutputExistsError(
            "The folder holds a result already",
            where=folder / "select.json",
            next_step="Read it with refusaldir show, choose another --out, or use --force",
        )


def write_selected(
    document: dict[str, Any],
    choice: "CausalChoice | None",
    direction: Direction | None,
    nearest: Direction | None,
    folder: Path,
) -> Selected:
    """Write the directions, the figure and, last, ``select.json``."""
    from refusaldir.report.document import write_json
    from refusaldir.report.files import write_atomic
    from refusaldir.report.selection_figure import write_selection_figure

    written = {"responses.jsonl": folder / "responses.jsonl"}
    for name, vector in ((DIRECTION, direction), (NEAREST, nearest)):
        if vector is not None:
            written[name] = write_atomic(folder / name, direction_bytes(vector))
        else:
            (folder / name).unlink(missing_ok=True)
    written |= {path.name: path for path in write_selection_figure(document, folder)}
    # Last, so that a folder with a select.json is complete.
    written["select.json"] = write_json(document, folder / "select.json")
    files = {name: path for name, path in written.items() if path.exists()}
    return Selected(
        document=document,
        choice=choice,
        direction=direction,
        nearest=nearest,
        folder=folder,
        files=files,
    )


def read_selected(folder: Path) -> Selected:
    """Read what `write_selected` wrote.

    Raises:
        StoreError: The folder holds no finished selection, or another version's.
    """
    document = read_document(folder / "select.json")
    vectors = {
        name: load_direction(folder / name)
        for name in (DIRECTION, NEAREST)
        if (folder / name).exists()
    }
    return Selected(
        document=document,
        direction=vectors.get(DIRECTION),
        nearest=vectors.get(NEAREST),
        folder=folder,
        files={path.name: path for path in sorted(folder.iterdir()) if path.is_file()},
        reused=True,
    )


def read_document(path: Path) -> dict[str, Any]:
    """Read a ``select.json``.

    Raises:
        StoreError: It is missing, not JSON, not a selection, or of another version.
    """
    again = "Run refusaldir select again, with --force"
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            "The selection cannot be read", got=error, where=path, next_step=again
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise StoreError(
            "The file is JSON, but not a selection", expected=FORMAT, where=path, next_step=again
        )
    if document.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            "The selection was written by another version of refusaldir",
            expected=f"format version {FORMAT_VERSION}",
            got=document.get("format_version"),
            where=path,
            next_step=again,
        )
    return document


def find_selected(
    folder: Path, provenance: Provenance, criteria: Criteria | None = None
) -> Selected | None:
    """The selection in a folder, if made from this capture (and by the criteria given)."""
    if not (folder / "select.json").exists():
        return None
    found = read_selected(folder)
    made = Provenance.from_dict(found.document["provenance"])
    if made.fingerprint() != provenance.fingerprint():
        return None
    if criteria is not None:
        asked = json.loads(json.dumps(criteria.to_dict()))
        if found.document["criteria"] != asked:
            return None
    return found
