"""Heat maps: bands of rows over the same columns, each band with colours of its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from refusaldir.report.html.figure import Cell, Figure, Table, Tip
from refusaldir.report.html.frame import RIGHT, WIDTH, drawing, finite
from refusaldir.report.html.scale import Scale
from refusaldir.report.html.svg import clip, tag
from refusaldir.report.text import number

#: Steps of colour from 0 to the largest value; the page's style has as many.
STEPS = 10
_TOP, _HEAD, _CELL, _GAP, _BOTTOM = 4.0, 26.0, 22.0, 14.0, 40.0


@dataclass(frozen=True, kw_only=True)
class HeatRow:
    """One row.

    Attributes:
        label: At its left.
        values: A value a column; None where nothing was measured.
        texts: The same with intervals, shown on pointing.
        marked: Columns with a dot, e.g. where an interval leaves out no change.
    """

    label: str
    values: Sequence[float | None]
    texts: Sequence[str]
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class HeatBand:
    """Rows that share a scale of colours.

    Attributes:
        title: Above them.
        rows: From top to bottom.
        low: Value of the palest colour of a scale that runs one way; ignored by one that runs both.
        signed: Whether colours run both ways from 0.
        log: Whether steps of colour are ratios.
        digits: Decimals of the ends of the scale.
    """

    title: str
    rows: Sequence[HeatRow]
    low: float = 0.0
    signed: bool = False
    log: bool = False
    digits: int = 2


def heat_figure(
    bands: Sequence[HeatBand],
    columns: Sequence[str],
    *,
    key: str,
    title: str,
    place: str,
    caption: str,
    definition: str = "",
    ring: tuple[int, int, int] | None = None,
    link: str | None = None,
) -> Figure:
    """Draw bands of rows below one another.

    Args:
        bands: From top to bottom.
        columns: Titles of the columns.
        key: Name of the figure.
        title: Above it.
        place: What a column is.
        caption: How to read it.
        definition: What the values are.
        ring: Band, row and column of a cell with a ring.
        link: Figures that mark the same column together.
    """
    longest = max(len(row.label) for band in bands for row in band.rows)
    left = min(130.0, 12 + 6.7 * longest)
    step = (WIDTH - left - RIGHT) / len(columns)
    parts: list[str] = []
    tips: list[Tip] = []
    table: list[tuple[Cell, ...]] = []
    y = _TOP
    for at_band, band in enumerate(bands):
        low, high = _range(band)
        parts += _legend(band, low, high, y)
        y += _HEAD
        ring_at: dict[str, float] | None = None
        for at_row, row in enumerate(band.rows):
            label = clip(row.label, left - 8)
            parts.append(tag("text", label, x=left - 7, y=y + _CELL / 2 + 4, class_="tick end"))
            for j, value in enumerate(row.values):
                x = left + j * step
                colour = "none" if value is None else _class(value, band, low, high)
                box = {"x": x, "y": y, "width": step, "height": _CELL}
                parts.append(tag("rect", class_=f"cell {colour}", data_i=str(len(tips)), **box))
                middle = {"cx": x + step / 2, "cy": y + _CELL / 2}
                if j in row.marked:
                    parts.append(tag("circle", r=1.6, class_=f"spot {colour}", **middle))
                if ring == (at_band, at_row, j):
                    ring_at = middle
                head = f"{place.capitalize()} {columns[j]}"
                tips.append(Tip(title=head, lines=[(None, _said(band, row), row.texts[j])]))
            table.append((_said(band, row), *row.values))
            y += _CELL
        if ring_at is not None:
            # Last, so that no cell covers it; light and dark, so that it shows on every colour.
            parts.append(tag("circle", r=7, class_="ringed under", **ring_at))
            parts.append(tag("circle", r=7, class_="ringed", **ring_at))
        y += _GAP
    parts.append(_bottom(columns, place, left, step, y - _GAP))
    return Figure(
        key=key,
        title=title,
        drawing=drawing(height_of(bands), *parts, label=f"{title}. {caption}"),
        caption=caption,
        definition=definition,
        table=Table(columns=["", *(f"{place} {name}" for name in columns)], rows=table),
        tips=tips,
        columns=len(columns),
        link=link,
    )


def height_of(bands: Sequence[HeatBand]) -> float:
    """How tall the drawing of these bands is."""
    rows = sum(len(band.rows) for band in bands)
    return _TOP + len(bands) * (_HEAD + _GAP) + rows * _CELL - _GAP + _BOTTOM


def _said(band: HeatBand, row: HeatRow) -> str:
    return f"{band.title}: {row.label}" if row.label else band.title


def _range(band: HeatBand) -> tuple[float, float]:
    seen = finite(v for row in band.rows for v in row.values)
    if band.signed:
        reach = max((abs(v) for v in seen), default=1.0) or 1.0
        return -reach, reach
    if band.log:
        low = max(band.low, min((v for v in seen if v > 0), default=band.low))
        return low, max([*seen, 10 * low])
    return band.low, max([*seen, band.low + 1e-9])


def _class(value: float, band: HeatBand, low: float, high: float) -> str:
    """The colour of a value: ``q0`` … one way, ``p0`` … and ``n0`` … both ways."""
    if band.signed:
        step = round(STEPS * min(1.0, abs(value) / high))
        return f"{'n' if value < 0 else 'p'}{step}"
    if band.log:
        share = math.log(max(value, low) / low) / math.log(high / low)
    else:
        share = (max(value, low) - low) / (high - low)
    return f"q{round(STEPS * min(1.0, share))}"


def _legend(band: HeatBand, low: float, high: float, y: float) -> list[Markup]:
    """The band's title at the left, its colours and their ends at the right."""
    parts = [tag("text", band.title, x=0, y=y + 13, class_="axis strong")]
    classes = [f"q{i}" for i in range(STEPS + 1)]
    if band.signed:
        half = [f"n{i}" for i in range(STEPS, 0, -1)]
        classes = [*half, *(f"p{i}" for i in range(STEPS + 1))]
    ends = [number(v, band.digits, signed=band.signed) for v in (low, high)]
    right = WIDTH - RIGHT
    x = right - 7 * len(ends[1]) - 4
    width = 88.0 / len(classes)
    parts.append(tag("text", ends[1], x=right, y=y + 13, class_="tick end"))
    start = x - 88
    for i, name in enumerate(classes):
        box = {"x": start + i * width, "y": y + 4, "width": width + 0.3, "height": 10}
        parts.append(tag("rect", class_=f"cell {name}", **box))
    parts.append(tag("text", ends[0], x=start - 5, y=y + 13, class_="tick end"))
    return parts


def _bottom(columns: Sequence[str], place: str, left: float, step: float, y: float) -> Markup:
    """Name the columns, as many as there is room for."""
    right = left + step * len(columns)
    scale = Scale(low=0, high=len(columns), start=left, end=right)
    widest = 7.0 * max(map(len, columns)) + 10
    every = next((n for n in (1, 2, 5, 10, 20, 50) if n * step >= widest), len(columns))
    parts = [
        tag("text", name, x=scale(j + 0.5), y=y + 16, class_="tick mid")
        for j, name in enumerate(columns)
        if j % every == 0
    ]
    middle = (left + right) / 2
    parts.append(tag("text", place.capitalize(), x=middle, y=y + 33, class_="axis mid"))
    return tag("g", *parts, aria_hidden="true")
