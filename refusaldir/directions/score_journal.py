"""Scores of candidates as they come, in a file, so that a selection that was cut off can go on.

A header with the fingerprint of everything that decides the scores, then a line for every chunk of
candidates that is done. Python writes floats so that they are read back bit for bit.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from refusaldir.directions.candidates import Candidate
from refusaldir.errors import StoreError

FORMAT, FORMAT_VERSION = "refusaldir-candidates", 1


class ScoreJournal:
    """The scores of one search among candidates.

    Args:
        path: The file; it is left complete when the search ends.
        fingerprint: Of what decides the scores. A file with another one is begun anew.

    Raises:
        StoreError: The file cannot be written.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Read what is there, up to a line that was cut off."""
        self._path = path
        header = {
            "format": FORMAT, "format_version": FORMAT_VERSION, "fingerprint": fingerprint,
        }  # fmt: skip
        whole, entries = _read(path)
        same = bool(entries) and entries[0] == header
        self._chunks = {entry["start"]: entry for entry in entries[1:]} if same else {}
        if not same:
            self._write([header], mode="w")
        elif whole != path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(whole)

    def chunk(
        self, start: int, candidates: Sequence[Candidate]
    ) -> tuple[list[Candidate], list[list[float]]] | None:
        """The scored candidates and their KL by prompt, or None where they are still to be scored.

        Args:
            start: Index of the chunk's first candidate.
            candidates: The chunk's candidates, not scored yet.
        """
        entry = self._chunks.get(start)
        if entry is None or len(entry["scores"]) != len(candidates):
            return None
        scored = [replace(c, **s) for c, s in zip(candidates, entry["scores"], strict=True)]
        return scored, [_restored(row) for row in entry["kl"]]

    def keep(
        self, start: int, candidates: Sequence[Candidate], kl: Sequence[Sequence[float]]
    ) -> None:
        """Add a chunk.

        Args:
            start: Index of its first candidate.
            candidates: Its candidates, scored.
            kl: KL of each by prompt, NaN where a prompt was not run.

        Raises:
            StoreError: The file cannot be written.
        """
        scores = [
            {key: value for key, value in asdict(c).items() if key not in ("site", "norm")}
            for c in candidates
        ]
        rows = [[None if math.isnan(value) else value for value in row] for row in kl]
        self._write([{"start": start, "scores": scores, "kl": rows}], mode="a")

    def _write(self, entries: Sequence[Mapping[str, Any]], *, mode: str) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries)
        except OSError as error:
            raise StoreError(
                "The scores of candidates cannot be kept",
                got=error.strerror or error,
                where=self._path,
                next_step="Free some space, or choose another --out",
            ) from error


def _read(path: Path) -> tuple[int, list[dict[str, Any]]]:
    """Bytes of whole lines at the start of a file, and their content."""
    whole, entries = 0, []
    try:
        data = path.read_bytes()
    except OSError:
        return 0, []
    for line in data.splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(entry, dict):
            break
        whole += len(line)
        entries.append(entry)
    return whole, entries


def _restored(row: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in row]
