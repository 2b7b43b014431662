"""Energies of changes along axes that differ from part to part: of prompts and of class means.

An energy is a sum of squares. That of class means comes from products of two different intents
of one class and part, so that noise has none on average; the mean over the pairs of a class,
then the sum over the classes.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse

from refusaldir.drift.contrasts import Design
from refusaldir.records import HARMFUL, HARMLESS

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sums:
    """Energy per axis, and of all axes without each intent."""

    values: FloatArray
    left: FloatArray


class Energies:
    """Energies of scores ``[prompt axis]``: of prompts, and of class means from pairs of intents.

    The pairs are of intents of one part, whose subspace knows neither.

    Args:
        design: Classes and intents.
        part: Part of each prompt.
    """

    def __init__(self, design: Design, part: Int[np.ndarray, " prompt"]) -> None:
        """Count the pairs."""
        self.design, self.part = design, part
        c = design.clusters.n
        counts = design.counts[:2]
        of_cluster = np.zeros(c, dtype=np.int64)
        of_cluster[design.clusters.codes] = part
        inside = (of_cluster[None, :] == np.arange(int(part.max()) + 1)[:, None]).astype(np.float64)
        size = counts @ inside.T  # [2, part]
        self.n_pairs = (size**2 - (counts**2) @ inside.T).sum(axis=1)
        self.n_left = self.n_pairs[:, None] - 2 * counts * (size[:, of_cluster] - counts)
        self.plain: list[FloatArray] = []
        self.pairs: list[FloatArray] = []
        self._block: list[tuple[FloatArray, FloatArray]] = []
        self._left = np.zeros((2, 2, c))  # squares and pair sums per class, summed over axes

    def add(self, p: int, scores: Float[np.ndarray, "prompt axis"]) -> None:
        """Take the scores of part p's prompts."""
        here = np.flatnonzero(self.part == p)
        codes, labels = self.design.clusters.codes[here], self.design.labels[here]
        names, local = np.unique(codes, return_inverse=True)
        total = np.zeros((2, scores.shape[1]))
        squares = scores**2
        for label in (HARMLESS, HARMFUL):
            rows = np.flatnonzero(labels == label)
            shape = (len(names), len(here))
            member = sparse.csr_array((np.ones(len(rows)), (local.reshape(-1)[rows], rows)), shape)
            sums = np.asarray(member @ scores)
            whole = sums.sum(axis=0)
            total[label] = whole**2 - np.sum(sums**2, axis=0)
            self._left[0, label, names] += np.asarray(member @ squares.sum(axis=1))
            self._left[1, label, names] += 2 * np.sum(sums * (whole - sums), axis=1)
        self._block.append((squares.sum(axis=0), total))

    def next_block(self) -> None:
        """End a block of axes: what follows belongs to other axes."""
        if self._block:
            plain, pairs = zip(*self._block, strict=True)
            self.plain.append(np.sum(plain, axis=0))
            self.pairs.append(np.sum(pairs, axis=0))
            self._block = []

    def result(self) -> tuple[Sums, Sums]:
        """Energies of prompts and of class means, per axis, and without each intent."""
        self.next_block()
        plain, pairs = np.concatenate(self.plain), np.concatenate(self.pairs, axis=1)
        pair_total = pairs.sum(axis=1)[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            left = (pair_total - self._left[1]) / np.where(self.n_left > 0, self.n_left, np.nan)
        return (
            Sums(values=plain, left=plain.sum() - self._left[0].sum(axis=0)),
            Sums(values=(pairs / self.n_pairs[:, None]).sum(axis=0), left=left.sum(axis=0)),
        )
