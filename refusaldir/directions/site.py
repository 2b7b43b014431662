"""Choice of a site on the base model alone, by held-out separation.

This is a measurement of *where harmful and harmless prompts are told apart*, not a test that
the direction there causes refusal: a site can separate well and be read by nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from refusaldir.directions.reader import (
    CaptureReader,
    PromptLike,
    clusters_of,
    enough_intents,
    read_layer,
)
from refusaldir.directions.separability import (
    auroc_value,
    d_prime_left,
    fold_means,
    held_out_scores,
)
from refusaldir.errors import DirectionError
from refusaldir.records import HARMFUL, HARMLESS, Positions, Site
from refusaldir.statistics import Clusters

FloatArray = NDArray[np.float64]

#: A difference of means below this share of the activations' RMS norm is float32 rounding.
RESOLUTION = float(np.finfo(np.float32).eps)


#: Share of the depth searched: the last layers prepare output tokens (Arditi et al. 2024, §C).
DEPTH = 0.8


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteChoice:
    """The site chosen on the base model, with the scores of every candidate.

    Attributes:
        site: The site chosen.
        layers: Layers scored, in order.
        positions: Positions scored.
        d_prime: Held-out d′, ``[layer pos]``; 0 where there is no signal.
        auroc: Held-out AUROC, ``[layer pos]``; ½ where there is no signal.
        norm: ``‖μ₁ − μ₀‖`` of the training prompts (raw), ``[layer pos]``.
        signal: False where harmful and harmless activations are the same (the template tokens
            at layer 0), ``[layer pos]``.
        method: How held-out scores were made.
        n_train: Number of prompts behind a direction (the smallest, over folds).
        n_scored: Number of prompts scored.
    """

    site: Site
    layers: tuple[int, ...]
    positions: Positions
    d_prime: Float[np.ndarray, "layer pos"]
    auroc: Float[np.ndarray, "layer pos"]
    norm: Float[np.ndarray, "layer pos"]
    signal: Bool[np.ndarray, "layer pos"]
    method: str
    n_train: int
    n_scored: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; an infinite d′ (no spread at all) becomes None."""
        return {
            "site": {
                "hook": self.site.hook,
                "layer": self.site.layer,
                "position": self.site.position,
            },
            "layers": list(self.layers),
            "positions": {
                "offsets": list(self.positions.offsets),
                "labels": list(self.positions.labels),
            },
            "d_prime": [
                [float(v) if np.isfinite(v) else None for v in row] for row in self.d_prime
            ],
            "auroc": self.auroc.tolist(),
            "norm": self.norm.tolist(),
            "signal": self.signal.tolist(),
            "method": self.method,
            "n_train": self.n_train,
            "n_scored": self.n_scored,
        }


def has_signal(
    x: Float[np.ndarray, "prompt d_model"], difference: Float[np.ndarray, " d_model"]
) -> bool:
    """Whether a difference of means is more than float32 rounding of the activations."""
    rms = float(np.sqrt(np.einsum("pd,pd->", x, x, dtype=np.float64) / len(x)))
    return float(np.linalg.norm(difference)) > RESOLUTION * rms


def choose_site(
    base: CaptureReader,
    hook: str,
    *,
    positions: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    folds: int = 10,
    seed: int = 0,
) -> SiteChoice:
    """Choose the site of the base model that best separates harmful from harmless, held out.

    Directions come from the train split and are scored on the validation split; without such
    splits (at least four intents of each class in both) they are cross-fitted over folds of
    whole intents. The site with the largest d′ wins; equal d′ (to nine digits) is settled by
    AUROC, then by norm, then by the earlier layer.

    Args:
        base: Capture of the base model; the tuned model must never take part.
        hook: Hook point to search.
        positions: Offsets to search; by default those after the instruction.
        layers: Layers to search; by default those captured in the first `DEPTH` of the model, and
            the rest only where those carry no signal.
        folds: Largest number of folds.
        seed: Seed of the assignment of intents to folds.

    Returns:
        The site and the table of scores over layers × positions.

    Raises:
        DirectionError: When hook, layer or position was not captured, a class is too small, or
            no site carries any signal.
    """
    groups = (tuple(sorted(positions)) if positions else base.positions.post,)
    (choice,) = choose_sites(base, hook, groups, layers=layers, folds=folds, seed=seed)
    if choice is None:
        raise no_signal(hook, base.layers if layers is None else sorted(layers))
    return choice


def no_signal(hook: str, layers: Sequence[int]) -> DirectionError:
    """The error for captures in which the two classes are the same everywhere."""
    return DirectionError(
        "no site carries any signal: harmful and harmless activations are the same",
        where=f"{hook}, layers {layers[0]} to {layers[-1]}",
        next_step="Capture more layers, or check the prompt set and its labels",
    )


def choose_sites(
    base: CaptureReader,
    hook: str,
    groups: Sequence[tuple[int, ...]],
    *,
    layers: Sequence[int] | None = None,
    folds: int = 10,
    seed: int = 0,
) -> tuple[SiteChoice | None, ...]:
    """Choose the best site within each group of positions, reading the capture once.

    Args:
        base: As in `choose_site`.
        hook: As in `choose_site`.
        groups: Ascending offsets of each group.
        layers: As in `choose_site`.
        folds: As in `choose_site`.
        seed: As in `choose_site`.

    Returns:
        The choice in each group; None where no site of a group carries any signal.

    Raises:
        DirectionError: When hook, layer or position was not captured, or a class is too small.
    """
    wanted = tuple(sorted(set().union(*groups)))
    limit = int(DEPTH * base.provenance.model.n_layers)
    early = tuple(layer for layer in base.layers if layer < limit) or tuple(base.layers)
    chosen_layers = early if layers is None else tuple(sorted(layers))
    for name, asked, there in (
        ("hook", (hook,), tuple(base.hooks)),
        ("layer", chosen_layers, tuple(base.layers)),
        ("position", wanted, base.positions.offsets),
    ):
        if not asked or not set(asked) <= set(there):
            raise DirectionError(f"a {name} was not captured", expected=there, got=asked)
    labels = np.asarray(base.labels)
    prompts = list(base.prompts)
    clusters = clusters_of(prompts, labels)
    plan = _plan(prompts, labels, clusters, folds, seed)
    columns = [base.positions.offsets.index(p) for p in wanted]

    shape = (len(chosen_layers), len(columns))
    d_prime, norm = np.zeros(shape), np.zeros(shape)
    auroc, signal = np.full(shape, 0.5), np.zeros(shape, dtype=np.bool_)
    for row, layer in enumerate(chosen_layers):
        values = read_layer(base, hook, layer)
        for column, index in enumerate(columns):
            x = values[:, index].astype(np.float64)
            cell = plan.score(x)
            if cell is not None:
                signal[row, column] = True
                d_prime[row, column], auroc[row, column], norm[row, column] = cell
    choices: list[SiteChoice | None] = []
    for group in groups:
        here = [wanted.index(p) for p in group]
        table = SiteChoice(
            site=Site(hook=hook, layer=chosen_layers[0], position=group[0]),
            layers=chosen_layers,
            positions=Positions(
                offsets=group, labels=tuple(base.positions.labels[columns[i]] for i in here)
            ),
            d_prime=d_prime[:, here],
            auroc=auroc[:, here],
            norm=norm[:, here],
            signal=signal[:, here],
            method=plan.method,
            n_train=plan.n_train,
            n_scored=len(plan.labels),
        )
        if table.signal.any():
            choices.append(replace(table, site=_best(table, hook)))
        elif layers is None and early != tuple(base.layers):
            deep = choose_sites(base, hook, (group,), layers=base.layers, folds=folds, seed=seed)
            choices.extend(deep)
        else:
            choices.append(None)
    return tuple(choices)


def _best(table: SiteChoice, hook: str) -> Site:
    """The site with the largest d′, ties settled as `choose_site` says."""
    row, column = min(
        zip(*np.nonzero(table.signal), strict=True),
        key=lambda at: (
            -float(f"{table.d_prime[at]:.9g}"),
            -float(f"{table.auroc[at]:.9g}"),
            -float(f"{table.norm[at]:.9g}"),
            at,
        ),
    )
    return Site(hook=hook, layer=table.layers[row], position=table.positions.offsets[column])


class _Plan:
    """Which prompts make directions and which are scored with them."""

    def __init__(
        self,
        method: str,
        labels: Int[np.ndarray, " prompt"],
        clusters: Clusters,
        *,
        train: NDArray[np.bool_] | None = None,
        scored: NDArray[np.bool_] | None = None,
        fold: NDArray[np.int64] | None = None,
    ) -> None:
        self.method, self.train, self.scored, self.fold = method, train, scored, fold
        self.all_labels = labels
        self.labels = labels if scored is None else labels[scored]
        self.clusters = clusters
        if train is not None:
            self.n_train = int(train.sum())
        else:
            self.n_train = len(labels) - int(np.bincount(fold).max())  # type: ignore[arg-type]

    def score(self, x: FloatArray) -> tuple[float, float, float] | None:
        """Held-out d′ and AUROC, and the norm of the direction; None without signal."""
        if self.fold is None:
            train, y = x[self.train], self.all_labels[self.train]
            means = np.stack([train[y == c].mean(axis=0) for c in (HARMLESS, HARMFUL)])[None]
            held, fold = x[self.scored], np.zeros(len(self.labels), dtype=np.int64)
        else:
            means, held, fold = fold_means(x, self.all_labels, self.fold), x, self.fold
        differences = means[:, 1] - means[:, 0]
        if not all(has_signal(x, difference) for difference in differences):
            return None
        norms = np.linalg.norm(differences, axis=1)
        scores = held_out_scores(held, fold, differences / norms[:, None], means.mean(axis=1))
        value, _ = d_prime_left(scores, self.labels, self.clusters)
        return value, auroc_value(scores, self.labels), float(norms.mean())


def _plan(
    prompts: list[PromptLike],
    labels: Int[np.ndarray, " prompt"],
    clusters: Clusters,
    folds: int,
    seed: int,
) -> _Plan:
    """Train → validation when both splits hold enough intents of both classes, else folds."""
    split = np.array([p.split or "" for p in prompts])
    train, validation = split == "train", split == "validation"
    enough = all(enough_intents(prompts, labels, here) for here in (train, validation))
    shared = set(clusters.codes[train]) & set(clusters.codes[validation])
    if enough and not shared:
        held = Clusters.of(clusters.codes[validation].tolist(), labels[validation])
        return _Plan(
            "direction from the train split, scored on the validation split",
            labels,
            held,
            train=train,
            scored=validation,
        )
    k = fold_count(labels, clusters, folds)
    return _Plan(
        f"cross-fitted over {k} folds of whole intents",
        labels,
        clusters,
        fold=clusters.folds(k, seed),
    )


def fold_count(labels: Int[np.ndarray, " prompt"], clusters: Clusters, most: int) -> int:
    """Number of folds that leaves every class something to train on."""
    fewest = min(len(np.unique(clusters.codes[labels == c])) for c in (HARMLESS, HARMFUL))
    return max(2, min(most, fewest))
