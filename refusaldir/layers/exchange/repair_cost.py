"""What it costs to give layers back to base: the fine-tune's own task, or its answers.

Where the user has text of the fine-tune, the loss on it says how much of what was learnt is
lost. Without, the change of answers to harmless prompts says only that the model is another one.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from transformers.cache_utils import DynamicCache

from refusaldir.batching import TokenBatch, run_batches
from refusaldir.directions.divergence import kl_divergence
from refusaldir.errors import ProbeError
from refusaldir.layers.exchange.sweep import Mixture
from refusaldir.layers.weight_pair import WeightPair
from refusaldir.models.bridge import HookedModel


@runtime_checkable
class Cost(Protocol):
    """What a mixture of two models is worse at than tuned.

    Attributes:
        name: In words, with its unit.
    """

    name: str

    def of(
        self, pair: WeightPair, mixtures: Sequence[Mixture]
    ) -> Float64[np.ndarray, "mixture text"]:
        """Measure each mixture on each text; the first mixture is tuned."""
        ...


class TextLoss:
    """Mean next-token loss on the fine-tune's own text, in nats a token.

    Args:
        texts: Token ids of each text; what goes beyond the model's context is left out.

    Raises:
        ProbeError: No text, or one with nothing to predict.
    """

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        """Check the texts."""
        if not texts or min(map(len, texts)) < 2:
            raise ProbeError(
                "A loss needs texts of at least two tokens",
                got="no text" if not texts else "a shorter one",
            )
        self.name = "loss on the fine-tune's text (nats a token)"
        self.texts = texts

    def of(
        self, pair: WeightPair, mixtures: Sequence[Mixture]
    ) -> Float64[np.ndarray, "mixture text"]:
        """Measure each mixture; see `Cost.of`."""
        return np.stack([self._one(pair, mixture) for mixture in mixtures])

    def _one(self, pair: WeightPair, mixture: Mixture) -> Float64[np.ndarray, " text"]:
        pair.set(mixture.tuned, outside=mixture.outside)
        model, losses = pair.model, []
        for text in self.texts:  # One at a time: logits at every token are large.
            ids = torch.tensor([list(text[: model.max_length])], device=model.device)
            with torch.inference_mode():
                logits = model.hf(input_ids=ids, use_cache=False).logits[0, :-1].float()
                loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:].to(logits.device))
            losses.append(float(loss))
        return np.array(losses)


class AnswerChange:
    """KL from tuned of the first token of the answer to harmless prompts, in nats.

    Args:
        sequences: Token ids of rendered harmless prompts.
        batch_size: Rows a batch; None finds one by itself.

    Raises:
        ProbeError: No prompt.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], batch_size: int | None = None) -> None:
        """Keep the prompts."""
        if not sequences:
            raise ProbeError("A change of answers needs at least one prompt", got="none")
        self.name = "KL from tuned on harmless prompts (nats)"
        self.sequences, self.batch_size = sequences, batch_size

    def of(
        self, pair: WeightPair, mixtures: Sequence[Mixture]
    ) -> Float64[np.ndarray, "mixture text"]:
        """Measure each mixture; see `Cost.of`."""
        pair.set(mixtures[0].tuned, outside=mixtures[0].outside)
        tuned = self._distributions(pair.model)
        rows = [np.zeros(len(self.sequences))]
        for mixture in mixtures[1:]:
            pair.set(mixture.tuned, outside=mixture.outside)
            changed = self._distributions(pair.model)
            rows.append(
                np.array([float(kl_divergence(p, q)) for p, q in zip(tuned, changed, strict=True)])
            )
        return np.stack(rows)

    def _distributions(self, model: HookedModel) -> list[Tensor]:
        """Next-token distribution of each prompt, float64 on the host."""
        found: dict[int, Tensor] = {}

        def step(batch: TokenBatch, prefix: DynamicCache | None) -> Tensor:
            with torch.inference_mode():
                logits = model.logits(
                    batch.input_ids,
                    past_key_values=prefix,
                    use_cache=prefix is not None,
                    lengths=batch.lengths,
                )
            return logits.cpu().double().softmax(-1)

        for batch, rows in run_batches(
            model, self.sequences, step, tail=1, batch_size=self.batch_size
        ):
            found.update(zip(batch.indices.tolist(), rows, strict=True))
        return [found[index] for index in range(len(self.sequences))]
