"""One small chart over layers: bands, curves, and a label at each curve's end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refusaldir.report.canvas import BLACK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Room around stacked panels and between them, in inches.
_LEFT, _RIGHT, _TOP, _GAP = 0.62, 1.32, 0.92, 0.42


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve over layers; NaN where there is nothing to draw."""

    label: str
    values: Sequence[float]
    lower: Sequence[float] = ()
    upper: Sequence[float] = ()
    outer_lower: Sequence[float] = ()
    outer_upper: Sequence[float] = ()
    colour: str = BLACK
    style: str = "-"
    marker: str = "o"
    filled: bool = True


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One small chart; ``reference`` is the value that means "no change", if one does."""

    title: str
    series: Sequence[Series]
    reference: float | None
    least_span: float
    ceiling: float = math.inf


def stack_panels(
    figure: "Figure",
    panels: Sequence[Panel],
    places: Sequence[int],
    *,
    height: float,
    bottom: float,
) -> list["Axes"]:
    """Draw panels below one another over one horizontal axis; the figure becomes as tall as that.

    Args:
        figure: The figure; its width is kept.
        panels: From top to bottom; at least one.
        places: Where on the horizontal axis the values of every curve lie.
        height: Of each panel, in inches.
        bottom: Room below the last, in inches.

    Returns:
        The axes, from top to bottom.
    """
    total = _TOP + bottom + len(panels) * height + (len(panels) - 1) * _GAP
    width = figure.get_figwidth()
    figure.set_figheight(total)
    stack: list[Axes] = []
    for i, panel in enumerate(panels):
        base = total - _TOP - height - i * (height + _GAP)
        axes = figure.add_axes(
            (_LEFT / width, base / total, (width - _LEFT - _RIGHT) / width, height / total),
            sharex=stack[0] if stack else None,
        )
        draw_panel(axes, panel, places, 72 * height)
        axes.tick_params(labelbottom=i == len(panels) - 1)
        stack.append(axes)
    return stack


def draw_panel(axes: "Axes", panel: Panel, layers: Sequence[int], height: float) -> None:
    """Draw bands, curves, the reference line and a label at each curve's end.

    ``height`` is the panel's, in points.
    """
    axes.set_title(panel.title, loc="left", fontsize=9, pad=4)
    axes.set_ylim(*limits(panel))
    if panel.reference is not None:
        axes.axhline(panel.reference, color=BLACK, lw=0.6, zorder=1)
    axes.locator_params(axis="y", nbins=5)
    ends = []
    for series in panel.series:
        y = list(series.values)
        size = 0.0 if len(layers) > 48 or not series.marker else 3.0
        axes.plot(
            layers,
            y,
            color=series.colour,
            ls=series.style,
            lw=1.3,
            marker=series.marker or None,
            ms=size,
            mfc=series.colour if series.filled else "white",
            mew=0.9,
            zorder=3,
        )
        lone = [i for i in range(len(y)) if _is_lone(y, i)]
        at = [layers[i] for i in lone]
        axes.plot(
            at,
            [y[i] for i in lone],
            "_" if not series.marker else ".",
            color=series.colour,
            ms=7,
            zorder=3,
        )
        if series.outer_lower:
            axes.fill_between(
                layers,
                series.outer_lower,
                series.outer_upper,
                color=series.colour,
                alpha=0.09,
                lw=0,
                zorder=2,
            )
        if series.lower:
            axes.fill_between(
                layers, series.lower, series.upper, color=series.colour, alpha=0.18, lw=0, zorder=2
            )
            axes.vlines(
                at,
                [series.lower[i] for i in lone],
                [series.upper[i] for i in lone],
                color=series.colour,
                lw=1.0,
                zorder=2,
            )
        known = [v for v in y if not math.isnan(v)]
        if known:
            ends.append((known[-1], series))
    low, high = axes.get_ylim()
    shares = [min(1.0, max(0.0, (value - low) / (high - low))) for value, _ in ends]
    for share, (_, series) in zip(spread(shares, 10.5 / height), ends, strict=True):
        axes.text(
            1.012,
            share,
            series.label,
            color=series.colour,
            fontsize=8.5,
            va="center",
            transform=axes.transAxes,
        )


def _is_lone(values: Sequence[float], i: int) -> bool:
    """Whether a value has no drawn neighbour, so that neither line nor band would show it."""
    near = [*values[max(0, i - 1) : i], *values[i + 1 : i + 2]]
    return not math.isnan(values[i]) and all(math.isnan(v) for v in near)


def limits(panel: Panel) -> tuple[float, float]:
    """Choose the y range: every value, the reference, and bands as far as they leave room."""
    values = [v for s in panel.series for v in s.values if math.isfinite(v)]
    values += [panel.reference] if panel.reference is not None else []
    values = values or [0.5]
    low, high = min(values), max(values)
    span = max(high - low, panel.least_span)
    ends = [v for s in panel.series for v in (*s.lower, *s.upper) if math.isfinite(v)]
    low = min([low, *(max(v, low - span) for v in ends)])
    high = max([high, *(min(v, high + span) for v in ends)])
    missing = max(0.0, panel.least_span - (high - low)) / 2
    low, high = low - missing, high + missing
    pad = 0.06 * (high - low)
    return low - pad, min(high + pad, panel.ceiling + pad)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move positions as little as it takes for neighbours to be ``gap`` apart.

    Isotonic regression of ``position − rank · gap`` (pool adjacent violators), which keeps the
    order and moves least in squares; then everything is brought inside.

    Args:
        positions: Wanted positions in [0, 1].
        gap: Least distance between two.

    Returns:
        Positions in the order given, inside [0, 1] where they fit.
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    blocks: list[list[float]] = []
    for rank, i in enumerate(order):
        blocks.append([positions[i] - rank * gap])
        while len(blocks) > 1 and _mean(blocks[-2]) >= _mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    free = max(0.0, 1.0 - (len(positions) - 1) * gap)
    level = [min(max(_mean(block), 0.0), free) for block in blocks for _ in block]
    placed = [0.0] * len(positions)
    for rank, i in enumerate(order):
        placed[i] = level[rank] + rank * gap
    return placed


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
