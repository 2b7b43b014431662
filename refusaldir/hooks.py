"""Interventions on the residual stream: ablate a subspace, add a vector, while a context lasts.

The maths are two pure functions, `ablated` and `added`; `Ablation` and `Addition` say what to do
where; `intervene` does it to a model for a while, forward passes and generation alike. Nothing
is written to the model, every change is out of place, and it ends with the context, however
that ends. Rows of a batch may get different subspaces or vectors.

Ablation is that of Arditi et al. 2024 (arXiv 2406.11717, §2.4): the direction is removed from
every block's input and from what every attention and MLP adds to the stream. Addition adds the
raw vector at one site, at all token positions.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from refusaldir.errors import DirectionError
from refusaldir.models.bridge import HookedModel

Edit = Callable[[Tensor], Tensor]
"""Gets the stream ``[batch seq d_model]`` and returns what takes its place."""

#: Where a subspace is removed, in every layer.
ABLATED_HOOKS = ("resid_pre", "attn_out", "mlp_out")

#: A basis vector whose part outside the earlier ones is below this share of its norm adds nothing.
DEPENDENT = 1e-6


def ablated(
    x: Float[Tensor, "batch seq d_model"],
    basis: Float[Tensor, "k d_model"] | Float[Tensor, "batch k d_model"],
) -> Float[Tensor, "batch seq d_model"]:
    """``x − Bᵀ B x``: the stream without its part in a subspace.

    Args:
        x: The stream; computed in float32 at least, returned in its own dtype.
        basis: Orthonormal rows, the same for every row of the batch or one set for each.
    """
    work = x.to(torch.promote_types(x.dtype, torch.float32))
    b = basis.to(device=x.device, dtype=work.dtype)
    if b.dim() == 2:
        return (work - (work @ b.T) @ b).to(x.dtype)
    return (work - (work @ b.transpose(1, 2)) @ b).to(x.dtype)


def added(
    x: Float[Tensor, "batch seq d_model"],
    vector: Float[Tensor, " d_model"] | Float[Tensor, "batch d_model"],
) -> Float[Tensor, "batch seq d_model"]:
    """``x + v`` at every token position.

    Args:
        x: The stream; the sum is taken in float32 at least and returned in its own dtype.
        vector: One vector for every row of the batch or one for each.
    """
    work = x.to(torch.promote_types(x.dtype, torch.float32))
    v = vector.to(device=x.device, dtype=work.dtype)
    return (work + (v if v.dim() == 1 else v[:, None])).to(x.dtype)


class Intervention(Protocol):
    """Something that changes the stream at some sites."""

    def edits(self, model: HookedModel) -> Mapping[tuple[str, int], Edit]:
        """What to do at which (hook, layer) of a model."""
        ...


@dataclass(frozen=True, eq=False)
class Ablation:
    """Remove a subspace at every block input, attention output and MLP output.

    Attributes:
        basis: Orthonormal rows ``[k d_model]``, or ``[batch k d_model]`` for a subspace a row;
            see `orthonormal` and `Ablation.of`.
        layers: Blocks to act in; None for all.
    """

    basis: Float[Tensor, "k d_model"] | Float[Tensor, "batch k d_model"]
    layers: Collection[int] | None = None

    @classmethod
    def of(cls, vectors: Float[Tensor, " d_model"] | Float[Tensor, "k d_model"]) -> "Ablation":
        """The ablation of what some vectors span.

        Raises:
            DirectionError: A vector is zero, not finite, or in the span of the others.
        """
        return cls(orthonormal(vectors))

    def edits(self, model: HookedModel) -> Mapping[tuple[str, int], Edit]:
        """Every block input, attention output and MLP output of the layers."""
        layers = range(model.n_layers) if self.layers is None else sorted(set(self.layers))
        basis = self.basis.to(model.device)

        def edit(x: Tensor) -> Tensor:
            return ablated(x, basis)

        hooks = [hook for hook in ABLATED_HOOKS if hook in model.hook_names]
        return {(hook, layer): edit for layer in layers for hook in hooks}


@dataclass(frozen=True, eq=False)
class Addition:
    """Add a vector at one site, at all token positions.

    Attributes:
        vector: Raw vector ``[d_model]``, or ``[batch d_model]`` for one a row.
        layer: Block.
        hook: Hook point.
    """

    vector: Float[Tensor, " d_model"] | Float[Tensor, "batch d_model"]
    layer: int
    hook: str = "resid_pre"

    def edits(self, model: HookedModel) -> Mapping[tuple[str, int], Edit]:
        """The one site."""
        vector = self.vector.to(model.device)

        def edit(x: Tensor) -> Tensor:
            return added(x, vector)

        return {(self.hook, self.layer): edit}


def orthonormal(
    vectors: Float[Tensor, " d_model"] | Float[Tensor, "k d_model"],
) -> Float[Tensor, "k d_model"]:
    """Orthonormal basis of what some vectors span, in float32; the first keeps its direction.

    Raises:
        DirectionError: A vector is zero, not finite, or in the span of those before it.
    """
    rows = (vectors if vectors.dim() == 2 else vectors[None]).to(device="cpu", dtype=torch.float64)
    norms = rows.norm(dim=-1)
    if not bool(torch.isfinite(norms).all()) or bool((norms == 0).any()):
        raise DirectionError(
            "a vector cannot be ablated",
            expected="finite, non-zero norms",
            got=norms.tolist(),
            next_step="Look for a site with signal, or for NaN in the activations",
        )
    q, r = torch.linalg.qr((rows / norms[:, None]).T)
    lengths = torch.diagonal(r)
    if bool((lengths.abs() < DEPENDENT).any()):
        raise DirectionError(
            "the vectors to ablate are not linearly independent",
            expected=f"rank {len(rows)}",
            got=f"rank {int((lengths.abs() >= DEPENDENT).sum())}",
            next_step="Leave out the vectors that the others span",
        )
    basis: Tensor = (q * lengths.sign()).T.float().contiguous()
    return basis


@contextmanager
def intervene(model: HookedModel, *interventions: Intervention) -> Iterator[None]:
    """Change a model's stream while the context lasts, in forward passes and in generation.

    At a site that several interventions share they act in the order given. Contexts nest.

    Args:
        model: The model; its weights are not touched.
        *interventions: What to do; each row of a batch is on its own.

    Raises:
        CaptureError: The model lacks a site; raised before anything is attached.
    """
    chains: dict[tuple[str, int], list[Edit]] = {}
    for intervention in interventions:
        for point, edit in intervention.edits(model).items():
            chains.setdefault(point, []).append(edit)

    def chained(edits: list[Edit]) -> Edit:
        def run(x: Tensor) -> Tensor:
            for edit in edits:
                x = edit(x)
            return x

        return run

    with model.hooked({point: chained(edits) for point, edits in chains.items()}):
        yield
