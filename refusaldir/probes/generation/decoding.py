"""One batch of replies on its way: prompts run, then one token a row and step until all are done.

Prompts run in chunks of nearly equal length, padded on the right, where padding cannot be seen
and needs no mask; equal prompts run once. Then their keys and values are laid side by side for
decoding: slots that a shorter prompt leaves empty are masked and never computed, and positions
count real tokens only, so each row sees what it would see alone. Rows that are done leave.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from refusaldir.batching import SharedPrefix, TokenBatch, collate
from refusaldir.directions.mean_diff import Direction
from refusaldir.models.bridge import HookedModel
from refusaldir.probes.generation.draw import draw

#: Finished rows leave the batch when they are at least this share of it.
DROP_SHARE = 0.125
#: Prompt tokens run at a time.
CHUNK_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 32768}
#: What one more forward pass costs beside its tokens, in tokens: padding up to here is cheaper.
PASS_TOKENS = {"cpu": 16, "mps": 256, "cuda": 4096}
#: Empty slots that keys and values get at a time, for the tokens to come.
SPARE = 64


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a batch is asked for.

    Attributes:
        indices: Index of each row's prompt in the sequences given.
        suffixes: Its tokens after the shared prefix; equal ones adjacent, longest first.
        temperatures: One a row; 0 is greedy.
        seeds: One a row; not looked at at temperature 0.
        budget: Most new tokens a row.
        stops: Tokens that end a reply.
        direction: What prompts are projected on, or None.
        pads: Whether rows of different lengths may go together, see `may_pad`; else all suffixes
            are of one length.
    """

    indices: Sequence[int]
    suffixes: Sequence[Sequence[int]]
    temperatures: Sequence[float]
    seeds: Sequence[int | None]
    budget: int
    stops: frozenset[int]
    direction: Direction | None
    pads: bool


#: Called with ``(indices, logits)``, logits ``[batch, vocab]`` at the last prompt position.
PrefillFn = Callable[[Int[np.ndarray, " batch"], Float[Tensor, "batch vocab"]], None]


class Decoding:
    """One batch: the rows that are still running, and what the others said.

    Attributes:
        new: New tokens of each row, the stop token left out.
        finished: Whether a stop token came.
        projections: Projection of each row's prompt; None without a direction.
    """

    def __init__(self, model: HookedModel, prefix: SharedPrefix, asked: Asked) -> None:
        """Prepare; nothing runs yet."""
        self.model, self.prefix, self.asked = model, prefix, asked
        self.takes = inspect.signature(model.hf.forward).parameters
        n = len(asked.indices)
        self.rows = list(range(n))
        self.new: list[list[int]] = [[] for _ in range(n)]
        self.finished = [False] * n
        self.projections: list[float | None] = [None] * n

    def run(self, on_prefill: PrefillFn) -> None:
        """Run to the end."""
        with torch.inference_mode():
            logits = self._prefill()
            on_prefill(np.asarray(self.asked.indices, dtype=np.int64), logits)
            for step in range(self.asked.budget):
                chosen = draw(
                    logits,
                    [self.asked.temperatures[row] for row in self.rows],
                    [self.asked.seeds[row] for row in self.rows],
                    step,
                )
                if not self._accept(chosen) or step == self.asked.budget - 1:
                    return
                logits = self._forward()

    def _prefill(self) -> Float[Tensor, "batch vocab"]:
        """Run every prompt once and lay the rows out for decoding."""
        suffixes = self.asked.suffixes
        distinct = list(dict.fromkeys(map(tuple, suffixes)))
        number = {suffix: i for i, suffix in enumerate(distinct)}
        row_of = [number[tuple(suffix)] for suffix in suffixes]
        caches: list[DynamicCache] = []
        logits: list[Tensor] = []
        projections: list[float] = []
        start = 0
        while start < len(distinct):
            count = len(distinct)
            if self.asked.pads:
                count = chunk_rows([len(s) for s in distinct[start:]], self.model.device.type)
            batch = collate(distinct, range(start, start + count), 0, self.model.device)
            cache = self.prefix.expand(count) or DynamicCache(config=self.model.hf.config)
            reading = _Reading(self.model, batch, self.asked.direction)
            with reading.hooked():
                logits.append(
                    self.model.logits(
                        batch.input_ids,
                        past_key_values=cache,
                        use_cache=True,
                        lengths=batch.lengths,
                    )
                )
            projections.extend(reading.values)
            caches.append(cache)
            start += count
        if projections:
            self.projections = [projections[i] for i in row_of]
        device = self.model.device
        lengths = torch.tensor([self.prefix.length + len(s) for s in suffixes], device=device)
        self.positions = lengths[:, None]
        slots = torch.arange(int(lengths[0]), device=device)
        mask = (slots < lengths[:, None]).long()
        # Without padding no mask is needed, and attention takes its fast path.
        self.mask = None if bool(mask.all()) else mask
        index = torch.tensor(row_of, device=device)
        if self.asked.pads:
            self.cache = side_by_side(caches, row_of)
        else:
            self.cache = caches[0]
            self.cache.reorder_cache(index)
        return torch.cat(logits)[index]

    def _forward(self) -> Float[Tensor, "batch vocab"]:
        arguments: dict[str, Any] = {"past_key_values": self.cache, "use_cache": True}
        if "position_ids" in self.takes:
            arguments["position_ids"] = self.positions
        if self.mask is not None:
            arguments["attention_mask"] = self.mask
        output = self.model.hf(input_ids=self.ids, **arguments)
        self.positions = self.positions + 1
        logits: Tensor = output.logits[:, -1]
        return logits

    def _accept(self, chosen: Int[Tensor, " batch"]) -> bool:
        """Store one token a row, drop finished rows, prepare the next step; False at the end."""
        running = []
        for at, (row, token) in enumerate(zip(self.rows, chosen.tolist(), strict=True)):
            if self.finished[row]:
                continue
            if token in self.asked.stops:
                self.finished[row] = True
            else:
                self.new[row].append(token)
                running.append(at)
        if not running:
            return False
        self.ids = chosen[:, None]
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        if len(self.rows) - len(running) >= DROP_SHARE * len(self.rows):
            keep = torch.tensor(running, device=self.ids.device)
            self.ids, self.positions = self.ids[keep], self.positions[keep]
            if self.mask is not None:
                self.mask = self.mask[keep]
            self.cache.reorder_cache(keep)
            self.rows = [self.rows[at] for at in running]
        return True


def chunk_rows(lengths: Sequence[int], device: str) -> int:
    """Number of leading prompts (lengths descending) to run at a time."""
    tokens = CHUNK_TOKENS.get(device, CHUNK_TOKENS["cpu"])
    most_padding = PASS_TOKENS.get(device, PASS_TOKENS["cpu"])
    used = 0
    for rows, length in enumerate(lengths):
        padding = (rows + 1) * lengths[0] - used - length
        if rows and (padding > most_padding or (rows + 1) * lengths[0] > tokens):
            return rows
        used += length
    return len(lengths)


class _Reading:
    """Projection of one activation of each row of a chunk, read as it runs."""

    def __init__(self, model: HookedModel, batch: TokenBatch, direction: Direction | None) -> None:
        self.values: list[float] = []
        self._model, self._batch, self._direction = model, batch, direction

    def hooked(self) -> AbstractContextManager[None]:
        direction = self._direction
        if direction is None:
            return nullcontext()
        site, unit = direction.site, torch.from_numpy(direction.unit)

        def read(value: Float[Tensor, "batch seq d_model"]) -> None:
            at = (self._batch.lengths + site.position).to(value.device)
            rows = torch.arange(len(at), device=value.device)
            self.values = (value[rows, at].cpu().double() @ unit).tolist()

        return self._model.hooked({(site.hook, site.layer): read})


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values with spare slots, so that a step copies one token and not all before it."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values, self.is_initialized = keys, values, True
        self._room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        length, new = self.keys.shape[-2], key_states.shape[-2]
        if self._room is None or length + new > self._room[0].shape[-2]:
            self._room = (_roomy(self.keys, new), _roomy(self.values, new))
        for buffer, states in zip(self._room, (key_states, value_states), strict=True):
            buffer[:, :, length : length + new] = states
        self.keys, self.values = (buffer[:, :, : length + new] for buffer in self._room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._room = None


def _roomy(states: Tensor, new: int) -> Tensor:
    """A copy with `SPARE` or ``new`` slots more."""
    batch, heads, length, dim = states.shape
    buffer = states.new_empty(batch, heads, length + max(SPARE, new), dim)
    buffer[:, :, :length] = states
    return buffer


def side_by_side(caches: Sequence[DynamicCache], row_of: Sequence[int]) -> DynamicCache:
    """One cache for decoding, from those of chunks of prompts.

    Args:
        caches: Of chunks of prompts, longest first, every layer keeping all its tokens; emptied.
        row_of: Prompt of each row, counted over the chunks.

    Returns:
        A cache whose rows are as long as the longest prompt; slots beyond a shorter one are
        zero, and the caller's mask has to hide them.
    """
    index = torch.tensor(row_of)
    places: list[tuple[Tensor, Tensor]] = []
    start = 0
    for cache in caches:
        here = index - start
        start += len(cache.layers[0].keys)
        inside = (here >= 0) & (index < start)
        places.append((inside.nonzero()[:, 0], here[inside]))

    def whole(layer: int, name: str) -> Tensor:
        states: list[Tensor] = [getattr(cache.layers[layer], name) for cache in caches]
        _, heads, length, dim = states[0].shape
        out = states[0].new_zeros(len(row_of), heads, length, dim)
        for cache, (to, rows), part in zip(caches, places, states, strict=True):
            out[to.to(part.device), :, : part.shape[-2]] = part[rows.to(part.device)]
            setattr(cache.layers[layer], name, None)  # Memory for the next layer.
        return out

    merged = DynamicCache()
    merged.layers = [
        # A layer without keys shares another one's.
        layer if layer.keys is None else _RoomyLayer(whole(i, "keys"), whole(i, "values"))
        for i, layer in enumerate(caches[0].layers)
    ]
    return merged


def may_pad(hf: Any, longest: int) -> bool:
    """Whether rows of different lengths give, side by side, what they would give alone.

    They do when positions are passed in and attention is by mask; they do not with recurrent
    states, nor with a sliding window that counts empty slots as tokens.

    Args:
        hf: The Hugging Face model.
        longest: Most tokens of a row, new ones included.
    """
    if "position_ids" not in inspect.signature(hf.forward).parameters:
        return False
    for layer in DynamicCache(config=hf.config).layers:
        if type(layer) is DynamicSlidingWindowLayer:
            if longest >= layer.sliding_window:
                return False
        elif type(layer) is not DynamicLayer:
            return False
    return True
