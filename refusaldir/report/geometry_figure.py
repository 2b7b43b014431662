"""The figure of both models' prompts in one plane."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.report.canvas import (
    BLACK,
    BLUE,
    GREY,
    VERMILLION,
    WIDTH,
    footnote,
    heading,
    save_figure,
    style,
    wrap,
)
from refusaldir.report.text import model_names, number, percent, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

_CLASSES = (("harmless", 0, BLUE, "s"), ("harmful", 1, VERMILLION, "o"))

#: Inches: around the panels, and their height.
_TOP, _BOTTOM, _LEFT, _RIGHT, _MIDDLE, _HEIGHT = 0.95, 1.4, 0.9, 0.12, 0.98, 2.9


def has_views(document: Row) -> bool:
    """Whether there is anything for `geometry_figure` to draw."""
    return bool(document["drift"]["views"])


def geometry_figure(document: Row) -> "Figure":
    """Draw every view of a document side by side, base open and tuned filled, arrows between.

    Args:
        document: A diff document whose ``drift.views`` is not empty; or any mapping with
            ``base``, ``tuned`` and ``drift.views`` as it has them.

    Returns:
        The figure; `refusaldir.report.canvas.save_figure` writes it.

    Raises:
        ValueError: The document has no view.
    """
    views = document["drift"]["views"]
    if not views:
        raise ValueError("the document has no view to draw")
    columns = min(2, len(views))
    rows = -(-len(views) // columns)
    with style():
        from matplotlib.figure import Figure

        step = _HEIGHT + 1.15
        total = _TOP + rows * step - 1.15 + _BOTTOM
        each = (WIDTH - _LEFT - _RIGHT - _MIDDLE * (columns - 1)) / columns
        figure = Figure(figsize=(WIDTH, total))
        drawn = views[0]["n_drawn"]
        which = "all" if drawn == views[0]["n"] else f"{drawn} of {views[0]['n']}"
        places = list(dict.fromkeys(map(_where, views)))
        where = places[0] if len(places) == 1 else f"{len(places)} sites"
        heading(
            figure,
            "Prompts of both models in one plane, made from base",
            f"{model_names(document)} · {where} · {which} prompts",
        )
        for i, view in enumerate(views):
            x = _LEFT + (i % columns) * (each + _MIDDLE)
            down = _TOP + (i // columns) * step
            axes = figure.add_axes(
                (x / WIDTH, (total - down - _HEIGHT) / total, each / WIDTH, _HEIGHT / total)
            )
            _draw(axes, view, each, title=len(places) > 1)
        footnote(
            figure,
            "Open: base, filled: tuned; ● harmful, ■ harmless. A line joins a prompt's two places, "
            "a thick arrow the means of all prompts of a class. Beside the axes: share of each "
            "model's variance, and of the squared change, along them; what is across is not seen.",
            *dict.fromkeys(
                f"UMAP: {visible(view['note'])}." for view in views if view["method"] == "umap"
            ),
        )
        return figure


def write_geometry_figure(document: Row, folder: str | Path) -> tuple[Path, Path]:
    """Draw and write ``geometry.png`` and ``geometry.svg``.

    Raises:
        StoreError: A file cannot be written.
    """
    views = document["drift"]["views"]
    return save_figure(
        geometry_figure(document),
        Path(folder) / "geometry",
        title=f"Prompts of both models in one plane, {model_names(document)}",
        description="Harmful and harmless prompts in base and in tuned, a line from each prompt's "
        "place in base to that in tuned. "
        + visible(" ".join(f"{_name(v)} at {_where(v)}: {v['note']}." for v in views)),
    )


def _where(view: Row) -> str:
    site = view["site"]
    return f"{site['hook']}, layer {site['layer']}, token {number(site['position'], 0)}"


def _name(view: Row) -> str:
    return {"direction": "Base's direction", "pca": "PCA", "umap": "UMAP"}[view["method"]]


def _draw(axes: "Axes", view: Row, width: float, *, title: bool) -> None:
    from matplotlib.collections import LineCollection

    points = view["points"]
    name = f"{_name(view)} · {_where(view)}" if title else _name(view)
    axes.set_title("\n".join(wrap(name, width, max_lines=1)), loc="left", fontsize=9, pad=4)
    for side, label, colour, marker in _CLASSES:
        rows = [i for i, own in enumerate(points["label"]) if own == label]
        before, after = ([points[model][i] for i in rows] for model in ("base", "tuned"))
        axes.add_collection(
            LineCollection(
                list(zip(before, after, strict=True)), colors=colour, lw=0.5, alpha=0.35, zorder=2
            )
        )
        for places, filled in ((before, False), (after, True)):
            axes.plot(
                [x for x, _ in places],
                [y for _, y in places],
                marker,
                color=colour,
                mfc=colour if filled else "white",
                ms=2.8,
                mew=0.6,
                alpha=0.75,
                zorder=3,
            )
        start, end = (view["means"][side][model] for model in ("base", "tuned"))
        axes.plot(*start, marker, color=BLACK, mfc="white", ms=6, mew=1.2, zorder=5)
        axes.annotate(
            "",
            xy=end,
            xytext=start,
            arrowprops={"arrowstyle": "-|>", "color": BLACK, "lw": 1.6, "shrinkA": 0, "shrinkB": 0},
            zorder=6,
        )
    axes.autoscale_view()
    axes.margins(0.04)
    for axis, about in zip((axes.xaxis, axes.yaxis), view["axes"], strict=True):
        unit = _unit(max(map(abs, axis.get_view_interval())))
        axis.set_major_formatter(partial(_tick, unit=unit))
        words = visible(about["label"]) + ("" if unit == 1 else f" (× {unit:.0e})")
        axis.set_label_text("\n".join([words, _shares(about)]), fontsize=8.5)
    axes.locator_params(nbins=6)
    axes.yaxis.set_label_coords(-0.52 / width, 0.5)
    axes.tick_params(colors=GREY)


def _unit(largest: float) -> float:
    """The power of a thousand in which values have few digits; 1 where they have them anyway."""
    if largest == 0 or 0.1 <= largest < 1e4:
        return 1.0
    return float(1000.0 ** math.floor(math.log10(largest) / 3))


def _tick(value: float, _: int | None, *, unit: float) -> str:
    """A tick's number in at most four digits, with a true minus sign."""
    return f"{value / unit:.4g}".replace("-", "−")


def _shares(axis: Row) -> str:
    """What share of variance and change lies along an axis; empty where it is no direction."""
    if axis["share_base"] is None or axis["share_tuned"] is None:
        return ""
    shares = f"variance: base {percent(axis['share_base'])}, tuned {percent(axis['share_tuned'])}"
    if axis["share_change"] is not None:
        shares += f"; change {percent(axis['share_change'])}"
    return shares
