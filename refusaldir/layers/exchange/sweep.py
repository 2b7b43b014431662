"""The outcome under many mixtures of two models, each block of either, with little run twice.

A mixture is run from the first block in which it differs from one that has run in full: the
stream up to there is kept from that run (`refusaldir.layers.exchange.partial_run`). Two mixtures
that are the same model, because the blocks in which they differ are equal or lie behind the
readout, are run once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from transformers.cache_utils import DynamicCache

from refusaldir.batching import LARGEST_BUDGET, SharedPrefix, TokenBatch, run_batches
from refusaldir.errors import CaptureError, ProbeError
from refusaldir.layers.exchange.partial_run import PartialRuns, ResumedPrefix
from refusaldir.layers.outcomes import Outcome, RefusalRate
from refusaldir.layers.weight_pair import WeightPair

#: Called with what is done and all there is to do, in forward passes over all prompts.
OnProgress: TypeAlias = Callable[[float, float], None]
#: Most memory for kept streams, in bytes.
KEPT_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Mixture:
    """A model made of two.

    Attributes:
        tuned: Blocks that are tuned's; the others are base's.
        outside: Whether embedding, final norm and head are tuned's.
    """

    tuned: frozenset[int]
    outside: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """Outcomes of mixtures.

    Attributes:
        outcome: Its name.
        values: Per mixture asked for, in the order of the prompts.
        forwards: Forward passes over all prompts that it took, a run from block k counted as
            the share of blocks that ran.
    """

    outcome: str
    values: Mapping[Mixture, Float64[np.ndarray, " prompt"]]
    forwards: float


def sweep(
    pair: WeightPair,
    sequences: Sequence[Sequence[int]],
    outcome: Outcome | RefusalRate,
    mixtures: Iterable[Mixture],
    *,
    batch_size: int | None = None,
    on_progress: OnProgress | None = None,
) -> Sweep:
    """Measure an outcome under every mixture; the pair is left as base.

    Args:
        pair: The two models.
        sequences: Token ids of every rendered prompt.
        outcome: What to measure.
        mixtures: The models to measure it in.
        batch_size: Rows a batch; None finds one by itself.
        on_progress: Called with forward passes done and to be done.

    Raises:
        CaptureError: No prompt, a layer that the model does not have, or a prompt that does not
            fit in memory or is shorter than the outcome needs.
        ProbeError: An outcome is not finite.
    """
    asked = list(dict.fromkeys(mixtures))
    _check(pair, sequences, asked)
    reach = _blocks_that_matter(outcome, pair.model.n_layers)
    same = {mixture: _canonical(mixture, pair, reach) for mixture in asked}
    distinct = list(dict.fromkeys(same.values()))
    try:
        if isinstance(outcome, RefusalRate):
            found = {}
            for done, mixture in enumerate(distinct):
                pair.set(mixture.tuned, outside=mixture.outside)
                found[mixture] = outcome.values(pair.model, sequences)
                if on_progress is not None:
                    on_progress(done + 1.0, float(len(distinct)))
            forwards = float(len(distinct))
        else:
            plan = _plan(pair, distinct, reach, sequences)
            found = _run(pair, sequences, outcome, plan, reach, batch_size, on_progress)
            forwards = plan.forwards(reach)
    finally:
        pair.set_base()
    for mixture, values in found.items():
        if not np.isfinite(values).all():
            raise ProbeError(
                f"A {outcome.name} is not finite",
                got=f"blocks {sorted(mixture.tuned)} of tuned",
                where=f"prompt {int(np.flatnonzero(~np.isfinite(values))[0])}",
                next_step="Load the models in bfloat16 or float32",
            )
    return Sweep(
        outcome=outcome.name,
        values={mixture: found[same[mixture]] for mixture in asked},
        forwards=forwards,
    )


def _check(
    pair: WeightPair, sequences: Sequence[Sequence[int]], mixtures: Sequence[Mixture]
) -> None:
    if not sequences:
        raise CaptureError("A sweep over layers needs at least one prompt", got="none")
    wrong = {k for m in mixtures for k in m.tuned if not 0 <= k < pair.model.n_layers}
    if wrong:
        raise CaptureError(
            "This model has no such layer",
            expected=f"0 to {pair.model.n_layers - 1}",
            got=", ".join(map(str, sorted(wrong))),
            where=pair.model.identity.name,
        )


def _blocks_that_matter(outcome: Outcome | RefusalRate, n_layers: int) -> int:
    """Number of blocks before the readout."""
    if isinstance(outcome, RefusalRate) or outcome.stop_after is None:
        return n_layers
    hook, layer = outcome.stop_after
    return layer if hook == "resid_pre" else layer + 1


def _canonical(mixture: Mixture, pair: WeightPair, reach: int) -> Mixture:
    """The mixture without what makes no difference."""
    felt = {layer for layer in pair.layers if layer < reach}
    return Mixture(frozenset(mixture.tuned & felt), mixture.outside and pair.outside)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Which mixtures run in full, and from where the others resume which of these."""

    full: Sequence[Mixture]
    #: By mixture in full: (first block that runs, mixture).
    resumed: Mapping[Mixture, Sequence[tuple[int, Mixture]]]
    runs: PartialRuns | None

    def forwards(self, reach: int) -> float:
        """Forward passes over all prompts."""
        parts = sum((reach - k) / reach for each in self.resumed.values() for k, _ in each)
        return float(len(self.full) + parts)


def _plan(
    pair: WeightPair,
    mixtures: Sequence[Mixture],
    reach: int,
    sequences: Sequence[Sequence[int]],
) -> _Plan:
    felt = frozenset(layer for layer in pair.layers if layer < reach)
    # Pure models, but for what is outside: what one of many mixtures differs least from.
    pure = [m for m in mixtures if m.tuned in (frozenset(), felt)]
    full = list(pure)
    resumed: dict[Mixture, list[tuple[int, Mixture]]] = {m: [] for m in pure}
    for mixture in mixtures:
        if mixture in resumed:
            continue
        starts = [
            (min(mixture.tuned ^ other.tuned), -index)
            for index, other in enumerate(pure)
            if other.outside == mixture.outside
        ]
        start, index = max(starts, default=(0, 0))
        if start == 0:
            full.append(mixture)
        else:
            resumed[pure[-index]].append((start, mixture))
    starts_used = sorted({start for each in resumed.values() for start, _ in each})
    runs = PartialRuns(pair.model)
    if not starts_used or not runs.equal_full_runs(starts_used, min(sequences, key=len)):
        return _Plan(full=mixtures, resumed={}, runs=None)
    return _Plan(full=full, resumed=resumed, runs=runs)


def _run(
    pair: WeightPair,
    sequences: Sequence[Sequence[int]],
    outcome: Outcome,
    plan: _Plan,
    reach: int,
    batch_size: int | None,
    on_progress: OnProgress | None,
) -> dict[Mixture, Float64[np.ndarray, " prompt"]]:
    mixtures = [*plan.full, *(m for each in plan.resumed.values() for _, m in each)]
    found = {m: np.full(len(sequences), np.nan) for m in mixtures}
    total = plan.forwards(reach)
    done = 0.0

    def ran(share: float, rows: int) -> None:
        nonlocal done
        done += share * rows / len(sequences)
        if on_progress is not None:
            # A batch that did not fit in memory is run again.
            on_progress(min(done, total), total)

    pair.set_base()
    step = _Step(pair, sequences, outcome, plan, reach, ran)
    for batch, values in run_batches(
        pair.model,
        sequences,
        step,
        tail=outcome.tail,
        batch_size=batch_size or _rows(pair, plan, sequences),
        stop_after=outcome.stop_after,
    ):
        for mixture, column in values.items():
            found[mixture][batch.indices] = column
    return found


def _rows(pair: WeightPair, plan: _Plan, sequences: Sequence[Sequence[int]]) -> int | None:
    """Rows a batch whose kept streams stay small; None where any batch does."""
    most = max((len({k for k, _ in each}) for each in plan.resumed.values()), default=0)
    model = pair.model
    token = max(most, 1) * model.d_model * torch.finfo(model.hf.dtype).bits // 8
    tokens = KEPT_BYTES // token
    if tokens >= LARGEST_BUDGET.get(model.device.type, LARGEST_BUDGET["cpu"]):
        return None
    return max(1, tokens // max(map(len, sequences)))


class _Step:
    """All mixtures on one batch. Prefixes are run with the first batch and kept."""

    def __init__(
        self,
        pair: WeightPair,
        sequences: Sequence[Sequence[int]],
        outcome: Outcome,
        plan: _Plan,
        reach: int,
        ran: Callable[[float, int], None],
    ) -> None:
        self.pair, self.sequences, self.outcome, self.plan = pair, sequences, outcome, plan
        self.reach, self.ran = reach, ran
        #: Shared prefix of each mixture that runs in full, and its stream by layer.
        self._full: dict[Mixture, tuple[SharedPrefix, dict[int, Tensor]]] = {}
        self._resumed: dict[Mixture, SharedPrefix] = {}

    def __call__(
        self, batch: TokenBatch, prefix: DynamicCache | None
    ) -> dict[Mixture, Float64[np.ndarray, " batch"]]:
        first = self.sequences[batch.indices[0]]
        shared = first[: len(first) - int(batch.lengths[0])]
        runs, values = self.plan.runs, {}
        for mixture in self.plan.full:
            below = self.plan.resumed.get(mixture, ())
            starts = sorted({start for start, _ in below})
            self.pair.set(mixture.tuned, outside=mixture.outside)
            if runs is None or not starts:
                if mixture not in self._full:
                    self._full[mixture] = self._prefix(shared), {}
                values[mixture] = self._outcome(batch, self._full[mixture][0], 1.0)
                continue
            if mixture not in self._full:
                with runs.keeping(starts) as streams:
                    self._full[mixture] = self._prefix(shared), streams
            whole, streams = self._full[mixture]
            with runs.keeping(starts) as kept:
                values[mixture] = self._outcome(batch, whole, 1.0)
            for start, other in below:
                self.pair.set(other.tuned, outside=other.outside)
                if other not in self._resumed:
                    self._resumed[other] = ResumedPrefix(
                        runs, shared, whole, start, streams, self.outcome.stop_after
                    )
                share = (self.reach - start) / self.reach
                with runs.resumed(start, kept[start]):
                    values[other] = self._outcome(batch, self._resumed[other], share)
        return values

    def _prefix(self, shared: Sequence[int]) -> SharedPrefix:
        return SharedPrefix(self.pair.model, shared, stop_after=self.outcome.stop_after)

    def _outcome(
        self, batch: TokenBatch, prefix: SharedPrefix, share: float
    ) -> Float64[np.ndarray, " batch"]:
        with torch.inference_mode():
            found = self.outcome.of(self.pair.model, batch, prefix.expand(len(batch.indices)))
            values = found.cpu().numpy()
        self.ran(share, len(batch.indices))
        return values
