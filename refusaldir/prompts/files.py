"""Reading prompt files into rows: .jsonl, .json, .csv, .tsv and .txt, each with its place.

Nothing here knows what a prompt is; see `refusaldir.prompts.rows` for that.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusaldir.errors import PromptError


@dataclass(frozen=True, kw_only=True)
class Row:
    """One record of a source, before anything is known about its fields.

    Attributes:
        where: Place for error messages, e.g. ``prompts.jsonl, line 3``.
        key: Id of the prompt if the record has none of its own.
        data: The record's fields.
    """

    where: str
    key: str
    data: Mapping[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Read every record of a file; blank lines are skipped.

    Raises:
        PromptError: The file cannot be read, is empty, is not UTF-8, has an unknown suffix or
            is malformed; the message names the line.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise PromptError(
            "Prompts cannot be read from this kind of file",
            expected=", ".join(_READERS),
            got=path.suffix or "no suffix",
            where=path,
            next_step="Save it in one of these formats",
        )
    rows = list(reader(path, _text(path)))
    if not rows:
        raise PromptError("The prompt file is empty", expected="at least one prompt", where=path)
    return rows


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PromptError(
            "The prompt file cannot be read", got=error.strerror, where=path
        ) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Offsets count from after a byte order mark, if there is one.
        start = error.start + (3 if raw.startswith(b"\xef\xbb\xbf") else 0)
        line = raw.count(b"\n", 0, start) + 1
        raise PromptError(
            "The prompt file is not UTF-8 text",
            got=f"byte 0x{raw[start]:02x}",
            where=f"{path.name}, line {line}",
            next_step="Save it with the encoding UTF-8",
        ) from error


def _row(path: Path, unit: str, number: int, data: object) -> Row:
    where = f"{path.name}, {unit} {number}"
    if isinstance(data, str):
        data = {"text": data}
    if not isinstance(data, dict):
        raise PromptError(
            "A record is not an object",
            expected='an object such as {"prompt": …} or a text',
            got=type(data).__name__,
            where=where,
        )
    return Row(where=where, key=f"{path.stem}-{number}", data=data)


def _jsonl(path: Path, text: str) -> Iterator[Row]:
    # Not splitlines(): U+2028 and the like may stand inside a JSON text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            data = _parse(line, f"{path.name}, line {number}", "Write one JSON object a line")
            yield _row(path, "line", number, data)


def _json(path: Path, text: str) -> Iterator[Row]:
    if not text.strip():
        return
    data = _parse(text, path.name, "Write a JSON list of objects")
    if isinstance(data, dict) and isinstance(data.get("prompts"), list):
        data = data["prompts"]
    if not isinstance(data, list):
        raise PromptError(
            "A JSON prompt file holds no list",
            expected='a list, or an object with a list "prompts"',
            got=type(data).__name__,
            where=path.name,
            next_step="Put one object a line in a .jsonl file, or all in a list in a .json file",
        )
    for number, item in enumerate(data, start=1):
        yield _row(path, "item", number, item)


def _parse(text: str, where: str, next_step: str) -> object:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise PromptError("A field is given twice", got=repr(twice), where=where)
        return data

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if "\n" in text else ""
        raise PromptError(
            "This is not valid JSON",
            got=f"{error.msg} at {place}column {error.colno}",
            where=where,
            next_step=next_step,
        ) from error
    except RecursionError as error:
        raise PromptError("This JSON is nested too deeply", where=where) from error


def _csv(path: Path, text: str) -> Iterator[Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        where = f"{path.name}, line {number}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise PromptError(
                "This is not valid CSV",
                got=str(error),
                where=where,
                next_step='Quote cells that hold commas, quotes or line ends, "like this"',
            ) from error
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if len(set(header)) < len(header) or "" in header:
                raise PromptError(
                    "The header has empty or repeated column names",
                    got=", ".join(header),
                    where=where,
                )
            continue
        if len(cells) != len(header):
            raise PromptError(
                "A record has a wrong number of cells",
                expected=f"{len(header)} ({', '.join(header)})",
                got=str(len(cells)),
                where=where,
                next_step="Quote cells that hold the delimiter",
            )
        # An empty cell is a field that was not given.
        data = {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()}
        # Every column stays known, so that a column map can be checked against the row.
        yield _row(path, "line", number, {name: data.get(name) for name in header})


def _txt(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _row(path, "line", number, line.strip())


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".txt": _txt}
