"""How much each weight matrix changed, along how many directions, and whether along a given one.

For a change ``ΔW`` of a matrix and a unit direction u of the residual stream::

    relative change       ‖ΔW‖ / ‖W‖                                  (Frobenius)
    participation ratio   (Σσ²)² / Σσ⁴       σ: singular values of ΔW; k for k equal ones
    write alignment       d·‖vᵀΔW‖² / ‖ΔW‖²  v = unit(u ∘ gain of a norm behind the matrix)
    read alignment        d·‖ΔW v‖² / ‖ΔW‖²  v = unit(u ∘ gain of the norm before the matrix)

Without a norm behind it (all but Gemma 2 and 3) v = u for matrices that write; before LayerNorm
the mean of u is taken off. An alignment is 1 on average over directions, d at most, and 0 where
the change leaves the direction alone. Over v uniform on the sphere its variance is exactly
``2 (d/PR − 1) / (d + 2)``, because ``E (vᵀGv)² = ((tr G)² + 2 tr G²) / (d (d + 2))``: a change of
low rank is aligned or not by chance far more easily than a spread one.

It says what changed, not what the change does: a matrix may change much along u on inputs that
never occur. Gains are those of base; a change of the gains themselves is not in these figures.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from refusaldir.errors import DirectionError, ModelLoadError
from refusaldir.geometry import unit
from refusaldir.layers.weights.lora import LowRank
from refusaldir.layers.weights.matrix_names import Component, Side
from refusaldir.layers.weights.tensors import MatrixChange, changed_elsewhere, matrix_changes
from refusaldir.models.resolve import Resolved

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MatrixAlignment:
    """Figures of one matrix that changed; the module docstring defines them.

    Attributes:
        layer: Block index from 0.
        component: ``"attn"`` or ``"mlp"``.
        name: Of the matrix, e.g. ``"q_proj"``.
        side: Whether it reads the residual stream or writes to it.
        change_norm: ``‖ΔW‖``.
        base_norm: ``‖W‖``.
        relative_change: Their ratio; None where W is 0.
        participation_ratio: Of the spectrum of ΔW, from 1 to its rank.
        alignment: Read or write alignment, by ``side``; 1 is chance.
        chance_sd: Standard deviation of the alignment over directions taken at random.
    """

    layer: int
    component: Component
    name: str
    side: Side
    change_norm: float
    base_norm: float
    relative_change: float | None
    participation_ratio: float
    alignment: float
    chance_sd: float


@dataclass(frozen=True, kw_only=True)
class ComponentTotal:
    """The matrices of one component of one layer that changed, taken together.

    Attributes:
        layer: Block index from 0.
        component: ``"attn"`` or ``"mlp"``.
        n_matrices: How many of its matrices changed.
        change_norm: ``√Σ‖ΔW‖²``.
        share: Of the sum of ``‖ΔW‖²`` over all matrices of all blocks.
        relative_change: ``√(Σ‖ΔW‖² / Σ‖W‖²)`` over the matrices that changed; None where W is 0.
        write_alignment: ``d·Σ‖vᵀΔW‖² / Σ‖ΔW‖²`` over those that write, or None without any.
        read_alignment: The same over those that read.
    """

    layer: int
    component: Component
    n_matrices: int
    change_norm: float
    share: float
    relative_change: float | None
    write_alignment: float | None
    read_alignment: float | None


@dataclass(frozen=True, kw_only=True)
class WeightAlignment:
    """What a fine-tune did to the weight matrices.

    Attributes:
        base: Spec of base.
        tuned: Spec of tuned.
        d_model: Width of the residual stream.
        matrices: Those that changed, by layer.
        totals: Per layer and component with a change.
        elsewhere: Other tensors that differ (embeddings, gains, biases), which no figure counts.
    """

    base: str
    tuned: str
    d_model: int
    matrices: tuple[MatrixAlignment, ...]
    totals: tuple[ComponentTotal, ...]
    elsewhere: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def weight_alignment(
    base: Resolved, tuned: Resolved, direction: Float[np.ndarray, " d_model"]
) -> WeightAlignment:
    """Measure the change of every weight matrix against one direction.

    Args:
        base: Local directories of base.
        tuned: Local directories of tuned.
        direction: Direction of the residual stream, of any norm; one for all layers.

    Raises:
        DirectionError: The direction has no norm or another width than the model.
        ModelSpecError: The architecture is unknown, or the two cannot be compared.
        ModelLoadError: A file is damaged or quantised, or holds values that are not finite.
    """
    u = unit(direction)
    matrices = tuple(align(change, u) for change in matrix_changes(base, tuned))
    return WeightAlignment(
        base=str(base.spec),
        tuned=str(tuned.spec),
        d_model=len(u),
        matrices=matrices,
        totals=component_totals(matrices),
        elsewhere=changed_elsewhere(base, tuned),
    )


def align(change: MatrixChange, direction: Float[np.ndarray, " d_model"]) -> MatrixAlignment:
    """Figures of one matrix.

    Args:
        change: The matrix.
        direction: Unit direction of the residual stream.

    Raises:
        DirectionError: The direction has another width than the model.
        ModelLoadError: The change is not finite.
    """
    delta = change.delta
    shape = (delta.b.shape[0], delta.a.shape[1]) if isinstance(delta, LowRank) else delta.shape
    width = shape[0] if change.side == "writes" else shape[1]
    if len(direction) != width:
        raise DirectionError(
            "The direction has another width than the model",
            expected=width,
            got=len(direction),
            where=f"layer {change.layer} {change.name}",
        )
    square, fourth = _moments(delta)
    if not (math.isfinite(square) and math.isfinite(change.base_norm)):
        raise ModelLoadError(
            "The weights are not finite", where=f"layer {change.layer} {change.name}"
        )
    along = _along(delta, _seen(change, direction), side=change.side)
    ratio = square**2 / fourth
    return MatrixAlignment(
        layer=change.layer,
        component=change.component,
        name=change.name,
        side=change.side,
        change_norm=math.sqrt(square),
        base_norm=change.base_norm,
        relative_change=math.sqrt(square) / change.base_norm if change.base_norm > 0 else None,
        participation_ratio=ratio,
        alignment=width * along / square,
        chance_sd=math.sqrt(max(2 * (width / ratio - 1) / (width + 2), 0.0)),
    )


def _seen(change: MatrixChange, direction: FloatArray) -> FloatArray:
    """The direction as the matrix meets it, at norm 1."""
    v = direction - direction.mean() if change.centred else direction
    return unit(v if change.gain is None else v * change.gain)


def _along(delta: FloatArray | LowRank, v: FloatArray, *, side: Side) -> float:
    """``‖vᵀΔW‖²`` of a matrix that writes, ``‖ΔW v‖²`` of one that reads."""
    if isinstance(delta, LowRank):
        left, right = delta.b, delta.a
        product = (v @ left) @ right if side == "writes" else left @ (right @ v)
    else:
        product = v @ delta if side == "writes" else delta @ v
    return float(product @ product)


def _moments(delta: FloatArray | LowRank) -> tuple[float, float]:
    """``Σσ²`` and ``Σσ⁴`` over the singular values, from traces of the smaller Gram matrix."""
    matrix = delta.core() if isinstance(delta, LowRank) else delta
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return float(np.trace(gram)), float(np.vdot(gram, gram))


def component_totals(matrices: Sequence[MatrixAlignment]) -> tuple[ComponentTotal, ...]:
    """Sum matrices up, per layer and component.

    Args:
        matrices: Of a whole model.

    Returns:
        By layer, attention first.
    """
    whole = math.fsum(m.change_norm**2 for m in matrices)
    totals = []
    for layer, component in sorted({(m.layer, m.component) for m in matrices}):
        own = [m for m in matrices if (m.layer, m.component) == (layer, component)]
        change = math.fsum(m.change_norm**2 for m in own)
        weight = math.fsum(m.base_norm**2 for m in own)
        totals.append(
            ComponentTotal(
                layer=layer,
                component=component,
                n_matrices=len(own),
                change_norm=math.sqrt(change),
                share=change / whole,
                relative_change=math.sqrt(change / weight) if weight > 0 else None,
                write_alignment=_pooled([m for m in own if m.side == "writes"]),
                read_alignment=_pooled([m for m in own if m.side == "reads"]),
            )
        )
    return tuple(totals)


def _pooled(matrices: Sequence[MatrixAlignment]) -> float | None:
    if not matrices:
        return None
    weights = [m.change_norm**2 for m in matrices]
    products = (w * m.alignment for w, m in zip(weights, matrices, strict=True))
    return math.fsum(products) / math.fsum(weights)
