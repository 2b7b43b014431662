"""The diff document: everything `refusaldir diff` found, as one JSON file with a schema.

``diff.json`` is the interface to other tools and to later versions of this one: tables and
figures are drawn from it alone. ``data/diff.schema.json`` (JSON Schema, draft 2020-12) defines
every field with its unit. Numbers are never NaN or infinite: what cannot be estimated is null,
with a note that says why. It holds prompt ids, but neither prompts nor responses.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from refusaldir import __version__
from refusaldir.errors import StoreError
from refusaldir.report.files import write_atomic
from refusaldir.report.schema import document_schema, first_violation
from refusaldir.report.verdict import verdict

if TYPE_CHECKING:
    from refusaldir.drift.result import DriftResult
    from refusaldir.probes.comparison import BehaviourComparison

Document = dict[str, Any]

SCHEMA = "refusaldir.diff"
#: Raised when a reader of the previous version could misread a document.
SCHEMA_VERSION = 5

_NOT_FINITE = "not finite"

#: Summaries of whole escalations.
MEASURES = ("any_complied", "last_complied", "recovered", "turns_held")

#: Columns of the CSV, in long form: one figure a row.
CSV_COLUMNS = (
    "table", "hook", "layer", "position", "category", "framing", "severity", "domain",
    "temperature", "step", "metric",
    "value", "lower", "upper", "level", "n", "method", "note",
)  # fmt: skip


def build_document(
    drift: "DriftResult",
    behaviour: "BehaviourComparison | None" = None,
    causality: Mapping[str, Any] | None = None,
    precision: Mapping[str, Any] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    created: str | None = None,
) -> Document:
    """Put a comparison into the form that is written, shown and drawn.

    Args:
        drift: Drift of geometry.
        behaviour: Paired behaviour, or None when it was not measured.
        causality: What base's selected direction does in both models, or None when none was
            asked for; see `refusaldir.pipeline.causality.conclude`.
        precision: What precision alone explains, or None where both are in one; see
            `refusaldir.pipeline.precision.precision_document`.
        options: The settings it was made with, JSON-ready.
        created: UTC time in ISO 8601; now by default.

    Returns:
        A dictionary of plain JSON values, equal to what `load_document` reads back.
    """
    parts = drift.to_dict()
    choice = parts.pop("site")
    site = choice.pop("site")
    captured = parts["base"]["positions"]
    labels = dict(zip(captured["offsets"], captured["labels"], strict=True))
    parts["site"] = {
        **site,
        "token": labels[site["position"]],
        "reason": _reason(causality, (options or {}).get("position")),
    }
    parts["site_choice"] = choice
    base, tuned = parts.pop("base"), parts.pop("tuned")
    answers = None if behaviour is None else behaviour_part(behaviour)
    words = verdict(parts, answers, causality)
    if precision is not None:
        words["certainty"].insert(1, precision["sentence"])
    del parts["verdict"]
    document = plain(
        {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "created": created or datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "refusaldir_version": __version__,
            "options": dict(options or {}),
            "verdict": words,
            "base": base,
            "tuned": tuned,
            "drift": parts,
            "causality": causality,
            "precision": precision,
            "behaviour": answers,
        }
    )
    return dict(document)


def _reason(causality: Mapping[str, Any] | None, position: int | None) -> str:
    """How the site was chosen, in words."""
    selection = None if causality is None else causality["selection"]
    if selection is not None and selection["followed"]:
        if selection["valid"]:
            return "chosen on the base model alone, because its direction causes refusal there"
        return (
            "the candidate nearest to causing refusal in base, followed because you asked: it is "
            f"not valid ({selection['candidate']['dropped']})"
        )
    separation = "on the base model alone, by held-out separation"
    if position is not None:
        return f"position as given; layer chosen {separation}"
    return f"chosen {separation}"


def to_json(document: Mapping[str, Any]) -> str:
    """Return a document (or a capture's summary) as indented JSON text.

    Numbers keep every digit; NaN and infinities become null.
    """
    return json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False)


def write_json(document: Mapping[str, Any], path: str | Path, *, force: bool = True) -> Path:
    """Write a document as JSON, wholly or not at all.

    Args:
        document: From `build_document`.
        path: Where to write.
        force: Whether an existing file is replaced.

    Returns:
        The path written.

    Raises:
        OutputExistsError: The file exists and ``force`` is False.
        StoreError: The file cannot be written.
    """
    return write_atomic(path, (to_json(document) + "\n").encode("utf-8"), force=force)


def load_document(path: str | Path) -> Document:
    """Read a diff document and check it against its schema.

    Args:
        path: A file that `write_json` wrote.

    Returns:
        The document; drawing from it cannot fail for want of a field.

    Raises:
        StoreError: The file is missing, unreadable, truncated, foreign, of another version or
            damaged.
    """
    return load_kind(path, "diff", SCHEMA, SCHEMA_VERSION, document_schema("diff"))


def load_kind(
    path: str | Path, kind: str, name: str, version: int, schema: Mapping[str, Any]
) -> Document:
    """Read a JSON document of one kind and check it against the schema of that kind.

    Args:
        path: The file.
        kind: What it should be, in a word.
        name: Its ``schema``.
        version: The ``schema_version`` that can be read.
        schema: What it must obey.

    Raises:
        StoreError: As `load_document` says.
    """
    path = Path(path)
    again = "Run refusaldir diff again, with --force, to make a new one"
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise StoreError("There is no such file", where=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError("The file cannot be read as text", got=error, where=path) from error
    try:
        document = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise StoreError(
            "The file is not JSON, or was cut off", got=error, where=path, next_step=again
        ) from error
    if not isinstance(document, dict) or document.get("schema") != name:
        raise StoreError(
            f"The file is JSON, but not a {kind} document",
            expected=f'"schema": "{name}"',
            got=repr(document.get("schema")) if isinstance(document, dict) else "no object",
            where=path,
            next_step="refusaldir show reads captures (.h5) and what refusaldir diff wrote",
        )
    found = document.get("schema_version")
    if isinstance(found, int) and found != version:
        newer = found > version
        raise StoreError(
            f"The document was written by {'a newer' if newer else 'an older'} refusaldir",
            expected=f"schema_version {version}",
            got=f"{found} (refusaldir {document.get('refusaldir_version')})",
            where=path,
            next_step="Upgrade with: pip install -U refusaldir" if newer else again,
        )
    wrong = first_violation(document, schema)
    if wrong is not None:
        raise StoreError(
            f"The {kind} document is damaged or was edited", got=wrong, where=path, next_step=again
        )
    return document


def tables_csv(document: Mapping[str, Any]) -> str:
    """Return every figure of the drift and behaviour tables as CSV, one figure a row.

    The long form has one header (`CSV_COLUMNS`), keeps every figure with its interval, and
    loads into one data frame. ``table`` is ``drift``, ``refusal``, ``over_refusal``, or one of
    these for escalations; a row of behaviour is of the category, framing, … that it names, and
    of all prompts where it names none. Empty cells are null.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in _csv_rows(document):
        writer.writerow({key: "" if cell is None else cell for key, cell in row.items()})
    return stream.getvalue()


def _csv_rows(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if "drift" in document:  # else it is a document of behaviour alone
        yield from _drift_rows(document["drift"])
    yield from _behaviour_rows(document["behaviour"])


def _drift_rows(drift: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for row in drift["layers"]:
        where = {
            "table": "drift",
            "hook": drift["hook"],
            "layer": row["layer"],
            "position": drift["site"]["position"],
        }
        yield from figures(row, where)
    for cell in drift["grid"]:
        site = cell["site"]
        if site["position"] != drift["site"]["position"]:
            yield from figures(cell, {"table": "drift", **site})


def _behaviour_rows(behaviour: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    for name, axis in (behaviour["axes"] if behaviour else {}).items():
        if axis is None:
            continue
        yield from _group_rows(axis["overall"], {"table": name})
        for by, breakdown in axis["breakdowns"].items():
            for group in breakdown["groups"] if breakdown else ():
                yield from _group_rows(group, {"table": name, by: group["name"]})
        for level in axis["sampling"]["temperatures"] if axis["sampling"] else ():
            where = {"table": name, "temperature": level["temperature"]}
            yield from _group_rows(level["comparison"], where)
    for mode, part in (behaviour["escalations"] if behaviour else {}).items():
        for name, axis in (part["axes"] if part else {}).items():
            for step in axis["steps"] if axis else ():
                where = {"table": f"{name}, {mode} escalations", "step": step["step"]}
                yield from _group_rows(step["comparison"], where)
                yield from figures(step["hazard"], where, "hazard.")
            for key in MEASURES if axis else ():
                yield from figures({key: axis[key]}, {"table": f"{name}, {mode} escalations"})


def _group_rows(group: Mapping[str, Any], where: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from figures(group, where)
    for key in ("p_value", "p_holm", "p_bh"):
        yield {**where, "metric": key, "value": group[key], "n": group["n_intents"]}


def figures(row: Mapping[str, Any], where: Mapping[str, Any], prefix: str = "") -> Iterator[Any]:
    """Yield every estimate inside a row as one of the CSV, its path joined by dots as the metric.

    Args:
        row: Part of a document.
        where: Cells that all of them share.
        prefix: Of every metric.
    """
    for key, cell in row.items():
        if isinstance(cell, Mapping):
            if _is_estimate(cell):
                yield {**where, "metric": prefix + key, **cell}
            else:
                yield from figures(cell, where, f"{prefix}{key}.")


def _is_estimate(cell: Mapping[str, Any]) -> bool:
    return {"value", "lower", "upper", "n", "level", "method", "note"} == set(cell)


def behaviour_part(comparison: "BehaviourComparison") -> dict[str, Any]:
    """The document's ``behaviour``: axes by name, all breakdowns, and what both arms share."""
    parts = comparison.to_dict()
    axes = {axis["axis"]: axis for axis in parts["axes"]}
    return {
        **parts,
        "axes": {name: axes.get(name) for name in ("refusal", "over_refusal")},
        "judge": parts["base"]["judges"][0],
        "max_new_tokens": parts["base"]["sampling"]["max_new_tokens"],
    }


def plain(value: Any) -> Any:
    """Make plain JSON values: lists of tuples, numbers of NumPy scalars, None of NaN and inf."""
    if isinstance(value, Mapping):
        cells = {str(key): plain(item) for key, item in value.items()}
        if _is_estimate(cells) and any(cells[k] is None and value[k] is not None for k in cells):
            cells["note"] = "; ".join(filter(None, [cells["note"], _NOT_FINITE]))
        return cells
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a document cannot hold a {type(value).__name__}")


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
