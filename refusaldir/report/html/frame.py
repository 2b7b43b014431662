"""What charts share: the size of the drawing, axes, colours of series, and estimates as text."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from refusaldir.report.canvas import BLACK, BLUE, GREEN, GREY, VERMILLION
from refusaldir.report.html.scale import Scale, labels, ticks
from refusaldir.report.html.svg import tag

Row = Mapping[str, Any]

#: Width of a drawing; half of a wide page, and a phone's whole width.
WIDTH = 460.0
#: Class of each colour that the figures on paper use; the page's style has light and dark ones.
CLASSES = {GREY: "c0", BLUE: "c1", VERMILLION: "c2", GREEN: "c3", BLACK: "c5"}
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 22.0, 40.0


def drawing(height: float, *parts: str, label: str, width: float = WIDTH) -> Markup:
    """Return the SVG element; ``label`` is what a screen reader says of it."""
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
        class_="plot",
    )


def axes(
    x: Scale,
    y: Scale,
    *,
    x_ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
    left: float = LEFT,
    right: float = WIDTH - RIGHT,
) -> Markup:
    """Draw horizontal grid lines from ``left`` to ``right``, ticks and the names of both axes."""
    values = y.ticks()
    parts = [tag("text", y_label, x=0, y=11, class_="axis")]
    for value, text in zip(values, labels(values), strict=True):
        at = y(value)
        parts.append(tag("line", x1=left, x2=right, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", text, x=left - 7, y=at + 4, class_="tick end"))
    for value, text in x_ticks:
        at = x(value)
        parts.append(tag("line", x1=at, x2=at, y1=y.start, y2=y.start + 4, class_="rule"))
        parts.append(tag("text", text, x=at, y=y.start + 17, class_="tick mid"))
    parts.append(tag("line", x1=left, x2=right, y1=y.start, y2=y.start, class_="rule"))
    if x_label:
        middle = (left + right) / 2
        parts.append(tag("text", x_label, x=middle, y=y.start + 34, class_="axis mid"))
    return tag("g", *parts, aria_hidden="true")


def place_ticks(places: Sequence[float], most: int = 9) -> list[tuple[float, str]]:
    """Name at most ``most`` places of a horizontal axis; whole ones where all are whole."""
    values = ticks(min(places), max(places), most) if len(places) > 1 else list(places)
    if all(float(p).is_integer() for p in places):
        values = [v for v in values if float(v).is_integer()]
    return list(zip(values, labels(values), strict=True))


def ends(cell: Row | None, scale: float = 1.0) -> tuple[float | None, float | None, float | None]:
    """Value and both ends of an estimate, scaled; None for what is not there."""
    if cell is None:
        return None, None, None
    value, low, high = (
        None if cell[key] is None else scale * float(cell[key])
        for key in ("value", "lower", "upper")
    )
    return value, low, high


def finite(values: Iterable[float | None]) -> list[float]:
    """The values that are numbers."""
    return [v for v in values if v is not None and math.isfinite(v)]
