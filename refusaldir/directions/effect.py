"""What given directions do to a model's refusal score, prompt by prompt.

The same two interventions as in selection (`refusaldir.directions.causal`): the unit direction
ablated everywhere, on harmful prompts; the raw vector added at its own layer, on harmless ones.
All directions go through the model together.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from refusaldir.directions.divergence import distributions, kl_divergence
from refusaldir.directions.mean_diff import Direction
from refusaldir.directions.trials import Trials, variant_scores
from refusaldir.hooks import Ablation, intervene
from refusaldir.models.bridge import HookedModel
from refusaldir.refusal_score import refusal_scores
from refusaldir.variants import Variants


@dataclass(frozen=True, kw_only=True, eq=False)
class Effects:
    """Refusal scores of one model, in nats.

    Attributes:
        clean_harmful: Harmful prompts, nothing changed.
        clean_harmless: Harmless prompts, nothing changed.
        ablated: By direction, harmful prompts with it ablated.
        added: By direction, harmless prompts with it added.
    """

    clean_harmful: Float[np.ndarray, " harmful"]
    clean_harmless: Float[np.ndarray, " harmless"]
    ablated: Mapping[str, Float[np.ndarray, " harmful"]]
    added: Mapping[str, Float[np.ndarray, " harmless"]]


def effects(
    model: HookedModel,
    directions: Mapping[str, Direction],
    *,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    refusal_tokens: Collection[int],
) -> Effects:
    """Score prompts with each direction ablated and added.

    Args:
        model: The model, which need not be the one that the directions come from.
        directions: By name, all at resid_pre.
        harmful: Token ids of rendered harmful prompts.
        harmless: Token ids of rendered harmless prompts.
        refusal_tokens: Token ids that begin a refusal.

    Raises:
        DirectionError: A direction is zero or not finite.
        ProbeError: No refusal token, one outside the vocabulary, or scores that are not finite.
        CaptureError: A single prompt does not fit in memory.
    """
    names = tuple(directions)
    vectors = [torch.from_numpy(np.asarray(directions[name].vector)) for name in names]
    for name in names:
        _ = directions[name].unit  # raises where there is none
    trials = Trials(model, [*harmful, *harmless])

    def scores(prompts: Sequence[Sequence[int]], variants: Variants) -> dict[str, np.ndarray]:
        # In order of length: a batch then wastes little on padding.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found = variant_scores(
            variants, range(len(names)), [prompts[i] for i in order], refusal_tokens
        )
        table = np.empty((len(names), len(prompts)))
        table[:, order] = found.T.cpu().numpy()
        return dict(zip(names, table, strict=True))

    return Effects(
        clean_harmful=refusal_scores(model, harmful, refusal_tokens),
        clean_harmless=refusal_scores(model, harmless, refusal_tokens),
        ablated=scores(harmful, trials.ablated(vectors)),
        added=scores(
            harmless, trials.added(vectors, [directions[name].site.layer for name in names])
        ),
    )


def random_directions(
    x: Float[np.ndarray, "prompt d_model"],
    labels: Sequence[int] | np.ndarray,
    like: Direction,
    *,
    count: int,
    seed: int = 0,
) -> tuple[Direction, ...]:
    """Covariance-matched random directions: what prompts differ by that is not harm.

    Each is a Gaussian combination of within-class deviations, so that its expected outer product
    is proportional to the within-class covariance of the activations; the norm is that of
    ``like``.

    Args:
        x: Activations at the direction's site.
        labels: 0 harmless, 1 harmful.
        like: The direction to match in norm and site.
        count: How many.
        seed: Seed of the draws.
    """
    y = np.asarray(labels)
    centred = np.asarray(x, dtype=np.float64).copy()
    for label in np.unique(y):
        centred[y == label] -= centred[y == label].mean(axis=0)
    draws = np.random.default_rng(seed).standard_normal((count, len(centred))) @ centred
    return tuple(
        Direction(
            vector=draw * (like.norm / np.linalg.norm(draw)),
            site=like.site,
            estimator="random",
            n_harmful=like.n_harmful,
            n_harmless=like.n_harmless,
            provenance=like.provenance,
        )
        for draw in draws
    )


@dataclass(frozen=True, kw_only=True)
class SubspaceEffect:
    """What ablating a subspace does, in the terms of selection.

    Attributes:
        bypass: Mean refusal score of harmful prompts with it ablated; None without tokens.
        kl: Mean KL(clean ‖ ablated) in nats of the next token of harmless prompts.
    """

    bypass: float | None
    kl: float


def subspace_effect(
    model: HookedModel,
    basis: Float[np.ndarray, "k d_model"],
    *,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    refusal_tokens: Collection[int],
) -> SubspaceEffect:
    """Ablate a whole subspace where selection ablates one direction.

    Args:
        model: The model.
        basis: Orthonormal rows.
        harmful: Token ids of rendered harmful prompts.
        harmless: Token ids of rendered harmless prompts.
        refusal_tokens: Token ids that begin a refusal; may be empty.

    Raises:
        DirectionError: The rows are not independent.
        CaptureError: A single prompt does not fit in memory.
    """
    gone = Ablation.of(torch.from_numpy(np.asarray(basis)))
    trials = Trials(model, harmless)
    bypass = None
    with intervene(model, gone):
        if refusal_tokens:
            bypass = float(refusal_scores(model, harmful, refusal_tokens).mean())
        changed = distributions(trials.clean(), harmless)
    clean = distributions(trials.clean(), harmless)
    return SubspaceEffect(bypass=bypass, kl=float(kl_divergence(clean, changed).mean()))
