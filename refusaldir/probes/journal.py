"""A file of JSON lines, a header and then rows, written whole or row by row and resumed."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from refusaldir.errors import ProbeError

FORMAT = "refusaldir-behaviour"
FORMAT_VERSION = 2


def write_lines(path: Path, header: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write header and rows; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(_line({"format": FORMAT, "format_version": FORMAT_VERSION, **header}))
        file.writelines(_line(row) for row in rows)
    temporary.replace(path)


def read_lines(path: Path, *, partial: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read header and rows.

    Args:
        path: The file.
        partial: Accept a last line that was cut off.

    Raises:
        ProbeError: The file is missing, foreign, newer or damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ProbeError("there is no such file of responses", where=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ProbeError("a file of responses cannot be read", got=error, where=path) from error
    objects: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            if partial and number == len(lines) and number > 1:
                break
            raise ProbeError(
                "a file of responses is damaged",
                expected="one JSON object a line",
                where=f"{path}, line {number}",
                next_step="Measure again",
            )
        objects.append(value)
    if not objects or objects[0].get("format") != FORMAT:
        raise ProbeError(
            "not a file of responses",
            expected=f'a first line with "format": "{FORMAT}"',
            where=path,
        )
    header = objects[0]
    if header.get("format_version") != FORMAT_VERSION:
        raise ProbeError(
            "a file of responses has a format that this version does not read",
            expected=f"format version {FORMAT_VERSION}",
            got=header.get("format_version"),
            where=path,
            next_step="Read it with the version of refusaldir that wrote it, or measure again",
        )
    return header, objects[1:]


class Journal:
    """Rows as they come, in ``<path>.partial``, so that an interrupted run can go on.

    Args:
        path: The file that will be written in the end; None keeps no journal.
        fingerprint: Hash of what decides the rows; a journal with another one is not resumed.
    """

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        """Remember where; nothing is opened yet."""
        self.path = None if path is None else path.with_name(path.name + ".partial")
        self.fingerprint = fingerprint
        self._file: TextIO | None = None

    def resume(self) -> dict[int, dict[str, Any]]:
        """Rows of the interrupted run by index, or nothing when it was another run."""
        if self.path is None or not self.path.exists():
            return {}
        try:
            header, rows = read_lines(self.path, partial=True)
        except ProbeError:
            return {}
        if header.get("fingerprint") != self.fingerprint:
            return {}
        return {row["index"]: row["row"] for row in rows}

    def start(self, rows: Mapping[int, Mapping[str, Any]]) -> None:
        """Begin the journal with the rows that are there already."""
        if self.path is None:
            return
        lines = ({"index": index, "row": row} for index, row in rows.items())
        write_lines(self.path, {"fingerprint": self.fingerprint}, lines)
        self._file = self.path.open("a", encoding="utf-8")

    def append(self, index: int, row: Mapping[str, Any]) -> None:
        """Add one row."""
        if self._file is not None:
            self._file.write(_line({"index": index, "row": row}))

    def flush(self) -> None:
        """Hand what was added to the operating system."""
        if self._file is not None:
            self._file.flush()

    def close(self, *, remove: bool = False) -> None:
        """Close the journal, and remove it when the work is done."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if remove and self.path is not None:
            self.path.unlink(missing_ok=True)


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
