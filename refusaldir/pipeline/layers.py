"""`which_layers`: which layers of a model a fine-tune disturbed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from refusaldir.directions.candidates import HOOK
from refusaldir.drift.comparable import require_comparable
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.arm import Arm, Terms
from refusaldir.pipeline.layer_choices import Asked, LayersFound
from refusaldir.pipeline.layers_job import LayersJob
from refusaldir.pipeline.opening import Opening
from refusaldir.pipeline.plan import Rendering, prompt_set
from refusaldir.pipeline.progress import ProgressFn, silent
from refusaldir.pipeline.sites import parse_site
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import content_hash
from refusaldir.store import default_store

__all__ = ["LayersFound", "which_layers"]


def which_layers(
    base: str | ModelSpec,
    tuned: str | ModelSpec,
    *,
    prompts: str | Path | PromptSet = "contrast",
    harmful: str | Path | None = None,
    harmless: str | Path | None = None,
    column_map: Mapping[str, str] | None = None,
    limit: int | None = None,
    system: str = "default",
    thinking: bool | None = None,
    template: str | None = None,
    mode: str = "fast",
    outcome: str = "score",
    category: str | None = None,
    heads: bool = False,
    repair: bool = False,
    task_text: str | Path | None = None,
    site: str | None = None,
    refusal_tokens: Sequence[str] | None = None,
    max_new_tokens: int = 64,
    batch_size: int | None = None,
    options: LoadOptions | None = None,
    backend: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    store: str | Path | None = None,
    force: bool = False,
    progress: ProgressFn = silent,
) -> LayersFound:
    """Find the layers whose change of weights moved an outcome of harmful prompts.

    Both models are in memory together: two copies of what differs, one where tuned is base with
    further LoRA adapters. The outcome is measured on the test split, or on all harmful prompts of
    a set that has none.

    Args:
        base: A model spec.
        tuned: A model spec: a fine-tune of base, or base with adapters.
        prompts: As in `refusaldir.pipeline.extract`, like the seven that follow.
        harmful: See there.
        harmless: See there.
        column_map: See there.
        limit: See there.
        system: See there.
        thinking: See there.
        template: See there.
        mode: ``"fast"``: path attribution, residual decomposition and weights; ``"full"``: and
            blocks exchanged between the models, one by one and as fronts.
        outcome: ``"score"``: refusal score; ``"projection"``: on the direction at its site;
            ``"rate"``: refusals among greedy answers, which has no gradient and needs ``"full"``.
        category: Only harmful prompts of this category.
        heads: Take attention apart by head in the residual decomposition.
        repair: Look for the fewest layers whose return to base brings the outcome back.
        task_text: Text of the fine-tune's own task, a text a line, on which the cost of the repair
            is measured; without it, the change of answers to harmless prompts.
        site: Where the direction is read, such as ``resid_pre.18@-1``, a difference of means in
            base; None takes the direction that was selected in base, or the site where base
            separates best.
        refusal_tokens: First tokens of refusals; None finds them in base's own refusals.
        max_new_tokens: Length of the answers behind the refusal rate.
        batch_size: As in `refusaldir.pipeline.extract`.
        options: How to load both models.
        backend: See `refusaldir.pipeline.extract`.
        seed: Seed of bands, resamples and a missing split.
        out: Folder for the results; None names one in the store.
        store: The folder for captures.
        force: Overwrite an earlier result in the folder.
        progress: Called with stage, done and total.

    Returns:
        The document, the result object, and what was written: ``layers.json`` and the figure as
        PNG and SVG.

    Raises:
        CaptureMismatchError: The two differ in something other than the model's weights.
        RefusaldirError: Whatever else the user can mend.
    """
    at = parse_site(site)
    asked = Asked(
        mode=mode,
        outcome=outcome,
        category=category,
        heads=heads,
        repair=repair,
        task_text=None if task_text is None else Path(task_text),
        site=at,
        refusal_tokens=None if refusal_tokens is None else tuple(refusal_tokens),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        force=force,
    )
    first, second = (
        Opening(spec=ModelSpec.parse(spec), options=options or LoadOptions(), backend=backend)
        for spec in (base, tuned)
    )
    terms = Terms(
        prompts=prompt_set(prompts, harmful, harmless, column_map, limit),
        rendering=Rendering(system=system, thinking=thinking, template=template),
        hooks=(HOOK if at is None else at.hook,),
        layers=None if at is None else (at.layer,),
        positions="inst,post" if at is None else str(at.position),
    )
    plan, other = (terms.plan(opening, batch_size) for opening in (first, second))
    require_comparable(plan, other, terms.hooks[0], allow_dtype_mismatch=True)
    job = LayersJob(
        openings=(first, second),
        rendering=terms.rendering,
        plan=plan,
        arm=Arm.of_plan("base", first, plan, store),
        asked=asked,
        limit=limit,
    )
    job.check()
    fingerprints = [each.provenance.fingerprint() for each in (plan, other)]
    folder = Path(out) if out is not None else _default_folder(job, fingerprints, store)
    return job.run(folder, progress)


def _default_folder(job: LayersJob, fingerprints: Sequence[str], store: str | Path | None) -> Path:
    names = "-to-".join(opening.spec.name for opening in job.openings)
    what = [*fingerprints, job.asked.mode, job.asked.outcome, job.asked.category or ""]
    return default_store(store) / f"layers-{names}-{content_hash(what)[:8]}"
