"""Directions of two models tried in both: what `diff` says about cause."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refusaldir.directions.estimates import direction_of
from refusaldir.directions.mean_diff import Direction
from refusaldir.drift.handle import ARMS, Handles, handles, sentences
from refusaldir.pipeline.selected import Selected
from refusaldir.pipeline.splits import held_out
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

    def trial(self, captures: Mapping[str, Path], prompts: PromptSet) -> "Trial | None":
        """Both models' directions at the site, and prompts to try them on that made neither.

        Args:
            captures: Both captures, by role.
            prompts: The prompts of both.

        Returns:
            None where there is no direction to follow, no refusal token, or no signal there.
        """
        selected, direction = self.selected, self.direction
        if selected is None or direction is None or not selected.refusal_tokens:
            return None
        train = set(selected.document["train_ids"])
        found = {}
        for role in ARMS:
            with Capture.open(captures[role]) as capture:
                rows = np.flatnonzero([prompt.id in train for prompt in capture.prompts])
                found[role] = direction_of(capture, rows, direction.site, direction.estimator)
            if not found[role].vector.any():
                return None
        rest, words = held_out(prompts, train)
        return Trial(
            directions=found,
            refusal_tokens=selected.refusal_tokens,
            prompts=replace(prompts, prompts=tuple(prompts[int(i)] for i in rest)),
            held_out=words,
        )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is tried in both models.

    Attributes:
        directions: Both models' directions at one site, by role.
        refusal_tokens: Ids of the tokens behind the refusal score.
        prompts: What they are tried on.
        held_out: What these prompts are, in words.
    """

    directions: Mapping[str, Direction]
    refusal_tokens: tuple[int, ...]
    prompts: PromptSet
    held_out: str

    def run(self, model: "HookedModel", rendered: "RenderedSet") -> "Effects":
        """Score the prompts, rendered for an open model, with each direction ablated and added."""
        from refusaldir.directions.effect import effects

        ids = {
            label: [rendered.ids[i] for i, y in enumerate(self.prompts.labels) if y == label]
            for label in (HARMFUL, HARMLESS)
        }
        return effects(
            model,
            self.directions,
            harmful=ids[HARMFUL],
            harmless=ids[HARMLESS],
            refusal_tokens=self.refusal_tokens,
        )

    def handles(self, found: "Mapping[str, Effects]") -> Handles:
        """What each direction does in each model, from the effects by role."""
        intents = {
            label: [prompt.intent_id for prompt in self.prompts if prompt.y == label]
            for label in (HARMFUL, HARMLESS)
        }
        return handles(
            self.directions["base"].site,
            found["base"],
            found["tuned"],
            harmful_intents=intents[HARMFUL],
            harmless_intents=intents[HARMLESS],
        )


def conclude(
    causality: Causality, trial: Trial | None, found: "Mapping[str, Effects]"
) -> dict[str, Any]:
    """The document's ``causality``.

    Args:
        causality: The base's selection.
        trial: What was tried in both models; None where it was not.
        found: What it did, by role.
    """
    from refusaldir.report.selection_table import headline

    selected = causality.selected
    if selected is None:
        return {"selection": None, "handles": None, "held_out": None, "sentences": [causality.note]}
    document = selected.document
    selection = document["selection"]
    candidate = selection["chosen"] or selection["nearest"]
    tried = None if trial is None else trial.handles(found)
    return {
        "selection": {
            "valid": selection["chosen"] is not None,
            "followed": causality.site is not None,
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
        "held_out": None if trial is None else trial.held_out,
        "sentences": [headline(document), *(() if tried is None else sentences(tried))],
    }
