"""Refusal scores of candidate directions: bypass and induce (Arditi et al. 2024, §2.3)."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import Tensor

from refusaldir.directions.candidates import Candidate, Thresholds
from refusaldir.directions.trials import Trials, variant_scores
from refusaldir.refusal_score import refusal_scores
from refusaldir.variants import Variants


class Bypass:
    """Bypass and induce of candidates.

    Args:
        trials: The model.
        harmful: Token ids of harmful prompts.
        harmless: Token ids of harmless prompts.
        tokens: Refusal tokens.
        thresholds: Bypass is left out for a candidate that induces too little.

    Attributes:
        tokens: Refusal tokens, each once.
        clean_harmful: Mean refusal score of the harmful prompts, nothing changed.
        clean_harmless: Mean refusal score of the harmless prompts, nothing changed.

    Raises:
        ProbeError: No refusal token, one outside the vocabulary, or scores that are not finite.
    """

    def __init__(
        self,
        trials: Trials,
        harmful: Sequence[Sequence[int]],
        harmless: Sequence[Sequence[int]],
        tokens: Collection[int],
        thresholds: Thresholds,
    ) -> None:
        """Run the clean model; see the class docstring."""
        self._trials, self._thresholds = trials, thresholds
        self.tokens = tuple(sorted(set(tokens)))
        # In order of length: a batch then wastes little on padding.
        self._harmful, self._harmless = sorted(harmful, key=len), sorted(harmless, key=len)
        self.clean_harmful = float(refusal_scores(trials.model, harmful, self.tokens).mean())
        self.clean_harmless = float(refusal_scores(trials.model, harmless, self.tokens).mean())

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
        induced = self._means(added, range(len(passing)), self._harmless)
        for i, value in zip(passing, induced, strict=True):
            candidates[i] = replace(candidates[i], induce=value)
        inducing = [
            i
            for i, value in zip(passing, induced, strict=True)
            if exhaustive or value >= self._thresholds.induce
        ]
        for i, value in zip(inducing, self._means(ablated, inducing, self._harmful), strict=True):
            candidates[i] = replace(candidates[i], bypass=value)
        return candidates

    def _means(
        self, variants: Variants, chosen: Sequence[int], prompts: Sequence[Sequence[int]]
    ) -> list[float]:
        if not chosen:
            return []
        means: list[float] = variant_scores(variants, chosen, prompts, self.tokens).mean(0).tolist()
        return means
