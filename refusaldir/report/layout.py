"""Pieces that all terminal tables are built from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from refusaldir.report.text import number

Row = Mapping[str, Any]

#: A table with more layers than this shows a selection.
MAX_LAYERS = 40
#: Sentences get no wider than this, so that they can be read on a wide terminal.
PROSE_WIDTH = 100


def heading(text: str) -> RenderableType:
    """Return a table's title, set off by an empty line."""
    return Padding(Text(text, style="bold"), (1, 0, 0, 0))


def notes(lines: Sequence[str]) -> RenderableType:
    """Return a table's footnotes, a paragraph each."""
    return Constrain(Text("\n".join(lines), style="dim"), PROSE_WIDTH)


def table() -> Table:
    """Return a table without columns: a rule under its head, no frame."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def add_numbers(layout: Table, title: str) -> None:
    """Add a column of numbers, which never wrap."""
    layout.add_column(Text(title), justify="right", no_wrap=True)


class Bullet:
    """A sentence behind a dot, its further lines indented."""

    def __init__(self, sentence: str) -> None:
        """Take the sentence."""
        self.sentence = sentence

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        lines = Text(self.sentence).wrap(console, options.max_width - 2)
        for i, line in enumerate(lines):
            yield Text("· " if i == 0 else "  ") + line


class Widest:
    """The first of several tables that fits the console, else the last."""

    def __init__(self, *tables: Table) -> None:
        """Take the tables, widest first."""
        self.tables = tables

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table that fits."""
        unlimited = options.update(max_width=1000)
        for candidate in self.tables[:-1]:
            if Measurement.get(console, unlimited, candidate).maximum <= options.max_width:
                yield candidate
                return
        yield self.tables[-1]


def select_layers(
    rows: Sequence[Row], keep: Iterable[int] = (), *, limit: int = MAX_LAYERS
) -> tuple[list[Row], str]:
    """Thin out the layers of a long table.

    Args:
        rows: Rows with a ``layer``, in order.
        keep: Layers that must stay: the chosen one and the top-ranked.
        limit: Most rows shown without thinning.

    Returns:
        The rows to show, and a sentence that says what was left out (empty when nothing was).
    """
    if len(rows) <= limit:
        return list(rows), ""
    step = -(-len(rows) // limit)
    kept = set(keep)
    shown = [row for i, row in enumerate(rows) if i % step == 0 or row["layer"] in kept]
    every = {2: "second", 3: "third"}.get(step, f"{step}th")
    named = ", with the chosen and the top-ranked ones" if kept else ""
    return shown, (
        f"Every {every} layer is shown{named}: {len(shown)} of {len(rows)}. All are in the JSON."
    )


def estimate(
    cell: Row, digits: int, *, interval: bool = True, scale: float = 1.0, signed: bool = False
) -> str:
    """Format an estimate with its interval in brackets, if it has one."""
    text = number(cell["value"], digits, scale=scale, signed=signed)
    low, high = cell["lower"], cell["upper"]
    if cell["value"] is None or not interval or low is None or high is None:
        return text
    ends = (number(end, digits, scale=scale, signed=signed) for end in (low, high))
    return f"{text} [{', '.join(ends)}]"
