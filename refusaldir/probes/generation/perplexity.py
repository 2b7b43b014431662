"""How surprising a reply is to a model: nats a token, given the prompt that it answers.

    surprise = −(1/n) Σ_t log p(y_t | prompt, y_<t)        perplexity = exp(surprise)

over the n tokens of the reply, the stop token left out. The reply is tokenised from its text, as
a reader gets it, so that replies of any origin can be scored. Sums are in float64.
"""

import inspect
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from refusaldir.batching import TokenBatch, run_batches
from refusaldir.errors import ProbeError
from refusaldir.models.bridge import HookedModel

#: Most logits computed at a time; they take 4 bytes each, and more while they are summed up.
LOGITS = {"cpu": 2**26, "mps": 2**27, "cuda": 2**29}


def surprises(
    model: HookedModel,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[str],
    *,
    batch_size: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[float | None]:
    """Mean negative log-likelihood of each reply, in nats a token.

    Args:
        model: The model that reads, usually base; hooks that are active now act.
        prompts: Token ids of each rendered prompt, up to where the reply begins.
        replies: The replies as text. One that is longer than the model's context is read as far
            as that goes.
        batch_size: Rows a batch; None takes as many as the logits leave room for.
        on_batch: Called with the number of replies after each batch (for a progress bar).

    Returns:
        One figure a reply; None where it has no tokens.

    Raises:
        ProbeError: There is not one prompt a reply, a prompt is empty, or one leaves no room in
            the model's context.
        CaptureError: A single reply does not fit in memory.
    """
    if len(prompts) != len(replies):
        raise ProbeError(
            "every reply needs its prompt", expected=f"{len(replies)} prompts", got=len(prompts)
        )
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) < model.max_length:
            raise ProbeError(
                "a prompt leaves nothing to read a reply after",
                expected=f"1 to {model.max_length - 1} tokens",
                got=len(prompt),
                where=f"prompt {i}",
            )
    if not replies:
        return []
    encoded = model.tokenizer(list(replies), add_special_tokens=False, verbose=False)["input_ids"]
    said = [
        tuple(ids[: model.max_length - len(prompt)])
        for prompt, ids in zip(prompts, encoded, strict=True)
    ]
    out: list[float | None] = [None] * len(replies)
    empty = frozenset(i for i, ids in enumerate(said) if not ids)
    if len(empty) == len(said):
        return out
    sequences = [(*prompt, *ids) for prompt, ids in zip(prompts, said, strict=True)]
    # The prompt's last token predicts the reply's first one.
    tails = [len(ids) + 1 for ids in said]
    if batch_size is None:
        most = LOGITS.get(model.device.type, LOGITS["cpu"])
        longest = max(map(len, sequences))
        batch_size = max(1, most // (longest * model.identity.vocab_size))
    step = _Step(model, tails)
    for batch, values in run_batches(
        model, sequences, step, tail=tails, skip=empty, batch_size=batch_size
    ):
        for index, value in zip(batch.indices.tolist(), values, strict=True):
            out[index] = value
        if on_batch is not None:
            on_batch(len(values))
    return out


class _Step:
    """One forward pass; mean surprise of each row's tail."""

    def __init__(self, model: HookedModel, tails: Sequence[int]) -> None:
        self._model, self._tails = model, tails
        self._keeps = "logits_to_keep" in inspect.signature(model.hf.forward).parameters

    def __call__(self, batch: TokenBatch, prefix: DynamicCache | None) -> list[float]:
        lengths = batch.lengths.tolist()
        tails = [self._tails[i] for i in batch.indices.tolist()]
        start = min(length - tail for length, tail in zip(lengths, tails, strict=True))
        needed = batch.input_ids.shape[1] - start
        with torch.inference_mode():
            output = self._model.hf(
                input_ids=batch.input_ids,
                past_key_values=prefix,
                use_cache=prefix is not None,
                **({"logits_to_keep": needed} if self._keeps else {}),
            )
            logits = output.logits[:, -needed:]
            return [
                _mean_surprise(
                    row[length - tail - start : length - 1 - start],
                    ids[length - tail + 1 : length],
                )
                for row, ids, length, tail in zip(
                    logits, batch.input_ids, lengths, tails, strict=True
                )
            ]


def _mean_surprise(logits: Tensor, ids: Int[Tensor, " reply"]) -> float:
    if logits.device.type == "mps":  # Has no float64.
        logits, ids = logits.cpu(), ids.cpu()
    z = logits.double()
    chosen = z.gather(1, ids.to(z.device)[:, None])[:, 0]
    return float((torch.logsumexp(z, dim=-1) - chosen).mean())
