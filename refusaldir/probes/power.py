"""Power to see a change of the refusal rate, both models answering the same prompts."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

from refusaldir.errors import ProbeError
from refusaldir.statistics import critical_value

#: Up to this many prompts the power is exact; above, normal.
_EXACT = 2000

#: Where it was not said, this share of the prompts flips without a net change.
FLIPS = 0.1


@dataclass(frozen=True, kw_only=True)
class RefusalPower:
    """Power of McNemar's mid-p test, as `refusaldir diff` uses it, to see refusals fall.

    Some prompts flip although the rate stays: half of ``flips`` one way, half the other. A fall
    of the rate by δ adds δ to those that base refuses and tuned answers.

    Attributes:
        base_rate: Refusal rate of base, 0 to 1.
        flips: Share of the prompts that flip without a net change.
        design_effect: Variance over that of as many independent single replies; above 1 where
            several prompts come from one intent, below where a prompt has several replies.
        level: 1 − the test's level.
        power: Chance with which a fall is to be seen.
    """

    base_rate: float
    flips: float
    design_effect: float = 1.0
    level: float = 0.95
    power: float = 0.8

    def __post_init__(self) -> None:
        """Check that such rates can be."""
        critical_value(self.level)
        for name, value, most in (
            ("base rate", self.base_rate, 1.0),
            ("share of flips", self.flips, 2 * min(self.base_rate, 1 - self.base_rate) + 1e-12),
        ):
            if not 0 <= value <= most:
                raise ProbeError(
                    f"the {name} cannot be",
                    expected=f"0 to {round(most, 6):g}"
                    + ("" if name == "base rate" else f" at a base rate of {self.base_rate:g}"),
                    got=value,
                )
        if not self.design_effect > 0:
            raise ProbeError("a design effect is above 0", got=self.design_effect)
        if not 0 < self.power < 1:
            raise ProbeError("the power must lie between 0 and 1", got=self.power)

    @property
    def largest(self) -> float:
        """Largest fall that there can be."""
        return self.base_rate - self.flips / 2

    def probability(self, fall: float, n: int) -> float:
        """Chance that n prompts show a fall of the refusal rate.

        Exact up to 2,000 prompts: binomial over the pairs that differ and, of these, those that
        gained; above, Connor's normal approximation (1987, Biometrics 43:207).

        Raises:
            ProbeError: The rate cannot fall so far.
        """
        if not 0 <= fall <= self.largest + 1e-12:
            raise ProbeError(
                "the refusal rate cannot fall so far",
                expected=f"at most {self.largest:.3g} at a base rate of {self.base_rate:g}",
                got=f"{fall:.3g}",
            )
        gained = self.flips / 2
        differ = fall + self.flips
        units = int(n / self.design_effect)
        if units < 1 or differ <= 0:
            return 0.0
        if units > _EXACT:
            z = critical_value(self.level)
            margin = fall * np.sqrt(units) - z * np.sqrt(differ)
            spread = differ - fall**2
            return float(stats.norm.cdf(margin / np.sqrt(spread))) if spread > 0 else 1.0
        pairs = np.arange(units + 1)
        most = _most_gained(units, 1 - self.level)
        seen = stats.binom.cdf(most, pairs, gained / differ)
        return float(stats.binom.pmf(pairs, units, min(differ, 1.0)) @ seen)

    def least(self, n: int) -> float | None:
        """Smallest fall seen with n prompts; None when none is."""
        if self.largest <= 0 or self.probability(self.largest, n) < self.power:
            return None
        return float(
            optimize.brentq(
                lambda fall: self.probability(fall, n) - self.power, 0.0, self.largest, xtol=1e-6
            )
        )


@lru_cache(maxsize=64)
def _most_gained(units: int, alpha: float) -> Float[np.ndarray, " pairs"]:
    """Largest number gained, of 0 … units pairs that differ, at which mid-p is below its level."""
    pairs = np.arange(units + 1)
    guess = stats.binom.ppf(alpha / 2, pairs, 0.5)
    p = 2 * stats.binom.cdf(guess - 1, pairs, 0.5) + stats.binom.pmf(guess, pairs, 0.5)
    most: Float[np.ndarray, " pairs"] = np.where(
        (p <= alpha) & (2 * guess < pairs), guess, guess - 1
    )
    return most
