"""Search among candidate directions: KL first, then the scores of those that pass.

See `refusaldir.directions.causal` for what the scores mean and which of them are left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from torch import Tensor

from refusaldir.directions.candidates import Candidate, Thresholds, why_dropped
from refusaldir.directions.divergence import Divergence
from refusaldir.directions.score_journal import ScoreJournal
from refusaldir.directions.trials import Trials
from refusaldir.records import Site
from refusaldir.variants import Variants

#: Called with candidates done and candidates in all.
OnProgress = Callable[[int, int], None]


class Scorer(Protocol):
    """What makes one candidate whose KL passes better than another."""

    def score(
        self,
        candidates: list[Candidate],
        vectors: Sequence[Tensor],
        ablated: Variants,
        passing: Sequence[int],
        *,
        exhaustive: bool,
    ) -> list[Candidate]:
        """Score some of the candidates.

        Args:
            candidates: Candidates; those scored are replaced.
            vectors: Raw vector of each, float64.
            ablated: A variant a candidate, with its direction ablated.
            passing: Indices of the candidates to score; at least one.
            exhaustive: Whether to measure also what cannot change the choice.

        Returns:
            The candidates.
        """
        ...


class Search:
    """The scores of candidates, chunk by chunk.

    Args:
        trials: The model.
        divergence: KL of candidates.
        scorer: What else is measured.
        thresholds: What a valid direction must satisfy.
        criterion: One of `refusaldir.directions.candidates.CRITERIA`.
    """

    def __init__(
        self,
        trials: Trials,
        divergence: Divergence,
        scorer: Scorer,
        thresholds: Thresholds,
        criterion: str,
    ) -> None:
        """Nothing is run; see the class docstring."""
        self._trials, self._divergence, self._scorer = trials, divergence, scorer
        self._thresholds, self._criterion = thresholds, criterion

    def run(
        self,
        candidates: list[Candidate],
        open_ones: Sequence[int],
        vectors: Mapping[Site, Tensor],
        *,
        exhaustive: bool,
        journal: ScoreJournal | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Score candidates chunk by chunk; updates them in the list.

        Args:
            candidates: All of them.
            open_ones: Indices of those to score.
            vectors: Raw vector of each, float64.
            exhaustive: Whether to measure also what cannot change the choice.
            journal: Where scores are kept as they come; chunks that it holds are not run.
            on_progress: Called as candidates are done.

        Raises:
            StoreError: The journal cannot be written.
        """
        size = self._trials.chunk
        for start in range(0, len(open_ones), size):
            part = open_ones[start : start + size]
            chunk = [candidates[i] for i in part]
            kept = None if journal is None else journal.chunk(start, chunk)
            if kept is None:
                measured = self.measure(
                    chunk, [vectors[c.site] for c in chunk], exhaustive=exhaustive
                )
                if journal is not None:
                    journal.keep(start, measured, [self._divergence.known(c.site) for c in chunk])
            else:
                # What earlier candidates did to each prompt decides which are run first.
                measured, known = kept
                for candidate, values in zip(chunk, known, strict=True):
                    self._divergence.restore(candidate.site, values)
            for i, candidate in zip(part, measured, strict=True):
                candidates[i] = candidate
            if on_progress is not None:
                on_progress(start + len(part), len(open_ones))

    def measure(
        self, candidates: Sequence[Candidate], vectors: Sequence[Tensor], *, exhaustive: bool
    ) -> list[Candidate]:
        """Measure what can change the choice (everything if ``exhaustive``), and drop."""
        ablated = self._trials.ablated(vectors)
        limit = np.inf if exhaustive else self._thresholds.kl
        known = self._divergence.advance(ablated, [c.site for c in candidates], limit=limit)
        measured = [
            replace(candidate, kl=kl, kl_exact=exact)
            for candidate, (kl, exact) in zip(candidates, known, strict=True)
        ]
        passing = [
            i
            for i, c in enumerate(measured)
            if self._why(c) not in ("not finite", "KL") or (exhaustive and c.kl_exact)
        ]
        if passing:
            measured = self._scorer.score(
                measured, vectors, ablated, passing, exhaustive=exhaustive
            )
        return [replace(c, dropped=self._why(c)) for c in measured]

    def nearest(
        self,
        candidates: list[Candidate],
        open_ones: Sequence[int],
        vectors: dict[Site, Tensor],
    ) -> Candidate | None:
        """Complete the scores of the candidate that comes closest; updates it in the list."""
        induced = [i for i in open_ones if candidates[i].dropped == "induce"]
        finite = [i for i in open_ones if candidates[i].dropped == "KL"]
        if induced:
            best = max(induced, key=lambda i: _or_least(candidates[i].induce))
        elif finite:
            best = self._least_kl(candidates, finite, vectors)
        else:
            return None
        complete = self.measure(
            [candidates[best]], [vectors[candidates[best].site]], exhaustive=True
        )[0]
        candidates[best] = complete
        return complete

    def _least_kl(
        self, candidates: list[Candidate], open_ones: Sequence[int], vectors: dict[Site, Tensor]
    ) -> int:
        """Go on with the candidate of the least bound until that one's KL is exact."""
        while True:
            first, *rest = sorted(open_ones, key=lambda i: _or_least(candidates[i].kl))
            if candidates[first].kl_exact:
                return first
            site = candidates[first].site
            limit = _or_least(candidates[rest[0]].kl) if rest else np.inf
            ablated = self._trials.ablated([vectors[site]])
            [(kl, exact)] = self._divergence.advance(ablated, [site], limit=limit)
            candidates[first] = replace(candidates[first], kl=kl, kl_exact=exact)
            if not np.isfinite(kl):
                if not rest:
                    return first
                candidates[first] = replace(candidates[first], dropped="not finite")
                open_ones = rest

    def _why(self, candidate: Candidate) -> str:
        return why_dropped(candidate, self._thresholds, self._criterion)


def _or_least(value: float | None) -> float:
    return -np.inf if value is None else value
