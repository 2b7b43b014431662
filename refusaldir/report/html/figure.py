"""What a figure on the page consists of: drawing, what is shown on pointing, words and a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

Cell = str | float | int | None


@dataclass(frozen=True, kw_only=True)
class Key:
    """A series in a figure's legend, which can be hidden where it has a name.

    Attributes:
        label: Its title.
        colour: Its colour, one of the classes ``c0`` … ``c4``.
        style: ``line``, ``dashed``, ``dotted``, ``dot``, ``ring``, ``square`` or ``band``.
        series: The ``data-series`` of its marks; None for one that stays.
    """

    label: str
    colour: str
    style: str = "line"
    series: str | None = None


@dataclass(frozen=True, kw_only=True)
class Tip:
    """What one place of a figure says.

    Attributes:
        title: Where it is.
        lines: Series (of the legend, or None), what it is, and its value with its interval.
    """

    title: str
    lines: Sequence[tuple[str | None, str, str]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Figures in rows; numbers are kept in full for sorting and saving.

    Attributes:
        columns: Titles.
        rows: Cells.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure with everything that belongs to it.

    Attributes:
        key: Its name in the page and in the files saved from it.
        title: Above it.
        drawing: The SVG element.
        caption: How to read it, in one sentence.
        definition: What the figures are, one click away.
        table: The data.
        tips: What each place says, in the order of the marks' ``data-i``.
        keys: The legend.
        columns: How many places lie side by side: arrow keys up and down move by this many; 0
            where places lie in one row, 1 in one column.
        link: Figures with the same link mark the same place together.
        near: Whether the nearest mark is meant where none is hit, as for small points.
    """

    key: str
    title: str
    drawing: Markup
    caption: str
    definition: str = ""
    table: Table
    tips: Sequence[Tip] = ()
    keys: Sequence[Key] = ()
    columns: int = 0
    link: str | None = None
    near: bool = False
