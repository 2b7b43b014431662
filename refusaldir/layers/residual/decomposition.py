"""Which attention and MLP outputs moved the projection on a direction: an exact decomposition.

The residual stream is a sum, so with u a fixed unit vector, b and t the base and the tuned model::

    u·(xᵗ − xᵇ) = u·Δembed + Σ_j u·Δattn_j + Σ_j u·Δmlp_j

over the layers before the readout site (direct contributions: Elhage et al. 2021, "A
Mathematical Framework for Transformer Circuits"). Averaged over harmful prompts, over harmless
prompts, and as the difference of the two, which is how much longer the difference of means has
become along u, and by which component.

It says where the change *enters* the stream, not where weights changed: a component whose weights
are as before answers to a changed input and contributes as well. Only what comes first is free
of that. Nor is it causal: a later component may undo what an earlier one wrote.

Attention is a sum over heads in turn, see `refusaldir.layers.residual.heads`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refusaldir.layers.residual.class_means import BandedByClass, ByClass, ClassMeans
from refusaldir.layers.residual.closing import Closing, check_closing
from refusaldir.layers.residual.components import Contributions, check_comparable
from refusaldir.records import HARMFUL, HARMLESS, Site
from refusaldir.statistics import Clusters

__all__ = ["Contributions", "HeadDecomposition", "ResidualDecomposition", "Term", "decompose"]


@dataclass(frozen=True, kw_only=True)
class Term(BandedByClass):
    """Mean change from base to tuned, in residual norm along u.

    The difference, harmful less harmless, is what it adds to the direction along u.

    Attributes:
        component: ``"embed"``, ``"attn"`` or ``"mlp"``; in the cumulative curve ``"resid_pre"``;
            ``"attn_bias"`` for the bias of an output projection.
        layer: Block index; None for the embedding.
        head: Index of the attention head; None for what is no single head.
    """

    component: str
    layer: int | None
    head: int | None = None


@dataclass(frozen=True, kw_only=True)
class HeadDecomposition:
    """The change of the attention terms, taken apart by head.

    Attributes:
        terms: Every head of every layer; bands hold over all of them.
        bias: Of the output projections that have a bias, with bands over these.
        closing: By how much the heads and the bias of a layer miss its attention, at one prompt.
    """

    terms: tuple[Term, ...]
    bias: tuple[Term, ...]
    closing: Closing


@dataclass(frozen=True, kw_only=True)
class ResidualDecomposition:
    """The change at the readout, taken apart.

    Attributes:
        site: The readout.
        terms: Every component's part, in the order of the forward pass.
        cumulative: Change of the stream at each block's input, the running sum of the terms; for
            ``resid_post`` up to the input of what follows.
        total: Change of the projection measured at the readout.
        base: The projection itself in base, to hold the changes against. Along a u made from
            these very prompts its difference is biased upwards.
        closing: By how much the terms miss the total.
        n_harmful: Number of harmful prompts.
        n_harmless: Number of harmless prompts.
        level: Nominal coverage, of each interval and of each band as a whole.
        heads: The attention terms by head, if they were collected.
    """

    site: Site
    terms: tuple[Term, ...]
    cumulative: tuple[Term, ...]
    total: ByClass
    base: ByClass
    closing: Closing
    n_harmful: int
    n_harmless: int
    level: float
    heads: HeadDecomposition | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        out = asdict(self)
        for part in filter(None, (out, out["heads"])):
            part.update({k: list(v) for k, v in part.items() if isinstance(v, tuple)})
        return out


def decompose(
    base: Contributions,
    tuned: Contributions,
    labels: ArrayLike,
    clusters: Clusters,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> ResidualDecomposition:
    """Take the change of a projection apart into what the components contribute.

    The direction is taken as given: its own noise is in no interval. Bands hold over the
    components (or over the layers of the cumulative curve) of one class or of the difference, not
    over these three together.

    Args:
        base: Of the base model.
        tuned: Of the tuned model, on the same prompts, direction and site.
        labels: 0 harmless, 1 harmful, ``[prompt]``.
        clusters: The prompts' independent clusters, e.g. by intent.
        level: Nominal coverage.
        seed: Seed of the bands' multiplier bootstrap.

    Returns:
        The decomposition, by head as well where both models' heads were collected.

    Raises:
        CaptureMismatchError: The two are not of the same prompts, direction and site, one has
            heads and the other has not, or labels or clusters are not those of the prompts.
        PromptError: A class has no prompt.
        CaptureError: The parts do not add up to the whole: the closing error is above
            `refusaldir.layers.residual.closing.CLOSING` and above the rounding of the stream.
    """
    y = np.asarray(labels)
    check_comparable(base, tuned, y, clusters)
    changes = tuned.terms - base.terms
    total = tuned.resid.astype(np.float64) - base.resid
    closing = check_closing(
        changes,
        total,
        np.hypot(base.rounding, tuned.rounding),
        of="The contributions do not add up to the change of the residual stream",
        where=lambda prompt: f"{base.site}, prompt {prompt}",
        next_step="The blocks of this model do something between their hook points; leave the "
        "decomposition out",
    )
    means = ClassMeans(y, clusters, level=level, seed=seed)
    # Column k of the running sum is the stream after the first k + 1 terms.
    inputs = [0, *(i for i, (name, _) in enumerate(base.names) if name == "mlp")]
    running = np.cumsum(changes, axis=1)[:, inputs]
    kinds = [("resid_pre", layer, None) for layer in range(len(inputs))]
    names = [(component, layer, None) for component, layer in base.names]
    return ResidualDecomposition(
        site=base.site,
        terms=_terms(means, names, changes, "components"),
        cumulative=_terms(means, kinds, running, "layers"),
        total=means.of(total),
        base=means.of(base.resid.astype(np.float64)),
        closing=closing,
        n_harmful=int((y == HARMFUL).sum()),
        n_harmless=int((y == HARMLESS).sum()),
        level=level,
        heads=_by_head(base, tuned, means),
    )


def _by_head(
    base: Contributions, tuned: Contributions, means: ClassMeans
) -> HeadDecomposition | None:
    if base.heads is None or tuned.heads is None:
        return None
    changes = tuned.heads.values - base.heads.values
    bias = tuned.heads.bias - base.heads.bias
    n, layers, heads = changes.shape
    closing = check_closing(
        np.concatenate([changes, bias[:, :, None]], axis=2).reshape(n * layers, heads + 1),
        (tuned.attn.astype(np.float64) - base.attn).reshape(n * layers),
        np.hypot(base.heads.rounding, tuned.heads.rounding).reshape(n * layers),
        of="The heads do not add up to the change of the attention output",
        where=lambda unit: f"layer {unit % layers}, prompt {unit // layers}",
        next_step="Something changes what the output projection writes (8-bit activations, a hook "
        "on attn_out); leave the heads out",
    )
    names = [("attn", layer, head) for layer in range(layers) for head in range(heads)]
    biased = np.flatnonzero(((base.heads.bias != 0) | (tuned.heads.bias != 0)).any(axis=0))
    biases = [("attn_bias", int(layer), None) for layer in biased]
    return HeadDecomposition(
        terms=_terms(means, names, changes.reshape(n, layers * heads), "heads"),
        bias=_terms(means, biases, bias[:, biased], "biases"),
        closing=closing,
    )


def _terms(
    means: ClassMeans,
    names: Sequence[tuple[str, int | None, int | None]],
    values: NDArray[np.float64],
    of: str,
) -> tuple[Term, ...]:
    figures = means.banded(values, f"over {len(names)} {of}")
    return tuple(
        Term(
            component=component,
            layer=layer,
            head=head,
            harmful=figure.harmful,
            harmless=figure.harmless,
            difference=figure.difference,
        )
        for (component, layer, head), figure in zip(names, figures, strict=True)
    )
