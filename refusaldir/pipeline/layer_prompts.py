"""Which prompts an outcome is measured on, and which direction the lenses look along."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from refusaldir.directions.estimates import direction_of
from refusaldir.directions.mean_diff import Direction
from refusaldir.directions.reader import MIN_INTENTS
from refusaldir.directions.site import choose_site
from refusaldir.errors import DirectionError, PromptError
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.selected import Selected, find_selected, folder_beside
from refusaldir.pipeline.splits import Indices, Split, rows_of
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import HARMFUL, HARMLESS, Site
from refusaldir.store import Capture

if TYPE_CHECKING:
    from refusaldir.pipeline.arm import Arm


@dataclass(frozen=True, kw_only=True, eq=False)
class OutcomePrompts:
    """Rows of the prompt set.

    Attributes:
        harmful: Those the outcome is measured on.
        harmless: Harmless ones beside them, which no direction was made from where there is a
            test split.
        which: What the harmful ones are, in words.
    """

    harmful: Indices
    harmless: Indices
    which: str


def outcome_prompts(
    prompts: PromptSet, train: Collection[int], category: str | None, *, held_out: bool
) -> OutcomePrompts:
    """Choose the prompts.

    The test split; where a set has none, all prompts, or those that made no direction where the
    outcome is itself about a direction.

    Args:
        prompts: The set.
        train: Rows that made the direction.
        category: The only category of harmful prompts, or None for all.
        held_out: Whether rows that made the direction must be left out.

    Raises:
        PromptError: There is no such category, or too few prompts are left.
    """
    labels = np.asarray(prompts.labels)
    categories = np.asarray([prompt.category for prompt in prompts])
    if category is not None and category not in set(categories[labels == HARMFUL]):
        raise PromptError(
            "There is no such category of harmful prompts",
            expected=" | ".join(sorted(set(categories[labels == HARMFUL]))),
            got=category,
            where="--category",
        )
    test = rows_of(prompts, "test")
    rest = np.setdiff1d(np.arange(len(labels)), np.asarray(sorted(train), dtype=np.int64))
    if len(test):
        rows, which = test, "test split"
    elif held_out:
        rows, which = rest, "those that made no direction"
    else:
        rows, which = np.arange(len(labels)), "all"
    harmful = rows[labels[rows] == HARMFUL]
    if category is not None:
        harmful = harmful[categories[harmful] == category]
        which += f", category {category}"
    intents = {prompts[int(i)].intent_id for i in harmful}
    if len(intents) < MIN_INTENTS:
        raise PromptError(
            "There are too few harmful prompts to tell a share from noise",
            expected=f"at least {MIN_INTENTS} intents",
            got=len(intents),
            where=f"{prompts.name} ({which})",
            next_step="Use more prompts; 32 intents or more give useful intervals",
        )
    return OutcomePrompts(harmful=harmful, harmless=rows[labels[rows] == HARMLESS], which=which)


@dataclass(frozen=True, kw_only=True, eq=False)
class Along:
    """The direction the lenses look along.

    Attributes:
        direction: The direction in base, raw; None where there is none.
        reason: How direction and site were chosen, or why there is none.
        split: Which prompts make directions and which validate.
        selected: What lies beside the capture of base, if anything.
    """

    direction: Direction | None
    reason: str
    split: Split
    selected: Selected | None

    @classmethod
    def find(cls, arm: "Arm", material: Material, site: Site | None, seed: int) -> "Along":
        """The mean difference at the site given, else the direction that causes refusal in base.

        Where no selection lies beside the capture, or it found none, the mean difference at the
        site where base separates best.

        Args:
            arm: Base, captured.
            material: Its capture and prompts.
            site: The site asked for, or None. A direction selected there is taken as it is.
            seed: Seed of a missing split.
        """
        split = Split.of(material.rendered.prompts, material.labels, seed)
        selected = find_selected(folder_beside(arm.path), arm.provenance)
        if (
            selected is not None
            and selected.direction is not None
            and site in (None, selected.direction.site)
        ):
            return cls(
                direction=selected.direction,
                reason="selected on the base model alone, because it causes refusal there",
                split=split,
                selected=selected,
            )
        with Capture.open(arm.path) as capture:
            try:
                here = choose_site(capture, "resid_pre", seed=seed).site if site is None else site
                found = direction_of(capture, split.train, here, "mean_diff")
            except DirectionError as error:
                return cls(direction=None, reason=str(error), split=split, selected=selected)
        how = "site as given" if site is not None else (
            "site chosen on the base model alone, by held-out separation"
        )  # fmt: skip
        if not found.vector.any():
            reason = f"harmful and harmless activations are the same at {here}"
            return cls(direction=None, reason=reason, split=split, selected=selected)
        return cls(
            direction=found,
            reason=f"difference of means in base, {how}",
            split=split,
            selected=selected,
        )

    @property
    def document(self) -> dict[str, Any] | None:
        """The document's ``site``."""
        if self.direction is None:
            return None
        site = self.direction.site
        return {
            "hook": site.hook,
            "layer": site.layer,
            "position": site.position,
            "reason": self.reason,
        }
