"""A file of JSON lines, a header and then rows, written whole or row by row and resumed."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from refusaldir.errors import OutputExistsError, ProbeError, StoreError

if TYPE_CHECKING:
    from refusaldir.store.lock import FileLock

FORMAT = "refusaldir-behaviour"
FORMAT_VERSION = 2


def write_lines(path: Path, header: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write header and rows; the file appears whole or not at all.

    Raises:
        ProbeError: It cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(_line({"format": FORMAT, "format_version": FORMAT_VERSION, **header}))
                file.writelines(_line(row) for row in rows)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def read_lines(path: Path, *, partial: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read header and rows.

    Args:
        path: The file.
        partial: Leave out a last line that was cut off.

    Raises:
        ProbeError: The file is missing, foreign, newer or damaged.
    """
    try:
        data = path.read_bytes()
        lines = data[: _whole(data) if partial else None].decode("utf-8").split("\n")
    except FileNotFoundError:
        raise ProbeError("there is no such file of responses", where=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ProbeError("a file of responses cannot be read", got=error, where=path) from error
    objects: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, start=1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
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

    Lines are only ever added. A row is kept under a key that says what was asked, so that it
    serves any later run that asks the same under the same conditions.

    Args:
        path: The file that will be written in the end; None keeps no journal.
        conditions: Hash of what decides a row beside its key.
    """

    def __init__(self, path: Path | None, conditions: str) -> None:
        """Remember where; nothing is opened yet."""
        self.path = None if path is None else path.with_name(path.name + ".partial")
        self.conditions = conditions
        self._file: TextIO | None = None
        self._lock: FileLock | None = None

    def open(self, *, force: bool = False) -> dict[str, dict[str, Any]]:
        """Begin the journal, or go on with it.

        Args:
            force: Throw away one that was begun under other conditions.

        Returns:
            The rows that are there, by key.

        Raises:
            OutputExistsError: It was begun under other conditions, or is damaged.
            ProbeError: It cannot be written, or another process writes it.
        """
        if self.path is None:
            return {}
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock(self.path)
            rows = self._read(self.path, force=force)
            if not self.path.exists():
                write_lines(self.path, {"conditions": self.conditions}, ())
            self._file = self.path.open("a", encoding="utf-8")
        return rows

    def _take_lock(self, path: Path) -> None:
        from refusaldir.store.lock import FileLock  # Reports do without h5py.

        try:
            self._lock = FileLock(path.with_name(path.name + ".lock"))
        except StoreError as error:
            raise ProbeError(
                "another process writes these responses",
                got=error.got,
                where=path,
                next_step="Wait for it to finish, or write to another folder",
            ) from None

    def _read(self, path: Path, *, force: bool) -> dict[str, dict[str, Any]]:
        """What is there, the file cut off after the last whole line of it."""
        if not path.exists():
            return {}
        reason = "made with another model or other settings"
        try:
            header, rows = read_lines(path, partial=True)
        except ProbeError as error:
            header, rows, reason = {}, [], error.what
        if header.get("conditions") != self.conditions:
            if not force:
                raise OutputExistsError(
                    "an unfinished run of something else is in the way",
                    got=reason,
                    where=path,
                    next_step="Choose another --out, or throw it away with --force",
                )
            path.unlink()
            return {}
        with path.open("rb+") as file:
            file.truncate(_whole(file.read()))
        return {row["key"]: row["row"] for row in rows}

    def forget(self) -> None:
        """Remove what was left behind by a run that was stopped after its work was done."""
        if self.path is not None and self.path.exists():
            with suppress(ProbeError):
                header, _ = read_lines(self.path, partial=True)
                if header.get("conditions") == self.conditions:
                    self.path.unlink(missing_ok=True)

    def append(self, key: str, row: Mapping[str, Any]) -> None:
        """Add one row.

        Raises:
            ProbeError: It cannot be written.
        """
        if self._file is not None and self.path is not None:
            with writing(self.path):
                self._file.write(_line({"key": key, "row": row}))

    def flush(self) -> None:
        """Hand what was added to the operating system, where a kill does not reach it.

        Raises:
            ProbeError: It cannot be written.
        """
        if self._file is not None and self.path is not None:
            with writing(self.path):
                self._file.flush()

    def close(self, *, remove: bool = False) -> None:
        """Close the journal, and remove it when the work is done."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # What could not be written was told when it was tried.
                file.close()
        if remove and self.path is not None:
            self.path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()
            self._lock = None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in a sentence what keeps a file from being written.

    Raises:
        ProbeError: The system refuses.
    """
    try:
        yield
    except OSError as error:
        raise ProbeError(
            "the responses cannot be written",
            got=error.strerror or str(error),
            where=path,
            next_step="Check that the folder is writable and has room, then repeat the command: "
            "what was finished is kept",
        ) from error


def _whole(data: bytes) -> int:
    """Length of the whole lines."""
    return data.rfind(b"\n") + 1


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
