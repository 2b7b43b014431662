"""Terminal tables of a diff document, as rich renderables.

Everything is built from the document, so that ``refusaldir show`` redraws what ``refusaldir
diff`` printed. Tables fit 80 columns; a wider terminal gets more intervals, a narrower one fewer
columns, and no number is ever wrapped or cut. Colours, their absence (``NO_COLOR``) and
terminals are left to rich.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from refusaldir.drift.floors import FLOOR_COSINE, FLOOR_NORM, FLOOR_SD
from refusaldir.report.behaviour_table import behaviour_tables
from refusaldir.report.capture_table import capture_table
from refusaldir.report.drift_sparklines import drift_sparklines
from refusaldir.report.handle_table import handle_table
from refusaldir.report.layout import (
    Widest,
    add_numbers,
    estimate,
    heading,
    notes,
    select_layers,
    table,
)
from refusaldir.report.link_table import link_tables
from refusaldir.report.precision_table import precision_table
from refusaldir.report.text import number, percent, visible
from refusaldir.report.verdict_panel import verdict_panel

__all__ = [
    "capture_table",
    "diff_report",
    "drift_table",
    "ranking_table",
]

Row = Mapping[str, Any]

#: How far an interval must stay away from "no change" to be marked.
FLOORS = {"rotation": FLOOR_COSINE, "length": FLOOR_NORM, "shift": FLOOR_SD}


def diff_report(document: Row) -> RenderableType:
    """Return everything a diff document says, for a terminal.

    Args:
        document: A diff document (see `refusaldir.report.document`).

    Returns:
        A rich renderable: verdict, drift by layer, ranked layers and, where they were measured,
        what precision alone does, what each model's direction does in both, behaviour by category
        and what of it goes through the direction.
    """
    parts: list[RenderableType] = [
        verdict_panel(document),
        drift_sparklines(document),
        drift_table(document),
    ]
    if document["drift"]["ranking"]:
        parts.append(ranking_table(document))
    if document["precision"] is not None and document["precision"]["like_with_like"]:
        parts.append(precision_table(document))
    if document["causality"] is not None and document["causality"]["handles"] is not None:
        parts.append(handle_table(document["causality"]))
    if document["behaviour"] is not None:
        parts.extend(behaviour_tables(document))
        parts.extend(link_tables(document))
    return Group(*parts)


def drift_table(document: Row) -> RenderableType:
    """Return the drift table: a row per layer, the chosen layer marked."""
    drift = document["drift"]
    site = drift["site"]
    top = [entry["layer"] for entry in drift["ranking"][:5]]
    rows, left_out = select_layers(drift["layers"], [site["layer"], *top])
    level = percent(drift["level"]).replace(" ", "")
    layouts = [
        _drift_layout(rows, site["layer"], level, columns)
        for columns in (
            ("rotation+", "raw", "length+", "harmful+", "harmless+", "base+", "refit+"),
            ("rotation+", "raw", "length+", "harmful+", "harmless+", "base", "refit"),
            ("rotation+", "raw", "length", "harmful", "harmless", "base", "refit"),
            ("rotation+", "raw", "length"),
            ("rotation", "raw"),
            ("rotation",),
        )
    ]
    lines = [
        f"At {drift['hook']}, token {number(site['position'], 0)} "
        f"({visible(site['token'])}). ▸ layer {site['layer']}: {site['reason']}.",
        "rotation: corrected cosine of base and tuned direction; raw: uncorrected; length: of "
        "tuned over base; shift: of a class mean along the base direction, in base SDs; AUROC: "
        "held out, on tuned activations, along base's direction and a refitted one.",
        f"[{level}]: interval of one layer by itself. *: it leaves out “no change” (rotation 1, "
        "length 1, shift 0).",
    ]
    if any(row["rotation"]["value"] is None for row in rows):
        lines.append("–: cannot be estimated there; the JSON says why.")
    return Group(
        heading("Drift of the refusal direction by layer"),
        Widest(*layouts),
        notes([*lines, *([left_out] if left_out else [])]),
    )


def _drift_layout(rows: Sequence[Row], chosen: int, level: str, columns: Sequence[str]) -> Table:
    """Build one layout; a ``+`` after a column's name asks for its interval."""
    titles = {
        "rotation": "rotation",
        "raw": "raw\ncosine",
        "length": "length\nratio",
        "harmful": "shift\nharmful",
        "harmless": "shift\nharmless",
        "base": "AUROC\nbase",
        "refit": "AUROC\nrefit",
    }
    layout = table()
    add_numbers(layout, "layer")
    for name in columns:
        title = titles[name.rstrip("+")]
        add_numbers(layout, f"{title} [{level}]" if name.endswith("+") else title)
    for row in rows:
        cells = {
            "rotation": (row["rotation"], 3, 1.0, FLOORS["rotation"]),
            "raw": (row["rotation_raw"], 3, None, 0.0),
            "length": (row["shrinkage"], 2, 1.0, FLOORS["length"]),
            "harmful": (row["translation"]["harmful"], 2, 0.0, FLOORS["shift"]),
            "harmless": (row["translation"]["harmless"], 2, 0.0, FLOORS["shift"]),
            "base": (row["auroc"]["base_direction_on_tuned"], 3, None, 0.0),
            "refit": (row["auroc"]["tuned_direction_on_tuned"], 3, None, 0.0),
        }
        texts = []
        for name in columns:
            cell, digits, no_change, floor = cells[name.rstrip("+")]
            text = estimate(cell, digits, interval=name.endswith("+"))
            mark = "" if no_change is None else "*" if beyond(cell, no_change, floor) else " "
            texts.append(text + mark)
        here = row["layer"] == chosen
        style = "bold" if here else "dim" if row["rotation"]["value"] is None else ""
        label = f"▸ {row['layer']}" if here else str(row["layer"])
        layout.add_row(Text(label), *map(Text, texts), style=style)
    return layout


def ranking_table(document: Row, *, limit: int = 10) -> RenderableType:
    """Return the layers ranked by how far the direction rotated there."""
    drift = document["drift"]
    entries = drift["ranking"]
    level = percent(drift["level"]).replace(" ", "")
    layout = table()
    for title in ("rank", "layer", f"1 − cosine [{level}]", f"added by this layer [{level}]"):
        add_numbers(layout, title)
    floor = FLOORS["rotation"]
    for entry in entries[:limit]:
        cells = [entry["drift"], entry["increment"]]
        texts = [
            "–" if cell is None else estimate(cell, 3) + ("*" if beyond(cell, 0.0, floor) else " ")
            for cell in cells
        ]
        layout.add_row(str(entry["rank"]), str(entry["layer"]), *map(Text, texts))
    lines = [drift["ranking_rule"]]
    if len(entries) > limit:
        lines.append(f"The first {limit} of {len(entries)} layers; all are in the JSON.")
    return Group(heading("Layers, most drifted first"), layout, notes(lines))


def beyond(cell: Row, no_change: float, floor: float) -> bool:
    """Whether an interval leaves out "no change" by more than a floor."""
    low, high = cell["lower"], cell["upper"]
    if cell["value"] is None or low is None or high is None:
        return False
    return bool(low > no_change + floor or high < no_change - floor)
