"""Does the old handle still work? Each model's direction, ablated and added in both models.

A direction found in one model is a handle on its refusal. Here base's and tuned's own, at the
same site and from the same prompts, are tried in both: what ablating each does to the refusal
score of harmful prompts, and what adding each does to that of harmless ones. Scores are those of
the base's refusal tokens. Intervals are over intents, and differences are paired by prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from refusaldir.records import Estimate, Site
from refusaldir.statistics import Clusters, mean

ARMS = ("base", "tuned")


class EffectsLike(Protocol):
    """Refusal scores of one model; `refusaldir.directions.effect.Effects` is one."""

    @property
    def clean_harmful(self) -> Float[np.ndarray, " harmful"]:
        """Harmful prompts, nothing changed."""

    @property
    def clean_harmless(self) -> Float[np.ndarray, " harmless"]:
        """Harmless prompts, nothing changed."""

    @property
    def ablated(self) -> Mapping[str, Float[np.ndarray, " harmful"]]:
        """By direction, harmful prompts with it ablated."""

    @property
    def added(self) -> Mapping[str, Float[np.ndarray, " harmless"]]:
        """By direction, harmless prompts with it added."""


@dataclass(frozen=True, kw_only=True)
class Handle:
    """One direction tried in one model; all in nats of refusal score.

    Attributes:
        ablated: Mean of harmful prompts with it ablated.
        added: Mean of harmless prompts with it added.
        ablation_effect: Mean change of harmful prompts by ablating, paired; below zero it works.
        addition_effect: Mean change of harmless prompts by adding, paired; above zero it works.
    """

    ablated: Estimate
    added: Estimate
    ablation_effect: Estimate
    addition_effect: Estimate

    @property
    def works(self) -> str:
        """``yes``, ``only ablated``, ``only added`` or ``no``, by the intervals of the effects."""
        low, high = self.addition_effect.lower, self.ablation_effect.upper
        ablates, adds = high is not None and high < 0, low is not None and low > 0
        if ablates and adds:
            return "yes"
        return "only ablated" if ablates else "only added" if adds else "no"


@dataclass(frozen=True, kw_only=True)
class ModelHandles:
    """Both directions tried in one model.

    Attributes:
        clean_harmful: Mean score of harmful prompts, nothing changed.
        clean_harmless: Mean score of harmless prompts, nothing changed.
        base_direction: What base's direction does.
        tuned_direction: What tuned's direction does.
        ablation_gap: Harmful prompts: base's direction ablated minus tuned's, paired.
        addition_gap: Harmless prompts: base's direction added minus tuned's, paired.
    """

    clean_harmful: Estimate
    clean_harmless: Estimate
    base_direction: Handle
    tuned_direction: Handle
    ablation_gap: Estimate
    addition_gap: Estimate


@dataclass(frozen=True, kw_only=True)
class Handles:
    """The 2 × 2 of directions and models.

    Attributes:
        site: Where both directions live.
        base: In the base model.
        tuned: In the tuned model.
        n_harmful: Harmful prompts scored.
        n_harmless: Harmless prompts scored.
        level: Nominal coverage of each interval.
    """

    site: Site
    base: ModelHandles
    tuned: ModelHandles
    n_harmful: int
    n_harmless: int
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        found = asdict(self)
        for arm in ARMS:
            for name in ("base_direction", "tuned_direction"):
                handle: Handle = getattr(getattr(self, arm), name)
                found[arm][name]["works"] = handle.works
        return found


def handles(
    site: Site,
    base: EffectsLike,
    tuned: EffectsLike,
    *,
    harmful_intents: Sequence[str],
    harmless_intents: Sequence[str],
    level: float = 0.95,
) -> Handles:
    """Means and paired effects with intervals over intents.

    Args:
        site: Where the directions live.
        base: Scores of the base model for the directions ``base`` and ``tuned``.
        tuned: Those of the tuned model, same prompts.
        harmful_intents: Intent of each harmful prompt.
        harmless_intents: Intent of each harmless prompt.
        level: Nominal coverage.
    """
    harmful, harmless = Clusters.of(harmful_intents), Clusters.of(harmless_intents)

    def of(found: EffectsLike) -> ModelHandles:
        def handle(name: str) -> Handle:
            ablated, added = found.ablated[name], found.added[name]
            return Handle(
                ablated=mean(ablated, harmful, level=level),
                added=mean(added, harmless, level=level),
                ablation_effect=mean(ablated - found.clean_harmful, harmful, level=level),
                addition_effect=mean(added - found.clean_harmless, harmless, level=level),
            )

        return ModelHandles(
            clean_harmful=mean(found.clean_harmful, harmful, level=level),
            clean_harmless=mean(found.clean_harmless, harmless, level=level),
            base_direction=handle("base"),
            tuned_direction=handle("tuned"),
            ablation_gap=mean(found.ablated["base"] - found.ablated["tuned"], harmful, level=level),
            addition_gap=mean(found.added["base"] - found.added["tuned"], harmless, level=level),
        )

    return Handles(
        site=site,
        base=of(base),
        tuned=of(tuned),
        n_harmful=len(harmful_intents),
        n_harmless=len(harmless_intents),
        level=level,
    )


def sentences(found: Handles) -> tuple[str, ...]:
    """Whether base's direction still works in tuned, in words."""
    there, own = found.tuned.base_direction, found.tuned.tuned_direction
    clean = found.tuned
    words = {
        "yes": "still works in tuned",
        "only ablated": "works in tuned only where it is ablated, no longer where it is added",
        "only added": "works in tuned only where it is added, no longer where it is ablated",
        "no": "no longer works in tuned",
    }
    return (
        f"Base's direction {words[there.works]}: ablating it takes the mean refusal score of "
        f"harmful prompts from {_value(clean.clean_harmful)} to {_value(there.ablated)} (tuned's "
        f"own: {_value(own.ablated)}); adding it takes that of harmless prompts from "
        f"{_value(clean.clean_harmless)} to {_value(there.added)} (tuned's own: "
        f"{_value(own.added)}).",
    )


def _value(estimate: Estimate) -> str:
    if estimate.value is None:
        return "–"
    text = f"{estimate.value:+.2f}".replace("-", "−")
    return "0.00" if text in ("+0.00", "−0.00") else text
