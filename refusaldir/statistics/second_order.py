"""Intervals for figures made of U-statistics: the jackknife less what it counts twice.

The corrected inner products are U-statistics of degree two. Hoeffding's decomposition splits
their variance into a first-order part (how much one intent moves the figure) and a second-order
part (products of the noise of two intents)::

    Var = V₁ + V₂        and for the delete-one jackknife        E[V_J] = V₁ + 2 V₂

(Efron & Stein 1981, for few terms the factor is slightly above 2). Where V₁ dominates nothing is
lost, but the first-order part of a cosine vanishes at 1, just where the question "has it turned
at all?" is asked, and the jackknife's interval is then √2 too wide. V₂ itself is estimated
without bias from the U-centred Gram matrix of the intents (Székely & Rizzo 2014, Ann. Statist.
42:2382), so it can be taken off.

The estimate of V₁ + V₂ is noisy where V₂ dominates and its noise has few dimensions. Three
guards keep the coverage: `TAKEN` of the excess is taken off, not all of it; the variance never
falls below `_FLOOR` of V₂; and Student's t has Satterthwaite's degrees of freedom. They were set
once, by simulation; ``tests/benchmarks/coverage.py`` measures what they give.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray

from refusaldir.records import Estimate
from refusaldir.statistics.clusters import Clusters
from refusaldir.statistics.intervals import student_interval

#: Share of the jackknife's excess that is taken off.
TAKEN = 0.75

#: Lowest variance, as a share of the second-order part.
_FLOOR = 0.6

#: Fewest degrees of freedom, where there are as many.
FEWEST_DF = 8.0

#: Fewest clusters of a stratum for which the second-order part can be told.
_FEWEST = 4


def _strata(clusters: Clusters) -> list[NDArray[np.intp]]:
    """Indices of each stratum's clusters."""
    return [np.flatnonzero(clusters.strata == s) for s in np.unique(clusters.strata)]


def centred_kernel(
    gram: Float[np.ndarray, "cluster cluster"] | Float32[np.ndarray, "cluster cluster"],
    clusters: Clusters,
) -> Float[np.ndarray, "cluster cluster"]:
    """Remove what single clusters bring, so that products of two clusters' noise are left.

    Within a stratum this is U-centring: the sum of squares over ``n (n − 3)`` is then an
    unbiased estimate of the mean squared product of two clusters' noise. Between strata rows and
    columns are centred, with ``(n − 1)(n' − 1)`` in its place. The diagonal is 0; strata with
    fewer than four clusters give 0.
    """
    out = np.zeros(gram.shape)
    strata = _strata(clusters)
    for i, rows in enumerate(strata):
        if (n := len(rows)) < _FEWEST:
            continue
        block = gram[np.ix_(rows, rows)].astype(np.float64)
        np.fill_diagonal(block, 0.0)
        sums = block.sum(axis=0)
        block -= (sums[:, None] + sums[None, :]) / (n - 2)
        block += sums.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(block, 0.0)
        out[np.ix_(rows, rows)] = block
        for columns in strata[:i]:
            if len(columns) < _FEWEST:
                continue
            block = gram[np.ix_(rows, columns)].astype(np.float64)
            block -= block.mean(axis=0, keepdims=True)
            block -= block.mean(axis=1, keepdims=True)
            out[np.ix_(rows, columns)] = block
            out[np.ix_(columns, rows)] = block.T
    return out


def guarded_variance(first: Float[np.ndarray, " cluster"], second: float, excess: float) -> float:
    """Variance of a figure, with the guards of this module.

    Args:
        first: Jackknife deviations.
        second: Second-order variance V₂.
        excess: What the jackknife has over V₁ + V₂.
    """
    return max(float(np.sum(first**2)) - TAKEN * excess, _FLOOR * second)


def guarded_df(first: Float[np.ndarray, " cluster"], variance: float, clusters: Clusters) -> float:
    """Satterthwaite's degrees of freedom of `guarded_variance`."""
    most = float(clusters.df)
    spread = 0.0
    for rows in _strata(clusters):
        squares = first[rows] ** 2
        if len(squares) > 1:
            spread += len(squares) * float(np.var(squares, ddof=1))
    if spread <= 0:
        return most
    return float(np.clip(2 * variance**2 / spread, min(FEWEST_DF, most), most))


@dataclass(frozen=True, kw_only=True, eq=False)
class Deviations:
    """What the variance of one figure is made of.

    Attributes:
        first: Jackknife deviations per cluster (`Clusters.centre`); their sum of squares is the
            jackknife variance.
        second: Centred kernel of the figure (`centred_kernel`), in its units: the figure's
            second-order error is its sum over ordered pairs of clusters.
        clusters: The clusters.
    """

    first: Float[np.ndarray, " cluster"]
    second: Float[np.ndarray, "cluster cluster"]
    clusters: Clusters

    def __sub__(self, other: "Deviations") -> "Deviations":
        """Deviations of the difference of two figures on the same clusters."""
        return Deviations(
            first=self.first - other.first,
            second=self.second - other.second,
            clusters=self.clusters,
        )

    @property
    def finite(self) -> bool:
        """Whether there is an interval at all."""
        return bool(np.all(np.isfinite(self.first)))

    @property
    def second_order(self) -> tuple[float, float]:
        """The second-order variance V₂ and the jackknife's excess over V₁ + V₂."""
        variance = excess = 0.0
        strata = _strata(self.clusters)
        for i, rows in enumerate(strata):
            if (n := len(rows)) < _FEWEST:
                continue
            square = float(np.sum(self.second[np.ix_(rows, rows)] ** 2)) / (n * (n - 3))
            part = 2 * n * (n - 1) * square
            variance += part
            excess += part * n / (n - 2)
            for columns in strata[:i]:
                if (m := len(columns)) < _FEWEST:
                    continue
                square = float(np.sum(self.second[np.ix_(rows, columns)] ** 2))
                part = 4 * n * m * square / ((n - 1) * (m - 1))
                variance += part
                excess += part
        return variance, excess

    @property
    def variance(self) -> float:
        """First- and second-order variance, with the guards of this module."""
        return guarded_variance(self.first, *self.second_order)

    @property
    def df(self) -> float:
        """Satterthwaite's degrees of freedom of `variance`."""
        return guarded_df(self.first, self.variance, self.clusters)

    def interval(
        self,
        value: float,
        *,
        level: float = 0.95,
        log: bool = False,
        bounds: tuple[float, float] = (-np.inf, np.inf),
        note: str = "",
    ) -> Estimate:
        """Student's interval around a value; ``log``: the deviations are of its logarithm."""
        return student_interval(
            value,
            float(np.sqrt(self.variance)) if self.finite else float("nan"),
            self.df if self.finite else 1.0,
            n=self.clusters.n,
            level=level,
            log=log,
            bounds=bounds,
            note=note,
            method="cluster jackknife with second-order variance",
        )
