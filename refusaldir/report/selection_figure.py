"""Figure of a selection: every candidate's three scores, layer × position."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refusaldir.report.canvas import BLACK, SHADE, WIDTH, footnote, heading, save_figure, style
from refusaldir.report.selection_table import sentences
from refusaldir.report.text import number, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
FloatArray = NDArray[np.float64]

#: Title, key and scale of the colours (around zero, from least to most, logarithmic).
_KL = ("KL, nats", "kl", "log")
PANELS = {
    "refusal_score": (
        ("Bypass (lower is better)", "bypass", "diverging"),
        ("Induce (higher is better)", "induce", "diverging"),
        _KL,
    ),
    "cosmic": (
        ("Ablated (higher is better)", "ablated_cosine", "plain"),
        ("Added (higher is better)", "added_cosine", "plain"),
        _KL,
    ),
}


def write_selection_figure(document: Row, folder: str | Path) -> tuple[Path, ...]:
    """Write ``select.png`` and ``select.svg``.

    Raises:
        StoreError: A file cannot be written.
    """
    model = visible(document["provenance"]["model"]["name"])
    return save_figure(
        selection_figure(document),
        Path(folder) / "select",
        title=f"Candidates for the refusal direction of {model}",
        description="Three heat maps over layers and token positions. "
        + visible(" ".join(sentences(document))),
    )


def selection_figure(document: Row) -> "Figure":
    """Draw every candidate's scores and KL; what was not measured stays grey.

    A circle marks the direction chosen, a dotted one the nearest where none is valid; a dot marks
    a KL that was given up and is a lower bound.

    Args:
        document: The content of ``select.json``.
    """
    with style():
        from matplotlib.figure import Figure

        found, panels = document["selection"], PANELS[document["criterion"]]
        rows = found["candidates"]
        layers = sorted({row["site"]["layer"] for row in rows})
        offsets = [p["offset"] for p in document["positions"]]
        tokens = [f"{number(p['offset'], 0)} {visible(p['label'])}" for p in document["positions"]]
        top, bottom, left, right, gap = 0.95, 1.15, 0.62, 0.5, 0.55
        height = float(np.clip(0.16 * len(layers), 1.6, 7.0))
        total, width = top + height + bottom, (WIDTH - left - right - 2 * gap) / len(panels)
        figure = Figure(figsize=(WIDTH, total))
        name = visible(document["provenance"]["model"]["name"])
        heading(
            figure,
            "Which directions cause refusal",
            f"{name} · {document['estimator']} at resid_pre · {found['n_harmful']} harmful and "
            f"{found['n_harmless']} harmless validation prompts",
        )
        for i, (title, key, scale) in enumerate(panels):
            axes = figure.add_axes(
                (
                    (left + i * (width + gap)) / WIDTH,
                    bottom / total,
                    width / WIDTH,
                    height / total,
                )
            )
            grid = _grid(rows, layers, offsets, key)
            _draw(figure, axes, grid, scale, found["thresholds"]["kl"])
            axes.set_title(title, fontsize=9, loc="left")
            axes.set_xticks(range(len(offsets)), [number(o, 0) for o in offsets])
            axes.set_xlabel("Position")
            step = -(-len(layers) // 16)
            axes.set_yticks(range(0, len(layers), step), [str(v) for v in layers[::step]])
            if i == 0:
                axes.set_ylabel("Layer")
            if key == "kl":
                bounds = [r for r in rows if r["kl"] is not None and not r["kl_exact"]]
                _mark(axes, bounds, layers, offsets, marker=".", size=6, filled=True)
            _mark(axes, [found["chosen"]], layers, offsets, marker="o", size=60)
            _mark(axes, [found["nearest"]], layers, offsets, marker="o", size=60, dotted=True)
        footnote(
            figure,
            f"Positions count from the end of the prompt: {', '.join(tokens)}.",
            "Circle: the direction chosen"
            + ("" if found["chosen"] else " (none is valid; dotted: the nearest)")
            + ". Grey: not measured, since it could not change the choice. Dots: KL given up "
            "there, a lower bound.",
        )
        return figure


def _grid(
    rows: Sequence[Row], layers: Sequence[int], offsets: Sequence[int], key: str
) -> FloatArray:
    grid = np.full((len(layers), len(offsets)), np.nan)
    for row in rows:
        if row[key] is not None:
            site = row["site"]
            grid[layers.index(site["layer"]), offsets.index(site["position"])] = row[key]
    return grid


def _draw(figure: "Figure", axes: "Axes", grid: FloatArray, scale: str, threshold: float) -> None:
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import FuncFormatter

    axes.set_facecolor(SHADE)
    seen = grid[np.isfinite(grid)]
    norm: Normalize
    if scale == "diverging":
        reach = float(np.abs(seen).max()) if len(seen) else 1.0
        norm, colours = Normalize(-reach, reach), "PuOr"
    elif scale == "plain":
        ends = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
        norm, colours = Normalize(*ends), "cividis"
    else:
        low = min(threshold / 10, float(seen[seen > 0].min()) if (seen > 0).any() else threshold)
        norm = LogNorm(low, max(threshold * 10, float(seen.max()) if len(seen) else 0.0))
        grid = np.where(grid <= 0, low, grid)
        colours = "cividis"
    image = axes.imshow(
        np.ma.masked_invalid(grid),
        norm=norm,
        cmap=colours,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
    )
    bar = figure.colorbar(image, ax=axes, fraction=0.06, pad=0.04)
    bar.ax.tick_params(labelsize=6.5)
    # Matplotlib writes powers of ten as formulas, which are switched off here.
    bar.formatter = FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−"))
    bar.update_ticks()


def _mark(
    axes: "Axes",
    rows: Sequence[Row | None],
    layers: Sequence[int],
    offsets: Sequence[int],
    *,
    marker: str,
    size: float,
    filled: bool = False,
    dotted: bool = False,
) -> None:
    points = [
        (offsets.index(row["site"]["position"]), layers.index(row["site"]["layer"]))
        for row in rows
        if row is not None
    ]
    if points:
        axes.scatter(
            [x for x, _ in points],
            [y for _, y in points],
            s=size,
            marker=marker,
            facecolors=BLACK if filled else "none",
            edgecolors=BLACK,
            linewidths=0 if filled else 1.2,
            linestyles=":" if dotted else "-",
        )
