"""Human-labelled refusals that others publish, read from where the user has them.

PyRIT (MIT licence) carries ``refusal.csv`` and ``refusal_extra.csv`` in its wheel: lines of
comment, then the columns ``objective, assistant_response, human_score, data_type``, the score 1
for a refusal and 0 for none. Texts are read from an installed package, a wheel or a folder, and
are never part of refusaldir. Its people did not tell partial refusals from full ones, and call an
answer to another request a refusal as well: a judge that reads the wording alone cannot see that.
"""

import csv
import importlib.metadata
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from refusaldir.errors import ProbeError
from refusaldir.probes.judging.labels import read_label
from refusaldir.probes.outcomes import COMPLIANCE
from refusaldir.records import content_hash

PYRIT_FILES = ("refusal.csv", "refusal_extra.csv")
_NEEDED = ("objective", "assistant_response", "human_score")
_GET_IT = "Get it with: pip download --no-deps pyrit, and give the path of the wheel"


@dataclass(frozen=True, kw_only=True)
class HumanRow:
    """One response with a label made by people.

    Attributes:
        id: File and number of the row.
        intent_id: The same for rows with the same objective.
        prompt: The objective.
        response: The response.
        label: ``full_refusal`` or ``compliance``.
        source: Name of the file.
        swapped: Whether it is called refused although the same response stands elsewhere in the
            set as the answer to another objective: nothing in its wording refuses.
    """

    id: str
    intent_id: str
    prompt: str
    response: str
    label: str
    source: str
    swapped: bool = False


@dataclass(frozen=True, kw_only=True)
class HumanSet:
    """A human-labelled set.

    Attributes:
        name: Its name, with the version where known.
        rows: Its rows, each response to an objective once.
        notes: What a reader should know of the rows, a sentence each.
    """

    name: str
    rows: tuple[HumanRow, ...]
    notes: tuple[str, ...] = ()


def load_pyrit(path: Path | None = None) -> HumanSet:
    """Load PyRIT's human-labelled refusals.

    Args:
        path: A wheel, a folder that holds the files at any depth, or one of the files; None
            takes the installed package.

    Returns:
        The rows of both files, in order. A row that repeats objective and response is taken once;
        when the labels of the copies differ, none is.

    Raises:
        ProbeError: The files are not there, or are not what they were.
    """
    rows: list[HumanRow] = []
    for name, text in _files(path):
        rows.extend(_rows(name, text))
    labels: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        labels.setdefault((row.prompt, row.response), set()).add(row.label)
    once = list({(row.prompt, row.response): row for row in reversed(rows)}.values())[::-1]
    agreed = [row for row in once if len(labels[row.prompt, row.response]) == 1]
    answers = {row.response for row in agreed if row.label == COMPLIANCE}
    kept = tuple(
        replace(row, swapped=row.label != COMPLIANCE and row.response in answers) for row in agreed
    )
    repeats, disputed = len(rows) - len(once), len(once) - len(kept)
    swapped = sum(row.swapped for row in kept)
    notes = []
    if swapped:
        notes.append(f"{swapped} responses called refused are answers to another objective")
    if repeats:
        notes.append(f"{repeats} rows repeat another and are left out")
    if disputed:
        notes.append(f"{disputed} responses with contradicting labels are left out")
    return HumanSet(name=_name(path), rows=kept, notes=tuple(notes))


def _name(path: Path | None) -> str:
    if path is None:
        return f"PyRIT {importlib.metadata.version('pyrit')}"
    parts = path.name.split("-")
    return f"PyRIT {parts[1]}" if path.suffix == ".whl" and len(parts) > 2 else "PyRIT"


def _files(path: Path | None) -> Iterator[tuple[str, str]]:
    """Name and text of each file, those of `PYRIT_FILES` that are there."""
    found: dict[str, bytes] = {}
    try:
        if path is None:
            # By the record of files: importing the package would be slow, and need not work.
            for part in importlib.metadata.files("pyrit") or ():
                if part.name in PYRIT_FILES:
                    found[part.name] = Path(str(part.locate())).read_bytes()
        elif path.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    if member.rsplit("/", 1)[-1] in PYRIT_FILES:
                        found[member.rsplit("/", 1)[-1]] = archive.read(member)
        elif path.is_dir():
            for name in PYRIT_FILES:
                for file in sorted(path.rglob(name))[:1]:
                    found[name] = file.read_bytes()
        else:
            found[path.name] = path.read_bytes()
    except importlib.metadata.PackageNotFoundError:
        raise ProbeError(
            "PyRIT's human-labelled refusals need PyRIT, which is not installed",
            next_step=_GET_IT,
        ) from None
    except (OSError, zipfile.BadZipFile) as error:
        raise ProbeError(
            "PyRIT's files cannot be read", got=error, where=path, next_step=_GET_IT
        ) from error
    if not found:
        raise ProbeError(
            "there are no human-labelled refusals of PyRIT here",
            expected=" or ".join(PYRIT_FILES),
            where=path or "the installed package",
            next_step=_GET_IT,
        )
    for name in sorted(found):
        yield name, found[name].decode("utf-8-sig", errors="replace")


def _rows(name: str, text: str) -> Iterator[HumanRow]:
    lines = text.splitlines(keepends=True)
    start = 0
    while start < len(lines) and (lines[start].startswith("#") or not lines[start].strip()):
        start += 1
    reader = csv.DictReader(io.StringIO("".join(lines[start:]), newline=""))
    missing = [column for column in _NEEDED if column not in (reader.fieldnames or ())]
    if missing:
        raise ProbeError(
            "a file of human-labelled refusals lacks columns",
            expected=", ".join(_NEEDED),
            got=", ".join(reader.fieldnames or ()) or "nothing",
            where=name,
        )
    for number, row in enumerate(reader, start=1):
        label = read_label(row["human_score"])
        if (row.get("data_type") or "text") != "text":
            continue
        if label is None or row["assistant_response"] is None:
            raise ProbeError(
                "a row of human-labelled refusals has no score",
                expected="1 or 0",
                got=repr(row["human_score"]),
                where=f"{name}, row {number}",
            )
        yield HumanRow(
            id=f"{name.removesuffix('.csv')}-{number}",
            intent_id=content_hash(row["objective"]),
            prompt=row["objective"],
            response=row["assistant_response"],
            label=label,
            source=name,
        )
