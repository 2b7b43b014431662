"""Shares and corrected refusal rates with their intervals, for responses that come in intents.

The two corrections are defined in `refusaldir.probes.judging.calibration`; the weight λ of the
prediction-powered one is estimated once and kept in the draws. Their intervals are Bayesian
bootstraps over intents (Rubin 1981): every intent has an exponential weight in each draw. So that a
judge without a single error among few labels does not pass for perfect, each share has half a row
either way beside the rows seen (Jeffreys' prior).
"""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats

from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, critical_value, proportion

FloatArray = NDArray[np.float64]

#: Rows of pseudo-data on either side of a share, in the bootstrap.
PRIOR = 0.5

#: Share of draws in which the judge is no better than chance, above which there is no interval.
_MOST_UNINFORMED = 0.025


def clustered_proportion(
    outcomes: Sequence[bool], clusters: Sequence[Hashable], *, level: float = 0.95
) -> Estimate:
    """Share with Wilson's interval; counts are divided by the design effect of the clusters.

    With one row a cluster it is `refusaldir.statistics.proportion`. Otherwise the effect is the
    variance of the share between clusters over that of independent rows, never below 1, and
    Student's t replaces the normal.
    """
    n, names = len(outcomes), set(clusters)
    if len(names) == n:
        return proportion(sum(outcomes), n, level=level)
    from statsmodels.stats.proportion import proportion_confint

    groups = Clusters.of(clusters)
    x = np.asarray(outcomes, dtype=np.float64)
    value = float(x.mean())
    if groups.n < 2:
        note = "no interval: one intent only"
        return Estimate(value=value, n=groups.n, level=level, note=note)
    independent = float(np.sum((x - value) ** 2)) / n**2
    residual = groups.sums(x - value)
    between = groups.n / (groups.n - 1) * float(np.sum(residual**2)) / n**2
    effect = max(between / independent, 1.0) if independent > 0 else n / groups.n
    alpha = 2 * float(stats.norm.sf(critical_value(level, float(groups.df))))
    lower, upper = proportion_confint(
        float(x.sum()) / effect, n / effect, alpha=alpha, method="wilson"
    )
    return Estimate(
        value=value,
        lower=float(lower),
        upper=float(upper),
        n=groups.n,
        level=level,
        method="Wilson score, counts divided by the design effect of the clusters",
    )


def rogan_gladen(judged: float, sensitivity: float, specificity: float) -> float | None:
    """``(q + Sp − 1) / (Se + Sp − 1)`` (Rogan & Gladen 1978, American J. Epidemiology 107:71).

    Not moved into 0 to 1; None when the judge is no better than chance.
    """
    informed = sensitivity + specificity - 1
    return None if informed <= 0 else (judged + specificity - 1) / informed


@dataclass(frozen=True, kw_only=True, eq=False)
class Corrected:
    """A corrected rate before it is given an interval.

    Attributes:
        value: The rate, not moved into 0 to 1; None when it cannot be told.
        draws: Its bootstrap draws, NaN where one says nothing; None when it has no interval.
        n: Intents behind it.
        what: Name of the correction.
        note: Why there is no value or interval, or what to know of it.
    """

    value: float | None
    draws: FloatArray | None = None
    n: int
    what: str = ""
    note: str = ""

    def estimate(self, level: float, *, lowest: float = 0.0) -> Estimate:
        """The rate with its interval, cut off at ``lowest`` and 1."""
        if self.value is None or self.draws is None:
            return Estimate(value=self.value, n=self.n, level=level, note=self.note)
        if self.n < 2:
            note = "no interval: one intent only"
            return Estimate(value=self.value, n=self.n, level=level, note=note)
        # Tails widened to Student's t, as for every bootstrap here.
        critical = np.sqrt(self.n / (self.n - 1)) * critical_value(level, float(self.n - 1))
        tail = float(stats.norm.cdf(-critical))
        lower, upper = np.nanquantile(self.draws, [tail, 1 - tail])
        note = self.note
        if not lowest <= self.value <= 1:
            outside = "the corrected rate lies outside what is possible: it is within its error"
            note = "; ".join(filter(None, (note, outside)))
        return Estimate(
            value=self.value,
            lower=float(min(max(lower, lowest), self.value)),
            upper=float(max(min(upper, 1.0), self.value)),
            n=self.n,
            level=level,
            method=f"{self.what}, Bayesian bootstrap over intents, expanded percentile",
            note=note,
        )


def change(base: Corrected, tuned: Corrected, *, n: int, level: float) -> Estimate:
    """Tuned minus base; intents that both arms hold have the same weight in each draw.

    Args:
        base: Rate of the base arm.
        tuned: The same correction of the other's.
        n: Intents of both arms together.
        level: Nominal coverage.
    """
    if base.value is None or base.draws is None:
        return _no_change("base", base, n, level)
    if tuned.value is None or tuned.draws is None:
        return _no_change("tuned", tuned, n, level)
    return Corrected(
        value=tuned.value - base.value, draws=tuned.draws - base.draws, n=n, what=tuned.what
    ).estimate(level, lowest=-1.0)


def _no_change(arm: str, corrected: Corrected, n: int, level: float) -> Estimate:
    reason = corrected.note.removeprefix("not estimable: ")
    return Estimate(value=None, n=n, level=level, note=f"not estimable in {arm}: {reason}")


class Corrections:
    """Corrected rates of one arm, from counts of each intent and their weights in each draw.

    An intent's weights depend on its name and the seed alone, so that arms which hold the same
    intents are drawn together.

    Args:
        judged: Refused or not by the judge, one a response.
        human: Refused or not by people; None where nobody looked.
        intents: Intent of each response.
        arm: Name of the arm; its pseudo-data are drawn apart from those of others.
        seed: Seed of the draws.
        n_boot: Number of draws.
    """

    def __init__(
        self,
        judged: Sequence[bool],
        human: Sequence[bool | None],
        intents: Sequence[str],
        *,
        arm: str,
        seed: int,
        n_boot: int,
    ) -> None:
        """Draw the weights."""
        self.n_boot = n_boot
        self._seed, self._arm = seed, arm
        self.n = len(set(intents))
        if self.n == 0:
            return
        clusters = Clusters.of(intents)
        f = np.asarray(judged, dtype=bool)
        known = np.asarray([truth is not None for truth in human])
        y = np.asarray([bool(truth) for truth in human])
        kinds = {
            "hit": known & y & f,
            "missed": known & y & ~f,
            "false": known & ~y & f,
            "passed": known & ~y & ~f,
            "refused": ~known & f,
            "answered": ~known & ~f,
        }
        counts = {name: clusters.sums(kind.astype(np.float64)) for name, kind in kinds.items()}
        self.seen = {name: float(count.sum()) for name, count in counts.items()}
        weights = _exponential([str(name) for name in clusters.names], seed, n_boot)
        self.drawn: dict[str, FloatArray] = {k: weights @ count for k, count in counts.items()}

    @cached_property
    def judged(self) -> Corrected:
        """The judged rate as it is."""
        if self.n == 0:
            return self._none("the judge decided no response")
        s, d, rng = self.seen, self.drawn, self._generator("judged")
        value = (s["hit"] + s["false"] + s["refused"]) / sum(s.values())
        draws = self._share(
            rng,
            d["hit"] + d["false"] + d["refused"],
            d["missed"] + d["passed"] + d["answered"],
        )
        return Corrected(value=value, draws=draws, n=self.n, what="as judged")

    @cached_property
    def rogan_gladen(self) -> Corrected:
        """The judged rate over all responses, corrected by sensitivity and specificity."""
        if self.n == 0:
            return self._none("the judge decided no response")
        s = self.seen
        if s["hit"] + s["missed"] == 0 or s["false"] + s["passed"] == 0:
            return self._none("the human labels hold no refused, or no other, response")
        total = sum(s.values())
        value = rogan_gladen(
            (s["hit"] + s["false"] + s["refused"]) / total,
            s["hit"] / (s["hit"] + s["missed"]),
            s["passed"] / (s["passed"] + s["false"]),
        )
        if value is None:
            return self._none("the judge is no better than chance on the labelled responses")
        d, rng = self.drawn, self._generator("rogan_gladen")
        sensitivity = self._share(rng, d["hit"], d["missed"])
        specificity = self._share(rng, d["passed"], d["false"])
        judged = self._share(
            rng,
            d["hit"] + d["false"] + d["refused"],
            d["missed"] + d["passed"] + d["answered"],
        )
        informed = sensitivity + specificity - 1
        if np.mean(informed <= 0) > _MOST_UNINFORMED:
            note = "no interval: the judge may be no better than chance"
            return Corrected(value=value, n=self.n, note=note)
        informed[informed <= 0] = np.nan
        draws = (judged + specificity - 1) / informed
        return Corrected(value=value, draws=draws, n=self.n, what="Rogan–Gladen")

    @cached_property
    def prediction_powered(self) -> Corrected:
        """The rate by labels, moved by what the judge sees of the unlabelled; see the module."""
        if self.n == 0:
            return self._none("the judge decided no response")
        s, d, rng = self.seen, self.drawn, self._generator("prediction_powered")
        labelled = s["hit"] + s["missed"] + s["false"] + s["passed"]
        unlabelled = s["refused"] + s["answered"]
        if labelled == 0:
            return self._none("no human label for a response that the judge decided")
        if unlabelled == 0:
            rate = (s["hit"] + s["missed"]) / labelled
            draws = self._share(rng, d["hit"] + d["missed"], d["false"] + d["passed"])
            note = "every response is labelled"
            return Corrected(value=rate, draws=draws, n=self.n, what="human labels", note=note)
        rate = (s["hit"] + s["missed"]) / labelled
        judged = (s["hit"] + s["false"]) / labelled
        all_judged = (s["hit"] + s["false"] + s["refused"]) / (labelled + unlabelled)
        spread = all_judged * (1 - all_judged)
        covariance = s["hit"] / labelled - rate * judged
        slope = covariance / spread if spread > 0 else 0.0
        weight = min(max(slope * unlabelled / (labelled + unlabelled), 0.0), 1.0)
        value = rate + weight * (s["refused"] / unlabelled - judged)
        hit, missed, wrong, passed = (
            d[kind] + rng.gamma(PRIOR / 2, size=self.n_boot)
            for kind in ("hit", "missed", "false", "passed")
        )
        total = hit + missed + wrong + passed
        draws = (hit + missed - weight * (hit + wrong)) / total
        draws = draws + weight * self._share(rng, d["refused"], d["answered"])
        return Corrected(value=value, draws=draws, n=self.n, what="prediction-powered")

    def _generator(self, what: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, _code(f"{self._arm}/{what}")])

    def _prior(self, rng: np.random.Generator) -> FloatArray:
        return rng.gamma(PRIOR, size=self.n_boot)

    def _share(
        self,
        rng: np.random.Generator,
        yes: Float[np.ndarray, " draw"],
        no: Float[np.ndarray, " draw"],
    ) -> Float[np.ndarray, " draw"]:
        yes, no = yes + self._prior(rng), no + self._prior(rng)
        share: FloatArray = yes / (yes + no)
        return share

    def _none(self, reason: str) -> Corrected:
        return Corrected(value=None, n=self.n, note=f"not estimable: {reason}")


def _exponential(intents: Sequence[str], seed: int, n: int) -> Float[np.ndarray, "draw intent"]:
    """Standard exponential draws, each a function of seed, intent and number (SplitMix64)."""
    states = np.array([_code(f"{seed}/{intent}") for intent in intents], dtype=np.uint64)
    # Weyl's sequence, then the finaliser of Steele, Lea & Flood 2014.
    z = states + np.arange(1, n + 1, dtype=np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    uniform = ((z >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    out: FloatArray = -np.log(uniform)
    return out


def _code(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
