"""A curve over layers in one line of a terminal."""

import math
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

_BLOCKS = "▁▂▃▄▅▆▇█"
#: The same for terminals without these characters.
_ASCII = "_.-=+*%#"


class Sparkline:
    """One character a layer, or a stretch of layers where there is no room for all.

    Args:
        values: A value a layer; None where there is nothing to show.
        low: What the lowest character stands for.
        high: What the highest does.
        most: Most characters.
    """

    def __init__(
        self, values: Sequence[float | None], *, low: float, high: float, most: int = 48
    ) -> None:
        """Take the values; of a stretch, the one farthest from ``low`` stands for it."""
        self.low, self.high = low, high
        size = max(1, math.ceil(len(values) / most))
        stretches = [values[i : i + size] for i in range(0, len(values), size)]
        self.values = [
            max(known, key=lambda value: abs(value - low)) if known else None
            for stretch in stretches
            if (known := [v for v in stretch if v is not None and math.isfinite(v)]) or stretch
        ]

    def text(self, *, ascii_only: bool) -> str:
        """Return the characters; a space where there is nothing to show."""
        marks = _ASCII if ascii_only else _BLOCKS
        span = self.high - self.low
        out = []
        for value in self.values:
            if value is None:
                out.append(" ")
                continue
            share = (value - self.low) / span if span else 0.0
            out.append(marks[min(len(marks) - 1, max(0, int(share * len(marks))))])
        return "".join(out)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the line, in ASCII where the terminal's encoding has no more."""
        yield Text(self.text(ascii_only=options.ascii_only), no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """The line is as wide as it is long."""
        return Measurement(len(self.values), len(self.values))
