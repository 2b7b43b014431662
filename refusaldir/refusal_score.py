"""Refusal score: how much probability the next token gives to starting a refusal.

``s = log(p_R + ε) − log(1 − p_R + ε)`` with ``ε = 1e-8`` and ``p_R`` the summed probability of
the refusal tokens at the last position of the prompt, in float64 (Arditi et al. 2024, arXiv
2406.11717, §2.4). In nats; positive when the model would rather refuse; within ±18.42 by ε.

It looks one token ahead: a refusal that begins like an answer is not seen, nor one after a
thinking block. `refusaldir.probes.refusal_tokens` says how well the tokens tell.
"""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from transformers.cache_utils import DynamicCache

from refusaldir.batching import TokenBatch, run_batches
from refusaldir.errors import ProbeError
from refusaldir.models.bridge import HookedModel

EPSILON = 1e-8


def score_of_logits(
    logits: Float[Tensor, "batch vocab"], refusal_tokens: Collection[int]
) -> Float64[Tensor, " batch"]:
    """Refusal score of each row of last-position logits.

    Args:
        logits: Any float dtype; computed in float64 (on the CPU where the device has none).
        refusal_tokens: Token ids; each counts once.

    Raises:
        ProbeError: No token, or one outside the vocabulary.
    """
    ids = sorted(set(refusal_tokens))
    if not ids:
        raise ProbeError(
            "a refusal score needs refusal tokens",
            got="none",
            next_step="Name them yourself, or use judged responses alone",
        )
    if ids[0] < 0 or ids[-1] >= logits.shape[-1]:
        raise ProbeError(
            "a refusal token is not in the vocabulary",
            expected=f"ids from 0 to {logits.shape[-1] - 1}",
            got=ids[0] if ids[0] < 0 else ids[-1],
            next_step="Find the refusal tokens again for this model",
        )
    if logits.device.type == "mps":
        logits = logits.cpu()
    x = logits.double()
    total = torch.logsumexp(x, dim=-1)
    index = torch.tensor(ids, device=x.device)
    p = torch.exp(torch.logsumexp(x[:, index], dim=-1) - total).clamp(max=1.0)
    return torch.log(p + EPSILON) - torch.log(1 - p + EPSILON)


def refusal_scores(
    model: HookedModel,
    sequences: Sequence[Sequence[int]],
    refusal_tokens: Collection[int],
    *,
    batch_size: int | None = None,
) -> Float64[np.ndarray, " prompt"]:
    """Refusal score of every sequence; hooks that are active now act.

    Args:
        model: The model.
        sequences: Token ids of every rendered prompt, e.g. ``rendered.ids``.
        refusal_tokens: Token ids, e.g. ``found.ids``.
        batch_size: Rows a batch; None finds one by itself.

    Raises:
        ProbeError: No refusal token, one outside the vocabulary, or a score that is not finite.
    """
    scores = np.full(len(sequences), np.nan)

    def step(batch: TokenBatch, prefix: DynamicCache | None) -> Tensor:
        with torch.inference_mode():
            logits = model.logits(
                batch.input_ids,
                past_key_values=prefix,
                use_cache=prefix is not None,
                lengths=batch.lengths,
            )
            return score_of_logits(logits, refusal_tokens)

    for batch, values in run_batches(model, sequences, step, tail=1, batch_size=batch_size):
        scores[batch.indices] = values.cpu().numpy()
    if not np.all(np.isfinite(scores)):
        raise ProbeError(
            "a refusal score is not finite: the model gave NaN or infinite logits",
            where=f"prompt {int(np.flatnonzero(~np.isfinite(scores))[0])}",
            next_step="Load the model in float32 or bfloat16",
        )
    return scores
