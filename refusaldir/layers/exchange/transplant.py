"""Which blocks cause the change of an outcome: blocks of one model put into the other.

With b the base, t the tuned model, and s the outcome of a prompt::

    restoring ℓ   s(t with b's block ℓ) − s(t)     what giving back one block undoes
    injecting ℓ   s(b with t's block ℓ) − s(b)     what one block does on its own
    front f       s(blocks below f of b, the rest of t), f = 0 … L

As shares, restoring is divided by ``mean s(b) − mean s(t)`` and injecting by its negative, so that
1 is the whole change in both and they need not agree: what needs two blocks at once is undone by
restoring either and brought about by injecting neither. Shares are of no use where the outcome
did not change; whether it did is for the caller to tell.

The embedding, the final norm and the head lie outside the blocks. They are tuned's while blocks
are restored and at every front, base's while blocks are injected, and have an effect of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, Int
from numpy.typing import NDArray

from refusaldir.layers.exchange.sweep import Mixture, OnProgress, sweep
from refusaldir.layers.outcomes import Outcome, RefusalRate
from refusaldir.layers.weight_pair import WeightPair

FloatArray: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Transplant:
    """The outcome of every prompt under every transplant.

    Attributes:
        outcome: Its name.
        layers: Blocks swept, ascending: the columns of ``restored`` and ``injected``.
        base: In base.
        tuned: In tuned.
        restored: In tuned with base's block.
        injected: In base with tuned's block.
        fronts: With the blocks below f of base and the rest of tuned; None if not asked for.
        restored_outside: In tuned with base's embedding, final norm and head; None where these
            are the same in both.
        injected_outside: In base with tuned's.
        forwards: Forward passes over all prompts that it took, base's and tuned's among them.
    """

    outcome: str
    layers: tuple[int, ...]
    base: Float64[np.ndarray, " prompt"]
    tuned: Float64[np.ndarray, " prompt"]
    restored: Float64[np.ndarray, "prompt layer"]
    injected: Float64[np.ndarray, "prompt layer"]
    fronts: Float64[np.ndarray, "prompt front"] | None
    restored_outside: Float64[np.ndarray, " prompt"] | None
    injected_outside: Float64[np.ndarray, " prompt"] | None
    forwards: float

    @property
    def gap(self) -> float:
        """``mean s(b) − mean s(t)``."""
        return float(self.base.mean() - self.tuned.mean())

    @property
    def restoring(self) -> Float64[np.ndarray, "prompt layer"]:
        """``s(t with b's block) − s(t)``."""
        effects: FloatArray = self.restored - self.tuned[:, None]
        return effects

    @property
    def injecting(self) -> Float64[np.ndarray, "prompt layer"]:
        """``s(b with t's block) − s(b)``."""
        effects: FloatArray = self.injected - self.base[:, None]
        return effects

    @property
    def restored_share(self) -> Float64[np.ndarray, " layer"]:
        """Share of the change that restoring each block undoes; NaN where nothing changed."""
        return _share(self.restoring, self.gap)

    @property
    def injected_share(self) -> Float64[np.ndarray, " layer"]:
        """Share of the change that each block brings on its own; NaN where nothing changed."""
        return _share(self.injecting, -self.gap)

    @property
    def recovery_depth(self) -> int | None:
        """How many blocks from below must be base's for half of what all of them give back.

        The transition depth: first front at or beyond ``floor + ½ (ceiling − floor)``, floor and
        ceiling being the mean outcomes at the first and the last front. None without fronts or
        where the two are the same. A curve may cross the half and come back; it is the first
        crossing.
        """
        if self.fronts is None:
            return None
        curve = self.fronts.mean(axis=0)
        rise = curve[-1] - curve[0]
        if rise == 0:
            return None
        return int(np.argmax((curve - curve[0]) / rise >= 0.5))

    def of_prompts(
        self, rows: Int[np.ndarray, " some"] | Bool[np.ndarray, " prompt"]
    ) -> "Transplant":
        """The same for some of the prompts, e.g. one category."""

        def some(values: FloatArray | None) -> FloatArray | None:
            return None if values is None else values[rows]

        return replace(
            self,
            base=self.base[rows],
            tuned=self.tuned[rows],
            restored=self.restored[rows],
            injected=self.injected[rows],
            fronts=some(self.fronts),
            restored_outside=some(self.restored_outside),
            injected_outside=some(self.injected_outside),
        )


def _share(effects: FloatArray, whole: float) -> Float64[np.ndarray, " layer"]:
    if whole == 0:
        return np.full(effects.shape[1], np.nan)
    share: FloatArray = effects.mean(axis=0) / whole
    return share


def transplant(
    pair: WeightPair,
    sequences: Sequence[Sequence[int]],
    outcome: Outcome | RefusalRate,
    *,
    layers: Sequence[int] | None = None,
    fronts: bool = True,
    batch_size: int | None = None,
    on_progress: OnProgress | None = None,
) -> Transplant:
    """Restore and inject blocks one by one, and move fronts through the model.

    Args:
        pair: The two models; left as base.
        sequences: Token ids of every rendered prompt.
        outcome: What to measure. The refusal rate is measured anew in every mixture and costs a
            generation each.
        layers: Blocks to sweep; None takes those that changed. One that did not change, or lies
            behind the outcome's site, is not run and has an effect of exactly 0.
        fronts: Whether to measure fronts.
        batch_size: Rows a batch; None finds one by itself.
        on_progress: Called with forward passes over all prompts done and to be done.

    Raises:
        CaptureError: No prompt, a layer that the model does not have, or a prompt that does not
            fit in memory or is shorter than the outcome needs.
        ProbeError: An outcome is not finite.
    """
    chosen = tuple(sorted(set(pair.layers if layers is None else layers)))
    depth = pair.model.n_layers
    every = frozenset(range(depth))
    base, tuned = Mixture(frozenset(), False), Mixture(every, True)
    restored = [Mixture(every - {layer}, True) for layer in chosen]
    injected = [Mixture(frozenset({layer}), False) for layer in chosen]
    moved = [Mixture(every - set(range(f)), True) for f in range(depth + 1)] if fronts else []
    outside = [Mixture(every, False), Mixture(frozenset(), True)] if pair.outside else []
    swept = sweep(
        pair,
        sequences,
        outcome,
        [base, tuned, *restored, *injected, *moved, *outside],
        batch_size=batch_size,
        on_progress=on_progress,
    )

    def columns(mixtures: Sequence[Mixture]) -> Float64[np.ndarray, "prompt mixture"]:
        blank = np.empty((len(sequences), 0))
        return np.column_stack([blank, *(swept.values[mixture] for mixture in mixtures)])

    return Transplant(
        outcome=swept.outcome,
        layers=chosen,
        base=swept.values[base],
        tuned=swept.values[tuned],
        restored=columns(restored),
        injected=columns(injected),
        fronts=columns(moved) if fronts else None,
        restored_outside=swept.values[outside[0]] if outside else None,
        injected_outside=swept.values[outside[1]] if outside else None,
        forwards=swept.forwards,
    )
