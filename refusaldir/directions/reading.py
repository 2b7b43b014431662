"""What can be said of one given direction: its concentration, its noise, and how it transfers.

Its tokens are in `refusaldir.directions.vocabulary`. None of this shows that the model uses the
direction; `refusaldir.directions.effect` does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from refusaldir.directions.estimators import mean_diff
from refusaldir.directions.mean_diff import Direction
from refusaldir.directions.reader import MIN_INTENTS
from refusaldir.directions.separability import auroc, d_prime
from refusaldir.errors import DirectionError
from refusaldir.geometry import cosine, mean_products, project, unit
from refusaldir.records import HARMFUL, HARMLESS, Estimate
from refusaldir.statistics import Clusters, jackknife

if TYPE_CHECKING:
    from refusaldir.directions.vocabulary import Vocabulary

#: Makes a direction of activations, labels and intents; see `refusaldir.directions.estimators`.
EstimatorFn = Callable[
    [NDArray[np.floating[Any]], NDArray[np.int64], Sequence[str]], NDArray[np.float64]
]


@dataclass(frozen=True, kw_only=True)
class TopShare:
    """The largest coordinate of a vector; a share near 1 means one massive activation.

    Attributes:
        index: Which coordinate.
        share: Its share of ``‖v‖²``, raw: sampling noise in the vector is part of it.
    """

    index: int
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"index": self.index, "share": self.share}


@dataclass(frozen=True, kw_only=True)
class SplitHalf:
    """How much of an estimated direction is signal, from two halves of its prompts.

    Attributes:
        cosine: Mean cosine between the directions of two halves.
        lowest: 5th percentile of that cosine over splits (not an interval: splits share prompts).
        highest: 95th percentile.
        reliability: Spearman–Brown, ``2c/(1 + c)`` of the mean cosine c: what the cosine would be
            between directions from two sets as large as all the prompts.
        signal_share: ``‖r‖²* / ‖r‖²`` of the mean difference of all the prompts, the same quantity
            without splitting; None for another estimator.
        repeats: Number of splits.
    """

    cosine: float
    lowest: float
    highest: float
    reliability: float
    signal_share: Estimate | None
    repeats: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "cosine": self.cosine,
            "lowest": self.lowest,
            "highest": self.highest,
            "reliability": self.reliability,
            "signal_share": None if self.signal_share is None else self.signal_share.to_dict(),
            "repeats": self.repeats,
        }


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """How a fixed direction tells the harmful from the harmless prompts of a set.

    Attributes:
        auroc: P(harmful projects higher) + ½ P(equal).
        d_prime: Difference of mean projections in pooled standard deviations.
        n_harmful: Number of harmful prompts.
        n_harmless: Number of harmless prompts.
    """

    auroc: Estimate
    d_prime: Estimate
    n_harmful: int
    n_harmless: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "auroc": self.auroc.to_dict(),
            "d_prime": self.d_prime.to_dict(),
            "n_harmful": self.n_harmful,
            "n_harmless": self.n_harmless,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """Everything found about one direction in one model.

    Attributes:
        direction: The direction read.
        model: Name of the model it was read in.
        top_share: Its largest coordinate.
        vocabulary: Its tokens in that model.
        prompts: Name of the prompt set, if there was one.
        transfer: How it separates that set; None without one, or where it was not held out.
        split_half: How well that set determines a direction at that site, where there was one.
        notes: What limits the figures.
    """

    direction: Direction
    model: str
    top_share: TopShare
    vocabulary: "Vocabulary"
    prompts: str | None = None
    transfer: Transfer | None = None
    split_half: SplitHalf | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, without the vector itself."""
        about = {k: v for k, v in self.direction.to_dict().items() if k != "vector"}
        return {
            "direction": about,
            "model": self.model,
            "top_share": self.top_share.to_dict(),
            "vocabulary": self.vocabulary.to_dict(),
            "prompts": self.prompts,
            "transfer": None if self.transfer is None else self.transfer.to_dict(),
            "split_half": None if self.split_half is None else self.split_half.to_dict(),
            "notes": list(self.notes),
        }


def top_dimension_share(vector: Float[np.ndarray, " d_model"]) -> TopShare:
    """``max_i v_i² / ‖v‖²`` and the i where it is.

    Raises:
        DirectionError: The vector is zero or not finite.
    """
    squares = np.square(unit(vector))
    index = int(np.argmax(squares))
    return TopShare(index=index, share=float(squares[index]))


def split_half(
    x: Float[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    intents: Sequence[str],
    *,
    estimator: EstimatorFn = mean_diff,
    repeats: int = 50,
    seed: int = 0,
    level: float = 0.95,
) -> SplitHalf:
    """Agreement of directions from two halves of the intents, and what it says of the whole.

    With S the squared norm of the true mean difference and N the expected squared norm of the
    noise in its estimate from all the prompts, the cosine of two halves is near ``S/(S + 2N)`` in
    many dimensions. Spearman and Brown (1910) take it to ``S/(S + N)``, which for the mean
    difference is also what ``‖r‖²*/‖r‖²`` estimates (`refusaldir.geometry`): the two should agree.
    It is the cosine to expect of two independent estimates, and its root that with the true
    direction. Without signal every one of them is near 0, and may be below.

    Args:
        x: Activations at one site.
        labels: 0 harmless, 1 harmful.
        intents: Intent of each prompt; halves are of whole intents.
        estimator: What makes a direction.
        repeats: Number of splits.
        seed: Seed of the splits.
        level: Coverage of the interval of ``signal_share`` (cluster jackknife).

    Raises:
        DirectionError: A class has fewer than `MIN_INTENTS` intents, or a half gives no direction.
    """
    clusters = Clusters.of(list(intents), labels)
    held = np.zeros((clusters.n, 2), dtype=np.int64)
    held[clusters.codes, labels] = 1
    if held.sum(axis=0).min() < MIN_INTENTS:
        raise DirectionError(
            "There are too few prompts to split in halves",
            expected=f"at least {MIN_INTENTS} intents of each class",
            got=f"{held[:, HARMFUL].sum()} harmful and {held[:, HARMLESS].sum()} harmless",
        )
    rng = np.random.default_rng(seed)
    cosines = []
    for _ in range(repeats):
        first = _half(held, rng)[clusters.codes]
        pair = [
            estimator(x[rows], labels[rows], [intents[int(i)] for i in np.flatnonzero(rows)])
            for rows in (first, ~first)
        ]
        cosines.append(cosine(*pair))
    mean = float(np.mean(cosines))
    return SplitHalf(
        cosine=mean,
        lowest=float(np.quantile(cosines, 0.05)),
        highest=float(np.quantile(cosines, 0.95)),
        reliability=2 * mean / (1 + mean),
        signal_share=_signal_share(x, labels, clusters, level) if estimator is mean_diff else None,
        repeats=repeats,
    )


def _half(held: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which intents are in the first half; each kind (one class, the other, both) is halved."""
    first = np.zeros(len(held), dtype=np.bool_)
    start = 0
    for kind in np.unique(held, axis=0):
        members = rng.permutation(np.flatnonzero((held == kind).all(axis=1)))
        first[members] = (start + np.arange(len(members))) % 2 == 0
        start += len(members)
    return first


def _signal_share(
    x: Float[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    clusters: Clusters,
    level: float,
) -> Estimate:
    """``‖r‖²* / ‖r‖²`` of the mean difference, with its interval."""
    centred = x - x.mean(axis=0, dtype=np.float64)
    member = np.stack([labels == HARMLESS, labels == HARMFUL]).astype(np.float64)
    sums = np.stack([clusters.sums(centred * here[:, None]) for here in member])
    contrast = np.array([-1.0, 1.0])
    norm = mean_products(sums, np.stack([clusters.sums(here) for here in member])).inner(
        contrast, contrast
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        left = norm.corrected_left / norm.raw_left
    return jackknife(norm.corrected / norm.raw, left, clusters, level=level, bounds=(-np.inf, 1.0))


def transfer(
    direction: Direction,
    x: Float[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    clusters: Clusters,
    *,
    level: float = 0.95,
) -> Transfer:
    """AUROC and d′ of ``x · r̂`` with a direction that these prompts took no part in.

    Args:
        direction: The direction; nothing about it is fitted here, not even its sign.
        x: Activations at its site, of prompts that it was not estimated from.
        labels: 0 harmless, 1 harmful.
        clusters: The prompts by intent.
        level: Coverage of the intervals, which hold for this direction as it is.

    Raises:
        DirectionError: The direction is zero or not finite.
    """
    scores = project(x, direction.vector)
    return Transfer(
        auroc=auroc(scores, labels, clusters, level=level).estimate,
        d_prime=d_prime(scores, labels, clusters, level=level),
        n_harmful=int(np.sum(labels == HARMFUL)),
        n_harmless=int(np.sum(labels == HARMLESS)),
    )
