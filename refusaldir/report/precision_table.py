"""What precision alone explains, beside the drift, for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from refusaldir.report.layout import add_numbers, estimate, heading, notes, table
from refusaldir.report.text import percent, visible

Row = Mapping[str, Any]

#: Title, digits, sign, and where the figure is.
_ROWS = (
    ("rotation, degrees", 2, False, ("angle",)),
    ("norm ratio", 3, False, ("shrinkage",)),
    ("shift of harmful, base SDs", 2, True, ("translation", "harmful")),
    ("shift of harmless, base SDs", 2, True, ("translation", "harmless")),
)


def precision_table(document: Row) -> RenderableType:
    """Drift at the site between two precisions of base, and between base and tuned in one.

    Args:
        document: A diff document whose ``precision`` was measured.
    """
    precision, drift = document["precision"], document["drift"]
    row = next(r for r in drift["layers"] if r["layer"] == drift["site"]["layer"])
    level = percent(drift["level"]).replace(" ", "")
    layout = table()
    layout.add_column("at the site", no_wrap=True)
    for title in ("precision alone", "base → tuned"):
        add_numbers(layout, f"{title} [{level}]")
    for title, digits, signed, path in _ROWS:
        texts = []
        for cell in (precision, row):
            for key in path:
                cell = cell[key]
            texts.append(Text(estimate(cell, digits, signed=signed)))
        layout.add_row(Text(title), *texts)
    base, tuned = visible(precision["base"]), visible(precision["tuned"])
    lines = [
        f"Precision alone: base in {tuned} against base in {base}. base → tuned: both in {tuned}."
    ]
    return Group(heading("What precision alone does"), layout, notes(lines))
