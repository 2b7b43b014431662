"""Charts of curves with bands over layers, turns or checkpoints."""

import math
from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from refusaldir.report.html.figure import Cell, Figure, Key, Table, Tip
from refusaldir.report.html.frame import (
    BOTTOM,
    CLASSES,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    axes,
    drawing,
    place_ticks,
)
from refusaldir.report.html.scale import Scale
from refusaldir.report.html.svg import path, tag
from refusaldir.report.panel import Panel, Series, limits
from refusaldir.report.text import number

#: Height of what is inside the axes.
HEIGHT = 176.0
#: More places than this have no dots.
_DOTTED = 48


def curve_figure(
    panel: Panel,
    places: Sequence[float],
    *,
    key: str,
    title: str,
    unit: str,
    place: str,
    caption: str,
    definition: str = "",
    names: Sequence[str] = (),
    x_ticks: Sequence[tuple[float, str]] = (),
    x_label: str = "",
    mark: float | None = None,
    shaded: Sequence[float] = (),
    digits: int = 3,
    height: float = HEIGHT,
    span: tuple[float, float] | None = None,
    link: str | None = None,
) -> Figure:
    """Draw a panel's curves.

    Args:
        panel: Curves and what means "no change"; a series without a style is points alone.
        places: Where each value lies on the horizontal axis.
        key: Name of the figure.
        title: Above it.
        unit: Name of the vertical axis.
        place: What a place is, e.g. ``layer``.
        caption: How to read it.
        definition: What the figures are.
        names: Name of each place; its number otherwise.
        x_ticks: Places named on the axis; chosen otherwise.
        x_label: Name of the axis, where it is not ``place``.
        mark: The place marked by a dotted line.
        shaded: Places where nothing can be estimated.
        digits: Decimals of values.
        height: Of what is inside the axes.
        span: Ends of the vertical axis; what is drawn decides otherwise. Curves break outside it.
        link: Figures that mark the same place together.
    """
    named = list(names) or [f"{place} {p}" for p in places]
    x, edges = _horizontal(places)
    low, high = limits(panel) if span is None else span
    y = Scale(low=low, high=high, start=TOP + height, end=TOP)
    parts: list[str] = [
        _strip(edges, i, height, "lost") for i, p in enumerate(places) if p in shaded
    ]
    parts.append(
        axes(
            x,
            y,
            x_ticks=list(x_ticks) or place_ticks(places),
            x_label=x_label or place.capitalize(),
            y_label=unit,
        )
    )
    if panel.reference is not None:
        at = y(panel.reference)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="reference"))
    if mark is not None:
        parts.append(tag("line", x1=x(mark), x2=x(mark), y1=TOP, y2=TOP + height, class_="mark"))
    # The first series is what the figure is about: it lies on top.
    parts += [_series(s, i, places, x, y) for i, s in reversed(list(enumerate(panel.series)))]
    parts += [_strip(edges, i, height, "hit", i) for i in range(len(places))]
    tips = [
        Tip(title=name[:1].upper() + name[1:], lines=_lines(panel.series, i, digits))
        for i, name in enumerate(named)
    ]
    return Figure(
        key=key,
        title=title,
        drawing=drawing(TOP + height + BOTTOM, *parts, label=f"{title}. {caption}"),
        caption=caption,
        definition=definition,
        table=_table(panel.series, named, place),
        tips=tips,
        keys=[_key(i, series) for i, series in enumerate(panel.series)],
        link=link,
    )


def _horizontal(places: Sequence[float]) -> tuple[Scale, list[float]]:
    """The scale, and the edges of each place's strip."""
    left, right = LEFT, WIDTH - RIGHT
    if len(places) == 1:
        return Scale(low=places[0] - 1, high=places[0] + 1, start=left, end=right), [left, right]
    step = (right - left) / len(places)
    x = Scale(low=places[0], high=places[-1], start=left + step / 2, end=right - step / 2)
    inner = [(x(a) + x(b)) / 2 for a, b in pairwise(places)]
    return x, [left, *inner, right]


def _strip(
    edges: Sequence[float], i: int, height: float, name: str, mark: int | None = None
) -> Markup:
    return tag(
        "rect",
        x=edges[i],
        y=TOP,
        width=edges[i + 1] - edges[i],
        height=height,
        class_=name,
        data_i=None if mark is None else str(mark),
    )


def _series(series: Series, i: int, places: Sequence[float], x: Scale, y: Scale) -> Markup:
    """Draw one curve with its bands."""
    colour = CLASSES[series.colour]
    parts = []
    for low, high, name in (
        (series.outer_lower, series.outer_upper, "band outer"),
        (series.lower, series.upper, "band"),
    ):
        runs = _runs(low, high)
        if not series.style:
            runs = [[j] for run in runs for j in run]
        for run in runs:
            up = [(x(places[j]), y(high[j])) for j in run]
            down = [(x(places[j]), y(low[j])) for j in reversed(run)]
            if len(run) == 1:
                # An interval by itself has no area: it is a bar.
                (at, top), (_, bottom) = up[0], down[0]
                half = 2.0 if series.style else 1.0
                up = [(at - half, top), (at + half, top)]
                down = [(at + half, bottom), (at - half, bottom)]
            form = name if series.style else "bar-band"
            parts.append(tag("path", d=path(up + down, closed=True), class_=f"{form} {colour}"))
    points = [
        (x(p), y(v) if y.low <= v <= y.high else math.nan)
        for p, v in zip(places, series.values, strict=True)
    ]
    dash = {"--": " dashed", ":": " dotted"}.get(series.style, "")
    if series.style:
        parts.append(tag("path", d=path(points), class_=f"curve {colour}{dash}"))
    if series.marker and len(places) <= _DOTTED:
        form = "dot" if series.filled else "ring"
        parts += [
            tag("circle", cx=at, cy=up, r=2.4 if series.style else 3.4, class_=f"{form} {colour}")
            for at, up in points
            if math.isfinite(up)
        ]
    return tag("g", *parts, data_series=f"s{i}")


def _runs(low: Sequence[float], high: Sequence[float]) -> list[list[int]]:
    """Stretches where both ends are known."""
    runs: list[list[int]] = [[]]
    for i, (a, b) in enumerate(zip(low, high, strict=True)):
        if math.isfinite(a) and math.isfinite(b):
            runs[-1].append(i)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _lines(all_series: Sequence[Series], i: int, digits: int) -> list[tuple[str | None, str, str]]:
    lines: list[tuple[str | None, str, str]] = []
    for j, series in enumerate(all_series):
        value = _at(series.values, i)
        if value is None and not series.style:
            continue
        text = number(value, digits)
        low, high = _at(series.lower, i), _at(series.upper, i)
        if low is not None and high is not None:
            text += f" [{number(low, digits)}, {number(high, digits)}]"
        lines.append((f"s{j}", series.label, text))
        low, high = _at(series.outer_lower, i), _at(series.outer_upper, i)
        if low is not None and high is not None:
            text = f"[{number(low, digits)}, {number(high, digits)}]"
            lines.append((f"s{j}", "over all at once", text))
    return lines


def _key(i: int, series: Series) -> Key:
    point = "dot" if series.filled else "ring"
    form = {"--": "dashed", ":": "dotted", "": point}.get(series.style, "line")
    return Key(label=series.label, colour=CLASSES[series.colour], style=form, series=f"s{i}")


def _table(all_series: Sequence[Series], names: Sequence[str], place: str) -> Table:
    columns = [place]
    cells: list[list[Cell]] = [list(names)]
    for series in all_series:
        for title, values in (
            (series.label, series.values),
            (f"{series.label}, lower", series.lower),
            (f"{series.label}, upper", series.upper),
            (f"{series.label}, lower of all", series.outer_lower),
            (f"{series.label}, upper of all", series.outer_upper),
        ):
            if len(values):
                columns.append(title)
                cells.append([_at(values, i) for i in range(len(names))])
    rows: list[tuple[Cell, ...]] = list(zip(*cells, strict=True))
    return Table(columns=columns, rows=rows)


def _at(values: Sequence[float], i: int) -> float | None:
    if not len(values) or not math.isfinite(values[i]):
        return None
    return float(values[i])
