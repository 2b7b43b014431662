"""Random subspaces that hold as much of base's variance as the refusal subspace does.

A direction along which base varies much catches more of almost any change. Random directions
that are to be compared with refusal's must therefore vary as much as refusal's, within the
classes and on prompts that did not make them. A draw is

    v = (c I + S) h,    h standard normal, c ≥ 0, S base's pooled within-class covariance,

with S shrunk (Ledoit & Wolf): isotropic where c dominates, drawn to the axes of large variance
where S does. c is set so that the held-out variance along draws equals that along refusal's axes.

Everything is cross-fitted over parts of whole intents. The subspace that measures a part is made
from the other parts, about *their* class means, so that no prompt's noise defines the subspace it
is measured in. This holds for refusal's subspace and for the random ones alike; without it the
own noise of n prompts shows as a share of 1/n along every random direction, whatever d_model.
All parts share h: a random direction is nearly the same in every part, as refusal's is. Draws
``W'g`` of the same covariance, ``W`` the prompts about their means, would differ from part to
part, and averaging over the parts would make them look more alike than directions are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int
from numpy.typing import NDArray
from scipy import optimize

from refusaldir.directions.shrinkage import ledoit_wolf
from refusaldir.records import HARMFUL, HARMLESS
from refusaldir.statistics import Clusters

FloatArray = NDArray[np.float64]

#: Most parts of the prompts.
_PARTS = 4

#: Draws that the tilt is found with.
_PILOT = 256

#: Values of one block of draws, all parts together.
_BLOCK = 8_000_000


def parts_of(
    labels: Int[np.ndarray, " prompt"], clusters: Clusters, fold: Int[np.ndarray, " prompt"]
) -> Int[np.ndarray, " prompt"] | None:
    """Join folds to at most four parts with two intents of each class or more in each.

    Returns:
        The part of each prompt; None when there are too few intents for two such parts.
    """
    for k in range(min(_PARTS, int(fold.max()) + 1), 1, -1):
        part = fold % k
        fewest = min(
            len(np.unique(clusters.codes[(part == p) & (labels == label)]))
            for p in range(k)
            for label in (HARMLESS, HARMFUL)
        )
        if fewest >= 2:
            return part
    return None


@dataclass(frozen=True, kw_only=True)
class Tilt:
    """How draws are made, and what variance they hold.

    Attributes:
        identity: Weight of h.
        covariance: Weight of ``W'W h``.
        variance: Mean share of base's within-class variance along one draw, held out.
    """

    identity: float
    covariance: float
    variance: float


def tilt(
    x: Float32[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    part: Int[np.ndarray, " prompt"],
    wanted: float,
) -> Tilt | None:
    """Weights that make draws hold a wanted share of the variance, or come nearest to it.

    Args:
        x: Base's activations from an origin near their mean, float32.
        labels: 0 harmless, 1 harmful.
        part: Part of each prompt.
        wanted: Held-out share of the within-class variance along one axis.

    Returns:
        The weights; None where base has no spread within the classes.
    """
    gram = (x @ x.T).astype(np.float64)
    size = float(np.trace(gram))  # keeps both weights near 1
    if not size > 0:
        return None
    h = np.random.default_rng(0).standard_normal((_PILOT, x.shape[1]), dtype=np.float32)
    scores = (h @ x.T).astype(np.float64)
    # Per part and draw, forms in the weights of h and W'Wh: variance held out, squared norm.
    seen, length = np.zeros((2, int(part.max()) + 1, _PILOT, 2, 2))
    total = 0.0
    for p in range(len(seen)):
        inside, outside = np.flatnonzero(part == p), np.flatnonzero(part != p)
        own, other = _centring(labels[inside]), _centring(labels[outside])
        cross = other @ gram[np.ix_(outside, inside)] @ own / size
        square = other @ gram[np.ix_(outside, outside)] @ other / size
        made = scores[:, outside] @ other
        along = np.stack([scores[:, inside] @ own, made @ cross], axis=1)
        seen[p] = along @ along.transpose(0, 2, 1)
        once = np.einsum("dp,dp->d", made, made) / size
        length[p] = np.stack(
            [np.einsum("dk,dk->d", h, h, dtype=np.float64), once,
             once, np.einsum("dp,pq,dq->d", made, square, made, optimize=True) / size],
            axis=1,
        ).reshape(-1, 2, 2)  # fmt: skip
        total += float(np.sum(own * gram[np.ix_(inside, inside)]))
    norms = length.mean(axis=(0, 1))
    if not (total > 0 and norms[1, 1] > 0):
        return None
    within = np.concatenate([x[labels == y] - x[labels == y].mean(axis=0) for y in (0, 1)])
    shrunk = ledoit_wolf(within)
    ends = np.array([[1.0, 0.0], [shrunk * norms[0, 1] / norms[0, 0], 1 - shrunk]])
    ends /= np.sqrt(np.einsum("ei,ij,ej->e", ends, norms, ends))[:, None]

    def mixed(t: float) -> tuple[FloatArray, float]:
        weights = np.array([1 - t, t]) @ ends
        inside, norm = (np.einsum("i,pdij,j->pd", weights, m, weights) for m in (seen, length))
        return weights, float(np.sum(inside / norm, axis=0).mean()) / total

    low, high = mixed(0.0)[1], mixed(1.0)[1]
    if low < wanted < high:
        t = float(optimize.brentq(lambda t: mixed(t)[1] - wanted, 0.0, 1.0, xtol=1e-6))
    else:
        t = 1.0 if wanted >= high > low else 0.0
    weights, variance = mixed(t)
    return Tilt(identity=float(weights[0]), covariance=float(weights[1]) / size, variance=variance)


def _centring(labels: Int[np.ndarray, " prompt"]) -> FloatArray:
    """Projection that takes out the mean of each class."""
    member = (labels[:, None] == np.unique(labels)[None, :]).astype(np.float64)
    projection: FloatArray = np.eye(len(labels)) - member @ (member / member.sum(axis=0)).T
    return projection


def draw_blocks(
    x: Float32[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    part: Int[np.ndarray, " prompt"],
    mix: Tilt,
    rows: int,
    *,
    group: int,
    seed: int,
) -> Iterator[Float32[np.ndarray, "part draw d_model"]]:
    """Random vectors for each part, in blocks of whole groups; not of unit norm.

    The same seed gives the same h at every layer, so that a draw is one direction followed
    through the layers, as refusal's is.
    """
    k, d = int(part.max()) + 1, x.shape[1]
    step = group * max(1, _BLOCK // (group * d * (k + 2)))
    outside = np.stack([part != p for p in range(k)])
    for start in range(0, rows, step):
        rng = np.random.default_rng([seed, start])
        h = rng.standard_normal((min(step, rows - start), d), dtype=np.float32)
        weights = np.float32(mix.covariance) * (h @ x.T)
        pieces = np.stack([weights[:, part == p] @ x[part == p] for p in range(k)])
        vectors = pieces.sum(axis=0) - pieces
        for label in (HARMLESS, HARMFUL):  # take the class means outside of each part out
            members = (outside & (labels == label)).astype(np.float32)
            mean_weight = weights @ (members / members.sum(axis=1, keepdims=True)).T
            vectors -= mean_weight.T[..., None] * (members @ x)[:, None]
        vectors += np.float32(mix.identity) * h
        yield vectors


def held_variance(
    x: FloatArray,
    labels: Int[np.ndarray, " prompt"],
    part: Int[np.ndarray, " prompt"],
    bases: list[FloatArray],
) -> float:
    """Share of the within-class variance inside each part's subspace, part by part."""
    inside = total = 0.0
    for p, basis in enumerate(bases):
        for label in (HARMLESS, HARMFUL):
            rows = x[(part == p) & (labels == label)]
            rows = rows - rows.mean(axis=0)
            inside += float(np.sum((rows @ basis.T) ** 2))
            total += float(np.sum(rows**2))
    return inside / total if total > 0 else 0.0


def orthonormal_scores(vectors: NDArray[np.float32], scores: FloatArray, k: int) -> FloatArray:
    """Scores along an orthonormal basis of each group of k vectors, given those along them."""
    if k == 1:
        norms: FloatArray = np.linalg.norm(vectors.astype(np.float64), axis=1)
        return scores / norms
    groups = vectors.reshape(-1, k, vectors.shape[1]).astype(np.float64)
    lower = np.linalg.cholesky(groups @ groups.transpose(0, 2, 1))
    stacked = scores.T.reshape(len(groups), k, -1)
    solved: FloatArray = np.linalg.solve(lower, stacked).reshape(len(vectors), -1).T
    return solved
