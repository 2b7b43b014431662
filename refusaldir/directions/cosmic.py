"""COSMIC: what a direction does inside the model, without refusal tokens.

Siu et al. 2025 (arXiv 2506.00085). Where harmful and harmless prompts differ most, a refusal
direction should turn the one into the other:

    cosmic = cos(ablated harmful, clean harmless) + cos(harmless with it added, clean harmful)

As in the authors' code, each side is a mean of resid_post at the last position, over prompts and
over the 10 % of layers (at least one) where the cosine of the clean class means is lowest; a
layer weighs by its norm. Two things differ: those layers are found on the prompts that are
scored, and the last layer's values are taken before the final norm, not after it.

The sum lies in [−2, 2]. A direction that does nothing scores twice the clean cosine, which is
close to 2 in most models: differences count, not the value.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from refusaldir.directions.candidates import Candidate
from refusaldir.directions.trials import Trials
from refusaldir.errors import DirectionError
from refusaldir.geometry import cosine
from refusaldir.variants import Variants

SHARE = 0.1
HOOK = "resid_post"


def least_alike(
    harmful: Float[np.ndarray, "layer d_model"], harmless: Float[np.ndarray, "layer d_model"]
) -> tuple[int, ...]:
    """The 10 % of layers, at least one, where two class means have the lowest cosine, ascending.

    Raises:
        DirectionError: A mean is zero or not finite.
    """
    cosines = [cosine(a, b) for a, b in zip(harmful, harmless, strict=True)]
    count = max(1, int(SHARE * len(cosines)))
    return tuple(sorted(np.argsort(cosines, kind="stable")[:count].tolist()))


class Cosmic:
    """COSMIC of candidates.

    Args:
        trials: The model.
        harmful: Token ids of harmful prompts.
        harmless: Token ids of harmless prompts.

    Attributes:
        layers: Layers whose resid_post is compared.
        clean_cosine: Cosine of harmful to harmless prompts there, nothing changed.

    Raises:
        DirectionError: The model's activations are not finite.
    """

    def __init__(
        self, trials: Trials, harmful: Sequence[Sequence[int]], harmless: Sequence[Sequence[int]]
    ) -> None:
        """Run the clean model; see the class docstring."""
        self._trials = trials
        self._harmful, self._harmless = sorted(harmful, key=len), sorted(harmless, key=len)
        clean, every = trials.clean(), range(trials.model.n_layers)
        a = self._sums(clean, [0], self._harmful, every)[0] / len(harmful)
        b = self._sums(clean, [0], self._harmless, every)[0] / len(harmless)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise DirectionError(
                "the model's activations are not finite",
                where=trials.model.identity.name,
                next_step="Load the model in float32 or bfloat16",
            )
        self.layers = least_alike(a, b)
        self._means = a[[*self.layers]].mean(0), b[[*self.layers]].mean(0)
        self.clean_cosine = cosine(*self._means)

    def score(
        self,
        candidates: list[Candidate],
        vectors: Sequence[Tensor],
        ablated: Variants,
        passing: Sequence[int],
        *,
        exhaustive: bool,
    ) -> list[Candidate]:
        """Score the candidates named by ``passing``; see `refusaldir.directions.search.Scorer`."""
        added = self._trials.added(
            [vectors[i] for i in passing], [candidates[i].site.layer for i in passing]
        )
        harmful, harmless = self._means
        down = self._sums(ablated, passing, self._harmful, self.layers).mean(1)
        up = self._sums(added, range(len(passing)), self._harmless, self.layers).mean(1)
        for i, lower, upper in zip(passing, down, up, strict=True):
            a, b = _cosine(lower, harmless), _cosine(upper, harmful)
            candidates[i] = replace(candidates[i], ablated_cosine=a, added_cosine=b, cosmic=a + b)
        return candidates

    def _sums(
        self,
        variants: Variants,
        chosen: Sequence[int],
        prompts: Sequence[Sequence[int]],
        layers: Sequence[int],
    ) -> NDArray[np.float64]:
        """Sum over prompts of each chosen variant's last position, ``[variant layer d_model]``."""
        pairs = [(k, prompt) for prompt in prompts for k in range(len(chosen))]
        shape = (len(chosen), len(layers), self._trials.model.d_model)
        total = torch.zeros(shape, dtype=torch.float64)
        asked = [(chosen[k], prompt) for k, prompt in pairs]
        for start, part in variants.last(asked, HOOK, layers):
            rows = torch.tensor([k for k, _ in pairs[start : start + len(part)]])
            total.index_add_(0, rows, part.cpu().double())
        result: NDArray[np.float64] = total.numpy()
        return result


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """NaN where the intervention made a mean zero or not finite."""
    norm = float(np.linalg.norm(a))
    return cosine(a, b) if np.isfinite(norm) and norm > 0 else float("nan")
