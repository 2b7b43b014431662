"""Prompts by hazard category, ready for estimates in which no intent meets itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from refusaldir.directions.mean_diff import class_means
from refusaldir.directions.reader import MIN_INTENTS
from refusaldir.errors import DirectionError
from refusaldir.records import HARMFUL, HARMLESS
from refusaldir.statistics import Clusters

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class CategorySample:
    """The prompts of the categories that hold enough intents, in coordinates of their span.

    Attributes:
        names: Categories, sorted.
        left_out: Categories with too few intents of a class, sorted.
        kept: Index of each prompt kept.
        x: Centred activations, in an orthonormal basis of their span when that is smaller than
            d_model; float64.
        arms: ``2·category + label`` of each prompt.
        clusters: Intents of the prompts kept, for intervals.
        dealt: The same intents, stratified by the arms they hold, for dealing into parts.
    """

    names: tuple[str, ...]
    left_out: tuple[str, ...]
    kept: Int[np.ndarray, " prompt"]
    x: Float[np.ndarray, "prompt span"]
    arms: Int[np.ndarray, " prompt"]
    clusters: Clusters
    dealt: Clusters

    def weights(
        self, part: NDArray[np.bool_] | None = None
    ) -> Float[np.ndarray, "category prompt"]:
        """Matrix that takes activations to the mean differences of a part of the prompts.

        Rows of a category that lacks a class in the part are NaN.
        """
        here = np.ones(len(self.arms), dtype=np.bool_) if part is None else part
        counts = np.bincount(self.arms[here], minlength=2 * len(self.names)).astype(np.float64)
        with np.errstate(divide="ignore"):
            size = np.where(counts > 0, 1 / counts, np.nan)[self.arms]
        out = np.zeros((len(self.names), len(self.arms)))
        sign = np.where(self.arms % 2 == HARMFUL, 1.0, -1.0)
        out[self.arms // 2, np.arange(len(self.arms))] = np.where(here, sign * size, 0.0)
        out[np.any(counts.reshape(-1, 2) == 0, axis=1)] = np.nan
        return out


def category_sample(
    x: Float[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    categories: Sequence[str],
    intents: Sequence[str],
) -> CategorySample:
    """Keep the categories with at least `MIN_INTENTS` harmful and as many harmless intents.

    Raises:
        DirectionError: Sizes do not agree, an activation is not finite, labels are not 0 and 1,
            or fewer than two categories are left.
    """
    if not len(x) == len(categories) == len(intents):
        raise DirectionError(
            "each prompt needs one category and one intent",
            expected=f"{len(x)} of each",
            got=f"{len(categories)} categories and {len(intents)} intents",
        )
    if not np.all(np.isfinite(x)):
        raise DirectionError("activations are not finite", next_step="Extract again in float32")
    class_means(x, labels)  # both classes, and no other label
    intent_of, category_of = np.array(intents, dtype=object), np.array(categories, dtype=object)
    names: list[str] = []
    left_out: list[str] = []
    for name in sorted(set(categories)):
        fewest = min(
            len(set(intent_of[(category_of == name) & (labels == label)]))
            for label in (HARMLESS, HARMFUL)
        )
        (names if fewest >= MIN_INTENTS else left_out).append(name)
    if len(names) < 2:
        raise DirectionError(
            "directions by category need at least two categories with enough prompts",
            expected=f"{MIN_INTENTS} harmful and {MIN_INTENTS} harmless intents in each",
            got=f"{len(names)} such categories of {len(names) + len(left_out)}",
            next_step="Use a prompt set whose harmless prompts carry categories, or merge some",
        )
    index = {name: i for i, name in enumerate(names)}
    kept = [i for i, name in enumerate(categories) if name in index]
    arms = np.array([2 * index[categories[i]] + int(labels[i]) for i in kept], dtype=np.int64)
    clusters = Clusters.of([intents[i] for i in kept], arms)
    held = np.zeros((clusters.n, 2 * len(names)), dtype=np.int64)
    held[clusters.codes, arms] = 1
    strata = np.unique(held, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    values = x[kept].astype(np.float64)
    values -= values.mean(axis=0)
    if values.shape[1] > len(values):  # inner products are all that follows needs
        values = np.ascontiguousarray(np.linalg.qr(values.T)[1].T)
    return CategorySample(
        names=tuple(names),
        left_out=tuple(left_out),
        kept=np.array(kept, dtype=np.int64),
        x=values,
        arms=arms,
        clusters=clusters,
        dealt=Clusters(names=clusters.names, codes=clusters.codes, strata=strata),
    )
