"""A model with candidate directions ablated or added, many of them in one forward pass."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refusaldir.batching import FIRST_BUDGET
from refusaldir.hooks import Ablation, Addition, Intervention
from refusaldir.models.bridge import HookedModel
from refusaldir.records import common_prefix_length
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
