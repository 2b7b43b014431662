"""Directions of two models tried in both: what `diff` says about cause."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refusaldir.directions.mean_diff import Direction
from refusaldir.drift.handle import ARMS, Handles, handles, sentences
from refusaldir.pipeline.selected import Selected
from refusaldir.pipeline.selection import estimates
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import HARMFUL, HARMLESS, Site
from refusaldir.store import Capture

if TYPE_CHECKING:
    from refusaldir.directions.effect import Effects
    from refusaldir.models.bridge import HookedModel
    from refusaldir.prompts.render import RenderedSet


@dataclass(frozen=True, kw_only=True)
class Causality:
    """The base's selection as `diff` uses it.

    Attributes:
        selected: What was found in base.
        note: Why there is none, if so.
        nearest: Whether the nearest candidate may stand in where no direction is valid.
    """

    selected: Selected | None
    note: str = ""
    nearest: bool = False

    @property
    def direction(self) -> Direction | None:
        """The direction to follow: the one chosen, or the nearest where that was asked for."""
        if self.selected is None:
            return None
        return self.selected.direction or (self.selected.nearest if self.nearest else None)

    @property
    def site(self) -> Site | None:
        """Where it lives."""
        return None if self.direction is None else self.direction.site

    def directions(self, captures: Mapping[str, Path]) -> dict[str, Direction] | None:
        """Both models' directions at the site, from the same prompts and by one estimator.

        None where there is no direction to follow, or tuned has no signal there.
        """
        if self.direction is None or self.selected is None:
            return None
        train = set(self.selected.document["train_ids"])
        found = {}
        for role in ARMS:
            with Capture.open(captures[role]) as capture:
                rows = np.array([i for i, p in enumerate(capture.prompts) if p.id in train])
                at = (
                    capture.layers.index(self.direction.site.layer),
                    capture.positions.offsets.index(self.direction.site.position),
                )
                labels = np.asarray(capture.labels)[rows]
                provenance = capture.provenance
            site, estimator = self.direction.site, self.direction.estimator
            vector = estimates(captures[role], rows, estimator, site)[at]
            if not vector.any():
                return None
            found[role] = Direction(
                vector=vector,
                site=site,
                estimator=estimator,
                n_harmful=int((labels == HARMFUL).sum()),
                n_harmless=int((labels == HARMLESS).sum()),
                provenance=provenance,
            )
        return found

    def unused(self, prompts: PromptSet) -> tuple[PromptSet, str]:
        """Prompts to try directions on, none of which made them, and what they are."""
        held = prompts.select(split="test")
        if len(held):
            return held, "the set's test split"
        train = set(self.selected.document["train_ids"]) if self.selected else set()
        rest = [i for i, prompt in enumerate(prompts) if prompt.id not in train]
        return replace(
            prompts, prompts=tuple(prompts[i] for i in rest)
        ), "the prompts that the selection validated on"


def try_directions(
    model: "HookedModel",
    rendered: "RenderedSet",
    directions: Mapping[str, Direction],
    refusal_tokens: Sequence[int],
) -> "Effects":
    """Score the prompts of an open model with each direction ablated and added."""
    from refusaldir.directions.effect import effects

    ids = {
        label: [rendered.ids[i] for i, y in enumerate(rendered.prompts.labels) if y == label]
        for label in (HARMFUL, HARMLESS)
    }
    return effects(
        model,
        directions,
        harmful=ids[HARMFUL],
        harmless=ids[HARMLESS],
        refusal_tokens=refusal_tokens,
    )


def conclude(
    causality: Causality, found: "Mapping[str, Effects]", prompts: PromptSet, held_out: str
) -> dict[str, Any]:
    """The document's ``causality``."""
    selected = causality.selected
    if selected is None:
        return {"selection": None, "handles": None, "held_out": None, "sentences": [causality.note]}
    document = selected.document
    selection = document["selection"]
    candidate = selection["chosen"] or selection["nearest"]
    tried: Handles | None = None
    site = causality.site
    if site is not None and set(found) == set(ARMS):
        intents = {
            label: [p.intent_id for p in prompts if p.y == label] for label in (HARMFUL, HARMLESS)
        }
        tried = handles(
            site,
            found["base"],
            found["tuned"],
            harmful_intents=intents[HARMFUL],
            harmless_intents=intents[HARMLESS],
        )
    from refusaldir.report.selection_table import headline

    return {
        "selection": {
            "valid": selection["chosen"] is not None,
            "followed": site is not None,
            "criterion": document["criterion"],
            "estimator": document["estimator"],
            "candidate": candidate,
            "thresholds": selection["thresholds"],
            "clean_harmful": selection["clean_harmful"],
            "clean_harmless": selection["clean_harmless"],
            "refusal_tokens": document["refusal_tokens"]["texts"],
            "folder": str(selected.folder),
        },
        "handles": None if tried is None else tried.to_dict(),
        "held_out": None if tried is None else held_out,
        "sentences": [headline(document), *(() if tried is None else sentences(tried))],
    }
