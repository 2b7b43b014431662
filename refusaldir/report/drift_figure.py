"""The figure of drift by layer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from refusaldir.report.canvas import (
    BLACK,
    BLUE,
    GREY,
    SHADE,
    VERMILLION,
    WIDTH,
    footnote,
    heading,
    style,
)
from refusaldir.report.panel import Panel, Series, stack_panels
from refusaldir.report.text import model_names, number, percent, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]


def drift_figure(document: Row) -> "Figure":
    """Draw rotation, length, shift of the class means and separability against the layer.

    Bands are the intervals of the document. The layer chosen on the base model is marked by a
    vertical line and "no change" by a horizontal one; layers where the rotation cannot be
    estimated are shaded. Where a band is far wider than the curves it is cut by the panel's edge.

    Args:
        document: A diff document (see `refusaldir.report.document`).

    Returns:
        The figure; `save_figure` writes it.
    """
    with style():
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        drift = document["drift"]
        rows = drift["layers"]
        layers = [row["layer"] for row in rows]
        panels = drift_panels(drift)
        figure = Figure(figsize=(WIDTH, WIDTH))
        stack = stack_panels(figure, panels, layers, height=1.38, bottom=0.98)
        heading(figure, "Refusal-direction drift by layer", _subtitle(document))
        lost = [r["layer"] for r in rows if r["rotation"]["value"] is None]
        for axes in stack:
            for layer in lost:
                axes.axvspan(layer - 0.5, layer + 0.5, color=SHADE, lw=0, zorder=0)
            axes.axvline(drift["site"]["layer"], color=BLACK, lw=0.8, ls=(0, (1, 2)), zorder=1)
        axes = stack[-1]
        axes.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
        axes.set_xlabel(f"Layer ({drift['hook']})")
        notes = [
            f"Bands: {percent(drift['level'])} intervals of single layers; the paler band of the "
            "rotation holds over all layers at once.",
            f"Dotted: layer {drift['site']['layer']}, {drift['site']['reason']}."
            + (" Grey: rotation cannot be estimated." if lost else ""),
        ]
        footnote(figure, *notes)
        return figure


def _subtitle(document: Row) -> str:
    """Say which models, site and prompts the curves come from."""
    drift = document["drift"]
    return (
        f"{model_names(document)} · {drift['hook']} at token "
        f"{number(drift['site']['position'], 0)} ({visible(drift['site']['token'])}) · "
        f"{drift['n_harmful']} harmful and {drift['n_harmless']} harmless prompts from "
        f"{drift['n_clusters']} intents"
    )


def _curve(
    label: str,
    rows: Sequence[Row],
    *keys: str,
    colour: str,
    style: str = "-",
    marker: str = "o",
    filled: bool = True,
    band: bool = True,
) -> Series:
    """Collect an estimate over layers, NaN for null; ``keys`` lead to it."""
    cells = []
    for row in rows:
        cell: Any = row
        for key in keys:
            cell = cell[key]
        cells.append(cell)
    return Series(
        label=label,
        values=[_or_nan(cell["value"]) for cell in cells],
        lower=[_or_nan(cell["lower"]) for cell in cells] if band else (),
        upper=[_or_nan(cell["upper"]) for cell in cells] if band else (),
        colour=colour,
        style=style,
        marker=marker,
        filled=filled,
    )


def drift_panels(drift: Row) -> list[Panel]:
    """Define the four small charts."""
    rows = drift["layers"]
    # The ranking's drift is 1 − cosine, with intervals that hold over all layers at once.
    joint = {entry["layer"]: entry["drift"] for entry in drift["ranking"]}
    over_all = [joint.get(row["layer"], {"lower": None, "upper": None}) for row in rows]
    rotation = replace(
        _curve("corrected", rows, "rotation", colour=BLUE),
        outer_lower=[1 - _or_nan(cell["upper"]) for cell in over_all],
        outer_upper=[1 - _or_nan(cell["lower"]) for cell in over_all],
    )
    raw = _curve("raw", rows, "rotation_raw", colour=GREY, style="--", marker="", band=False)
    base = _curve(
        "base on base",
        rows,
        "auroc",
        "base_direction_on_base",
        colour=GREY,
        style=":",
        marker="",
        band=False,
    )
    return [
        Panel(
            title="Rotation: cosine of the base and the tuned direction (1: same direction)",
            reference=1.0,
            least_span=0.05,
            series=[rotation, raw],
        ),
        Panel(
            title="Length: norm of the tuned direction over the base's (1: same length)",
            reference=1.0,
            least_span=0.1,
            series=[_curve("corrected", rows, "shrinkage", colour=BLUE)],
        ),
        Panel(
            title="Shift of the class means along the base direction, in base SDs (0: none)",
            reference=0.0,
            least_span=0.2,
            series=[
                _curve("harmful", rows, "translation", "harmful", colour=VERMILLION),
                _curve(
                    "harmless",
                    rows,
                    "translation",
                    "harmless",
                    colour=BLUE,
                    style="--",
                    filled=False,
                ),
            ],
        ),
        Panel(
            title="Separability of harmful from harmless in the tuned model, held out (AUROC)",
            reference=None,
            least_span=0.1,
            ceiling=1.0,
            series=[
                _curve(
                    "base direction", rows, "auroc", "base_direction_on_tuned", colour=VERMILLION
                ),
                _curve(
                    "refitted",
                    rows,
                    "auroc",
                    "tuned_direction_on_tuned",
                    colour=BLUE,
                    style="--",
                    filled=False,
                ),
                base,
            ],
        ),
    ]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
