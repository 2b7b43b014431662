"""Choice of a direction because it causes refusal (Arditi et al. 2024, arXiv 2406.11717, §2.3).

Every candidate site (layer, position) with its mean difference gets three scores on validation
prompts, the refusal score s being that of `refusaldir.refusal_score`:

- **bypass**: mean s of harmful prompts with the unit direction ablated everywhere;
- **induce**: mean s of harmless prompts with the raw vector added at its layer, all positions;
- **KL**: mean KL(clean ‖ ablated) in nats of the next-token distribution of harmless prompts,
  ``Σ p (log(p + ε) − log(q + ε))`` with ε = 1e-6.

The candidate with the least bypass among those with KL ≤ 0.1, induce ≥ 0 and layer < ⌊0.8 L⌋
is chosen. That none passes is a result: `CausalChoice.nearest` then holds the candidate that
came closest, and why it is not valid.

What cannot change the choice is not computed, unless asked for: a candidate's KL is given up
once what has been summed exceeds what the mean allows, whatever the prompts to come; induce is
measured for those whose KL passes, and bypass for those that pass both.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from refusaldir.errors import DirectionError
from refusaldir.hooks import Ablation, Addition, Intervention
from refusaldir.models.bridge import HookedModel
from refusaldir.records import Site, common_prefix_length
from refusaldir.refusal_score import refusal_scores, score_of_logits
from refusaldir.variants import Variants, rows_at_once

EPSILON = 1e-6

#: Why a candidate is not valid, in the order of the tests.
REASONS = ("no signal", "too deep", "KL", "induce")

#: Called with candidates done and candidates in all.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a valid direction must satisfy; the published values by default.

    Attributes:
        kl: Largest mean KL, in nats.
        induce: Least mean refusal score of harmless prompts with the vector added.
        depth: Share of the layers searched: layer < ⌊depth · L⌋.
    """

    kl: float = 0.1
    induce: float = 0.0
    depth: float = 0.8


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One site and what is known of it.

    Attributes:
        site: Where the direction was estimated; it is added at this layer.
        norm: Norm of the raw mean difference.
        kl: Mean KL in nats; a lower bound of it where `kl_exact` is False; None if not measured.
        kl_exact: Whether every harmless prompt was run.
        induce: Mean refusal score of harmless prompts with the vector added, or None.
        bypass: Mean refusal score of harmful prompts with the direction ablated, or None.
        dropped: One of `REASONS`, or empty for a valid candidate.
    """

    site: Site
    norm: float
    kl: float | None = None
    kl_exact: bool = False
    induce: float | None = None
    bypass: float | None = None
    dropped: str = ""

    @property
    def valid(self) -> bool:
        """Whether it meets every criterion."""
        return not self.dropped


@dataclass(frozen=True, kw_only=True)
class CausalChoice:
    """The direction chosen, if any, and every candidate with its scores.

    Attributes:
        chosen: The valid candidate with the least bypass, or None.
        nearest: Without a valid candidate, the one that came closest: of those that fail induce
            alone the one with the highest, otherwise the one with the least KL. It has all three
            scores, and `Candidate.dropped` says what it fails.
        candidates: All of them, layer by layer.
        thresholds: What was asked of them.
        clean_harmful: Mean refusal score of the harmful prompts, nothing changed.
        clean_harmless: Mean refusal score of the harmless prompts, nothing changed.
        n_harmful: Number of harmful validation prompts.
        n_harmless: Number of harmless validation prompts.
        refusal_tokens: Token ids behind the refusal score.
    """

    chosen: Candidate | None
    nearest: Candidate | None
    candidates: tuple[Candidate, ...]
    thresholds: Thresholds
    clean_harmful: float
    clean_harmless: float
    n_harmful: int
    n_harmless: int
    refusal_tokens: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def select_causal(
    model: HookedModel,
    directions: Float[np.ndarray, "layer pos d_model"],
    *,
    layers: Sequence[int],
    offsets: Sequence[int],
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    refusal_tokens: Collection[int],
    thresholds: Thresholds | None = None,
    exhaustive: bool = False,
    on_progress: OnProgress | None = None,
) -> CausalChoice:
    """Choose among mean differences by what they do to the model.

    Args:
        model: The model the directions come from.
        directions: Raw mean differences at resid_pre, from prompts not given here.
        layers: Layer of each row of ``directions``.
        offsets: Position of each column.
        harmful: Token ids of the rendered harmful validation prompts.
        harmless: Token ids of the rendered harmless validation prompts.
        refusal_tokens: Token ids that begin a refusal.
        thresholds: What a valid direction must satisfy.
        exhaustive: Measure all three scores of every candidate that has a signal and is not too
            deep, also where they cannot change the choice.
        on_progress: Called as candidates are done.

    Raises:
        DirectionError: A class without prompts, or shapes that do not agree.
        ProbeError: No refusal token, one outside the vocabulary, or scores that are not finite.
        CaptureError: A single prompt does not fit in memory.
    """
    thresholds = thresholds or Thresholds()
    if directions.shape[:2] != (len(layers), len(offsets)):
        raise DirectionError(
            "directions, layers and positions do not agree",
            expected=f"{len(layers)} layers × {len(offsets)} positions",
            got=f"{directions.shape[0]} × {directions.shape[1]}",
        )
    for name, prompts in (("harmful", harmful), ("harmless", harmless)):
        if not prompts:
            raise DirectionError(
                "a direction cannot be selected without validation prompts of both classes",
                got=f"no {name} prompt",
                next_step="Give a prompt set with a validation split, or more prompts",
            )
    search = _Search(model, harmful, harmless, tuple(sorted(set(refusal_tokens))), thresholds)
    deepest = int(thresholds.depth * model.n_layers)
    candidates: list[Candidate] = []
    vectors: dict[Site, Tensor] = {}
    for row, layer in enumerate(layers):
        for column, offset in enumerate(offsets):
            site = Site(hook="resid_pre", layer=layer, position=offset)
            vector = torch.from_numpy(np.asarray(directions[row, column], dtype=np.float64))
            norm = float(vector.norm())
            dropped = ""
            if not np.isfinite(norm) or norm == 0:
                dropped = "no signal"
            elif layer >= deepest:
                dropped = "too deep"
            candidates.append(Candidate(site=site, norm=norm, dropped=dropped))
            vectors[site] = vector
    open_ones = [i for i, candidate in enumerate(candidates) if candidate.valid]
    done = 0
    for at in range(0, len(open_ones), search.chunk):
        part = open_ones[at : at + search.chunk]
        measured = search.measure(
            [candidates[i] for i in part],
            [vectors[candidates[i].site] for i in part],
            exhaustive=exhaustive,
        )
        for i, candidate in zip(part, measured, strict=True):
            candidates[i] = candidate
        done += len(part)
        if on_progress is not None:
            on_progress(done, len(open_ones))
    valid = [c for c in candidates if c.valid]
    chosen = min(valid, key=lambda c: (c.bypass, c.site)) if valid else None
    nearest = None
    if chosen is None and open_ones:
        nearest = search.nearest(candidates, open_ones, vectors)
    return CausalChoice(
        chosen=chosen,
        nearest=nearest,
        candidates=tuple(candidates),
        thresholds=thresholds,
        clean_harmful=search.clean_harmful,
        clean_harmless=search.clean_harmless,
        n_harmful=len(harmful),
        n_harmless=len(harmless),
        refusal_tokens=search.tokens,
    )


def kl_divergence(
    clean: Float[Tensor, "*batch vocab"], changed: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """``Σ p (log(p + ε) − log(q + ε))`` of two probability distributions, in nats."""
    return (clean * ((clean + EPSILON).log() - (changed + EPSILON).log())).sum(-1)


class _Search:
    """The scores of candidates, chunk by chunk."""

    def __init__(
        self,
        model: HookedModel,
        harmful: Sequence[Sequence[int]],
        harmless: Sequence[Sequence[int]],
        tokens: tuple[int, ...],
        thresholds: Thresholds,
    ) -> None:
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
        for i, value in zip(passing, self._bypass(ablated, passing), strict=True):
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

    def _bypass(self, ablated: Variants, chosen: Sequence[int]) -> list[float]:
        return self._mean_scores(ablated, chosen, self.harmful)

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
