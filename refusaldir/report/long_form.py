"""Documents as CSV in long form: one figure a row, with its interval."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from refusaldir.errors import RefusaldirError
from refusaldir.report.document import figures, tables_csv

Row = Mapping[str, Any]


def long_csv(document: Row) -> str:
    """Return every figure of a document's tables as CSV.

    Args:
        document: A diff, behaviour, layers, trajectory or probe document, or a ``select.json``.

    Raises:
        RefusaldirError: It is of a kind without such tables.
    """
    kind = document.get("schema") or document.get("format")
    if kind in ("refusaldir.diff", "refusaldir.behaviour"):
        return tables_csv(document)
    walks = {
        "refusaldir.layers": _layers,
        "refusaldir.trajectory": _trajectory,
        "refusaldir.probe": _probe,
        "refusaldir-select": _selection,
    }
    if kind not in walks:
        raise RefusaldirError(
            "There are no tables of figures in this to print as CSV",
            got=kind or "a capture or a direction",
            where="--csv",
            next_step="Use --json",
        )
    rows = list(walks[kind](document))
    stream = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if cell is None else cell for key, cell in row.items()})
    return stream.getvalue()


def _layers(document: Row) -> Iterator[dict[str, Any]]:
    """Every lens by layer and component, and how far they agree."""
    nowhere = {"layer": None, "component": None}
    yield from figures(document["change"], {"table": "change", **nowhere})
    ranking = document["ranking"] or {"layers": ()}
    for entry in ranking["layers"]:
        yield from figures(entry, {"table": "ranking", **nowhere, "layer": entry["layer"]})
    path, transplant = document["path"] or {}, document["transplant"] or {}
    for table, found, keys in (
        ("path", path, ("layers", "components", "totals")),
        ("transplant", transplant, ("restored", "injected")),
    ):
        for key in keys:
            for cell in found.get(key, ()):
                where = {"layer": cell["layer"], "component": cell["component"]}
                yield from figures(cell, {"table": f"{table}: {key}", **where})
    for front, cell in enumerate(transplant.get("fronts", ())):
        where = {"table": "transplant: fronts", **nowhere, "layer": front}
        yield from figures({"share": cell}, where)
    residual = document["residual"] or {"terms": (), "heads": None}
    for term in (*residual["terms"], *(residual["heads"] or {"terms": ()})["terms"]):
        where = {"layer": term["layer"], "component": term["component"], "head": term["head"]}
        yield from figures(term, {"table": "residual", **where})
    for total in (document["weights"] or {"totals": ()})["totals"]:
        where = {"table": "weights", "layer": total["layer"], "component": total["component"]}
        for key in ("relative_change", "write_alignment", "read_alignment", "share"):
            yield {**where, "metric": key, "value": total[key]}
    for pair in document["agreement"]:
        where = {"table": "agreement", **nowhere}
        yield from figures(pair, where, f"{pair['first']} / {pair['second']}: ")


def _trajectory(document: Row) -> Iterator[dict[str, Any]]:
    for point in document["checkpoints"]:
        yield from figures(point, {"checkpoint": point["name"], "step": point["step"]})


def _probe(document: Row) -> Iterator[dict[str, Any]]:
    """Rates of every group, of prompts and of each mode of escalations."""
    parts = {"single": document["single"], **document["escalations"]}
    for part, found in parts.items():
        for axis, cells in (found["axes"] if found else {}).items():
            where = {"part": part, "axis": axis, "by": None, "group": None}
            if cells is None:
                continue
            yield from figures({key: cells[key] for key in cells if key != "by"}, where)
            for by, groups in cells.get("by", {}).items():
                for group in groups:
                    yield from figures(group, {**where, "by": by, "group": group["name"]})
            for turn in cells.get("turns", ()):
                yield from figures(turn, {**where, "by": "turn", "group": turn["name"]})


def _selection(document: Row) -> Iterator[dict[str, Any]]:
    """Every candidate's scores."""
    for row in document["selection"]["candidates"]:
        where = {**row["site"], "dropped": row["dropped"]}
        for key in ("bypass", "induce", "ablated_cosine", "added_cosine", "cosmic", "kl", "norm"):
            if row[key] is not None:
                yield {**where, "metric": key, "value": row[key]}
