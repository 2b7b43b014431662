"""Refusal by category at one site: how many directions, and what ablating them all does."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refusaldir.directions.mean_diff import Direction
from refusaldir.directions.reader import read_layer
from refusaldir.errors import DirectionError
from refusaldir.pipeline.material import Material
from refusaldir.records import HARMFUL, HARMLESS
from refusaldir.store import Capture

if TYPE_CHECKING:
    from refusaldir.models.bridge import HookedModel


def categories_of(
    model: "HookedModel",
    material: Material,
    direction: Direction,
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
    refusal_tokens: Collection[int],
) -> dict[str, Any]:
    """Per-category directions at a direction's site, the subspace they span, and its effect.

    Args:
        model: The model.
        material: Its capture and prompts.
        direction: The direction selected.
        train: Prompts that make directions.
        validation: Prompts that score them.
        refusal_tokens: Token ids that begin a refusal.

    Returns:
        JSON-ready; with ``note`` alone where there are too few categories or prompts.
    """
    from refusaldir.directions.categories import category_directions
    from refusaldir.directions.effect import subspace_effect
    from refusaldir.directions.subspace import subspace

    prompts = [material.rendered.prompts[int(i)] for i in train]
    with Capture.open(material.path) as capture:
        column = capture.positions.offsets.index(direction.site.position)
        x = read_layer(capture, direction.site.hook, direction.site.layer)[train, column]
    labels = material.labels[train]
    names, intents = [p.category for p in prompts], [p.intent_id for p in prompts]
    try:
        by_category = category_directions(x, labels, names, intents).to_dict()
        axes = subspace(x, labels, names, intents)
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
