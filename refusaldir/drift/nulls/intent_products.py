"""Products between intents of what each adds to a change of the refusal direction."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from refusaldir.drift.contrasts import Design
from refusaldir.records import HARMFUL, HARMLESS

FloatArray = NDArray[np.float64]


class IntentProducts:
    """The pairs of class and intent that hold prompts, and products of r between intents.

    ``sign`` is + for harmful; ``weight`` the number of prompts of the cell's class.
    """

    def __init__(self, design: Design) -> None:
        """Index the cells; the same at every site."""
        counts = design.counts[:2]
        label, self.cluster = np.nonzero(counts)
        self.clusters = design.clusters.n
        self._held = np.flatnonzero(counts)
        self.size: FloatArray = counts[label, self.cluster]
        self.sign = np.where(label == HARMFUL, 1.0, -1.0)
        totals = counts.sum(axis=1)
        self.weight: FloatArray = totals[label]
        own = counts @ counts.T
        pairs = np.outer(totals, totals) - own  # pairs of prompts from two intents
        same = self.cluster[:, None] == self.cluster[None, :]
        self._weights: FloatArray = np.where(
            same, 0.0, np.outer(self.sign, self.sign) / pairs[label[:, None], label[None, :]]
        )
        member = (np.ones(len(label)), (self.cluster, np.arange(len(label))))
        self._member = sparse.csr_array(member, shape=(self.clusters, len(label)))
        shares = counts / totals[:, None]
        #: Whether a change common to all prompts cancels in every intent.
        self.balanced = bool(np.allclose(shares[HARMFUL], shares[HARMLESS], rtol=0, atol=1e-12))

    def gather(self, sums: FloatArray) -> FloatArray:
        """Sums ``[2, cluster, d_model]`` of the cells that hold prompts, ``[cell d_model]``."""
        return np.ascontiguousarray(sums.reshape(-1, sums.shape[-1])[self._held])

    def total(self, gram: FloatArray) -> float:
        """Unbiased square of the contrast from the cells' Gram matrix."""
        return float(np.sum(self._weights * gram))

    def shifted(self, gram: FloatArray, along: FloatArray, limit: float) -> FloatArray:
        """Gram matrix once harmful prompts lose Δ₀/2 and harmless ones gain it.

        ``along`` holds the cells' products with Δ₀, ``limit`` its norm.
        """
        step = self.sign * self.size / 2
        return (
            gram - np.outer(step, along) - np.outer(along, step) + limit**2 * np.outer(step, step)
        )

    def contributions(self, along: FloatArray, limit: float) -> FloatArray:
        """What each intent adds to Δ₀ · (Δ̂ − Δ₀), a common change left out, ``[cluster]``."""
        rest = along - self.sign * self.size * limit**2 / 2
        rest -= self.size * (rest.sum() / self.size.sum())
        result: FloatArray = self._member @ (self.sign * rest / self.weight)
        return result

    @cached_property
    def _others(self) -> tuple[FloatArray, FloatArray]:
        """For two intents, the number of prompts and of their pairs in all others."""
        n = self._member @ self.size
        return n.sum() - n[:, None] - n[None, :], _elsewhere(np.outer(n, n))

    def products(self, gram: FloatArray) -> FloatArray:
        """``D`` between intents from the cells' Gram matrix, ``[cluster cluster]``, diagonal 0."""
        if not self.balanced:
            gram = self._without_common(gram)
        half = self._member @ (self._weights * gram)
        result: FloatArray = (self._member @ half.T).T
        return result

    def _without_common(self, gram: FloatArray) -> FloatArray:
        """Products of ``s − n m``, m the mean change in the intents that neither cell is of."""
        prompts, pairs = self._others
        c = self.cluster
        with_intent = (self._member @ gram.T).T  # [cell cluster], products with an intent's sum
        between = self._member @ with_intent
        at = np.ix_(c, c)
        own = with_intent[np.arange(len(c)), c]
        rest = (with_intent.sum(axis=1) - own)[:, None] - with_intent[:, c]
        with np.errstate(invalid="ignore", divide="ignore"):  # within an intent: not used
            mean = rest / prompts[at]
            square = _elsewhere(between)[at] / pairs[at]
            result = (
                gram
                - self.size[None, :] * mean
                - self.size[:, None] * mean.T
                + np.outer(self.size, self.size) * square
            )
        return np.where(c[:, None] == c[None, :], 0.0, result)


def _elsewhere(products: FloatArray) -> FloatArray:
    """Sum over pairs of distinct intents that are neither of two given ones."""
    off = products - np.diag(np.diag(products))
    rows = off.sum(axis=1)
    result: FloatArray = off.sum() - 2 * (rows[:, None] + rows[None, :]) + 2 * off
    return result
