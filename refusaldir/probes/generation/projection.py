"""Projections of prompts on a direction, without generating anything.

Where replies are generated anyway, `refusaldir.probes.generation.generate` reads the same off the
pass that the prompt takes; this is for prompts whose replies are there already.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from refusaldir.capture import capture
from refusaldir.directions.mean_diff import Direction
from refusaldir.geometry import project
from refusaldir.models.bridge import HookedModel
from refusaldir.records import Positions
from refusaldir.store.encoding import to_float32


def projections(
    model: HookedModel,
    sequences: Sequence[Sequence[int]],
    direction: Direction,
    *,
    batch_size: int | None = None,
) -> Float64[np.ndarray, " prompt"]:
    """Projection of each prompt's activation at the direction's site on its unit vector.

    Args:
        model: The model; hooks that are active now act.
        sequences: Token ids of every rendered prompt.
        direction: The direction, with its site.
        batch_size: Rows a batch; None finds one by itself.

    Returns:
        ``x · unit(r)``, in units of the residual stream.

    Raises:
        CaptureError: The model has no such site, or a prompt is shorter than it reaches.
        DirectionError: The direction's norm is zero or not finite.
    """
    site, out = direction.site, np.empty(len(sequences))
    for batch in capture(
        model,
        sequences,
        hooks=(site.hook,),
        layers=(site.layer,),
        positions=Positions(offsets=(site.position,), labels=("",)),
        batch_size=batch_size,
    ):
        out[batch.indices] = project(to_float32(batch.values[site.hook][:, 0, 0]), direction.vector)
    return out
