"""Batches of whole prompts, for passes whose activations are kept for gradients.

Without the shared prefix of `refusaldir.batching`, because gradients flow through it. Rows are
sorted by length and padded on the right, so that no mask is needed.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from refusaldir.batching import TokenBatch, collate, is_out_of_memory
from refusaldir.errors import CaptureError
from refusaldir.layers.path.slopes import MixedRowsError
from refusaldir.models.bridge import HookedModel

#: Tokens a batch; a token keeps some 30 vectors of the model's width in every block.
BUDGET = {"cpu": 512, "mps": 1024, "cuda": 8192}


class WholeBatches:
    """Whole prompts in batches that fit; what did not fit is not tried again.

    Args:
        model: The model; only its device is used.
        sequences: Token ids of every prompt.
        batch_size: Rows a batch; None goes by tokens.
    """

    def __init__(
        self, model: HookedModel, sequences: Sequence[Sequence[int]], batch_size: int | None
    ) -> None:
        """Sort by length; see the class docstring."""
        self._model, self._sequences = model, sequences
        self._order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), i))
        self._rows = batch_size or len(sequences)
        self._tokens = BUDGET.get(model.device.type, BUDGET["cpu"])
        if batch_size is not None:
            self._tokens = batch_size * max(map(len, sequences))

    def gather(
        self,
        step: Callable[[TokenBatch], Tensor],
        count: Callable[[int], None] = lambda done: None,
    ) -> Float64[np.ndarray, "prompt ..."]:
        """Run all prompts and put the results in their order.

        Args:
            step: Gets a batch and returns a tensor with a row a prompt.
            count: Called after every batch with the number of prompts done.

        Raises:
            CaptureError: A single prompt does not fit in memory.
        """
        gathered: np.ndarray | None = None
        start = 0
        while start < len(self._order):
            longest = len(self._sequences[self._order[start]])
            rows = min(self._rows, max(1, self._tokens // longest))
            indices = self._order[start : start + rows]
            batch = collate(self._sequences, indices, 0, self._model.device)
            try:
                result = step(batch).cpu().double().numpy()
            except MixedRowsError:
                self._rows = 1
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(batch, error)
                continue
            if gathered is None:
                gathered = np.empty((len(self._order), *result.shape[1:]))
            gathered[indices] = result
            start += len(indices)
            count(start)
        assert gathered is not None
        return gathered

    def _shrink(self, batch: TokenBatch, error: BaseException) -> None:
        rows, length = batch.input_ids.shape
        if rows == 1:
            raise CaptureError(
                "A single prompt does not fit in memory",
                got=f"{length} tokens, whose activations are kept for gradients",
                where=f"device {self._model.device}",
                next_step="Use a smaller dtype, --device-map auto, or drop it",
            ) from error
        self._rows = rows // 2
        self._tokens = min(self._tokens, rows // 2 * length)
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
