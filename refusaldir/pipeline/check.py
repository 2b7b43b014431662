"""Does a direction cause refusal in what the model says? Held-out responses, against chance.

Selection looks one token ahead. Here the model answers held-out prompts in full: harmful ones
with the direction ablated, harmless ones with it added, beside the same with nothing changed and
with covariance-matched random directions of the same norm at the same site
(`refusaldir.directions.effect.random_directions`). Responses are judged like those of `diff`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from refusaldir.directions.mean_diff import Direction
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.progress import ProgressFn, counter, silent
from refusaldir.pipeline.splits import Indices, held_out
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import HARMFUL, HARMLESS, Estimate, content_hash
from refusaldir.statistics import proportion

if TYPE_CHECKING:
    from refusaldir.hooks import Intervention
    from refusaldir.models.bridge import HookedModel
    from refusaldir.probes.model_host import ModelHost

CLEAN, ABLATED, ADDED = "clean", "ablated", "added"


def check_direction(
    model: "HookedModel",
    material: Material,
    direction: Direction,
    x: Float[np.ndarray, "prompt d_model"],
    train: Indices,
    folder: Path,
    *,
    n_random: int = 3,
    max_new_tokens: int = 64,
    batch_size: int | None = None,
    seed: int = 0,
    progress: ProgressFn = silent,
) -> dict[str, Any]:
    """Refusal rates of held-out prompts under a direction and under random ones.

    Args:
        model: The model the direction comes from.
        material: Its capture and prompts.
        direction: The direction; ablated as a unit vector, added raw.
        x: Activations of all prompts at its site.
        train: Prompts behind the direction; random directions take their covariance.
        folder: Where responses go, a file for each condition; what is there is not made again.
        n_random: How many random directions.
        max_new_tokens: Length of the responses.
        batch_size: Prompts a batch; None finds a good size by itself.
        seed: Seed of the random directions.
        progress: Called with stage, done and total.

    Returns:
        JSON-ready: for ``harmful`` and ``harmless`` prompts the rates (Wilson intervals) by
        condition, those of each random direction as a list, and the responses left out.
    """
    import torch

    from refusaldir.directions.effect import random_directions
    from refusaldir.hooks import Ablation, Addition

    prompts, labels = material.rendered.prompts, material.labels
    rows, words = held_out(prompts, {prompts[int(i)].id for i in train})
    chance = random_directions(x[train], labels[train], direction, count=n_random, seed=seed)

    def ablation(d: Direction) -> "Intervention":
        return Ablation.of(torch.from_numpy(d.vector))

    def addition(d: Direction) -> "Intervention":
        return Addition(torch.from_numpy(d.vector).float(), d.site.layer)

    found: dict[str, Any] = {"held_out": words, "max_new_tokens": max_new_tokens, "seed": seed}
    for side, label, name, make in (
        ("harmful", HARMFUL, ABLATED, ablation),
        ("harmless", HARMLESS, ADDED, addition),
    ):
        asked = material.prompts(rows[labels[rows] == label])
        host = material.host(model, batch_size)
        ask = _Asking(host, asked, folder, max_new_tokens, progress)
        clean = ask(f"{side} {CLEAN}", None, None)
        changed = ask(f"{side} {name}", make(direction), direction)
        random = [ask(f"{side} {name} random {i + 1}", make(d), d) for i, d in enumerate(chance)]
        found[side] = {CLEAN: clean, name: changed, "random": random}
    return found


class _Asking:
    """Generate responses under an intervention and count refusals."""

    def __init__(
        self,
        host: "ModelHost",
        prompts: PromptSet,
        folder: Path,
        max_new_tokens: int,
        progress: ProgressFn,
    ) -> None:
        self._host, self._prompts, self._folder = host, prompts, folder
        self._max_new_tokens, self._progress = max_new_tokens, progress

    def __call__(
        self, stage: str, change: "Intervention | None", direction: Direction | None
    ) -> dict[str, Any]:
        from refusaldir.hooks import intervene
        from refusaldir.probes.measure import measure
        from refusaldir.probes.outcomes import is_refused
        from refusaldir.probes.plan import SamplingPlan

        # The vector is part of the name: responses made with another one are not taken for it.
        parts = stage.split()
        if direction is not None:
            parts.append(content_hash(direction.vector.tolist())[:8])
        with intervene(self._host.hooked, *([] if change is None else [change])):
            answers = measure(
                self._host,
                self._prompts,
                SamplingPlan(max_new_tokens=self._max_new_tokens),
                path=self._folder / f"check-{'-'.join(parts)}.jsonl",
                force=True,
                on_rows=counter(self._progress, f"Check {stage}", len(self._prompts)),
            )
        outcomes = [is_refused(row.label) for row in answers.rows]
        judged = [outcome for outcome in outcomes if outcome is not None]
        rate: Estimate = proportion(sum(judged), len(judged))
        return {"refused": rate.to_dict(), "left_out": len(outcomes) - len(judged)}
