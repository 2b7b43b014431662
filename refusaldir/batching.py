"""Token batches: the shared prefix run once, rows sorted by length, a batch size found by itself.

Every prompt of a set starts with the same template tokens, so their keys and values are
computed once and expanded over the batch; only the suffixes run. Suffixes are sorted by length
and padded on the right: under causal attention a padding token cannot reach an earlier one, so
no mask is needed and each row gets what it would get alone.
"""

import copy
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from refusaldir.errors import CaptureError
from refusaldir.models.bridge import HookedModel
from refusaldir.records import common_prefix_length

T = TypeVar("T")

#: Tokens a batch before anything has been measured, and the most ever tried.
FIRST_BUDGET = {"cpu": 512, "mps": 2048, "cuda": 16384}
LARGEST_BUDGET = {"cpu": 4096, "mps": 16384, "cuda": 131072}
#: A batch twice as large must be this much faster a token to be kept.
WORTHWHILE = 1.03
#: A row joins a batch only while padding stays below this share of it.
PADDING = 0.05


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """A batch of suffixes, padded on the right.

    Attributes:
        indices: Index of each row's prompt in the sequences given.
        input_ids: Suffix tokens, shape ``[batch, seq]``.
        lengths: Suffix length of each row, shape ``[batch]``.
    """

    indices: Int[np.ndarray, " batch"]
    input_ids: Int[Tensor, "batch seq"]
    lengths: Int[Tensor, " batch"]


class SharedPrefix:
    """Keys and values of the tokens that all prompts start with, computed once.

    Args:
        model: The model.
        ids: The shared tokens; may be empty.
        stop_after: Passed to `HookedModel.run`: layers after it are not computed, so the cache
            serves only runs that stop there as well.
        copies: Rows to run it with, for hooks that treat each row in its own way.

    Attributes:
        length: Number of tokens actually cached: 0 where the model's cache cannot be expanded
            over a batch (recurrent states), and then the rows run in full.
    """

    def __init__(
        self,
        model: HookedModel,
        ids: Sequence[int],
        *,
        stop_after: tuple[str, int] | None = None,
        copies: int = 1,
    ) -> None:
        """Run the prefix through the model; see the class docstring."""
        self.length = 0
        self._cache: DynamicCache | None = None
        if not ids:
            return
        cache = DynamicCache(config=model.hf.config)
        # Exact types: subclasses keep further states that a view over the batch would miss.
        plain = (DynamicLayer, DynamicSlidingWindowLayer)
        if not cache.layers or any(type(layer) not in plain for layer in cache.layers):
            return
        with torch.inference_mode():
            model.run(
                torch.tensor([list(ids)] * copies, device=model.device),
                past_key_values=cache,
                use_cache=True,
                stop_after=stop_after,
            )
        self._cache, self.length = cache, len(ids)

    def expand(self, rows: int) -> DynamicCache | None:
        """Return a cache for a batch of ``rows`` from a prefix of one copy, which stays as it is.

        Updating the returned cache concatenates into new tensors, so the views over the batch
        stay intact.
        """
        return self._with(lambda states: states.expand(rows, -1, -1, -1))

    def take(self, copies: Int[Tensor, " batch"]) -> DynamicCache | None:
        """Return a cache whose rows are the given copies of the prefix, in that order."""
        return self._with(lambda states: states.index_select(0, copies.to(states.device)))

    def _with(self, change: Callable[[Tensor], Tensor]) -> DynamicCache | None:
        if self._cache is None:
            return None
        changed = copy.copy(self._cache)
        changed.layers = [copy.copy(layer) for layer in self._cache.layers]
        for layer in changed.layers:
            if layer.keys is not None:
                layer.keys, layer.values = change(layer.keys), change(layer.values)
        return changed


class Budget:
    """Tokens a batch: doubled while that makes a token cheaper, halved when memory runs out."""

    def __init__(self, device: str) -> None:
        """Start from the device's first guess (``cpu``, ``cuda`` or ``mps``)."""
        self.tokens = FIRST_BUDGET.get(device, FIRST_BUDGET["cpu"])
        self._limit = LARGEST_BUDGET.get(device, LARGEST_BUDGET["cpu"])
        self._best = 0.0
        self._growing = True
        self._warm = False

    def record(self, tokens: int, seconds: float) -> None:
        """Take the time of a full batch into account."""
        if not self._growing or tokens < self.tokens // 2:
            return
        if not self._warm:  # The first batch pays for allocations.
            self._warm = True
            return
        rate = tokens / max(seconds, 1e-9)
        if rate < self._best * WORTHWHILE:
            self._growing = False
            self.tokens = max(1, self.tokens // 2)
        elif self.tokens * 2 <= self._limit:
            self._best = rate
            self.tokens *= 2
        else:
            self._growing = False

    def out_of_memory(self, tokens: int) -> None:
        """Never try ``tokens`` again."""
        self._growing = False
        self.tokens = max(1, tokens // 2)


def run_batches(
    model: HookedModel,
    sequences: Sequence[Sequence[int]],
    step: Callable[[TokenBatch, DynamicCache | None], T],
    *,
    tail: int | Sequence[int] = 1,
    skip: Collection[int] = frozenset(),
    batch_size: int | None = None,
    stop_after: tuple[str, int] | None = None,
) -> Iterator[tuple[TokenBatch, T]]:
    """Run ``step`` over all sequences in batches and yield each batch with its result.

    Args:
        model: The model the prefix is run on.
        sequences: Token ids of every prompt.
        step: Called with a batch and the prefix cache expanded over it (None without one).
        tail: How many tokens at the end of every prompt, or of each, must be in the suffix.
        skip: Indices not to run.
        batch_size: Rows a batch; None finds a good number of tokens by itself.
        stop_after: Passed on when the prefix is run.

    Yields:
        The batch and what ``step`` returned, longest rows first, so that memory that does not
        suffice shows in the first batch.

    Raises:
        CaptureError: A single prompt does not fit in memory, or one is shorter than ``tail``.
    """
    todo = [i for i in range(len(sequences)) if i not in skip]
    if not todo:
        return
    lengths = {i: len(sequences[i]) for i in todo}
    tails = {i: tail if isinstance(tail, int) else tail[i] for i in todo}
    scarcest = min(todo, key=lambda i: lengths[i] - tails[i])
    room = lengths[scarcest] - tails[scarcest]
    if room < 0:
        raise CaptureError(
            "A prompt has fewer tokens than the positions asked for",
            expected=f"at least {tails[scarcest]} tokens",
            got=f"{lengths[scarcest]} tokens",
            next_step="Ask for positions nearer to the end, or drop the shortest prompts",
        )
    shared = 0
    if len(todo) > 1:
        shared = min(common_prefix_length([sequences[i] for i in todo]), room)
    prefix = SharedPrefix(model, sequences[todo[0]][:shared], stop_after=stop_after)
    order = sorted(todo, key=lambda i: (-lengths[i], i))
    budget = Budget(model.device.type)
    start = 0
    while start < len(order):
        rows = _rows_that_fit(
            [lengths[i] - prefix.length for i in order[start:]], budget.tokens, batch_size
        )
        batch = collate(sequences, order[start : start + rows], prefix.length, model.device)
        began = time.perf_counter()
        try:
            result = step(batch, prefix.expand(rows))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if rows == 1:
                raise CaptureError(
                    "A single prompt does not fit in memory",
                    got=f"{batch.input_ids.shape[1]} tokens after the shared prefix",
                    where=f"device {model.device}",
                    next_step="Use a smaller dtype, --quantize, --device-map auto, or drop it",
                ) from error
            batch_size = max(1, rows // 2) if batch_size is not None else None
            budget.out_of_memory(batch.input_ids.numel())
            if model.device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        if model.device.type == "cpu":  # Elsewhere kernels run on after the call returns.
            budget.record(batch.input_ids.numel(), time.perf_counter() - began)
        start += rows
        yield batch, result


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an allocation failure of any device from other runtime errors."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def _rows_that_fit(lengths: Sequence[int], tokens: int, batch_size: int | None) -> int:
    """Number of leading rows (lengths descending) for the next batch."""
    longest = max(1, lengths[0])
    if batch_size is not None:
        return min(batch_size, len(lengths))
    most = max(1, min(len(lengths), tokens // longest))
    used = 0
    for rows, length in enumerate(lengths[:most], start=1):
        used += length
        # Small batches waste more than padding does.
        if rows > most // 2 and used < (1 - PADDING) * rows * longest:
            return max(1, rows - 1)
    return most


def collate(
    sequences: Sequence[Sequence[int]], rows: Sequence[int], start: int, device: torch.device
) -> TokenBatch:
    """Batch some sequences from token ``start`` on, padded on the right, on a device."""
    lengths = [len(sequences[i]) - start for i in rows]
    # Any token will do as padding: nothing to its left can see it.
    ids = np.zeros((len(rows), max(lengths)), dtype=np.int64)
    for row, (i, length) in enumerate(zip(rows, lengths, strict=True)):
        ids[row, :length] = sequences[i][start:]
    tensors: list[Any] = [torch.from_numpy(ids), torch.tensor(lengths)]
    if device.type == "cuda":
        tensors = [t.pin_memory() for t in tensors]
    return TokenBatch(
        indices=np.asarray(rows, dtype=np.int64),
        input_ids=tensors[0].to(device, non_blocking=True),
        lengths=tensors[1].to(device, non_blocking=True),
    )
