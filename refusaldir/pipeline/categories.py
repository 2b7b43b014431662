"""Refusal by category at one site: how many directions, and what ablating them all does."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from refusaldir.directions.mean_diff import Direction
from refusaldir.errors import DirectionError
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.splits import Split
from refusaldir.records import HARMFUL, HARMLESS

if TYPE_CHECKING:
    from refusaldir.models.bridge import HookedModel


def categories_of(
    model: "HookedModel",
    material: Material,
    direction: Direction,
    x: Float[np.ndarray, "prompt d_model"],
    split: Split,
    refusal_tokens: Collection[int],
) -> dict[str, Any]:
    """Per-category directions at a direction's site, the subspace they span, and its effect.

    Args:
        model: The model.
        material: Its capture and prompts.
        direction: The direction selected.
        x: Activations of all prompts at its site.
        split: Prompts that make directions and prompts that score them.
        refusal_tokens: Token ids that begin a refusal.

    Returns:
        JSON-ready; with ``note`` alone where there are too few categories or prompts.
    """
    from refusaldir.directions.categories import category_directions
    from refusaldir.directions.effect import subspace_effect
    from refusaldir.directions.subspace import subspace

    train, validation = split.train, split.validation
    prompts = [material.rendered.prompts[int(i)] for i in train]
    labels = material.labels[train]
    names, intents = [p.category for p in prompts], [p.intent_id for p in prompts]
    try:
        by_category = category_directions(x[train], labels, names, intents).to_dict()
        axes = subspace(x[train], labels, names, intents)
    except DirectionError as error:
        return {"note": f"No directions by category: {error}"}
    del by_category["vectors"]
    about = axes.to_dict()
    basis = about.pop("basis")
    scored = material.labels[validation]
    effect = subspace_effect(
        model,
        axes.basis,
        harmful=material.ids(validation[scored == HARMFUL]),
        harmless=material.ids(validation[scored == HARMLESS]),
        refusal_tokens=refusal_tokens,
    )
    inside = float(np.linalg.norm(np.asarray(basis) @ direction.unit))
    return {
        "note": "",
        "directions": by_category,
        "subspace": {
            **about,
            "basis": basis,
            "bypass": effect.bypass,
            "kl": effect.kl,
            "direction_inside": inside,
        },
    }
