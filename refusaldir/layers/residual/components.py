"""What the components of one model add to the projection on a direction, prompt by prompt."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from refusaldir.errors import CaptureMismatchError, PromptError
from refusaldir.records import HARMFUL, HARMLESS, Site
from refusaldir.statistics import Clusters


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadContributions:
    """What the attention heads of one model add to the projection on a direction.

    In residual norm, prompt by prompt. A layer's heads and its bias add up to its attention.

    Attributes:
        values: Of each head, from its slice of the output projection.
        bias: Of the output projection's bias; 0 where it has none.
        rounding: SD that rounding in the model's dtype may bring into attention less the sum.
    """

    values: Float[np.ndarray, "prompt attn_layer head"]
    bias: Float[np.ndarray, "prompt attn_layer"]
    rounding: Float[np.ndarray, "prompt attn_layer"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Contributions:
    """What every component of one model adds to the projection on a direction, prompt by prompt.

    In residual norm. Attention is counted up to ``attn_layers`` and MLPs up to ``mlp_layers``,
    which differ by one where the readout lies between the two (``resid_mid``).

    Attributes:
        site: The readout; its hook is one of the stream itself.
        direction: The unit vector u, float64.
        rendered_hash: Hash of the prompts' token ids.
        embed: Projection of what enters the first block, position embeddings and all.
        attn: Projection of each layer's attention output.
        mlp: Projection of each layer's MLP output.
        resid: Projection of the stream at the readout, measured there and not summed.
        rounding: SD that rounding of the stream, in the model's dtype, may bring into ``resid``
            less the sum of the others.
        heads: Attention by head, if asked for.
    """

    site: Site
    direction: Float[np.ndarray, " d_model"]
    rendered_hash: str
    embed: Float[np.ndarray, " prompt"]
    attn: Float[np.ndarray, "prompt attn_layer"]
    mlp: Float[np.ndarray, "prompt mlp_layer"]
    resid: Float[np.ndarray, " prompt"]
    rounding: Float[np.ndarray, " prompt"]
    heads: HeadContributions | None = None

    @property
    def names(self) -> tuple[tuple[str, int | None], ...]:
        """Component and layer of each column of `terms`: embedding, then as a block adds them."""
        each = [
            (name, layer)
            for layer in range(self.attn.shape[1])
            for name, array in (("attn", self.attn), ("mlp", self.mlp))
            if layer < array.shape[1]
        ]
        return (("embed", None), *each)

    @property
    def terms(self) -> Float[np.ndarray, "prompt component"]:
        """All that is summed, in the order of `names`."""
        columns = {"attn": self.attn, "mlp": self.mlp}
        each = [columns[name][:, layer] for name, layer in self.names if layer is not None]
        return np.stack([self.embed, *each], axis=1).astype(np.float64)


def check_comparable(
    base: Contributions, tuned: Contributions, y: NDArray[Any], clusters: Clusters
) -> None:
    """Refuse contributions that cannot be set against each other.

    Args:
        base: Of the base model.
        tuned: Of the tuned model.
        y: Label of each prompt.
        clusters: The prompts' clusters.

    Raises:
        CaptureMismatchError: They are of different things, or labels or clusters are not those of
            the prompts.
        PromptError: A class has no prompt, or there is a label that is none.
    """
    n = len(base.resid)
    for name, expected, got in (
        ("site", base.site, tuned.site),
        ("rendered prompts", base.rendered_hash, tuned.rendered_hash),
        ("number of prompts", n, len(tuned.resid)),
        ("number of components", len(base.names), len(tuned.names)),
        ("number of heads", _head_shape(base), _head_shape(tuned)),
        ("number of labels", (n,), y.shape),
        ("number of prompts in clusters", n, len(clusters.codes)),
    ):
        if expected != got:
            raise CaptureMismatchError(
                f"The contributions differ in the {name}",
                expected=expected,
                got=got,
                next_step="Collect both models' on the same prompts, in one order, at one site",
            )
    if not np.array_equal(base.direction, tuned.direction):
        raise CaptureMismatchError(
            "The contributions are projections on different directions",
            next_step="Use one direction for both models",
        )
    missing = [
        name
        for name, label in (("harmful", HARMFUL), ("harmless", HARMLESS))
        if not (y == label).any()
    ]
    if missing or not np.isin(y, (HARMLESS, HARMFUL)).all():
        raise PromptError(
            "A decomposition by class needs harmful and harmless prompts",
            expected=f"labels {HARMLESS} and {HARMFUL}",
            got=f"labels {np.unique(y).tolist()}",
        )


def _head_shape(contributions: Contributions) -> tuple[int, ...] | None:
    """Layers and heads that were collected, or None."""
    return None if contributions.heads is None else contributions.heads.values.shape[1:]
