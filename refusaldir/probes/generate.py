"""Greedy generation: what each prompt alone would give, in batches and with nothing run twice.

The tokens that all prompts start with are run once (`refusaldir.batching.SharedPrefix`); their
keys and values are expanded over the batch. Suffixes are padded between prefix and suffix,
masked and numbered so that each row sees what it would see alone. Rows that are done leave the
batch. The Hugging Face model does the work with its own attention, so active hooks act at every
step: on ``[batch, seq, d_model]`` at the start, then on ``[batch, 1, d_model]``.

Decoding is plain argmax. Penalties and forced tokens of a model's generation config are not
applied: they are sampling advice, and would make two arms differ by configuration.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from refusaldir.batching import SharedPrefix, is_out_of_memory
from refusaldir.errors import ProbeError
from refusaldir.models.bridge import HookedModel
from refusaldir.records import common_prefix_length

#: Rows a batch before memory says otherwise.
DEFAULT_ROWS = {"cpu": 64, "mps": 64, "cuda": 256}
#: What one more decoding step costs however few its rows, in rows: padding is run once, but a
#: batch split in two pays for every step twice.
STEP_ROWS = {"cpu": 48, "mps": 64, "cuda": 256}
#: Finished rows leave the batch when they are at least this share of it.
DROP_SHARE = 0.125


@dataclass(frozen=True, kw_only=True)
class Response:
    """What the model said to one prompt.

    Attributes:
        index: Index of the prompt in the sequences given.
        ids: New tokens, the stop token left out.
        text: The tokens as text, special tokens left out.
        finished: Whether a stop token came within the budget.
    """

    index: int
    ids: tuple[int, ...]
    text: str
    finished: bool


#: Called with ``(indices, logits)``, logits ``[batch, vocab]`` at the last prompt position.
PrefillFn = Callable[[Int[np.ndarray, " batch"], Float[Tensor, "batch vocab"]], None]


def stop_ids(model: HookedModel) -> tuple[int, ...]:
    """Token ids that end a turn, ascending.

    From the generation config (one id or several), the tokenizer's end of sequence, and the
    special token that the chat template puts after an assistant's turn, which some models'
    configurations forget.
    """
    found: set[int] = set()
    config = getattr(model.hf, "generation_config", None)
    for value in (
        getattr(config, "eos_token_id", None),
        getattr(model.tokenizer, "eos_token_id", None),
    ):
        if isinstance(value, int):
            found.add(value)
        elif value is not None:
            found.update(int(v) for v in value)
    end = _end_of_turn(model.tokenizer)
    if end is not None:
        found.add(end)
    return tuple(sorted(found))


def _end_of_turn(tokenizer: Any) -> int | None:
    """The special token right after an assistant's turn in the chat template, if any."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    sentinel = "zxqsentinel"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": sentinel}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    _, found, rest = text.rpartition(sentinel)
    if not found or not rest.strip():
        return None
    ids = tokenizer.encode(rest.lstrip(), add_special_tokens=False)
    special = set(tokenizer.all_special_ids) | {
        token for token, added in tokenizer.added_tokens_decoder.items() if added.special
    }
    return ids[0] if ids and ids[0] in special else None


def generate(
    model: HookedModel,
    sequences: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    stop: Collection[int] | None = None,
    skip: Collection[int] = frozenset(),
    batch_size: int | None = None,
    on_batch: Callable[[Sequence[Response]], None] | None = None,
    on_prefill: PrefillFn | None = None,
) -> list[Response]:
    """Continue every sequence greedily.

    Args:
        model: The model; hooks that are active now act throughout.
        sequences: Token ids of every rendered prompt, e.g. ``rendered.ids``.
        max_new_tokens: Budget for each response. Short budgets hide late refusals.
        stop: Token ids that end a response; None takes `stop_ids`.
        skip: Indices not to run (already stored).
        batch_size: Rows a batch; None starts large. Halved when memory runs out.
        on_batch: Called with the responses of each finished batch, longest prompts first, so
            that a caller can store them and resume.
        on_prefill: Called with the indices and last-position logits of each batch. When memory
            runs out later in the batch it is called again for the same indices.

    Returns:
        Responses in the order of the sequences, without those skipped.

    Raises:
        ProbeError: No budget, an empty prompt, a prompt that leaves no room in the model's
            context, or one that does not fit in memory by itself.
    """
    todo = [i for i in range(len(sequences)) if i not in skip]
    _check(model, sequences, todo, max_new_tokens)
    if batch_size is not None and batch_size < 1:
        raise ProbeError("a batch needs at least one row", got=batch_size, where="batch_size")
    stops = frozenset(stop_ids(model) if stop is None else stop)
    done: list[Response] = []
    for batch in _batches(model, sequences, todo, max_new_tokens, batch_size, stops, on_prefill):
        done.extend(batch)
        if on_batch is not None:
            on_batch(batch)
    return sorted(done, key=lambda response: response.index)


def _check(
    model: HookedModel, sequences: Sequence[Sequence[int]], todo: Sequence[int], budget: int
) -> None:
    if budget < 1:
        raise ProbeError("generation needs a budget of at least one token", got=budget)
    for i in todo:
        if len(sequences[i]) == 0:
            raise ProbeError("a rendered prompt is empty", where=f"prompt {i}")
        if len(sequences[i]) + budget > model.max_length:
            raise ProbeError(
                "a prompt and its response do not fit in the model's context",
                expected=f"at most {model.max_length} tokens",
                got=f"{len(sequences[i])} + {budget}",
                where=f"prompt {i}",
                next_step="Drop the prompt or ask for fewer new tokens",
            )


def _batches(
    model: HookedModel,
    sequences: Sequence[Sequence[int]],
    todo: Sequence[int],
    budget: int,
    batch_size: int | None,
    stops: frozenset[int],
    on_prefill: PrefillFn | None,
) -> Iterator[list[Response]]:
    if not todo:
        return
    shared = 0
    if len(todo) > 1:
        shortest = min(len(sequences[i]) for i in todo)
        shared = min(common_prefix_length([sequences[i] for i in todo]), shortest - 1)
    prefix = SharedPrefix(model, sequences[todo[0]][:shared])
    order = sorted(todo, key=lambda i: (-len(sequences[i]), i))
    rows_limit = batch_size or DEFAULT_ROWS.get(model.device.type, DEFAULT_ROWS["cpu"])
    most_padding = budget * STEP_ROWS.get(model.device.type, STEP_ROWS["cpu"])
    if not _may_pad(model.hf, len(sequences[order[0]]) + budget):
        most_padding = 0
    start = 0
    while start < len(order):
        lengths = [len(sequences[i]) for i in order[start : start + rows_limit]]
        rows = _rows(lengths, most_padding)
        indices = order[start : start + rows]
        suffixes = [sequences[i][prefix.length :] for i in indices]
        try:
            batch = _Decoding(model, prefix, indices, suffixes, stops).run(budget, on_prefill)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if rows == 1:
                raise ProbeError(
                    "a single prompt does not fit in memory",
                    got=f"{len(sequences[indices[0]])} tokens and {budget} new ones",
                    where=f"prompt {indices[0]}, device {model.device}",
                    next_step="Use a smaller dtype, --quantize, --device-map auto, or drop it",
                ) from error
            rows_limit = max(1, rows // 2)
            if model.device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        start += rows
        yield batch


def _may_pad(hf: Any, longest: int) -> bool:
    """Whether padded rows give what they would give alone.

    They do when positions are passed in and attention is by mask; they do not with recurrent
    states, nor with a sliding window that counts padding as tokens.
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


def _rows(lengths: Sequence[int], most_padding: int) -> int:
    """Number of leading rows (lengths descending) whose padding is at most ``most_padding``."""
    used = 0
    for rows, length in enumerate(lengths, start=1):
        used += length
        if rows * lengths[0] - used > most_padding:
            return rows - 1
    return len(lengths)


class _Decoding:
    """One batch on its way: cache, mask and positions of the rows that are still running."""

    def __init__(
        self,
        model: HookedModel,
        prefix: SharedPrefix,
        indices: Sequence[int],
        suffixes: Sequence[Sequence[int]],
        stops: frozenset[int],
    ) -> None:
        self.model, self.indices, self.stops = model, indices, stops
        longest = max(len(s) for s in suffixes)
        ids = np.zeros((len(suffixes), longest), dtype=np.int64)
        mask = np.ones((len(suffixes), prefix.length + longest), dtype=np.int64)
        for row, suffix in enumerate(suffixes):
            pad = longest - len(suffix)
            ids[row, pad:] = suffix
            mask[row, prefix.length : prefix.length + pad] = 0
        # Padding repeats a position that exists; the mask hides it.
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, prefix.length :]
        device = model.device
        self.ids = torch.from_numpy(ids).to(device)
        self.positions = torch.from_numpy(positions).to(device)
        # Without padding no mask is needed, and attention takes its fast path.
        self.mask = None if mask.all() else torch.from_numpy(mask).to(device)
        self.cache = prefix.expand(len(suffixes)) or DynamicCache(config=model.hf.config)
        self.takes = inspect.signature(model.hf.forward).parameters
        self.rows = list(range(len(suffixes)))
        self.new: list[list[int]] = [[] for _ in suffixes]
        self.finished = [False] * len(suffixes)

    def run(self, budget: int, on_prefill: PrefillFn | None) -> list[Response]:
        with torch.inference_mode():
            logits = self._forward()
            if on_prefill is not None:
                on_prefill(np.asarray(self.indices, dtype=np.int64), logits)
            for step in range(budget):
                chosen = logits.argmax(dim=-1)
                if not self._accept(chosen) or step == budget - 1:
                    break
                logits = self._forward()
        texts = self.model.tokenizer.batch_decode(self.new, skip_special_tokens=True)
        return [
            Response(index=index, ids=tuple(new), text=text, finished=finished)
            for index, new, text, finished in zip(
                self.indices, self.new, texts, self.finished, strict=True
            )
        ]

    def _forward(self) -> Float[Tensor, "batch vocab"]:
        arguments: dict[str, Any] = {"past_key_values": self.cache, "use_cache": True}
        if "position_ids" in self.takes:
            arguments["position_ids"] = self.positions
        if "logits_to_keep" in self.takes:
            arguments["logits_to_keep"] = 1
        if self.mask is not None:
            arguments["attention_mask"] = self.mask
        output = self.model.hf(input_ids=self.ids, **arguments)
        self.cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits

    def _accept(self, chosen: Int[Tensor, " batch"]) -> bool:
        """Store one token a row, drop finished rows, prepare the next step; False at the end."""
        running = []
        for at, (row, token) in enumerate(zip(self.rows, chosen.tolist(), strict=True)):
            if self.finished[row]:
                continue
            if token in self.stops:
                self.finished[row] = True
            else:
                self.new[row].append(token)
                running.append(at)
        if not running:
            return False
        device = self.ids.device
        self.ids = chosen.to(device)[:, None]
        self.positions = self.positions[:, -1:] + 1
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        if len(self.rows) - len(running) >= DROP_SHARE * len(self.rows):
            keep = torch.tensor(running, device=device)
            self.ids, self.positions = self.ids[keep], self.positions[keep]
            if self.mask is not None:
                self.mask = self.mask[keep]
            self._keep_in_cache(keep)
            self.rows = [self.rows[at] for at in running]
        return True

    def _keep_in_cache(self, keep: Int[Tensor, " kept"]) -> None:
        self.cache.reorder_cache(keep)
