"""Replies: what each prompt alone would get, in batches and with nothing run twice.

The tokens that all prompts start with are run once (`refusaldir.batching.SharedPrefix`), and
equal prompts once a batch. Prompts run with no padding to speak of, and rows of different
lengths then decode side by side (`refusaldir.probes.generation.decoding`). The Hugging Face model
does the work with its own attention, so active hooks act at every step: on
``[batch, seq, d_model]`` at the start, then on ``[batch, 1, d_model]``.

Decoding is plain argmax at temperature 0, and above it a draw from the whole softmax
(`refusaldir.probes.generation.draw`). There is no top-p or top-k, and penalties and forced tokens
of a model's generation config are not applied: they are sampling advice, would make two arms differ
by configuration, and hide the tail in which a refusal may begin. A reply depends on the model,
its prompt, temperature and seed; on the batch only as far as rounding does.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusaldir.batching import SharedPrefix, is_out_of_memory
from refusaldir.directions.mean_diff import Direction
from refusaldir.errors import ProbeError
from refusaldir.models.bridge import HookedModel
from refusaldir.probes.generation.decoding import Asked, Decoding, PrefillFn, may_pad
from refusaldir.records import common_prefix_length

#: Rows a batch before memory says otherwise.
DEFAULT_ROWS = {"cpu": 64, "mps": 64, "cuda": 256}
#: Most empty slots of keys and values in a batch: reading them at every step costs about as much
#: as the pass that another batch would need.
EMPTY_SLOTS = {"cpu": 8192, "mps": 16384, "cuda": 65536}


@dataclass(frozen=True, kw_only=True)
class Response:
    """What the model said to one prompt.

    Attributes:
        index: Index of the prompt in the sequences given.
        ids: New tokens, the stop token left out.
        text: The tokens as text, special tokens left out.
        finished: Whether a stop token came within the budget.
        projection: Projection of the prompt's activation at the direction's site on its unit
            vector, in units of the residual stream; None without a direction.
    """

    index: int
    ids: tuple[int, ...]
    text: str
    finished: bool
    projection: float | None = None


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
    temperatures: Sequence[float] | None = None,
    seeds: Sequence[int | None] | None = None,
    direction: Direction | None = None,
    stop: Collection[int] | None = None,
    skip: Collection[int] = frozenset(),
    batch_size: int | None = None,
    on_batch: Callable[[Sequence[Response]], None] | None = None,
    on_prefill: PrefillFn | None = None,
) -> list[Response]:
    """Continue every sequence, greedily or by draws.

    Args:
        model: The model; hooks that are active now act throughout.
        sequences: Token ids of every rendered prompt, e.g. ``rendered.ids``. The same prompt may
            come several times, to be sampled.
        max_new_tokens: Budget for each response. Short budgets hide late refusals.
        temperatures: One a sequence; 0 is greedy. None for all greedy.
        seeds: One a sequence, e.g. `refusaldir.probes.plan.Job.drawn_seed`; may be None where the
            temperature is 0. Equal prompts with equal temperatures and seeds get equal replies.
        direction: Where to read each prompt's activation as the prompt runs, and what to project
            it on: `Response.projection`.
        stop: Token ids that end a response; None takes `stop_ids`.
        skip: Indices whose responses are not wanted (already stored). The others run in the
            batches that they would have run in without it, so that a run that is resumed gives
            the same to the last digit; batches of skipped rows alone are left out.
        batch_size: Rows a batch; None starts large. Halved when memory runs out.
        on_batch: Called with the responses of each finished batch, longest prompts first, so
            that a caller can store them and resume.
        on_prefill: Called with the indices and last-position logits of each batch, a row for
            each index. When memory runs out later in the batch it is called again for the same
            indices.

    Returns:
        Responses in the order of the sequences, without those skipped.

    Raises:
        ProbeError: No budget, an empty prompt, one shorter than the direction's position reaches
            or that leaves no room in the model's context, one that does not fit in memory by
            itself; a temperature or seed that is missing or impossible.
        CaptureError: The model has no such site.
    """
    temperatures = [0.0] * len(sequences) if temperatures is None else temperatures
    seeds = [None] * len(sequences) if seeds is None else seeds
    _check(model, sequences, max_new_tokens, direction)
    _check_sampling(len(sequences), temperatures, seeds)
    if batch_size is not None and batch_size < 1:
        raise ProbeError("a batch needs at least one row", got=batch_size, where="batch_size")
    work = _Work(
        model=model,
        sequences=sequences,
        temperatures=temperatures,
        seeds=seeds,
        budget=max_new_tokens,
        stops=frozenset(stop_ids(model) if stop is None else stop),
        direction=direction,
    )
    done: list[Response] = []
    for batch in work.batches(frozenset(skip), batch_size, on_prefill):
        done.extend(batch)
        if on_batch is not None:
            on_batch(batch)
    return sorted(done, key=lambda response: response.index)


def _check(
    model: HookedModel,
    sequences: Sequence[Sequence[int]],
    budget: int,
    direction: Direction | None,
) -> None:
    if budget < 1:
        raise ProbeError("generation needs a budget of at least one token", got=budget)
    for i, sequence in enumerate(sequences):
        if len(sequence) == 0:
            raise ProbeError("a rendered prompt is empty", where=f"prompt {i}")
        if direction is not None and len(sequence) < -direction.site.position:
            raise ProbeError(
                "a prompt is shorter than the direction's position reaches",
                expected=f"at least {-direction.site.position} tokens",
                got=len(sequence),
                where=f"prompt {i}, {direction.site}",
                next_step="Take a direction nearer to the end, or drop the prompt",
            )
        if len(sequence) + budget > model.max_length:
            raise ProbeError(
                "a prompt and its response do not fit in the model's context",
                expected=f"at most {model.max_length} tokens",
                got=f"{len(sequence)} + {budget}",
                where=f"prompt {i}",
                next_step="Drop the prompt or ask for fewer new tokens",
            )


def _check_sampling(n: int, temperatures: Sequence[float], seeds: Sequence[int | None]) -> None:
    for name, values in (("temperature", temperatures), ("seed", seeds)):
        if len(values) != n:
            raise ProbeError(f"every prompt needs a {name}", expected=n, got=len(values))
    for i, (temperature, seed) in enumerate(zip(temperatures, seeds, strict=True)):
        if not (isfinite(temperature) and temperature >= 0):
            raise ProbeError(
                "a temperature is 0 or a positive number", got=temperature, where=f"prompt {i}"
            )
        if temperature > 0 and (seed is None or seed < 0):
            raise ProbeError(
                "sampling needs a seed",
                expected="0 or a positive whole number",
                got=seed,
                where=f"prompt {i}",
            )


@dataclass(frozen=True, kw_only=True)
class _Work:
    """Everything that batches of one call have in common."""

    model: HookedModel
    sequences: Sequence[Sequence[int]]
    temperatures: Sequence[float]
    seeds: Sequence[int | None]
    budget: int
    stops: frozenset[int]
    direction: Direction | None

    def batches(
        self, skip: Collection[int], batch_size: int | None, on_prefill: PrefillFn | None
    ) -> Iterator[list[Response]]:
        """Run in batches, longest prompts first; fewer rows each time memory runs out."""
        model, sequences = self.model, self.sequences
        if all(i in skip for i in range(len(sequences))):
            return
        prefix = SharedPrefix(model, sequences[0][: self._shared()])
        first: dict[tuple[int, ...], int] = {}
        for i, sequence in enumerate(sequences):
            first.setdefault(tuple(sequence), i)
        # Equal prompts side by side, so that they run together.
        order = sorted(
            range(len(sequences)),
            key=lambda i: (-len(sequences[i]), first[tuple(sequences[i])], i),
        )
        rows_limit = batch_size or DEFAULT_ROWS.get(model.device.type, DEFAULT_ROWS["cpu"])
        pads = may_pad(model.hf, len(sequences[order[0]]) + self.budget)
        empty = EMPTY_SLOTS.get(model.device.type, EMPTY_SLOTS["cpu"]) if pads else 0
        start = 0
        while start < len(order):
            rows = _rows([len(sequences[i]) for i in order[start : start + rows_limit]], empty)
            indices = order[start : start + rows]
            wanted = [row for row, i in enumerate(indices) if i not in skip]
            try:
                batch = self._run(prefix, indices, pads, wanted, on_prefill) if wanted else []
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if rows == 1:
                    raise ProbeError(
                        "a single prompt does not fit in memory",
                        got=f"{len(sequences[indices[0]])} tokens and {self.budget} new ones",
                        where=f"prompt {indices[0]}, device {model.device}",
                        next_step="Use a smaller dtype, --quantize, --device-map auto, or drop it",
                    ) from error
                rows_limit = max(1, rows // 2)
                if model.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            start += rows
            if batch:
                yield batch

    def _shared(self) -> int:
        """Tokens that all prompts start with, short of what has to be seen as each one runs."""
        if len(self.sequences) < 2:
            return 0
        tail = 1 if self.direction is None else -self.direction.site.position
        return min(common_prefix_length(self.sequences), min(map(len, self.sequences)) - tail)

    def _run(
        self,
        prefix: SharedPrefix,
        indices: Sequence[int],
        pads: bool,
        wanted: Sequence[int],
        on_prefill: PrefillFn | None,
    ) -> list[Response]:
        def prefilled(at: Int[np.ndarray, " batch"], logits: Float[Tensor, "batch vocab"]) -> None:
            if on_prefill is not None:
                on_prefill(at[wanted], logits[wanted])

        decoding = Decoding(
            self.model,
            prefix,
            Asked(
                indices=indices,
                suffixes=[self.sequences[i][prefix.length :] for i in indices],
                temperatures=[self.temperatures[i] for i in indices],
                seeds=[self.seeds[i] for i in indices],
                budget=self.budget,
                stops=self.stops,
                direction=self.direction,
                pads=pads,
            ),
        )
        decoding.run(prefilled)
        texts = self.model.tokenizer.batch_decode(decoding.new, skip_special_tokens=True)
        return [
            Response(
                index=indices[row],
                ids=tuple(decoding.new[row]),
                text=texts[row],
                finished=decoding.finished[row],
                projection=decoding.projections[row],
            )
            for row in wanted
        ]


def _rows(lengths: Sequence[int], empty: int) -> int:
    """Number of leading rows (lengths descending) with at most so many empty slots."""
    used = 0
    for rows, length in enumerate(lengths, start=1):
        used += length
        if rows * lengths[0] - used > empty:
            return rows - 1
    return len(lengths)
