"""What a model does, as one number a prompt: the figure that the causal lenses take apart.

Two outcomes are functions of one forward pass and can be differentiated: the refusal score and
the projection on a direction at one site. The third, whether the model refuses when it is let
write, is found by generation and can only be compared.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import ArrayLike
from torch import Tensor
from transformers.cache_utils import DynamicCache

from refusaldir.batching import TokenBatch
from refusaldir.errors import CaptureError, DirectionError, ProbeError
from refusaldir.models.bridge import HookedModel
from refusaldir.records import Site
from refusaldir.refusal_score import score_of_logits


@runtime_checkable
class Outcome(Protocol):
    """One number a prompt from one forward pass.

    Attributes:
        name: In words, e.g. ``"refusal score"``.
        stop_after: (hook, layer) after which nothing is needed; None where the logits are.
        tail: How many tokens at the end of every prompt it needs in the batch, the rest may be
            in the prefix.
    """

    name: str
    stop_after: tuple[str, int] | None
    tail: int

    def of(
        self, model: HookedModel, batch: TokenBatch, prefix: DynamicCache | None
    ) -> Float64[Tensor, " batch"]:
        """Run a batch; hooks that are active act, and gradients flow where the caller lets them.

        Args:
            model: The model.
            batch: Suffixes, padded on the right.
            prefix: Keys and values of the tokens before, expanded over the batch; extended.
        """
        ...


class RefusalScore:
    """The refusal score of `refusaldir.refusal_score`, in nats.

    Args:
        refusal_tokens: Token ids, e.g. ``found.ids``.
    """

    def __init__(self, refusal_tokens: Sequence[int]) -> None:
        """Keep the tokens; they are checked against the vocabulary when first used."""
        self.name = "refusal score"
        self.stop_after: tuple[str, int] | None = None
        self.tail = 1
        self.refusal_tokens = tuple(refusal_tokens)

    def of(
        self, model: HookedModel, batch: TokenBatch, prefix: DynamicCache | None
    ) -> Float64[Tensor, " batch"]:
        """Score each row; see `Outcome.of`.

        Raises:
            ProbeError: No refusal token, or one outside the vocabulary.
        """
        logits = model.logits(
            batch.input_ids,
            past_key_values=prefix,
            use_cache=prefix is not None,
            lengths=batch.lengths,
        )
        return score_of_logits(logits, self.refusal_tokens)


class Projection:
    """``u·x`` of the activation at one site, in residual norm.

    Args:
        site: Hook point, layer, and position from the end of the prompt.
        direction: The unit vector u.

    Raises:
        CaptureError: The position is not counted from the end.
        DirectionError: The direction is not a unit vector.
    """

    def __init__(self, site: Site, direction: Float[np.ndarray, " d_model"]) -> None:
        """Check what can be checked without a model."""
        if site.position >= 0:
            raise CaptureError(
                "A position is counted from the end of the prompt",
                expected="-1 or less",
                got=site.position,
            )
        u = np.asarray(direction, dtype=np.float64)
        if u.ndim != 1 or not math.isclose(float(np.linalg.norm(u)), 1.0, abs_tol=1e-4):
            raise DirectionError(
                "A projection is onto a unit vector",
                expected="one vector of norm 1",
                got=f"shape {u.shape}, norm {float(np.linalg.norm(u)):.4g}",
                next_step="Divide the direction by its norm",
            )
        self.name = "projection"
        self.stop_after: tuple[str, int] | None = (site.hook, site.layer)
        self.tail = -site.position
        self.site = site
        self.direction = torch.from_numpy(u)

    def of(
        self, model: HookedModel, batch: TokenBatch, prefix: DynamicCache | None
    ) -> Float64[Tensor, " batch"]:
        """Project each row; see `Outcome.of`.

        Raises:
            CaptureError: The model has no such site.
            DirectionError: The direction has another width than the model.
        """
        if len(self.direction) != model.d_model:
            raise DirectionError(
                "The direction does not fit the model",
                expected=f"{model.d_model} entries",
                got=len(self.direction),
                where=model.identity.name,
            )
        where = batch.lengths + self.site.position
        rows = torch.arange(len(where), device=where.device)
        seen: list[Tensor] = []

        def keep(value: Tensor) -> None:
            # With a device map the blocks live on several devices.
            x = value[rows.to(value.device), where.to(value.device)]
            x = (x.cpu() if x.device.type == "mps" else x).double()
            seen.append(x @ self.direction.to(x.device))

        point = (self.site.hook, self.site.layer)
        with model.hooked({point: keep}):
            model.run(
                batch.input_ids,
                past_key_values=prefix,
                use_cache=prefix is not None,
                stop_after=point,
            )
        return seen[-1]


class RefusalRate:
    """Whether each greedy response refuses: 1 or 0 a prompt, so that means are rates.

    Args:
        judged: Gets the model and the token ids of every prompt, generates, judges, and gives 1
            for a refusal and 0 for anything else.
    """

    def __init__(self, judged: Callable[[HookedModel, Sequence[Sequence[int]]], ArrayLike]) -> None:
        """Keep the function; see the class docstring."""
        self.name = "refusal rate"
        self._judged = judged

    def values(
        self, model: HookedModel, sequences: Sequence[Sequence[int]]
    ) -> Float64[np.ndarray, " prompt"]:
        """Generate and judge; hooks that are active act.

        Raises:
            ProbeError: The function gave something else than 0 or 1 a prompt.
        """
        found = np.asarray(self._judged(model, sequences), dtype=np.float64)
        if found.shape != (len(sequences),) or not np.isin(found, (0.0, 1.0)).all():
            raise ProbeError(
                "A refusal rate needs one judgement a prompt",
                expected=f"{len(sequences)} values, each 0 or 1",
                got=f"shape {found.shape}",
            )
        return found
