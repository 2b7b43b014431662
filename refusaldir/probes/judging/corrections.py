"""Shares and corrected refusal rates with their intervals, for responses that come in intents.

The two corrections are defined in `refusaldir.probes.judging.calibration`. Their intervals are
Bayesian bootstraps over intents (Rubin 1981): every intent has an exponential weight in each draw.
So that a judge without a single error among few labels does not pass for perfect, each share has
half a row either way beside the rows seen (Jeffreys' prior).
"""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats

from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, critical_value, proportion

FloatArray = NDArray[np.float64]

#: Rows of pseudo-data on either side of a share, in the bootstrap.
PRIOR = 0.5


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


class Corrections:
    """Corrected rates of one arm, from counts of each intent and their weights in each draw.

    Args:
        judged: Refused or not by the judge, one a response.
        human: Refused or not by people; None where nobody looked.
        intents: Intent of each response.
        level: Nominal coverage.
        seed: Seed of the draws.
        n_boot: Number of draws.
    """

    def __init__(
        self,
        judged: Sequence[bool],
        human: Sequence[bool | None],
        intents: Sequence[str],
        *,
        level: float,
        seed: int,
        n_boot: int,
    ) -> None:
        """Draw the weights."""
        self.level, self.n_boot = level, n_boot
        self.rng = np.random.default_rng(seed)
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
        weights = self.rng.standard_exponential((n_boot, clusters.n))
        self.drawn: dict[str, FloatArray] = {k: weights @ count for k, count in counts.items()}

    def rogan_gladen(self) -> Estimate:
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
        d = self.drawn
        sensitivity = self._share(d["hit"], d["missed"])
        specificity = self._share(d["passed"], d["false"])
        judged = self._share(
            d["hit"] + d["false"] + d["refused"], d["missed"] + d["passed"] + d["answered"]
        )
        informed = sensitivity + specificity - 1
        if np.mean(informed <= 0) > (1 - self.level) / 2:
            note = "no interval: the judge may be no better than chance"
            return Estimate(value=value, n=self.n, level=self.level, note=note)
        draws = (judged + specificity - 1)[informed > 0] / informed[informed > 0]
        return self._interval(value, draws, "Rogan–Gladen")

    def prediction_powered(self) -> Estimate:
        """The judged rate of the unlabelled, corrected by the judge's mean error."""
        if self.n == 0:
            return self._none("the judge decided no response")
        s, d = self.seen, self.drawn
        labelled = s["hit"] + s["missed"] + s["false"] + s["passed"]
        unlabelled = s["refused"] + s["answered"]
        if labelled == 0:
            return self._none("no human label for a response that the judge decided")
        if unlabelled == 0:
            rate = (s["hit"] + s["missed"]) / labelled
            draws = self._share(d["hit"] + d["missed"], d["false"] + d["passed"])
            return self._interval(rate, draws, "human labels", note="every response is labelled")
        value = s["refused"] / unlabelled + (s["missed"] - s["false"]) / labelled
        up, down = d["missed"] + self._prior(), d["false"] + self._prior()
        error = (up - down) / (up + down + d["hit"] + d["passed"])
        draws = self._share(d["refused"], d["answered"]) + error
        return self._interval(value, draws, "prediction-powered")

    def _prior(self) -> FloatArray:
        return self.rng.gamma(PRIOR, size=self.n_boot)

    def _share(
        self, yes: Float[np.ndarray, " draw"], no: Float[np.ndarray, " draw"]
    ) -> Float[np.ndarray, " draw"]:
        yes, no = yes + self._prior(), no + self._prior()
        share: FloatArray = yes / (yes + no)
        return share

    def _interval(self, value: float, draws: FloatArray, what: str, note: str = "") -> Estimate:
        if self.n < 2:
            note = "no interval: one intent only"
            return Estimate(value=value, n=self.n, level=self.level, note=note)
        # Tails widened to Student's t, as for every bootstrap here.
        critical = np.sqrt(self.n / (self.n - 1)) * critical_value(self.level, float(self.n - 1))
        tail = float(stats.norm.cdf(-critical))
        lower, upper = np.quantile(draws, [tail, 1 - tail])
        if not 0 <= value <= 1:
            outside = "the corrected rate lies outside what is possible: it is within its error"
            note = "; ".join(filter(None, (note, outside)))
        return Estimate(
            value=value,
            lower=float(min(max(lower, 0.0), value)),
            upper=float(max(min(upper, 1.0), value)),
            n=self.n,
            level=self.level,
            method=f"{what}, Bayesian bootstrap over intents, expanded percentile",
            note=note,
        )

    def _none(self, reason: str) -> Estimate:
        return Estimate(value=None, n=self.n, level=self.level, note=f"not estimable: {reason}")
