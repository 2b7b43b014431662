"""Means of many figures by class, with intervals and bands over clusters of prompts.

Over harmful prompts, over harmless prompts, and the difference of the two. All three are linear in
the prompts, so that leaving a cluster out is a subtraction.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from refusaldir.records import HARMFUL, HARMLESS, Estimate
from refusaldir.statistics import Clusters, jackknife, simultaneous_critical

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Banded:
    """A figure with its own interval and with one that holds for all figures of its kind at once.

    Attributes:
        pointwise: Cluster-jackknife interval.
        simultaneous: The same value in a max-statistic band.
    """

    pointwise: Estimate
    simultaneous: Estimate


@dataclass(frozen=True, kw_only=True)
class ByClass:
    """One figure by class.

    Attributes:
        harmful: Over harmful prompts.
        harmless: Over harmless prompts.
        difference: Harmful less harmless.
    """

    harmful: Estimate
    harmless: Estimate
    difference: Estimate


@dataclass(frozen=True, kw_only=True)
class BandedByClass:
    """One of many figures by class; bands are over the many, class by class.

    Attributes:
        harmful: Over harmful prompts.
        harmless: Over harmless prompts.
        difference: Harmful less harmless.
    """

    harmful: Banded
    harmless: Banded
    difference: Banded


class ClassMeans:
    """Means over the prompts of a class, each with only its own clusters' degrees of freedom.

    Args:
        labels: 0 harmless, 1 harmful, ``[prompt]``; both occur.
        clusters: The prompts' clusters.
        level: Nominal coverage.
        seed: Seed of the bands' multiplier bootstrap.
    """

    def __init__(
        self, labels: NDArray[Any], clusters: Clusters, *, level: float = 0.95, seed: int = 0
    ) -> None:
        """Sort out which prompts and clusters each mean is over."""
        self._level, self._seed = level, seed
        self._contrasts = {}
        for name, label in (("harmful", HARMFUL), ("harmless", HARMLESS)):
            rows = np.flatnonzero(labels == label)
            own = Clusters.of([clusters.names[c] for c in clusters.codes[rows]])
            self._contrasts[name] = _Contrast(((label, 1),), rows, labels[rows], own)
        both = ((HARMFUL, 1), (HARMLESS, -1))
        self._contrasts["difference"] = _Contrast(both, np.arange(len(labels)), labels, clusters)

    def of(self, values: Float[np.ndarray, " prompt"]) -> ByClass:
        """Means of one figure."""
        found = {}
        for name, contrast in self._contrasts.items():
            value, left = contrast.of(values[:, None])
            found[name] = jackknife(
                float(value[0]), left[:, 0], contrast.clusters, level=self._level
            )
        return ByClass(**found)

    def banded(
        self, values: Float[np.ndarray, "prompt figure"], over: str
    ) -> tuple[BandedByClass, ...]:
        """Means of many figures, with bands that hold over all of them.

        Args:
            values: The figures.
            over: What they differ in, for `Estimate.method`, e.g. ``"over 30 layers"``.
        """
        found = {name: self._banded(c, values, over) for name, c in self._contrasts.items()}
        return tuple(
            BandedByClass(**{name: figures[i] for name, figures in found.items()})
            for i in range(values.shape[1])
        )

    def _banded(self, contrast: "_Contrast", values: FloatArray, over: str) -> list[Banded]:
        value, left = contrast.of(values)
        clusters = contrast.clusters
        points = [
            jackknife(float(v), column, clusters, level=self._level)
            for v, column in zip(value, left.T, strict=True)
        ]
        if clusters.n < 2 or not np.isfinite(left).all():
            return [Banded(pointwise=p, simultaneous=p) for p in points]
        deviations = clusters.centre(left)
        critical = simultaneous_critical(
            deviations, level=self._level, df=clusters.df, seed=self._seed
        )
        halves = critical * np.sqrt(np.sum(deviations**2, axis=0))
        return [
            Banded(
                pointwise=point,
                simultaneous=Estimate(
                    value=point.value,
                    lower=float(v - half),
                    upper=float(v + half),
                    n=clusters.n,
                    level=self._level,
                    method=f"cluster jackknife, max-statistic band {over}",
                    note=point.note,
                ),
            )
            for point, v, half in zip(points, value, halves, strict=True)
        ]


class _Contrast(NamedTuple):
    """A class's mean, or a difference of such means, as something to be jackknifed."""

    signs: tuple[tuple[int, int], ...]
    rows: NDArray[np.intp]
    labels: Int[np.ndarray, " row"]
    clusters: Clusters

    def of(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The figure of each column, and with one cluster left out at a time."""
        x = values[self.rows]
        value = np.zeros(x.shape[1])
        left = np.zeros((self.clusters.n, x.shape[1]))
        for label, sign in self.signs:
            here = (self.labels == label).astype(np.float64)[:, None]
            sums, counts = self.clusters.sums(x * here), self.clusters.sums(here)
            value += sign * sums.sum(axis=0) / counts.sum()
            # Identical models give exact zeros: 0 less 0 over a count.
            with np.errstate(invalid="ignore", divide="ignore"):
                left += sign * (sums.sum(axis=0) - sums) / (counts.sum() - counts)
        return value, left
