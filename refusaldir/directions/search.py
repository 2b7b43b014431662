"""Scores of candidate directions: bypass, induce and KL, many candidates a forward pass.

See `refusaldir.directions.causal` for what they mean and which of them are left out.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from refusaldir.directions.candidates import Candidate, Thresholds
from refusaldir.hooks import Ablation, Addition, Intervention
from refusaldir.models.bridge import HookedModel
from refusaldir.records import Site, common_prefix_length
from refusaldir.refusal_score import refusal_scores, score_of_logits
from refusaldir.variants import Variants, rows_at_once

EPSILON = 1e-6


def kl_divergence(
    clean: Float[Tensor, "*batch vocab"], changed: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """``Σ p (log(p + ε) − log(q + ε))`` of two probability distributions, in nats."""
    return (clean * ((clean + EPSILON).log() - (changed + EPSILON).log())).sum(-1)


class Search:
    """The scores of candidates, chunk by chunk.

    Args:
        model: The model.
        harmful: Token ids of harmful validation prompts.
        harmless: Token ids of harmless validation prompts.
        tokens: Refusal tokens.
        thresholds: What a valid direction must satisfy.

    Attributes:
        chunk: A good number of candidates to measure at once.
        clean_harmful: Mean refusal score of the harmful prompts, nothing changed.
        clean_harmless: Mean refusal score of the harmless prompts, nothing changed.
    """

    def __init__(
        self,
        model: HookedModel,
        harmful: Sequence[Sequence[int]],
        harmless: Sequence[Sequence[int]],
        tokens: tuple[int, ...],
        thresholds: Thresholds,
    ) -> None:
        """Run the clean model; see the class docstring."""
        self.model, self.tokens, self.thresholds = model, tokens, thresholds
        # In order of length: a batch then wastes little on padding.
        self.harmful = sorted(harmful, key=len)
        self.harmless = sorted(harmless, key=len)
        everything = [*harmful, *harmless]
        shortest = min(map(len, everything))
        shared = min(common_prefix_length(everything), shortest - 1)
        self.prefix = list(everything[0][:shared])
        self.rows = rows_at_once(model, everything, shared)
        #: A quarter of a batch each, so that the first few prompts of a candidate run together.
        self.chunk = max(1, self.rows // 4)
        #: Summed KL and number of prompts behind it, as far as each candidate got.
        self.sums: dict[Site, tuple[float, int]] = {}
        self.clean_harmful = float(refusal_scores(model, harmful, tokens).mean())
        self.clean_harmless = float(refusal_scores(model, harmless, tokens).mean())
        plain = Variants(model, self.prefix, 1, lambda rows: ())
        parts = [p for _, p in plain.logits([(0, s) for s in self.harmless], self.rows)]
        self.clean = torch.cat([_probabilities(part) for part in parts])
        # With ε the sum can be negative, but not below this (log-sum inequality).
        self.slack: NDArray[np.float64] = (
            (EPSILON * torch.log1p(self.clean / EPSILON)).sum(-1).cpu().numpy()
        )

    def measure(
        self, candidates: Sequence[Candidate], vectors: Sequence[Tensor], *, exhaustive: bool
    ) -> list[Candidate]:
        """Measure what can change the choice (everything if ``exhaustive``), and drop."""
        ablated = self._ablated(vectors)
        limit = np.inf if exhaustive else self.thresholds.kl
        known = self._kl(ablated, [c.site for c in candidates], limit=limit)
        measured = [
            replace(candidate, kl=kl, kl_exact=exact)
            for candidate, (kl, exact) in zip(candidates, known, strict=True)
        ]
        passing = [i for i, c in enumerate(measured) if exhaustive or not self._fails_kl(c)]
        for i, value in zip(passing, self._induce(measured, vectors, passing), strict=True):
            measured[i] = replace(measured[i], induce=value)
        passing = [i for i in passing if exhaustive or not self._fails_induce(measured[i])]
        for i, value in zip(
            passing, self._mean_scores(ablated, passing, self.harmful), strict=True
        ):
            measured[i] = replace(measured[i], bypass=value)
        return [replace(c, dropped=self._why(c)) for c in measured]

    def nearest(
        self,
        candidates: list[Candidate],
        open_ones: Sequence[int],
        vectors: dict[Site, Tensor],
    ) -> Candidate:
        """Complete the scores of the candidate that comes closest; updates it in the list."""
        induced = [i for i in open_ones if candidates[i].dropped == "induce"]
        if induced:
            best = max(induced, key=lambda i: candidates[i].induce or 0.0)
        else:
            best = self._least_kl(candidates, open_ones, vectors)
        complete = self.measure(
            [candidates[best]], [vectors[candidates[best].site]], exhaustive=True
        )[0]
        candidates[best] = complete
        return complete

    def _least_kl(
        self, candidates: list[Candidate], open_ones: Sequence[int], vectors: dict[Site, Tensor]
    ) -> int:
        """Go on with every candidate until its KL is known to exceed the least one."""

        def so_far(i: int) -> float:
            total, done = self.sums[candidates[i].site]
            return total / done

        best, least = -1, np.inf
        order = sorted(open_ones, key=so_far)
        # The most promising alone first: what it gets ends the others early.
        for part in (
            order[:1],
            *(order[k : k + self.chunk] for k in range(1, len(order), self.chunk)),
        ):
            sites = [candidates[i].site for i in part]
            known = self._kl(self._ablated([vectors[s] for s in sites]), sites, limit=least)
            for i, (kl, exact) in zip(part, known, strict=True):
                candidates[i] = replace(candidates[i], kl=kl, kl_exact=exact)
                if exact and kl < least:
                    best, least = i, kl
        return best

    def _ablated(self, vectors: Sequence[Tensor]) -> Variants:
        units = torch.stack([v / v.norm() for v in vectors]).float().to(self.model.device)

        def interventions(rows: Tensor) -> list[Intervention]:
            return [Ablation(units[rows][:, None])]

        return Variants(self.model, self.prefix, len(vectors), interventions)

    def _kl(
        self, ablated: Variants, sites: Sequence[Site], *, limit: float
    ) -> list[tuple[float, bool]]:
        """Go on with each candidate's KL until it is complete or its mean must exceed a limit."""
        n = len(self.harmless)
        state = [self.sums.get(site, (0.0, 0)) for site in sites]
        sums, done = np.array([s for s, _ in state]), np.array([d for _, d in state])
        slack = np.append(self.slack[::-1].cumsum()[::-1], 0.0)  # of the prompts from here on

        def alive() -> list[int]:
            bound = sums - slack[done]
            return [c for c in range(len(sites)) if done[c] < n and bound[c] <= limit * n]

        while running := alive():
            each = max(1, self.rows // len(running))
            # One prompt under every candidate, then the next: rows of a batch are of like length.
            pairs = [(c, done[c] + k) for k in range(each) for c in running if done[c] + k < n]
            todo = [(c, self.harmless[i]) for c, i in pairs]
            for start, logits in ablated.logits(todo, self.rows):
                part = pairs[start : start + len(logits)]
                clean = self.clean[[i for _, i in part]]
                values = kl_divergence(clean, _probabilities(logits)).cpu().numpy()
                np.add.at(sums, [c for c, _ in part], values)
            np.add.at(done, [c for c, _ in pairs], 1)
        self.sums |= {s: (float(sums[c]), int(done[c])) for c, s in enumerate(sites)}
        bounds = (sums - slack[done]) / n
        return [(float(bounds[c]), bool(done[c] == n)) for c in range(len(sites))]

    def _induce(
        self, candidates: Sequence[Candidate], vectors: Sequence[Tensor], chosen: Sequence[int]
    ) -> list[float]:
        if not chosen:
            return []
        sites = torch.tensor([candidates[i].site.layer for i in chosen])
        raw = torch.stack([vectors[i] for i in chosen]).float().to(self.model.device)

        def interventions(rows: Tensor) -> list[Intervention]:
            at = sites.to(rows.device)[rows]
            return [
                Addition(raw[rows] * (at == layer)[:, None], layer)
                for layer in sorted(set(at.tolist()))
            ]

        added = Variants(self.model, self.prefix, len(chosen), interventions)
        return self._mean_scores(added, range(len(chosen)), self.harmless)

    def _mean_scores(
        self, variants: Variants, chosen: Sequence[int], prompts: Sequence[Sequence[int]]
    ) -> list[float]:
        pairs = [(c, prompt) for prompt in prompts for c in chosen]
        parts = [
            score_of_logits(part, self.tokens) for _, part in variants.logits(pairs, self.rows)
        ]
        if not parts:
            return []
        scores = torch.cat(parts).reshape(len(prompts), len(chosen))
        return [float(value) for value in scores.mean(0)]

    def _fails_kl(self, candidate: Candidate) -> bool:
        return candidate.kl is None or not candidate.kl <= self.thresholds.kl

    def _fails_induce(self, candidate: Candidate) -> bool:
        return candidate.induce is None or not candidate.induce >= self.thresholds.induce

    def _why(self, candidate: Candidate) -> str:
        if self._fails_kl(candidate):
            return "KL"
        return "induce" if self._fails_induce(candidate) else ""


def _probabilities(logits: Tensor) -> Tensor:
    """Softmax in float64 (on the CPU where the device has none)."""
    if logits.device.type == "mps":
        logits = logits.cpu()
    return logits.double().softmax(-1)
