"""Scales: from a value to a place on the page, and the values named on an axis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from refusaldir.report.text import number


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A linear scale.

    Attributes:
        low: Value at ``start``.
        high: Value at ``end``.
        start: Place of the lowest value, in units of the drawing.
        end: Place of the highest.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float | None) -> float:
        """Place of a value, kept inside the scale; NaN for None."""
        if value is None or math.isnan(value):
            return math.nan
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """At most ``most`` round values inside the scale."""
        return ticks(self.low, self.high, most)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return at most ``most`` round values in an interval: multiples of 1, 2 or 5 · 10ⁿ."""
    if high <= low:
        return [low]
    raw = (high - low) / max(1, most - 1)
    size = 10.0 ** math.floor(math.log10(raw))
    for step in (size, 2 * size, 5 * size, 10 * size, 20 * size):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [i * step for i in range(first, last + 1)]
    return []


def labels(values: Sequence[float]) -> list[str]:
    """Write ticks with as many decimals as tell them apart."""
    gap = min((abs(b - a) for a, b in pairwise(values)), default=1.0)
    digits = max(0, -math.floor(math.log10(gap) + 1e-9)) if gap > 0 else 0
    return [number(value, digits) for value in values]
