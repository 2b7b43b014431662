"""A direction read in a model: its tokens, its concentration, and how it separates prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from refusaldir.directions.estimators import ESTIMATORS
from refusaldir.directions.exchange import load_direction
from refusaldir.directions.mean_diff import Direction
from refusaldir.directions.reader import MIN_INTENTS, clusters_of, enough_intents
from refusaldir.directions.reading import (
    Reading,
    SplitHalf,
    split_half,
    top_dimension_share,
    transfer,
)
from refusaldir.errors import CaptureError, DirectionError
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.opening import Opening
from refusaldir.pipeline.plan import Plan, Rendering, prompt_set
from refusaldir.pipeline.progress import ProgressFn, counter, silent
from refusaldir.pipeline.splits import Indices, rows_of
from refusaldir.prompts.schema import Prompt, PromptSet
from refusaldir.records import ModelIdentity, Provenance

if TYPE_CHECKING:
    from refusaldir.models.bridge import HookedModel


def read_direction(
    path: str | Path,
    model: str | ModelSpec,
    *,
    prompts: str | Path | PromptSet | None = None,
    harmful: str | Path | None = None,
    harmless: str | Path | None = None,
    column_map: Mapping[str, str] | None = None,
    limit: int | None = None,
    system: str = "default",
    thinking: bool | None = None,
    template: str | None = None,
    batch_size: int | None = None,
    options: LoadOptions | None = None,
    backend: str = "auto",
    top: int = 10,
    seed: int = 0,
    progress: ProgressFn = silent,
) -> Reading:
    """Say what can be said of a direction in a model, and on a prompt set if one is given.

    Of a set that the direction was fitted on, only the test split is scored; without one no
    separation is reported, since it would flatter the direction.

    Args:
        path: A direction file.
        model: The model to read it in, which need not be the one it comes from.
        prompts: As in `refusaldir.pipeline.extract`; None for no set.
        harmful: As in `refusaldir.pipeline.extract`.
        harmless: As in `refusaldir.pipeline.extract`.
        column_map: As in `refusaldir.pipeline.extract`.
        limit: As in `refusaldir.pipeline.extract`.
        system: As in `refusaldir.pipeline.extract`.
        thinking: As in `refusaldir.pipeline.extract`.
        template: As in `refusaldir.pipeline.extract`.
        batch_size: As in `refusaldir.pipeline.extract`.
        options: As in `refusaldir.pipeline.extract`.
        backend: As in `refusaldir.pipeline.extract`.
        top: Tokens on either side.
        seed: Seed of the split halves.
        progress: Called with stage, done and total.

    Raises:
        DirectionError: The direction does not fit the model.
        RefusaldirError: Whatever else the user can mend.
    """
    from refusaldir.directions.vocabulary import vocabulary

    direction = load_direction(path)
    opening = Opening(
        spec=ModelSpec.parse(model), options=options or LoadOptions(), backend=backend
    )
    notes = list(_fit(direction, opening.identity(), Path(path)))
    asked = prompts is not None or harmful is not None or harmless is not None
    plan, scope = None, None
    if asked:
        plan = Plan.make(
            opening,
            prompt_set(prompts or "", harmful, harmless, column_map, limit),
            Rendering(system=system, thinking=thinking, template=template),
            hooks=(direction.site.hook,),
            layers=(direction.site.layer,),
            positions=str(direction.site.position),
            batch_size=batch_size,
        )
        scope = _scope(direction.provenance, plan)
        notes += scope.notes
    with opening.model() as hooked:
        found = vocabulary(hooked, direction.vector, top=top)
        separation = halves = None
        if plan is not None and scope is not None:
            x = _activations(hooked, plan, scope.rows, progress)
            prompts_here = [plan.rendered.prompts[int(i)] for i in scope.rows]
            labels = plan.labels[scope.rows]
            halves = stability(direction, x, prompts_here, labels, seed)
            if scope.held_out:
                separation = transfer(direction, x, labels, clusters_of(prompts_here, labels))
        return Reading(
            direction=direction,
            model=hooked.identity.name,
            top_share=top_dimension_share(direction.vector),
            vocabulary=found,
            prompts=None if plan is None else plan.provenance.prompts_name,
            transfer=separation,
            split_half=halves,
            notes=tuple(notes),
        )


@dataclass(frozen=True, kw_only=True)
class _Scope:
    """Which prompts of a set say something about a direction."""

    rows: Indices
    held_out: bool
    notes: tuple[str, ...] = ()


def _scope(fitted: Provenance | None, plan: Plan) -> _Scope:
    """All prompts, or the test split of the set that the direction was fitted on."""
    made = plan.provenance
    everything = np.arange(len(plan.rendered))
    if fitted is None:
        return _Scope(
            rows=everything,
            held_out=True,
            notes=(
                "The file does not say which prompts the direction was fitted on: the separation "
                "is held out only if they were others than these.",
            ),
        )
    notes: tuple[str, ...] = ()
    if fitted.template.post_tokens != made.template.post_tokens:
        notes = (
            "The template ends otherwise than the one the direction was fitted with: its position "
            "is another token here.",
        )
    same = fitted.prompts_hash == made.prompts_hash or fitted.rendered_hash == made.rendered_hash
    if not same and fitted.prompts_name != made.prompts_name:
        return _Scope(rows=everything, held_out=True, notes=notes)
    test = rows_of(plan.prompts, "test")
    whose = "this set" if same else "a set of this name"
    if enough_intents(plan.prompts, plan.labels, test):
        note = f"The direction was fitted on {whose}: only its test split is scored."
        return _Scope(rows=test, held_out=True, notes=(*notes, note))
    if not same:
        note = f"The direction was fitted on {whose}: if prompts are shared, these flatter it."
        return _Scope(rows=everything, held_out=True, notes=(*notes, note))
    note = (
        f"The direction was fitted on {whose}, which has no test split of {MIN_INTENTS} intents a "
        "class: its separation is not reported. Give other prompts."
    )
    return _Scope(rows=everything, held_out=False, notes=(*notes, note))


def _activations(
    model: "HookedModel", plan: Plan, rows: Indices, progress: ProgressFn
) -> NDArray[np.float64]:
    """Activations of some prompts at the one site of a plan, ``[prompt d_model]``."""
    from refusaldir.capture import capture
    from refusaldir.store.encoding import to_float32

    rendered = plan.rendered.take(rows.tolist())
    rendered.check_length(model.max_length)
    (hook,) = plan.hooks
    x = np.zeros((len(rendered), model.d_model))
    count = counter(progress, "Capture", len(rendered))
    count(0)
    for batch in capture(
        model,
        rendered.ids,
        hooks=plan.hooks,
        layers=plan.layers,
        positions=plan.positions,
        batch_size=plan.batch_size,
    ):
        x[batch.indices] = to_float32(batch.values[hook])[:, 0, 0]
        count(len(batch.indices))
    if not np.all(np.isfinite(x)):
        raise CaptureError(
            "activations are not finite",
            where=f"{hook}.{plan.layers[0]} of {model.identity.name}",
            next_step="Read it in float32 or bfloat16",
        )
    return x


def stability(
    direction: Direction,
    x: NDArray[np.floating[Any]],
    prompts: Sequence[Prompt],
    labels: NDArray[np.int64],
    seed: int,
) -> SplitHalf:
    """How well some prompts determine a direction at its site, by its own estimator."""
    name = direction.estimator if direction.estimator in ESTIMATORS else "mean_diff"
    return split_half(
        x, labels, [p.intent_id for p in prompts], estimator=ESTIMATORS[name], seed=seed
    )


def reading_of(
    model: "HookedModel",
    material: Material,
    direction: Direction,
    x: Float[np.ndarray, "prompt d_model"],
    train: Indices,
) -> Reading:
    """Read a direction just selected from a capture: stable on its own prompts, held out on others.

    Args:
        model: The model it comes from.
        material: The capture and its prompts.
        direction: The direction.
        x: Activations of all prompts at its site.
        train: The prompts behind it.
    """
    from refusaldir.directions.vocabulary import vocabulary

    prompts, labels = list(material.rendered.prompts), material.labels
    test = rows_of(prompts, "test")
    notes: tuple[str, ...] = ("Split halves: of the training prompts.",)
    separation = None
    if enough_intents(prompts, labels, test):
        here = [prompts[int(i)] for i in test]
        separation = transfer(direction, x[test], labels[test], clusters_of(here, labels[test]))
        notes = (*notes, "AUROC and d′: on the test split, which took no part.")
    return Reading(
        direction=direction,
        model=model.identity.name,
        top_share=top_dimension_share(direction.vector),
        vocabulary=vocabulary(model, direction.vector),
        prompts=material.provenance.prompts_name,
        transfer=separation,
        split_half=stability(
            direction, x[train], [prompts[int(i)] for i in train], labels[train], seed=0
        ),
        notes=notes,
    )


def _fit(direction: Direction, model: ModelIdentity, path: Path) -> tuple[str, ...]:
    """Check a direction against a model; what to know when it comes from another.

    Raises:
        DirectionError: The model is of another width or has no such layer.
    """
    expected = f"{model.name}: d_model {model.d_model}, {model.n_layers} layers"
    if len(direction.vector) != model.d_model or direction.site.layer >= model.n_layers:
        raise DirectionError(
            "The direction does not fit the model",
            expected=expected,
            got=f"d_model {len(direction.vector)}, layer {direction.site.layer}",
            where=path,
        )
    fitted = direction.provenance
    if fitted is not None and fitted.model.weights_hash != model.weights_hash:
        return (f"The direction was fitted in another model, {fitted.model.name}.",)
    return ()
