"""The figure of the layers: shares with their band, and a heat map a lens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refusaldir.report.canvas import (
    BLUE,
    GREY,
    SHADE,
    VERMILLION,
    WIDTH,
    footnote,
    heading,
    save_figure,
    style,
)
from refusaldir.report.layers_document import by_layer, pair_names
from refusaldir.report.text import number, percent, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Lens:
    """One heat map, layer × column.

    Attributes:
        title: Above it.
        columns: Titles of the columns.
        grid: Its values, ``[layer, column]``; NaN for what was not measured or did not change.
        signed: Whether colours run both ways from 0.
    """

    title: str
    columns: tuple[str, ...]
    grid: FloatArray
    signed: bool = True


def write_layers_figure(document: Row, folder: str | Path) -> tuple[Path, ...]:
    """Write ``layers.png`` and ``layers.svg``.

    Raises:
        StoreError: A file cannot be written.
    """
    verdict = document["verdict"]
    return save_figure(
        layers_figure(document),
        Path(folder) / "layers",
        title=f"Which layers the fine-tune disturbed, {pair_names(document)}",
        description="Shares of the change by layer, and a heat map of layers for each lens. "
        + visible(" ".join([verdict["headline"], *verdict["layers"]])),
    )


def layers_figure(document: Row) -> "Figure":
    """Draw the share of every layer with its band, and every lens as layer × component.

    Layers that disturb are filled. Grey in a heat map: not changed, or not measured.

    Args:
        document: A layers document.
    """
    with style():
        from matplotlib.figure import Figure

        rows = by_layer(document)
        layers = list(rows)
        lenses = _lenses(document, rows)
        top, bottom, left, first, gap, scale = 0.98, 1.5, 0.62, 1.7, 0.25, 0.58
        height = float(np.clip(0.16 * len(layers), 1.8, 7.0))
        total = top + height + bottom
        figure = Figure(figsize=(WIDTH, total))
        heading(figure, "Which layers the fine-tune disturbed", _subtitle(document))
        # Room for four heat maps, each with its scale at its right.
        width = (WIDTH - left - first - gap) / 4 - scale
        axes = figure.add_axes((left / WIDTH, bottom / total, first / WIDTH, height / total))
        _shares(axes, document, rows)
        _layer_axis(axes, layers, named=True)
        for i, lens in enumerate(lenses):
            at = left + first + gap + i * (width + scale)
            axes = figure.add_axes((at / WIDTH, bottom / total, width / WIDTH, height / total))
            tall = min(height, 1.6)
            bar = figure.add_axes(
                ((at + width + 0.06) / WIDTH, bottom / total, 0.07 / WIDTH, tall / total)
            )
            _heat(figure, axes, bar, lens)
            _layer_axis(axes, layers, named=False)
        footnote(figure, *_notes(document, lenses))
        return figure


def _subtitle(document: Row) -> str:
    found = document["measured"]
    return (
        f"{pair_names(document)} · share of the change of {visible(found['subject'])} from "
        f"{found['n_clusters']} intents"
    )


def _notes(document: Row, lenses: Sequence[Lens]) -> list[str]:
    level = percent(document["level"])
    lines = []
    if document["ranking"] is None:
        lines.append("No change to attribute: effects in the outcome's unit, no shares.")
    else:
        least = percent(document["ranking"]["least_share"])
        lines.append(
            f"Left: share with a {level} band over all layers at once; round: the band leaves out "
            f"0 and the share is {least} or more. Positive: moved the outcome as the whole "
            "fine-tune did."
        )
    titles = {lens.title.split(",")[0] for lens in lenses}
    if "Stream" in titles:
        lines.append(
            "Stream: change of what each component writes along the direction on harmful prompts, "
            "in residual norm, also where weights are as before."
        )
    if titles:
        lines.append("Grey: not changed, or not measured.")
    return lines


def _lenses(document: Row, rows: Mapping[int | None, Row]) -> list[Lens]:
    ranked = document["ranking"] is not None
    unit = "%" if ranked else document["measured"]["unit"]

    def effect(cell: Row | None) -> float:
        value = None if cell is None else cell["share" if ranked else "effect"]["value"]
        return np.nan if value is None else float(value) * (100 if ranked else 1)

    def grid(names: Sequence[str], of: Any) -> FloatArray:
        return np.array([[of(row[name]) for name in names] for row in rows.values()], dtype=float)

    def written(cell: Row | None) -> float:
        value = None if cell is None else cell["harmful"]["pointwise"]["value"]
        return np.nan if value is None else float(value)

    def changed(cell: Row | None) -> float:
        value = None if cell is None else cell["relative_change"]
        return np.nan if value is None else 100 * float(value)

    parts = ("attn", "MLP")
    found = [
        Lens(title=f"Path, {unit}", columns=parts, grid=grid(("attn", "mlp"), effect)),
        Lens(
            title=f"Transplant, {unit}",
            columns=("restore", "inject"),
            grid=grid(("restored", "injected"), effect),
        ),
        Lens(
            title="Stream, norm",
            columns=parts,
            grid=grid(("residual_attn", "residual_mlp"), written),
        ),
        Lens(
            title="Weights, %",
            columns=parts,
            grid=grid(("weights_attn", "weights_mlp"), changed),
            signed=False,
        ),
    ]
    return [lens for lens in found if np.isfinite(lens.grid).any()]


def _layer_axis(axes: "Axes", layers: Sequence[int | None], *, named: bool) -> None:
    step = -(-len(layers) // 16)
    ticks = list(range(0, len(layers), step))
    if layers[-1] is None and ticks[-1] != len(layers) - 1:
        ticks = [t for t in ticks if len(layers) - 1 - t >= step] + [len(layers) - 1]
    labels = ["out" if layers[t] is None else str(layers[t]) for t in ticks]
    axes.set_yticks(ticks if named else [], labels if named else [])
    axes.set_ylim(-0.5, len(layers) - 0.5)
    if named:
        axes.set_ylabel("Layer")


def _shares(axes: "Axes", document: Row, rows: Mapping[int | None, Row]) -> None:
    """Draw each layer's share, or effect, as a point with its band."""
    ranked = document["ranking"] is not None
    scale = 100.0 if ranked else 1.0
    axes.axvline(0, color=GREY, lw=0.8)
    for y, row in enumerate(rows.values()):
        source = row["combined"] if ranked else (row["path"] or row["restored"])
        if source is None:
            continue
        cell = source["band" if ranked else "effect"]
        if cell["value"] is None:
            continue
        disturbs = ranked and source["disturbs"]
        colour = VERMILLION if disturbs else BLUE
        if cell["lower"] is not None and cell["upper"] is not None:
            ends = [scale * cell["lower"], scale * cell["upper"]]
            axes.plot(ends, [y, y], color=colour, lw=1.4, solid_capstyle="butt")
        axes.plot(
            [scale * cell["value"]],
            [y],
            "o" if disturbs else "D",
            color=colour,
            ms=4.5 if disturbs else 3.5,
            mfc=colour if disturbs else "white",
        )
    unit = "%" if ranked else document["measured"]["unit"]
    axes.set_title(f"{'Share' if ranked else 'Effect'}, {unit}", fontsize=9, loc="left")
    axes.grid(axis="y", color=SHADE, lw=0.6)
    axes.xaxis.set_major_formatter(lambda value, _: number(value, 0 if ranked else 1))


def _heat(figure: "Figure", axes: "Axes", scale: "Axes", lens: Lens) -> None:
    from matplotlib.ticker import FuncFormatter

    seen = lens.grid[np.isfinite(lens.grid)]
    reach = float(np.abs(seen).max()) or 1.0
    axes.set_facecolor(SHADE)
    image = axes.imshow(
        np.ma.masked_invalid(lens.grid),
        vmin=-reach if lens.signed else 0.0,
        vmax=reach,
        cmap="PuOr" if lens.signed else "cividis",
        aspect="auto",
        origin="lower",
        interpolation="nearest",
    )
    axes.set_title(lens.title, fontsize=9, loc="left")
    axes.set_xticks(range(len(lens.columns)), lens.columns, rotation=90, fontsize=8)
    axes.tick_params(length=0)
    for edge in axes.spines.values():
        edge.set_visible(False)
    axes.axvline(0.5, color="white", lw=0.8)
    bar = figure.colorbar(image, cax=scale)
    bar.ax.tick_params(labelsize=6.5, length=2)
    bar.formatter = FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−"))
    bar.update_ticks()
