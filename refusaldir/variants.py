"""Variants of one model side by side: each row of a batch runs under its own intervention.

One forward pass serves many interventions. The tokens that all prompts share are run once a
variant, not once a prompt; prompts are padded on the right, which changes nothing for them.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from refusaldir.batching import (
    FIRST_BUDGET,
    SharedPrefix,
    TokenBatch,
    collate,
    is_out_of_memory,
)
from refusaldir.errors import CaptureError
from refusaldir.hooks import Intervention, intervene
from refusaldir.models.bridge import HookedModel

#: Given the variant of each row of a batch, what to do to those rows.
Interventions = Callable[[Int[Tensor, " batch"]], Sequence[Intervention]]


class Variants:
    """A model under several interventions.

    Args:
        model: The model.
        prefix: Tokens that all sequences to be run start with; may be empty.
        count: Number of variants.
        interventions: What each variant does, given per row.
    """

    def __init__(
        self,
        model: HookedModel,
        prefix: Sequence[int],
        count: int,
        interventions: Interventions,
    ) -> None:
        """Run the prefix once for every variant."""
        self._model, self._interventions = model, interventions
        #: Most tokens a batch; halved for good when memory runs out.
        self._budget = FIRST_BUDGET.get(model.device.type, FIRST_BUDGET["cpu"])
        with intervene(model, *interventions(torch.arange(count, device=model.device))):
            self._prefix = SharedPrefix(model, prefix, copies=count)

    def rows(self, longest: int) -> int:
        """A good number of rows a batch for sequences of at most ``longest`` tokens."""
        return max(1, self._budget // max(1, longest - self._prefix.length))

    def logits(
        self, pairs: Sequence[tuple[int, Sequence[int]]]
    ) -> Iterator[tuple[int, Float[Tensor, "batch vocab"]]]:
        """Logits after the last token of each (variant, sequence).

        Args:
            pairs: Variant and whole sequence, in any order; neighbours near in length waste least.

        Yields:
            Index of the first pair of a batch and the logits of the batch's pairs, in order.

        Raises:
            CaptureError: Not even one row fits in memory.
        """

        def run(batch: TokenBatch, cache: DynamicCache | None) -> Tensor:
            return self._model.logits(
                batch.input_ids,
                past_key_values=cache,
                use_cache=cache is not None,
                lengths=batch.lengths,
            )

        return self._batches(pairs, run)

    def last(
        self, pairs: Sequence[tuple[int, Sequence[int]]], hook: str, layers: Sequence[int]
    ) -> Iterator[tuple[int, Float[Tensor, "batch layer d_model"]]]:
        """The stream at the last token of each (variant, sequence); later layers are not run.

        Args:
            pairs: As in `logits`.
            hook: Hook point, read after the interventions there.
            layers: Layers, in the order wanted.

        Yields:
            Index of the first pair of a batch and the values of the batch's pairs, in order.

        Raises:
            CaptureError: Not even one row fits in memory.
        """

        def run(batch: TokenBatch, cache: DynamicCache | None) -> Tensor:
            rows = torch.arange(len(batch.indices), device=batch.lengths.device)
            kept: dict[int, Tensor] = {}

            def keep(layer: int) -> Callable[[Tensor], None]:
                def hook_fn(value: Tensor) -> None:
                    at = (rows.to(value.device), (batch.lengths - 1).to(value.device))
                    kept[layer] = value[at].to(self._model.device)

                return hook_fn

            with self._model.hooked({(hook, layer): keep(layer) for layer in layers}):
                self._model.run(
                    batch.input_ids,
                    past_key_values=cache,
                    use_cache=cache is not None,
                    stop_after=(hook, max(layers)),
                )
            return torch.stack([kept[layer] for layer in layers], dim=1)

        return self._batches(pairs, run)

    def _batches(
        self,
        pairs: Sequence[tuple[int, Sequence[int]]],
        run: Callable[[TokenBatch, DynamicCache | None], Tensor],
    ) -> Iterator[tuple[int, Tensor]]:
        start = 0
        while start < len(pairs):
            part = pairs[start : start + self._fitting(pairs, start)]
            variants = torch.tensor([variant for variant, _ in part], device=self._model.device)
            sequences = [sequence for _, sequence in part]
            batch = collate(sequences, range(len(part)), self._prefix.length, self._model.device)
            try:
                interventions = self._interventions(variants)
                with torch.inference_mode(), intervene(self._model, *interventions):
                    result = run(batch, self._prefix.take(variants))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise CaptureError(
                        "A single prompt does not fit in memory",
                        got=f"{len(part[0][1])} tokens",
                        where=f"device {self._model.device}",
                        next_step="Use a smaller dtype, --quantize, --device-map auto, or drop it",
                    ) from error
                self._budget = batch.input_ids.numel() // 2
                if self._model.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            yield start, result
            start += len(part)

    def _fitting(self, pairs: Sequence[tuple[int, Sequence[int]]], start: int) -> int:
        """How many pairs from ``start`` on make the next batch."""
        longest = 0
        for count, (_, sequence) in enumerate(pairs[start:], start=1):
            longest = max(longest, len(sequence) - self._prefix.length)
            if count * longest > self._budget:
                return max(1, count - 1)
        return len(pairs) - start
