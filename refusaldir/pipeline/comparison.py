"""`diff`: two models or captures compared, geometry and behaviour, and the results written."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from refusaldir.errors import RefusaldirError
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.arm import is_capture
from refusaldir.pipeline.battery import SAMPLES, Asked
from refusaldir.pipeline.choices import Choices, make_terms
from refusaldir.pipeline.criteria import Criteria
from refusaldir.pipeline.layer_choices import MODES
from refusaldir.pipeline.layers_job import LayersJob, require_no_layers
from refusaldir.pipeline.pair import Diff, Pair
from refusaldir.pipeline.progress import ProgressFn, silent
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import content_hash
from refusaldir.store import default_store

__all__ = ["Diff", "diff"]

LAYERS = ("off", *MODES)


def diff(
    base: str | Path | ModelSpec,
    tuned: str | Path | ModelSpec,
    *,
    prompts: str | Path | PromptSet = "contrast",
    harmful: str | Path | None = None,
    harmless: str | Path | None = None,
    column_map: Mapping[str, str] | None = None,
    limit: int | None = None,
    system: str = "default",
    thinking: bool | None = None,
    template: str | None = None,
    hook: str = "resid_pre",
    positions: str = "inst,post",
    position: int | None = None,
    batch_size: int | None = None,
    options: LoadOptions | None = None,
    backend: str = "auto",
    allow_dtype_mismatch: bool = False,
    select: str = "auto",
    criteria: Criteria | None = None,
    follow_nearest: bool = False,
    behaviour: str = "auto",
    battery: str | Path | PromptSet | None = None,
    escalations: str = "off",
    temperatures: Sequence[float] = (0.0,),
    samples: int = SAMPLES,
    seeds: Sequence[int] = (0,),
    max_new_tokens: int | None = None,
    judges: Sequence[str] | None = None,
    refusal_tokens: Sequence[str] | None = None,
    layers: str = "off",
    seed: int = 0,
    out: str | Path | None = None,
    store: str | Path | None = None,
    force: bool = False,
    progress: ProgressFn = silent,
) -> Diff:
    """Compare base and tuned: drift of the refusal direction, beside paired behaviour.

    One model is in memory at a time. A capture that the store holds already is reused, and a
    capture or a set of responses that was cut off is continued. Where either side is a capture,
    prompts, rendering, hooks, layers and positions are those of the capture.

    The site followed is that of the direction which causes refusal in base, where selection finds
    one; otherwise the one where base separates best. Where models are opened anyway, both models'
    directions at that site are then ablated and added in both.

    Args:
        base: A model spec, or the path of a capture.
        tuned: The same.
        prompts: As in `extract`.
        harmful: As in `extract`.
        harmless: As in `extract`.
        column_map: As in `extract`.
        limit: As in `extract`.
        system: As in `extract`.
        thinking: As in `extract`.
        template: As in `extract`.
        hook: Hook point to compare.
        positions: Positions to capture; as in `extract`.
        position: Token offset to compare at, at the layer where the base separates best there;
            None leaves it to the selection, or to separation where there is none.
        batch_size: As in `extract`.
        options: As in `extract`.
        backend: As in `extract`.
        allow_dtype_mismatch: Compare models in different precision: base is then captured once
            more in tuned's, and what precision alone does is told apart. Where that cannot be,
            the captures are compared as they are, with a note.
        select: Whether to select base's direction by what it causes: ``"on"``, ``"off"``, or
            ``"auto"``: on when both sides are model specs, else only what already lies beside the
            base capture.
        criteria: What is asked of that direction.
        follow_nearest: Where no direction is valid, follow the nearest candidate all the same.
        behaviour: ``"on"``, ``"off"``, or ``"auto"``: on when both sides are model specs, or when
            something below was asked for.
        battery: What both models are asked, as in `probe`; None asks the held-out prompts.
        escalations: As in `probe`.
        temperatures: As in `probe`.
        samples: As in `probe`.
        seeds: As in `probe`.
        max_new_tokens: Budget of each reply; None for 64, or 192 with a battery.
        judges: As in `probe`.
        refusal_tokens: First tokens of refusals; None finds them in the base's own refusals.
        layers: Which layers the fine-tune disturbed, as `refusaldir.pipeline.which_layers` finds
            it: ``"fast"``, ``"full"`` or ``"off"``. Both models are then in memory together.
        seed: Seed of folds and resampling.
        out: Folder for the results; None names one in the store.
        store: The folder for captures.
        force: Overwrite an earlier result in the folder.
        progress: Called with stage, done and total.

    Returns:
        The document, the result objects, and what was written: ``diff.json``, the figures as
        PNG and SVG, the responses as JSON lines, and ``layers.json`` where it was asked for.

    Raises:
        CaptureMismatchError: The two differ in something other than the model's weights.
        RefusaldirError: Whatever else the user can mend.
    """
    if layers not in LAYERS:
        raise RefusaldirError(
            "Unknown choice", expected=" | ".join(LAYERS), got=layers, where="--layers"
        )
    choices = Choices(
        hook=hook,
        position=position,
        batch_size=batch_size,
        options=options or LoadOptions(),
        backend=backend,
        template=template,
        allow_dtype_mismatch=allow_dtype_mismatch,
        select=select,
        criteria=criteria,
        follow_nearest=follow_nearest,
        behaviour=behaviour,
        refusal_tokens=None if refusal_tokens is None else tuple(refusal_tokens),
        seed=seed,
        store=store,
        force=force,
    )
    asked = Asked(
        battery=battery,
        escalations=escalations,
        temperatures=temperatures,
        samples=samples,
        seeds=seeds,
        max_new_tokens=max_new_tokens,
        judges=judges,
    )
    terms = make_terms(
        (base, tuned),
        choices,
        prompts=prompts,
        harmful=harmful,
        harmless=harmless,
        column_map=column_map,
        limit=asked.limit_of((base, tuned), limit),
        system=system,
        thinking=thinking,
        positions=positions,
    )
    specs = not (is_capture(base) or is_capture(tuned))
    pair = Pair.settle(
        choices,
        terms,
        choices.battery(asked, terms, specs=specs, column_map=column_map, limit=limit),
        choices.arm("base", base, terms),
        (base, tuned),
        specs=specs,
    )
    folder = Path(out) if out is not None else _default_folder(pair)
    kept = pair.kept(folder)
    if layers == "off":
        return kept or pair.run(folder, progress)
    for arm in (pair.base, pair.tuned):
        arm.require_unchanged()
    if kept is None:
        require_no_layers(folder, force=force)
    done = kept or pair.run(folder, progress)
    job = LayersJob.of_diff(pair, done, layers)
    found = None if force else job.kept(folder)
    if found is None:
        found = job.run(folder, progress)
        done = replace(done, reused=False)
    return replace(done, layers=found, files={**done.files, **found.files})


def _default_folder(pair: Pair) -> Path:
    """A folder for these captures and what the models are asked; samples and judges may grow."""
    arms, battery = (pair.base, pair.tuned), pair.battery
    names = "-to-".join(arm.opening.spec.name for arm in arms)
    asked = None if battery is None or battery.prompts is None else battery.prompts.hash
    budget = None if battery is None else battery.plan.max_new_tokens
    key = content_hash([str(arm.path) for arm in arms], asked, budget)[:8]
    return default_store(pair.choices.store) / f"diff-{names}-{key}"
