"""Choice of a direction because it causes refusal (Arditi et al. 2024, arXiv 2406.11717, §2.3).

Every candidate site (layer, position) with its mean difference gets three scores on validation
prompts, the refusal score s being that of `refusaldir.refusal_score`:

- **bypass**: mean s of harmful prompts with the unit direction ablated everywhere;
- **induce**: mean s of harmless prompts with the raw vector added at its layer, all positions;
- **KL**: mean KL(clean ‖ ablated) in nats of the next-token distribution of harmless prompts, see
  `refusaldir.directions.divergence`.

The candidate with the least bypass among those with KL ≤ 0.1, induce ≥ 0 and layer < ⌊0.8 L⌋
is chosen. Where the first token of a response says nothing about refusal, COSMIC
(`refusaldir.directions.cosmic`) takes the place of bypass and induce: the highest one among those
with KL ≤ 0.1 and layer < ⌊0.8 L⌋ is chosen, and no refusal token is needed. That none passes is
a result: `CausalChoice.nearest` then holds the candidate that came closest, and why it is not
valid.

What cannot change the choice is not computed, unless asked for: a candidate's KL is given up
once what has been summed exceeds what the mean allows, whatever the prompts to come; induce (or
COSMIC) is measured for those whose KL passes, and bypass for those that pass both.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from refusaldir import __version__
from refusaldir.directions.bypass import Bypass
from refusaldir.directions.candidates import (
    HOOK,
    Candidate,
    CausalChoice,
    Thresholds,
    check_criterion,
    choose,
)
from refusaldir.directions.cosmic import Cosmic
from refusaldir.directions.divergence import Divergence
from refusaldir.directions.score_journal import ScoreJournal
from refusaldir.directions.search import OnProgress, Search
from refusaldir.directions.trials import Trials
from refusaldir.errors import DirectionError
from refusaldir.models.bridge import HookedModel
from refusaldir.records import Site, content_hash


def select_causal(
    model: HookedModel,
    directions: Float[np.ndarray, "layer pos d_model"],
    *,
    layers: Sequence[int],
    offsets: Sequence[int],
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    refusal_tokens: Collection[int] = (),
    criterion: str = "refusal_score",
    thresholds: Thresholds | None = None,
    exhaustive: bool = False,
    journal: Path | None = None,
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
        refusal_tokens: Token ids that begin a refusal; COSMIC does not look at them.
        criterion: ``"refusal_score"`` or ``"cosmic"``.
        thresholds: What a valid direction must satisfy.
        exhaustive: Measure all scores of every candidate that has a signal and is not too
            deep, also where they cannot change the choice.
        journal: A file for the scores as they come. Where it holds scores of the same search,
            which was cut off, they are taken over; it is left for the caller to remove.
        on_progress: Called as candidates are done.

    Raises:
        DirectionError: An unknown criterion, a class without prompts, shapes that do not agree,
            or (COSMIC) activations that are not finite.
        StoreError: The journal cannot be written.
        ProbeError: No refusal token, one outside the vocabulary, or scores that are not finite.
        CaptureError: A single prompt does not fit in memory.
    """
    check_criterion(criterion)
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
    trials = Trials(model, [*harmful, *harmless])
    bypass = cosmic = None
    if criterion == "cosmic":
        scorer: Cosmic | Bypass = (cosmic := Cosmic(trials, harmful, harmless))
    else:
        scorer = bypass = Bypass(trials, harmful, harmless, refusal_tokens, thresholds)
    search = Search(trials, Divergence(trials, harmless), scorer, thresholds, criterion)
    deepest = int(thresholds.depth * model.n_layers)
    candidates: list[Candidate] = []
    vectors: dict[Site, Tensor] = {}
    for row, layer in enumerate(layers):
        for column, offset in enumerate(offsets):
            site = Site(hook=HOOK, layer=layer, position=offset)
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
    kept = None
    if journal is not None:
        decides: list[Any] = [
            _digest(directions), layers, offsets, harmful, harmless, sorted(refusal_tokens),
            criterion, asdict(thresholds), exhaustive, trials.chunk,
        ]  # fmt: skip
        kept = ScoreJournal(journal, _fingerprint(model, decides))
    search.run(
        candidates, open_ones, vectors, exhaustive=exhaustive, journal=kept, on_progress=on_progress
    )
    chosen = choose(candidates, thresholds, criterion)
    nearest = None
    if chosen is None and open_ones:
        nearest = search.nearest(candidates, open_ones, vectors)
    return CausalChoice(
        chosen=chosen,
        nearest=nearest,
        candidates=tuple(candidates),
        thresholds=thresholds,
        clean_harmful=bypass.clean_harmful if bypass else None,
        clean_harmless=bypass.clean_harmless if bypass else None,
        n_harmful=len(harmful),
        n_harmless=len(harmless),
        refusal_tokens=bypass.tokens if bypass else (),
        criterion=criterion,
        cosmic_layers=cosmic.layers if cosmic else (),
        clean_cosine=cosmic.clean_cosine if cosmic else None,
    )


def _fingerprint(model: HookedModel, decides: Sequence[Any]) -> str:
    """Hash of what decides the scores, to the last digit."""
    identity = {k: v for k, v in model.identity.to_dict().items() if k not in ("spec", "name")}
    return content_hash(__version__, identity, model.device.type, *decides)


def _digest(values: NDArray[np.floating]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype=np.float64).tobytes()).hexdigest()
