"""Prompts that come in clusters: whole intents are the independent units."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray

from refusaldir.errors import RefusaldirError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Clusters:
    """Which unit belongs to which independent cluster, and which stratum a cluster is in.

    Attributes:
        names: Sorted cluster names, one per cluster.
        codes: Cluster index of each unit, int64 ``[unit]``.
        strata: Stratum index of each cluster, int64 ``[cluster]``; clusters that hold the same
            set of labels share a stratum, since sampling kept those numbers fixed.
    """

    names: tuple[Hashable, ...]
    codes: Int[np.ndarray, " unit"]
    strata: Int[np.ndarray, " cluster"]

    @classmethod
    def of(cls, ids: Sequence[Hashable], labels: ArrayLike | None = None) -> "Clusters":
        """Group units by id; the order of the units does not matter.

        Args:
            ids: Cluster name of each unit, e.g. ``prompt.intent_id``.
            labels: Class of each unit; without it there is one stratum.

        Raises:
            RefusaldirError: When there is no unit, or ids and labels differ in number.
        """
        if len(ids) == 0:
            raise RefusaldirError("clusters need at least one unit", got="none")
        names = tuple(sorted(set(ids), key=lambda name: (str(type(name)), name)))
        index = {name: i for i, name in enumerate(names)}
        codes = np.fromiter((index[i] for i in ids), dtype=np.int64, count=len(ids))
        strata = np.zeros(len(names), dtype=np.int64)
        if labels is not None:
            y = np.asarray(labels)
            if y.shape != codes.shape:
                raise RefusaldirError(
                    "each unit needs one cluster and one label",
                    expected=f"{len(codes)} labels",
                    got=f"an array of shape {y.shape}",
                )
            kinds = np.unique(y)
            held = np.zeros((len(names), len(kinds)), dtype=np.int64)
            held[codes, np.searchsorted(kinds, y)] = 1
            _, strata = np.unique(held, axis=0, return_inverse=True)
            strata = strata.reshape(-1).astype(np.int64)
            sizes = np.bincount(strata)
            if sizes.min() < 2:  # a lone cluster has no spread of its own: pool all strata
                strata = np.zeros(len(names), dtype=np.int64)
        return cls(names=names, codes=codes, strata=strata)

    @property
    def n(self) -> int:
        """Number of clusters."""
        return len(self.names)

    @property
    def df(self) -> int:
        """Degrees of freedom of a variance between clusters."""
        return max(self.n - len(np.unique(self.strata)), 1)

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.codes, kind="stable")
        starts = np.searchsorted(self.codes[order], np.arange(self.n))
        return order, starts

    def sums(self, values: Float[np.ndarray, " unit *rest"]) -> Float[np.ndarray, " cluster *rest"]:
        """Sum the values of each cluster's units, in float64."""
        order, starts = self._sorted
        total: FloatArray = np.add.reduceat(values[order].astype(np.float64), starts, axis=0)
        return total

    def centre(self, values: Float[np.ndarray, " cluster *rest"]) -> FloatArray:
        """Jackknife deviations ``√((C−1)/C) (θ₍₋c₎ − mean)`` within strata.

        Their sum of squares is the jackknife variance.
        """
        out = np.empty_like(values, dtype=np.float64)
        for stratum in np.unique(self.strata):
            here = self.strata == stratum
            size = int(here.sum())
            out[here] = (values[here] - values[here].mean(axis=0)) * np.sqrt((size - 1) / size)
        return out

    def folds(self, k: int, seed: int = 0) -> NDArray[np.int64]:
        """Assign whole clusters to ``k`` folds, balanced within strata; fold of each unit."""
        rng = np.random.default_rng(seed)
        fold = np.empty(self.n, dtype=np.int64)
        start = 0
        for stratum in np.unique(self.strata):
            members = rng.permutation(np.flatnonzero(self.strata == stratum))
            fold[members] = (start + np.arange(len(members))) % k
            start += len(members)
        assigned: NDArray[np.int64] = fold[self.codes]
        return assigned
