"""What a comparison of n intents can see, and how many it takes: power of the drift figures.

A change is seen when its interval leaves out "no change". With `Noise` from a pilot, the chance of
that follows from the figure's variance and from what the interval takes for it. For the rotation
by an angle with cosine ρ, with P and Δ the covariances of the sum and of the difference of the
two models' noise (see `refusaldir.drift.power.noise`)::

    first  = (1 − ρ²) (q + (1 − ρ) (2 tr Σ²/tr Σ − q))
    second = ((1 − ρ)² tr P² + (1 + ρ)² tr Δ²) / 8

Near ρ = 1 the first-order part vanishes: a direction that has hardly turned is watched by its
second-order noise alone. ``q`` is the noise along the direction it turns to, which nobody knows
before; it is taken as ``tr Δ² / tr Δ``, that is, the direction turns to where noise is, as the
noise has it. One that turns to where prompts never differ is seen sooner. The sample cosine is
skew there, and its law is taken as a non-central χ² with the effective dimension of Δ.

Other changes are taken one at a time: the norm with no rotation, a translation with neither.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from refusaldir.directions.reader import MIN_INTENTS
from refusaldir.drift.contrasts import CLEAR
from refusaldir.drift.floors import FLOOR_COSINE, FLOOR_NORM, FLOOR_SD
from refusaldir.drift.power.noise import Noise
from refusaldir.drift.power.shift_noise import ShiftNoise
from refusaldir.errors import DirectionError
from refusaldir.statistics import FEWEST_DF, TAKEN, critical_value

#: How often intervals of norms and cosines count the second-order variance (see `Deviations`),
#: and those of translations, which are the plain jackknife's.
_COUNTED, _COUNTED_JACKKNIFE = 2.0 - TAKEN, 2.0

#: Largest number of intents that is still called an answer.
MOST_INTENTS = 1_000_000

#: Largest shift that is looked at, in base SDs.
_MOST_SHIFT = 100.0

Probability = Callable[[float], float]


@dataclass(frozen=True, kw_only=True)
class Power:
    """Power of the drift figures at one site, given the noise there.

    Attributes:
        noise: The noise per intent.
        level: Nominal coverage of each interval.
        power: Chance with which a change is to be seen.
    """

    noise: Noise
    level: float = 0.95
    power: float = 0.8

    def __post_init__(self) -> None:
        """Check level and power."""
        critical_value(self.level)
        if not 0 < self.power < 1:
            raise DirectionError("the power must lie between 0 and 1", got=self.power)

    def rotation(self, degrees: float, n: int) -> float:
        """Chance that n intents show a rotation by so many degrees, up to 90."""
        return self._rotation(n)(degrees)

    def norm(self, change: float, n: int) -> float:
        """Chance that n intents show a norm that shrank by this share of itself."""
        return self._norm(n)(change)

    def translation(self, shift: float, n: int, label: int) -> float:
        """Chance that n intents show a shift of a class, in base SDs."""
        return _translation(self.noise.shift, n, label, self._critical(n))(shift)

    def least_rotation(self, n: int) -> float | None:
        """Smallest rotation seen with n intents, in degrees; None if not even a right angle."""
        return _least(self._rotation(n), self.power, 90.0)

    def least_norm(self, n: int) -> float | None:
        """Smallest shrinkage seen with n intents, as a share; None if not even to a hundredth."""
        return _least(self._norm(n), self.power, 0.99)

    def least_translation(self, n: int, label: int) -> float | None:
        """Smallest shift of a class seen with n intents, in base SDs; None above 100."""
        return least_translation(self.noise.shift, n, label, self._critical(n), self.power)

    def needed(self, probability: Callable[[int], float]) -> int | None:
        """Fewest intents with which something is seen at `power`; None beyond `MOST_INTENTS`.

        Args:
            probability: Chance with n intents, such as ``lambda n: p.rotation(10, n)``.
        """
        return fewest(probability, self.power, MIN_INTENTS * self.noise.strata)

    def _rotation(self, n: int) -> Probability:
        dimension, apart = self.noise.dimension_apart, self.noise.apart
        limit = _threshold(
            lambda y: self._turn(y, n, _COUNTED),
            lambda y: self._critical(n, self._turn(y, n, _COUNTED) / self._turn(y, n, 2.0)),
            FLOOR_COSINE,
            most=1.0,
        )
        estimable = self._estimable(n)

        def seen(degrees: float) -> float:
            if limit is None:
                return 0.0
            turned = 1 - math.cos(math.radians(degrees))
            away = 2 * turned * n * dimension / apart
            z = (limit - turned) / math.sqrt(self._turn(turned, n, 1.0))
            x = max(dimension + away + z * math.sqrt(2 * (dimension + 2 * away)), 0.0)
            # So far from zero the law is normal, and its series does not end.
            tail = stats.norm.sf(z) if away > 1e4 else stats.ncx2.sf(x, dimension, away)
            return float(tail) * estimable

        return seen

    def _norm(self, n: int) -> Probability:
        spread = self.noise.norm
        taken = spread.variance(n, counted=_COUNTED)
        jackknife = spread.variance(n, counted=2.0)
        critical = self._critical(n, taken / jackknife if jackknife > 0 else 1.0)
        limit = FLOOR_NORM + critical * math.sqrt(taken)
        estimable = self._estimable(n)
        return lambda change: _beyond(-math.log1p(-change), limit, spread.variance(n)) * estimable

    def _turn(self, turned: float, n: int, counted: float) -> float:
        """Variance of the cosine at ``1 − turned``, its second-order part counted so often."""
        noise = self.noise
        own, q = noise.ratio / noise.dimension, noise.apart / noise.dimension_apart
        both = (2 * (1 + noise.shared) * noise.ratio) ** 2 / noise.dimension
        first = turned * (2 - turned) * (q + turned * max(2 * own - q, 0.0))
        second = (turned**2 * both + (2 - turned) ** 2 * q * noise.apart) / 8
        return first / n + counted * second / (n * (n - 1))

    def _critical(self, n: int, share: float = 1.0) -> float:
        """Critical value; the share of the jackknife's variance sets the degrees of freedom."""
        most = float(max(n - self.noise.strata, 1))
        df = min(max(n * share**2, min(FEWEST_DF, most)), most)
        return critical_value(self.level, df)

    def _estimable(self, n: int) -> float:
        """Chance that the direction stands out of its noise at all."""
        noise = self.noise
        second = 2 * noise.ratio**2 / noise.dimension
        error = math.sqrt(4 * noise.along / n + _COUNTED * second / (n * (n - 1)))
        return float(stats.norm.cdf(1 / error - CLEAR)) if error > 0 else 1.0


def _translation(noise: ShiftNoise, n: int, label: int, critical: float) -> Probability:
    spread = noise.of(label)

    def variance(shift: float, counted: float) -> float:
        return spread.variance(n, counted=counted, extra=shift * shift * noise.unit)

    limit = _threshold(
        lambda x: variance(x, _COUNTED_JACKKNIFE), lambda _: critical, FLOOR_SD, most=_MOST_SHIFT
    )
    if limit is None:
        return lambda _: 0.0
    return lambda shift: _beyond(shift, limit, variance(shift, 1.0))


def least_translation(
    noise: ShiftNoise, n: int, label: int, critical: float, power: float
) -> float | None:
    """Smallest shift of a class seen with n intents, in base SDs; None above 100.

    Args:
        noise: The noise of translations.
        n: Number of intents.
        label: The class.
        critical: Critical value of the interval.
        power: Chance with which the shift is to be seen.
    """
    return _least(_translation(noise, n, label, critical), power, _MOST_SHIFT)


def _beyond(value: float, limit: float, variance: float) -> float:
    """Chance that a normal figure falls beyond a limit."""
    if variance == 0:
        return float(value > limit)
    return float(stats.norm.sf((limit - value) / math.sqrt(variance)))


def _threshold(
    taken: Probability, critical: Probability, floor: float, *, most: float
) -> float | None:
    """Smallest estimate whose interval leaves out 0; None when there is none up to ``most``.

    Args:
        taken: Variance that the interval takes for an estimate of this size.
        critical: Its critical value.
        floor: What the interval must stay clear of.
        most: Largest estimate there is.
    """

    def clear(x: float) -> float:
        return x - floor - critical(x) * math.sqrt(taken(x))

    low = 0.0
    for high in np.geomspace(1e-7, 1.0, 71) * most:
        if clear(high) > 0:
            return float(optimize.brentq(clear, low, high, xtol=1e-12)) if clear(low) < 0 else high
        low = float(high)
    return None


def _least(probability: Probability, power: float, most: float) -> float | None:
    """Smallest effect seen with this power."""
    high = most * 1e-5
    while probability(high) < power:
        if high >= most:
            return None
        high = min(2 * high, most)
    return float(
        optimize.brentq(lambda x: probability(x) - power, 0.0, high, xtol=1e-6 * most, rtol=1e-6)
    )


def fewest(probability: Callable[[int], float], power: float, least: int) -> int | None:
    """Smallest n, from ``least``, at which a chance that grows with n reaches the power."""
    low, high = least - 1, least
    while probability(high) < power:
        low, high = high, 2 * high
        if high > MOST_INTENTS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if probability(middle) >= power else (middle, high)
    return high
