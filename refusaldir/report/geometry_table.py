"""Terminal table of both models' prompts in a plane."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from refusaldir.report.layout import Widest, add_numbers, heading, notes, table
from refusaldir.report.text import model_names, number, percent

Row = Mapping[str, Any]

_NAMES = {"direction": "direction", "pca": "PCA", "umap": "UMAP"}


def geometry_table(document: Row) -> RenderableType:
    """Return one row a view: what it shows of the models, and where the class means went.

    Args:
        document: As for `refusaldir.report.geometry_figure.geometry_figure`.
    """
    views = document["drift"]["views"]
    lines = [
        "Var. and change: share of each model's variance, and of the squared change from base "
        "to tuned, that lies in the plane. Moved: change of the class mean along the plane's two "
        "axes, residual norm. The first axis runs from harmless to harmful.",
    ]
    return Group(
        heading(f"Prompts in a plane made from base: {model_names(document)}"),
        Widest(*(_layout(views, wide=wide) for wide in (True, False))),
        notes(lines),
    )


def _layout(views: list[Row], *, wide: bool) -> Table:
    layout = table()
    layout.add_column("site", no_wrap=True)
    layout.add_column("plane", no_wrap=True)
    for title in ("base\nvar.", "tuned\nvar.") if wide else ():
        add_numbers(layout, title)
    for title in ("change\nseen", "harmful\nmoved", "harmless\nmoved"):
        add_numbers(layout, title)
    for view in views:
        site = view["site"]
        cells = [_share(view, key) for key in ("share_base", "share_tuned")] if wide else []
        cells.append(_share(view, "share_change"))
        for side in ("harmful", "harmless"):
            means = view["means"][side]
            moved = [t - b for b, t in zip(means["base"], means["tuned"], strict=True)]
            cells.append(", ".join(number(step, 2, signed=True) for step in moved))
        where = f"{site['hook']}.{site['layer']}@{site['position']}"
        layout.add_row(*map(Text, [where, _NAMES[view["method"]], *cells]))
    return layout


def _share(view: Row, key: str) -> str:
    """Share of the whole plane; a dash where there is none."""
    parts = [axis[key] for axis in view["axes"]]
    return "–" if None in parts else percent(sum(parts))
