"""Drift over all layers at a glance: a line a figure, for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from refusaldir.report.layout import Widest, heading
from refusaldir.report.sparkline import Sparkline
from refusaldir.report.text import number

Row = Mapping[str, Any]

#: Title, where the estimate is in a layer's row, its value without a change, words before the value
#: that is farthest from it, decimals, and whether it carries its sign.
_LINES = (
    ("rotation", ("rotation",), 1.0, "cosine ", 3, False),
    ("length", ("shrinkage",), 1.0, "ratio ", 3, False),
    ("shift harmful", ("translation", "harmful"), 0.0, "", 2, True),
    ("shift harmless", ("translation", "harmless"), 0.0, "", 2, True),
    ("AUROC refit", ("auroc", "tuned_direction_on_tuned"), 0.5, "", 3, False),
)


def drift_sparklines(document: Row) -> RenderableType:
    """Return a line each for rotation, length, shifts and separability over the layers.

    A line is highest where the figure is farthest from "no change" (of AUROC, from chance); that
    value and its layer stand behind it.

    Args:
        document: A diff document.
    """
    rows = document["drift"]["layers"]
    layouts = [_layout(rows, words=True), _layout(rows, words=False)]
    first, last = rows[0]["layer"], rows[-1]["layer"]
    return Group(heading(f"Over layers {first} to {last}"), Widest(*layouts))


def _layout(rows: Sequence[Row], *, words: bool) -> Table:
    layout = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(3 if words else 2):
        layout.add_column(no_wrap=True)
    for title, path, no_change, before, digits, signed in _LINES:
        values = [_value(row, path) for row in rows]
        off = [None if value is None else abs(value - no_change) for value in values]
        most = max((size for size in off if size is not None), default=None)
        if most is None:
            continue
        farthest = off.index(most)
        text = f"{before}{number(values[farthest], digits, signed=signed)}"
        text += f" at layer {rows[farthest]['layer']}"
        last = [Text(text, style="dim")] if words else []
        layout.add_row(Text(title), Sparkline(off, low=0.0, high=most), *last)
    return layout


def _value(row: Row, path: Sequence[str]) -> float | None:
    cell: Any = row
    for key in path:
        cell = cell[key]
    return None if cell["value"] is None else float(cell["value"])
