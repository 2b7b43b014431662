"""How much ablating a direction changes harmless answers: KL of the first token.

``KL = Σ p (log(p + ε) − log(q + ε))`` in nats with ``ε = 1e-6`` (Arditi et al. 2024, arXiv
2406.11717, appendix C), p of the clean and q of the changed model, averaged over prompts.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from refusaldir.directions.trials import Trials
from refusaldir.records import Site
from refusaldir.variants import Variants

EPSILON = 1e-6


def kl_divergence(
    clean: Float[Tensor, "*batch vocab"], changed: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """``Σ p (log(p + ε) − log(q + ε))`` of two probability distributions, in nats."""
    return (clean * ((clean + EPSILON).log() - (changed + EPSILON).log())).sum(-1)


def distributions(
    variants: Variants, prompts: Sequence[Sequence[int]]
) -> Float64[Tensor, "prompt vocab"]:
    """Next-token distributions under the first variant; hooks that are active now act.

    Raises:
        CaptureError: A single prompt does not fit in memory.
    """
    parts = variants.logits([(0, prompt) for prompt in prompts])
    return torch.cat([_probabilities(part) for _, part in parts])


class Divergence:
    """Mean KL of candidates, each as far as it has to be known.

    The prompts on which earlier candidates had the largest KL are run first. That ends a
    candidate beyond the limit soonest, and any order is exact: what is given up is known to
    exceed the limit whatever the prompts not run.

    Args:
        trials: The model.
        prompts: Token ids of harmless prompts.
    """

    def __init__(self, trials: Trials, prompts: Sequence[Sequence[int]]) -> None:
        """Run the clean model; see the class docstring."""
        self._prompts = list(prompts)
        self._clean = distributions(trials.clean(), self._prompts)
        # With ε a prompt's KL can be negative, but not below this (log-sum inequality).
        self._slack: NDArray[np.float64] = (
            (EPSILON * torch.log1p(self._clean / EPSILON)).sum(-1).cpu().numpy()
        )
        # Before any candidate has been seen: answers unlike the others are the likeliest to change.
        typical = self._clean.mean(0, keepdim=True)
        self._unusual: NDArray[np.float64] = kl_divergence(self._clean, typical).cpu().numpy()
        #: KL of each prompt by site, NaN where it was not run.
        self._known: dict[Site, NDArray[np.float64]] = {}

    def advance(
        self, ablated: Variants, sites: Sequence[Site], *, limit: float
    ) -> list[tuple[float, bool]]:
        """Go on with each candidate until its KL is complete or must exceed a limit.

        Args:
            ablated: A variant a candidate.
            sites: The candidates.
            limit: Largest mean KL of interest, in nats.

        Returns:
            For each candidate its mean KL, or a lower bound of it, and whether it is exact.
        """
        n = len(self._prompts)
        blank = np.full(n, np.nan)
        values = np.stack([self._known.get(site, blank) for site in sites])
        done = np.isfinite(values)

        def bounds() -> NDArray[np.float64]:
            result: NDArray[np.float64] = np.where(done, values, -self._slack).sum(1)
            return result / n

        while running := np.flatnonzero(~done.all(1) & (bounds() <= limit)).tolist():
            order = self._hardest_first()
            # One prompt under every candidate, then the next: rows of a batch are alike in length.
            each = max(1, ablated.rows(max(map(len, self._prompts))) // len(running))
            todo = [order[~done[c][order]][:each] for c in running]
            pairs = [
                (c, int(prompts[k]))
                for k in range(each)
                for c, prompts in zip(running, todo, strict=True)
                if k < len(prompts)
            ]
            for start, logits in ablated.logits([(c, self._prompts[i]) for c, i in pairs]):
                part = pairs[start : start + len(logits)]
                clean = self._clean[[i for _, i in part]]
                found = kl_divergence(clean, _probabilities(logits)).cpu().numpy()
                for (c, i), value in zip(part, found, strict=True):
                    values[c, i], done[c, i] = value, True
            for c in running:
                self._known[sites[c]] = values[c]
        return [
            (float(mean), bool(complete))
            for mean, complete in zip(bounds(), done.all(1), strict=True)
        ]

    def known(self, site: Site) -> list[float]:
        """KL of each prompt with one candidate ablated, NaN where it was not run."""
        values: list[float] = self._known[site].tolist()
        return values

    def restore(self, site: Site, values: Sequence[float]) -> None:
        """Take over what `known` said in an earlier run."""
        self._known[site] = np.asarray(values, dtype=np.float64)

    def _hardest_first(self) -> NDArray[np.int64]:
        """Prompts by the KL to expect: the mean of what was seen, else as the clean model says."""
        expected = self._unusual.copy()
        if self._known:
            known = np.stack([*self._known.values()])
            count = np.isfinite(known).sum(0)
            seen = count > 0
            mean = np.nansum(known, 0)[seen] / count[seen]
            expected *= max(mean.sum(), 0) / max(expected[seen].sum(), EPSILON)
            expected[seen] = mean
        return np.argsort(-expected, kind="stable")


def _probabilities(logits: Tensor) -> Tensor:
    """Softmax in float64 (on the CPU where the device has none)."""
    if logits.device.type == "mps":
        logits = logits.cpu()
    return logits.double().softmax(-1)
