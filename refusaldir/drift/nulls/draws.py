"""Draws for the nulls of drift: labels exchanged, halves, and their directions' products.

A direction of a draw is a difference of means, so all products between directions follow from
Gram matrices of the prompts. No draw ever touches ``d_model``.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse

from refusaldir.statistics import Clusters

FloatArray = NDArray[np.float64]


def exchanged_labels(
    labels: Int[np.ndarray, " prompt"], clusters: Clusters, *, draws: int, seed: int
) -> Float[np.ndarray, "draw prompt"]:
    """Which prompts are called harmful (1) when labels are exchanged at random.

    Within intents where an intent holds both classes; intents of one class exchange their class
    among themselves.
    """
    rng = np.random.default_rng(seed)
    y = labels.astype(np.float64)
    harmful, size = clusters.sums(y), clusters.sums(np.ones_like(y))
    single = np.flatnonzero((harmful == 0) | (harmful == size))
    out = np.tile(y, (draws, 1))
    if len(single):
        classes = np.tile((harmful[single] > 0).astype(np.float64), (draws, 1))
        drawn = np.zeros((draws, clusters.n))
        drawn[:, single] = rng.permuted(classes, axis=1)
        where = np.isin(clusters.codes, single)
        out[:, where] = drawn[:, clusters.codes[where]]
    for cluster in np.setdiff1d(np.arange(clusters.n), single):
        members = np.flatnonzero(clusters.codes == cluster)
        out[:, members] = rng.permuted(out[:, members], axis=1)
    return out


def halves(clusters: Clusters, *, draws: int, seed: int) -> Float[np.ndarray, "draw prompt"]:
    """Which prompts are in the first of two halves of the intents, drawn within strata."""
    rng = np.random.default_rng(seed)
    first = np.zeros((draws, clusters.n))
    for stratum in np.unique(clusters.strata):
        members = np.flatnonzero(clusters.strata == stratum)
        half = np.zeros((draws, len(members)))
        half[:, : len(members) // 2] = 1.0
        first[:, members] = rng.permuted(half, axis=1)
    return first[:, clusters.codes]


@dataclass(frozen=True, kw_only=True, eq=False)
class Squares:
    """Products of the directions of all draws, as measured and without an intent with itself."""

    raw: Float[np.ndarray, " draw"]
    corrected: Float[np.ndarray, " draw"]


class DrawnDirections:
    """Directions of draws: the mean of one set of prompts less the mean of another.

    Args:
        harmful: 1 where a prompt belongs to the first set, ``[draw prompt]``.
        harmless: 1 where it belongs to the second.
        clusters: Prompts grouped by intent.
    """

    def __init__(
        self,
        harmful: Float[np.ndarray, "draw prompt"],
        harmless: Float[np.ndarray, "draw prompt"],
        clusters: Clusters,
    ) -> None:
        """Count prompts, and pairs of prompts from two intents."""
        n = len(clusters.codes)
        member = sparse.csr_array(
            (np.ones(n), (np.arange(n), clusters.codes)), shape=(n, clusters.n)
        )
        self._rows, self._columns = (member @ member.T).tocoo().coords
        self._whole = bool(np.all(harmful + harmless == 1))
        self._sets = (harmful, harmless)
        self.sizes = [s.sum(axis=1) for s in self._sets]
        held = [np.asarray(s @ member) for s in self._sets]
        self._pairs = {
            (i, j): self.sizes[i] * self.sizes[j] - np.einsum("dc,dc->d", held[i], held[j])
            for i, j in ((0, 0), (0, 1), (1, 1))
        }

    def sums(self, gram: Float[np.ndarray, "prompt prompt"]) -> list[FloatArray]:
        """Both sets' sums of the rows of a Gram matrix, ``[draw prompt]`` each."""
        harmful, harmless = self._sets
        first = harmful @ gram
        return [first, gram.sum(axis=0) - first if self._whole else harmless @ gram]

    def difference(self, parts: list[FloatArray]) -> FloatArray:
        """Difference of the two sets' means from their sums."""
        first, second = (p / n[:, None] for p, n in zip(parts, self.sizes, strict=True))
        result: FloatArray = first - second
        return result

    @property
    def weights(self) -> FloatArray:
        """Weight of each prompt in the direction, ``[draw prompt]``."""
        return self.difference(list(self._sets))

    def squares(self, gram: Float[np.ndarray, "prompt prompt"], parts: list[FloatArray]) -> Squares:
        """Product of each draw's direction with itself; ``gram`` symmetric, ``parts`` its sums.

        With the Gram matrix of one model's prompts with the other's, made symmetric, it is the
        product of the two models' directions.
        """
        own = gram[self._rows, self._columns]
        raw = np.zeros(len(self.sizes[0]))
        corrected = np.zeros_like(raw)
        for (i, j), pairs in self._pairs.items():
            sign = 1.0 if i == j else -2.0
            whole = np.einsum("dp,dp->d", parts[i], self._sets[j])
            within = np.einsum(
                "dk,dk,k->d", self._sets[i][:, self._rows], self._sets[j][:, self._columns], own
            )
            raw += sign * whole / (self.sizes[i] * self.sizes[j])
            with np.errstate(invalid="ignore", divide="ignore"):
                corrected += sign * (whole - within) / np.where(pairs > 0.5, pairs, np.nan)
        return Squares(raw=raw, corrected=corrected)


def cosines(cross: FloatArray, first: FloatArray, second: FloatArray) -> FloatArray:
    """Cosines from products, NaN where a square is not positive."""
    with np.errstate(invalid="ignore", divide="ignore"):
        result: FloatArray = cross / np.sqrt(
            np.where(first > 0, first, np.nan) * np.where(second > 0, second, np.nan)
        )
    return result
