"""Charts with a row a name: points with intervals, and what joins two of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refusaldir.report.html.figure import Cell, Figure, Key, Table, Tip
from refusaldir.report.html.frame import WIDTH, drawing, ends
from refusaldir.report.html.scale import Scale, labels
from refusaldir.report.html.svg import clip, tag
from refusaldir.report.layout import estimate

_TOP, _STEP, _BOTTOM = 24.0, 27.0, 40.0


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point with its interval.

    Attributes:
        name: What it is.
        cell: The estimate.
        colour: Class of its colour.
        form: ``dot``, ``ring`` or ``diamond``.
    """

    name: str
    cell: Mapping[str, Any] | None
    colour: str
    form: str = "dot"


@dataclass(frozen=True, kw_only=True)
class ChartRow:
    """One row.

    Attributes:
        label: At its left.
        marks: Points, the first one below.
        text: At its right.
        joined: Whether a line joins first and last mark.
        strong: Whether it stands out, as a total does.
        extra: Further figures, said on pointing and kept in the table.
    """

    label: str
    marks: Sequence[Mark]
    text: str = ""
    joined: bool = False
    strong: bool = False
    extra: Sequence[tuple[str, str, Cell]] = ()


def rows_figure(
    rows: Sequence[ChartRow],
    *,
    key: str,
    title: str,
    unit: str,
    first: str,
    caption: str,
    definition: str = "",
    text_title: str = "",
    reference: float | None = None,
    span: tuple[float, float] | None = None,
    scale: float = 1.0,
    digits: int = 2,
    signed: bool = False,
    link: str | None = None,
) -> Figure:
    """Draw a row a name.

    Args:
        rows: From top to bottom; those that stand out are set off below.
        key: Name of the figure.
        title: Above it.
        unit: Below the horizontal axis.
        first: What a row is.
        caption: How to read it.
        definition: What the figures are.
        text_title: Above the texts at the right.
        reference: The value that means "no change".
        span: Ends of the axis; what is drawn decides otherwise.
        scale: What values are multiplied by.
        digits: Decimals.
        signed: Whether values carry their sign.
        link: Figures that mark the same row together.
    """
    left = min(168.0, 14 + 6.7 * max(len(row.label) for row in rows))
    right = (
        12.0 if not text_title else 10 + 6.7 * max(len(text_title), *(len(r.text) for r in rows))
    )
    low, high = span or _span(rows, reference, scale)
    x = Scale(low=low, high=high, start=left, end=WIDTH - right)
    parts: list[str] = []
    y, centres = _TOP, []
    for row in rows:
        centres.append(y + _STEP / 2)
        y += _STEP + (8 if row.strong else 0)
    places = x.ticks(6)
    for value, text in zip(places, labels(places), strict=True):
        at = x(value)
        parts.append(tag("line", x1=at, x2=at, y1=_TOP, y2=y, class_="grid"))
        parts.append(tag("text", text, x=at, y=y + 16, class_="tick mid"))
    if reference is not None:
        at = x(reference)
        parts.append(tag("line", x1=at, x2=at, y1=_TOP, y2=y, class_="reference"))
    middle = (left + WIDTH - right) / 2
    parts.append(tag("text", unit, x=middle, y=y + 33, class_="axis mid"))
    if text_title:
        parts.append(tag("text", text_title, x=WIDTH, y=_TOP - 8, class_="axis end"))
    for i, (row, at) in enumerate(zip(rows, centres, strict=True)):
        weight = " strong" if row.strong else ""
        label = clip(row.label, left - 10)
        parts.append(tag("text", label, x=left - 10, y=at + 4, class_=f"label end{weight}"))
        parts.append(tag("text", row.text, x=WIDTH, y=at + 4, class_=f"tick end{weight}"))
        parts += _marks(row, x, at, scale)
        box = {"x": 0, "y": at - _STEP / 2, "width": WIDTH, "height": _STEP}
        parts.append(tag("rect", class_="hit", data_i=str(i), **box))
    form = {"digits": digits, "scale": scale, "signed": signed}
    return Figure(
        key=key,
        title=title,
        drawing=drawing(y + _BOTTOM, *parts, label=f"{title}. {caption}"),
        caption=caption,
        definition=definition,
        table=_table(rows, first, scale),
        tips=[_tip(row, form) for row in rows],
        keys=_keys(rows),
        columns=1,
        link=link,
    )


def _marks(row: ChartRow, x: Scale, y: float, scale: float) -> list[str]:
    """Draw a row's intervals, then what joins its points, then the points."""
    lines: list[str] = []
    points: list[str] = []
    known = [(m, *ends(m.cell, scale)) for m in row.marks]
    drawn = [cell for cell in known if cell[1] is not None]
    for i, (mark, value, low, high) in enumerate(drawn):
        # Two intervals on one line would hide each other.
        shift = 0.0 if len(drawn) == 1 or not row.joined else (-3.5 if i == 0 else 3.5)
        if low is not None and high is not None:
            box = {"x1": x(low), "x2": x(high), "y1": y + shift, "y2": y + shift}
            lines.append(tag("line", class_=f"whisker {mark.colour}", **box))
        at = x(value)
        if mark.form == "diamond":
            d = f"M{at - 4.6:.1f},{y:.1f}l4.6,-4.6l4.6,4.6l-4.6,4.6z"
            points.append(tag("path", d=d, class_=f"dot {mark.colour}"))
        else:
            size = 4.6 if row.strong else 3.9
            points.append(tag("circle", cx=at, cy=y, r=size, class_=f"{mark.form} {mark.colour}"))
    if row.joined and len(drawn) > 1:
        ends_at = {"x1": x(drawn[0][1]), "x2": x(drawn[-1][1]), "y1": y, "y2": y}
        lines.append(tag("line", class_=f"joint {row.marks[-1].colour}", **ends_at))
    return lines + points


def _span(rows: Sequence[ChartRow], reference: float | None, scale: float) -> tuple[float, float]:
    """Ends of the axis: every point, and intervals as far as they leave room."""
    values, outer = [] if reference is None else [reference], []
    for row in rows:
        for mark in row.marks:
            value, *both = ends(mark.cell, scale)
            values += [] if value is None else [float(value)]
            outer += [float(v) for v in both if v is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = max(high - low, 1e-6)
    low = min([low, *(max(v, low - room) for v in outer)])
    high = max([high, *(min(v, high + room) for v in outer)])
    pad = 0.05 * (high - low) or 0.5
    return low - pad, high + pad


def _tip(row: ChartRow, form: Mapping[str, Any]) -> Tip:
    lines: list[tuple[str | None, str, str]] = []
    for mark in row.marks:
        text = "–" if mark.cell is None else estimate(mark.cell, **form)
        lines.append((None, mark.name, text))
    lines += [(None, name, text) for name, text, _ in row.extra]
    return Tip(title=row.label, lines=lines)


def _table(rows: Sequence[ChartRow], first: str, scale: float) -> Table:
    names = list(dict.fromkeys(m.name for row in rows for m in row.marks))
    extra = list(dict.fromkeys(name for row in rows for name, *_ in row.extra))
    columns = [first]
    for name in names:
        columns += [name, f"{name}, lower", f"{name}, upper"]
    cells: list[tuple[Cell, ...]] = []
    for row in rows:
        marks = {m.name: ends(m.cell, scale) for m in row.marks}
        more = {name: value for name, _, value in row.extra}
        line: list[Cell] = [row.label]
        for name in names:
            line += marks.get(name, (None, None, None))
        cells.append((*line, *(more.get(name) for name in extra)))
    return Table(columns=[*columns, *extra], rows=cells)


def _keys(rows: Sequence[ChartRow]) -> list[Key]:
    found = {
        m.name: Key(label=m.name, colour=m.colour, style=m.form) for r in rows for m in r.marks
    }
    return list(found.values()) if len(found) > 1 else []
