"""The weight matrices in which two checkpoints differ, read from disk one pair at a time.

No model is built: tensors come straight from safetensors files, and what is held at any time is
one matrix of base and one of tuned in float64. Where both stand on the same weights and differ by
LoRA adapters, the change stays in factors, ``ΔW = B A``, and stacked adapters are concatenated:
``B₁A₁ + B₂A₂ = [B₁ B₂] [A₁; A₂]``. An adapter that both have cancels.

A merged checkpoint is rounded to its dtype; factors are not. In bfloat16 the two therefore differ
by noise of relative size 2⁻⁹ of W, which a small ΔW may not exceed by much.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from refusaldir.errors import ModelLoadError, ModelSpecError
from refusaldir.layers.weights.lora import Factor, LowRank, read_adapter
from refusaldir.layers.weights.matrix_names import (
    Component,
    Family,
    MatrixPlace,
    Side,
    TensorKey,
    family_of,
    tensor_key,
)
from refusaldir.layers.weights.stored import StoredTensor, stored_tensors
from refusaldir.models.resolve import Resolved
from refusaldir.models.weights import (
    MODEL_CONFIG,
    adapter_digest,
    model_digest,
    read_json,
    weight_files,
)

FloatArray = NDArray[np.float64]

#: Rows that are compared at once where two tensors may have different dtypes.
_ROWS = 4096
#: An output matrix that a checkpoint lacks is its embedding.
_TIED = {"lm_head.weight": ("embed_tokens.weight", "wte.weight")}


@dataclass(frozen=True, kw_only=True, eq=False)
class MatrixChange:
    """One weight matrix that differs between base and tuned.

    Attributes:
        layer: Block index from 0.
        component: ``"attn"`` or ``"mlp"``.
        name: Of the matrix within the component, e.g. ``"q_proj"``.
        side: Whether it reads the residual stream or writes to it.
        delta: ``W_tuned − W_base`` as ``[out, in]`` (also for Conv1D), or its factors.
        base_norm: Frobenius norm of W_base, its adapters included.
        gain: Of the norm between the stream and the matrix, in base; None where there is none.
        centred: Whether that norm subtracts the mean.
    """

    layer: int
    component: Component
    name: str
    side: Side
    delta: Float[np.ndarray, "out in_"] | LowRank
    base_norm: float
    gain: Float[np.ndarray, " d_model"] | None
    centred: bool


def matrix_changes(base: Resolved, tuned: Resolved) -> Iterator[MatrixChange]:
    """Go through the matrices of the blocks that differ, block by block.

    Norms' gains, biases, embeddings and the unembedding are not among them; `changed_elsewhere`
    names those that differ.

    Args:
        base: Local directories of base.
        tuned: Local directories of tuned.

    Returns:
        An iterator that reads each matrix when it is asked for.

    Raises:
        ModelSpecError: The architecture is not known, the two are of different architectures or
            shapes, or an adapter is not plain LoRA.
        ModelLoadError: A file is damaged or quantised.
    """
    first, second = _Arm(base), _Arm(tuned)
    family = _family(first, second)
    places = _places(first, second, family)
    return _changes(first, second, family, places)


def changed_elsewhere(base: Resolved, tuned: Resolved) -> tuple[str, ...]:
    """Names of tensors outside `matrix_changes` that differ, or that only one of the two has.

    Args:
        base: Local directories of base.
        tuned: Local directories of tuned.

    Raises:
        ModelSpecError: As `matrix_changes`.
        ModelLoadError: As `matrix_changes`.
    """
    first, second = _Arm(base), _Arm(tuned)
    family = _family(first, second)
    keys = {key for arm in (first, second) for key in (*arm.tensors, *arm.factors)}
    differing = [
        key
        for key in keys
        if family.place(key) is None and not key.is_buffer and not _same(first, second, key)
    ]
    order = sorted(differing, key=lambda k: (-1 if k.layer is None else k.layer, k.leaf))
    return tuple(str(key) for key in order)


class _Arm:
    """Where each tensor of one checkpoint lies, adapters included."""

    def __init__(self, resolved: Resolved) -> None:
        self.where = resolved.model
        config = read_json(resolved.model / MODEL_CONFIG)
        self.model_type = str(config.get("text_config", config).get("model_type"))
        digest = model_digest(resolved.model)
        self.tensors: dict[TensorKey, StoredTensor] = {
            tensor_key(stored.name): stored
            for file in weight_files(resolved.model)
            for stored in stored_tensors(file, source=digest)
        }
        self.factors: dict[TensorKey, list[Factor]] = {}
        for directory, name in zip(resolved.adapters, resolved.adapter_names, strict=True):
            self._add(directory, name)

    def _add(self, directory: Path, name: str) -> None:
        replaced, factors = read_adapter(directory, name, source=adapter_digest(directory))
        lost = [key for key in [*replaced, *factors] if self.find(key) is None]
        if lost:
            raise ModelSpecError(
                "The adapter does not fit this model",
                got=f"no {lost[0]} in the model",
                where=name,
                next_step="It was trained on another base; its adapter_config.json names it",
            )
        for key, stored in replaced.items():
            self.tensors[key] = stored
            self.factors.pop(key, None)
        for key, factor in factors.items():
            self.factors.setdefault(key, []).append(factor)

    def find(self, key: TensorKey) -> StoredTensor | None:
        """The tensor, or for an output matrix that is not there the embedding it is tied to."""
        options = [key, *(TensorKey(None, leaf) for leaf in _TIED.get(str(key), ()))]
        return next((self.tensors[k] for k in options if k in self.tensors), None)

    def dense(self, key: TensorKey, *, transposed: bool = False) -> FloatArray:
        """The tensor in float64 with its adapters, ``[out, in]``."""
        weight = self.tensors[key].float64()
        weight = weight.T if transposed else weight
        for factor in self.factors.get(key, ()):
            b, a = factor.read(weight.shape)
            weight += b @ a
        return weight


def _family(first: _Arm, second: _Arm) -> Family:
    names = [stored.name for key, stored in first.tensors.items() if key.layer is not None] or [
        stored.name for stored in first.tensors.values()
    ]
    family = family_of(first.model_type, names, where=first.where)
    if second.model_type != first.model_type:
        raise ModelSpecError(
            "Weights of different architectures cannot be compared",
            expected=first.model_type,
            got=second.model_type,
            where=second.where,
        )
    return family


def _places(first: _Arm, second: _Arm, family: Family) -> dict[TensorKey, MatrixPlace]:
    """Matrices of all blocks, in order."""
    places = {}
    for arm in (first, second):
        for key, stored in arm.tensors.items():
            place = family.place(key)
            if place is not None:
                places[key] = place
            elif key.layer is not None and len(stored.shape) > 1 and not key.is_buffer:
                raise ModelSpecError(
                    "It is not known how this matrix meets the residual stream",
                    expected=f"the matrices of {first.model_type} as transformers saves them",
                    got=f"{stored.name} {list(stored.shape)}",
                    where=arm.where,
                )
    for key in places:
        shapes = [
            list(arm.tensors[key].shape) if key in arm.tensors else None for arm in (first, second)
        ]
        if shapes[0] != shapes[1]:
            raise ModelSpecError(
                "The two models differ in their matrices",
                expected=f"{key} {shapes[0] or 'absent'}",
                got=shapes[1] or "none",
                where=second.where,
                next_step="Compare a fine-tune with the model it was made from",
            )
    order = sorted(places, key=lambda k: (k.layer, places[k].component, places[k].name))
    return {key: places[key] for key in order}


def _changes(
    first: _Arm, second: _Arm, family: Family, places: dict[TensorKey, MatrixPlace]
) -> Iterator[MatrixChange]:
    for key, place in places.items():
        if _same(first, second, key):
            continue
        delta: FloatArray | LowRank
        if first.tensors[key].source == second.tensors[key].source:
            weight = first.dense(key, transposed=family.transposed)
            delta = _factored(first, second, key, weight.shape)
            if delta.vanishes:
                continue
        else:
            delta = second.dense(key, transposed=family.transposed)
            weight = first.dense(key, transposed=family.transposed)
            delta -= weight
        base_norm = float(np.linalg.norm(weight))
        del weight
        assert key.layer is not None
        yield MatrixChange(
            layer=key.layer,
            component=place.component,
            name=place.name,
            side=place.side,
            delta=delta,
            base_norm=base_norm,
            gain=_gain(first, TensorKey(key.layer, place.norm), family) if place.norm else None,
            centred=family.centred and place.norm is not None,
        )
        # Not held by this generator while the next pair is read.
        del delta


def _factored(first: _Arm, second: _Arm, key: TensorKey, shape: tuple[int, ...]) -> LowRank:
    """Change by adapters alone; those that both have are left out."""
    added, removed = _distinct(first, second, key)
    signed = [(1.0, f) for f in added] + [(-1.0, f) for f in removed]
    read = [(sign, *factor.read(shape)) for sign, factor in signed]
    return LowRank(
        b=np.concatenate([sign * b for sign, b, _ in read], axis=1),
        a=np.concatenate([a for _, _, a in read], axis=0),
    )


def _distinct(first: _Arm, second: _Arm, key: TensorKey) -> tuple[list[Factor], list[Factor]]:
    """Factors that only tuned has, and that only base has."""
    added = list(second.factors.get(key, ()))
    removed = []
    for factor in first.factors.get(key, ()):
        twin = next((f for f in added if f.source == factor.source), None)
        if twin is None:
            removed.append(factor)
        else:
            added.remove(twin)
    return added, removed


def _same(first: _Arm, second: _Arm, key: TensorKey) -> bool:
    """Whether a tensor is the same in both, without forming it in float64."""
    a, b = first.find(key), second.find(key)
    if a is None or b is None or a.shape != b.shape or any(_distinct(first, second, key)):
        return False
    if a.source == b.source and a.name == b.name:
        return True
    x, y = a.native(), b.native()
    return all(_equal(p, q) for p, q in zip(x.split(_ROWS), y.split(_ROWS), strict=True))


def _equal(x: Any, y: Any) -> bool:
    return bool((x == y).all()) if x.dtype == y.dtype else bool((x.double() == y.double()).all())


def _gain(arm: _Arm, key: TensorKey, family: Family) -> FloatArray:
    if key not in arm.tensors:
        raise ModelLoadError(
            "The checkpoint lacks the norm before a matrix", expected=str(key), where=arm.where
        )
    return arm.dense(key) + family.gain_offset
