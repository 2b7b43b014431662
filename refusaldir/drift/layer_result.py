"""Drift figures of one layer."""

from dataclasses import asdict, dataclass
from typing import Any

from refusaldir.records import Estimate, Site


@dataclass(frozen=True, kw_only=True)
class ByClass:
    """One figure for harmful and one for harmless prompts."""

    harmful: Estimate
    harmless: Estimate


@dataclass(frozen=True, kw_only=True)
class Crossed:
    """A held-out figure for each direction (of base or tuned) on each model's activations."""

    base_direction_on_base: Estimate
    base_direction_on_tuned: Estimate
    tuned_direction_on_base: Estimate
    tuned_direction_on_tuned: Estimate


@dataclass(frozen=True, kw_only=True)
class Change:
    """Change of separability from base to tuned, paired over prompts.

    Attributes:
        own: Each model along its own direction (tuned on tuned − base on base).
        base_direction: Along the base direction (base on tuned − base on base).
    """

    own: Estimate
    base_direction: Estimate


@dataclass(frozen=True, kw_only=True)
class TopDimension:
    """The coordinate that carries most of a direction (massive activations).

    Attributes:
        index: Index into ``d_model``.
        share: Its share of ``‖r‖²``, corrected for sampling noise.
    """

    index: int
    share: Estimate


@dataclass(frozen=True, kw_only=True)
class LayerDrift:
    """Drift at one layer, at the chosen position.

    Attributes:
        site: The hook, layer and position.
        signal: False where harmful and harmless activations do not differ in one of the models;
            figures about the direction are then None, with a note.
        identical: True where the two models' activations are the same, bit by bit.
        rotation: Corrected cosine ``cos*`` of the two directions.
        rotation_raw: Cosine of the two sample directions, biased by noise.
        angle: The angle of ``cos*``, degrees.
        shrinkage: ``‖rᵗ‖* / ‖rᵇ‖*``; below 1 the direction got shorter.
        norm_base: ``‖rᵇ‖*``, residual norm.
        norm_tuned: ``‖rᵗ‖*``, residual norm.
        translation: Shift of each class mean along the base direction, in base within-class SDs;
            positive is towards harmful.
        auroc: Held-out AUROC.
        d_prime: Held-out d′.
        auroc_change: Change of AUROC.
        d_prime_change: Change of d′.
        top_base: Coordinate that carries most of the base direction.
        top_tuned: Coordinate that carries most of the tuned direction.
        relative_change: Mean of ``‖xᵗ − xᵇ‖/‖xᵇ‖`` over prompts.
        cka: Unbiased linear CKA of the activations.
    """

    site: Site
    signal: bool
    identical: bool
    rotation: Estimate
    rotation_raw: Estimate
    angle: Estimate
    shrinkage: Estimate
    norm_base: Estimate
    norm_tuned: Estimate
    translation: ByClass
    auroc: Crossed
    d_prime: Crossed
    auroc_change: Change
    d_prime_change: Change
    top_base: TopDimension | None
    top_tuned: TopDimension | None
    relative_change: Estimate
    cka: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, with ``layer`` and the plain ``raw_cosine`` added."""
        return {
            "layer": self.site.layer,
            **asdict(self),
            "raw_cosine": self.rotation_raw.value,
        }
