"""The causal lenses as effects of layers, and how they are combined into one order.

Path attribution and transplants answer one question in two ways. Path attribution integrates
along the straight line between the checkpoints and sums to the whole change; but halfway along it
the weights are those of neither model, so that two changes which undo each other in one layer may
leave a remainder. A transplant runs only weights that one of the two models has, block by block,
and is exactly 0 for a change that does nothing; but when several layers do the same thing,
restoring one of them shows little, and when they act only together, injecting one shows little.
The mean of restoring and injecting is what a layer adds first and what it adds last, which is its
Shapley value where layers interact in pairs at most, as path attribution is along its line.

So where both were measured the effect of a layer is the mean of the two, each in the outcome's
unit; otherwise that of the one there is.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float

from refusaldir.layers.effects import Effects, Layer

PATH, RESTORE, INJECT = "path attribution", "restore", "inject"


class ChangeLike(Protocol):
    """One parameter or adapted module that differs; `weight_pair.Change` is one."""

    @property
    def layer(self) -> int | None:
        """Block index; None outside the blocks."""

    @property
    def component(self) -> str | None:
        """``"attn"``, ``"mlp"``, or None for what belongs to neither."""

    @property
    def name(self) -> str:
        """Within the component, e.g. ``"q_proj"``."""


class PathLike(Protocol):
    """Path attribution; `path_attribution.PathAttribution` is one."""

    @property
    def changes(self) -> Sequence[ChangeLike]:
        """What changed."""

    @property
    def values(self) -> Float[np.ndarray, "prompt change"]:
        """Attributions."""

    @property
    def base(self) -> Float[np.ndarray, " prompt"]:
        """Outcome of base."""

    @property
    def tuned(self) -> Float[np.ndarray, " prompt"]:
        """Outcome of tuned."""

    @property
    def nodes(self) -> int:
        """Nodes of the integral."""


class TransplantLike(Protocol):
    """Blocks exchanged; `transplant.Transplant` is one."""

    @property
    def layers(self) -> Sequence[int]:
        """Blocks that were exchanged, ascending."""

    @property
    def base(self) -> Float[np.ndarray, " prompt"]:
        """Outcome of base."""

    @property
    def tuned(self) -> Float[np.ndarray, " prompt"]:
        """Outcome of tuned."""

    @property
    def restored(self) -> Float[np.ndarray, "prompt layer"]:
        """Outcome of tuned with base's block."""

    @property
    def injected(self) -> Float[np.ndarray, "prompt layer"]:
        """Outcome of base with tuned's block."""

    @property
    def fronts(self) -> Float[np.ndarray, "prompt front"] | None:
        """Outcome where the blocks before f are base's and the others tuned's, or None."""

    @property
    def restored_outside(self) -> Float[np.ndarray, " prompt"] | None:
        """Outcome of tuned with what base has outside the blocks; None where that is the same."""

    @property
    def injected_outside(self) -> Float[np.ndarray, " prompt"] | None:
        """Outcome of base with what tuned has outside the blocks; None where that is the same."""

    @property
    def recovery_depth(self) -> int | None:
        """First front at which half of what all of them take back is taken back."""


def combine(
    path: Effects | None, restored: Effects | None, injected: Effects | None
) -> tuple[Effects, tuple[str, ...]]:
    """One effect a layer from the lenses there are; the module docstring says why.

    Args:
        path: Of path attribution.
        restored: Of putting base's block into tuned, as what its change had done.
        injected: Of putting tuned's block into base; given where ``restored`` is.

    Returns:
        The effects, and the names of the lenses they come from.
    """
    both = [each for each in (restored, injected) if each is not None]
    groups = [group for group in ([path] if path is not None else [], both) if group]
    layers = _union([each for group in groups for each in group])
    means = [sum(_spread(each, layers) for each in group) / len(group) for group in groups]
    values = np.asarray(sum(means) / len(means), dtype=np.float64)
    names = tuple(each.lens for group in groups for each in group)
    return Effects(lens="combined", layers=layers, values=values), names


def _union(effects: Sequence[Effects]) -> tuple[Layer, ...]:
    """All layers of some lenses, ascending, what lies outside the blocks last."""
    found = {layer for each in effects for layer in each.layers}
    return tuple(sorted(found, key=lambda layer: (layer is None, layer or 0)))


def _spread(effects: Effects, layers: Sequence[Layer]) -> Float[np.ndarray, "prompt layer"]:
    """Effects on more layers than the lens speaks of: those it leaves out did not change."""
    out = np.zeros((len(effects.values), len(layers)))
    out[:, [layers.index(layer) for layer in effects.layers]] = effects.values
    return out


def path_effects(
    changes: Sequence[ChangeLike], values: Float[np.ndarray, "prompt change"]
) -> Effects:
    """Sum the attributions of single changes up to layers."""
    layers = tuple(sorted({c.layer for c in changes}, key=lambda k: (k is None, k or 0)))
    columns = [
        values[:, [i for i, c in enumerate(changes) if c.layer == layer]].sum(axis=1)
        for layer in layers
    ]
    summed = np.stack(columns, axis=1) if columns else np.zeros((len(values), 0))
    return Effects(lens=PATH, layers=layers, values=summed.astype(np.float64))


def component_effects(
    changes: Sequence[ChangeLike], values: Float[np.ndarray, "prompt change"]
) -> tuple[tuple[tuple[Layer, str | None], ...], Float[np.ndarray, "prompt component"]]:
    """Sum the attributions of single changes up to the components of layers.

    Returns:
        Layer and component of each column, by layer, attention first, and the effects.
    """
    order = {"attn": 0, "mlp": 1, None: 2}
    places = sorted(
        {(c.layer, c.component) for c in changes},
        key=lambda place: (place[0] is None, place[0] or 0, order[place[1]]),
    )
    columns = [
        values[:, [i for i, c in enumerate(changes) if (c.layer, c.component) == place]].sum(axis=1)
        for place in places
    ]
    summed = np.stack(columns, axis=1) if columns else np.zeros((len(values), 0))
    return tuple(places), summed.astype(np.float64)


def transplant_effects(found: TransplantLike) -> tuple[Effects, Effects]:
    """What each block's change did, by restoring and by injecting it.

    What lies outside the blocks comes last, where it changed.
    """
    layers: tuple[Layer, ...] = tuple(found.layers)
    restored, injected = found.restored, found.injected
    if found.restored_outside is not None and found.injected_outside is not None:
        layers = (*layers, None)
        restored = np.column_stack([restored, found.restored_outside])
        injected = np.column_stack([injected, found.injected_outside])
    return (
        Effects(lens=RESTORE, layers=layers, values=found.tuned[:, None] - restored),
        Effects(lens=INJECT, layers=layers, values=injected - found.base[:, None]),
    )
