"""Fieller's interval of a ratio, for denominators that are not far above their own error.

A ratio's linearised interval takes the denominator as known. Fieller's (1954, J. R. Stat. Soc. B
16:175) holds every c for which ``numerator − c · denominator`` could be 0, and grows without
limit as the denominator sinks into its noise.
"""

import math

import numpy as np

from refusaldir.statistics.intervals import critical_value
from refusaldir.statistics.second_order import Deviations, guarded_df, guarded_variance

#: Steps from the value to the far end in which the interval's end is looked for, then halvings.
_STEPS, _HALVINGS = 40, 12


def fieller_ends(
    value: float,
    numerator: Deviations,
    denominator: Deviations,
    *,
    level: float,
    bounds: tuple[float, float],
) -> tuple[float, float]:
    """Ends of the part of Fieller's set that holds the value, within bounds.

    Args:
        value: The ratio.
        numerator: Deviations of the numerator, in units of the denominator.
        denominator: Deviations of the denominator, in units of itself.
        level: Nominal coverage.
        bounds: The range of the parameter; an end that is not met before is there.

    Returns:
        Lower and upper end; an end beyond which the value itself lies is that bound.
    """
    # Second-order variances are quadratic in c, so three of them give all.
    parts = [np.array(d.second_order) for d in (numerator, denominator, numerator - denominator)]

    def outside(c: float) -> bool:
        second, excess = parts[0] * (1 - c) + parts[1] * (c * c - c) + parts[2] * c
        first = numerator.first - c * denominator.first
        variance = guarded_variance(first, float(second), float(excess))
        df = guarded_df(first, variance, numerator.clusters)
        return abs(value - c) > critical_value(level, df) * math.sqrt(variance)

    def end(far: float) -> float:
        inner = value
        for outer in np.linspace(value, far, _STEPS + 1)[1:]:
            if outside(float(outer)):
                break
            inner = float(outer)
        else:
            return far
        for _ in range(_HALVINGS):
            middle = (inner + float(outer)) / 2
            if outside(middle):
                outer = middle
            else:
                inner = middle
        return float(outer)

    lower, upper = bounds
    return (end(lower) if value > lower else lower), (end(upper) if value < upper else upper)
