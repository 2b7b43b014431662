"""Variants of one model side by side: each row of a batch runs under its own intervention.

One forward pass serves many interventions. The tokens that all prompts share are run once a
variant, not once a prompt; prompts are padded on the right, which changes nothing for them.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusaldir.batching import FIRST_BUDGET, SharedPrefix, collate, is_out_of_memory
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
        with intervene(model, *interventions(torch.arange(count, device=model.device))):
            self._prefix = SharedPrefix(model, prefix, copies=count)

    def logits(
        self, pairs: Sequence[tuple[int, Sequence[int]]], rows: int
    ) -> Iterator[tuple[int, Float[Tensor, "batch vocab"]]]:
        """Logits after the last token of each (variant, sequence).

        Args:
            pairs: Variant and whole sequence, in any order; near in length wastes least.
            rows: Most rows to run at once; halved for good when memory runs out.

        Yields:
            Index of the first pair of a batch and the logits of the batch's pairs, in order.

        Raises:
            CaptureError: Not even one row fits in memory.
        """
        start = 0
        while start < len(pairs):
            part = pairs[start : start + rows]
            try:
                logits = self._run(part)
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
                rows = max(1, len(part) // 2)
                if self._model.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            yield start, logits
            start += len(part)

    def _run(self, pairs: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        device = self._model.device
        variants = torch.tensor([variant for variant, _ in pairs], device=device)
        batch = collate(
            [sequence for _, sequence in pairs], range(len(pairs)), self._prefix.length, device
        )
        cache = self._prefix.take(variants)
        with torch.inference_mode(), intervene(self._model, *self._interventions(variants)):
            return self._model.logits(
                batch.input_ids,
                past_key_values=cache,
                use_cache=cache is not None,
                lengths=batch.lengths,
            )


def rows_at_once(model: HookedModel, sequences: Sequence[Sequence[int]], shared: int) -> int:
    """A good number of rows a batch for sequences of which ``shared`` tokens are cached."""
    budget = FIRST_BUDGET.get(model.device.type, FIRST_BUDGET["cpu"])
    longest = max(len(sequence) for sequence in sequences) - shared
    return max(1, budget // max(1, longest))
