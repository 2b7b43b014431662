"""A model with candidate directions ablated or added, many of them in one forward pass."""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from refusaldir.batching import FIRST_BUDGET
from refusaldir.hooks import Ablation, Addition, Intervention
from refusaldir.models.bridge import HookedModel
from refusaldir.records import common_prefix_length
from refusaldir.refusal_score import score_of_logits
from refusaldir.variants import Variants


class Trials:
    """Makes variants of a model from candidate directions.

    Args:
        model: The model.
        prompts: Every prompt that will be run; what they all start with is run once a variant.

    Attributes:
        model: The model.
        chunk: A good number of candidates to try at once: as many as keep the caches of their
            prefixes within a batch's tokens.
    """

    def __init__(self, model: HookedModel, prompts: Sequence[Sequence[int]]) -> None:
        """Find the shared prefix; see the class docstring."""
        self.model = model
        shared = min(common_prefix_length(prompts), min(map(len, prompts)) - 1)
        self._prefix = list(prompts[0][:shared])
        budget = FIRST_BUDGET.get(model.device.type, FIRST_BUDGET["cpu"])
        self.chunk = max(1, budget // max(1, shared))

    def clean(self) -> Variants:
        """The model as it is, one variant."""
        return Variants(self.model, self._prefix, 1, lambda rows: ())

    def ablated(self, vectors: Sequence[Float[Tensor, " d_model"]]) -> Variants:
        """One variant a vector, with its direction ablated everywhere."""
        units = torch.stack([v / v.norm() for v in vectors]).float().to(self.model.device)

        def interventions(rows: Tensor) -> list[Intervention]:
            return [Ablation(units[rows][:, None])]

        return Variants(self.model, self._prefix, len(vectors), interventions)

    def added(
        self, vectors: Sequence[Float[Tensor, " d_model"]], layers: Sequence[int]
    ) -> Variants:
        """One variant a vector, added as it is to the input of its layer at all positions."""
        raw = torch.stack(list(vectors)).float().to(self.model.device)
        sites = torch.tensor(layers, device=self.model.device)

        def interventions(rows: Tensor) -> list[Intervention]:
            at = sites[rows]
            return [
                Addition(raw[rows] * (at == layer)[:, None], layer)
                for layer in sorted(set(at.tolist()))
            ]

        return Variants(self.model, self._prefix, len(vectors), interventions)


def variant_scores(
    variants: Variants,
    chosen: Sequence[int],
    prompts: Sequence[Sequence[int]],
    refusal_tokens: Collection[int],
) -> Float64[Tensor, "prompt variant"]:
    """Refusal score of each prompt under each chosen variant, on the device of the logits.

    Args:
        variants: The variants.
        chosen: Which of them, in the order of the second axis; at least one.
        prompts: Token ids; neighbours near in length waste least on padding.
        refusal_tokens: Token ids that begin a refusal.

    Raises:
        ProbeError: No refusal token, or one outside the vocabulary.
        CaptureError: A single prompt does not fit in memory.
    """
    # One prompt under every variant, then the next: rows of a batch are alike in length.
    pairs = [(variant, prompt) for prompt in prompts for variant in chosen]
    parts = [score_of_logits(part, refusal_tokens) for _, part in variants.logits(pairs)]
    return torch.cat(parts).reshape(len(prompts), len(chosen))
