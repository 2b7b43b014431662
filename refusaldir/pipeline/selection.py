"""`select`: the direction of one model that causes refusal, if there is one."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.directions.candidates import HOOK
from refusaldir.directions.estimates import direction_of, estimates
from refusaldir.errors import DirectionError
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.categories import categories_of
from refusaldir.pipeline.check import check_direction
from refusaldir.pipeline.criteria import Criteria
from refusaldir.pipeline.direction_reading import reading_of
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.opening import Opening
from refusaldir.pipeline.plan import Plan, Rendering, prompt_set
from refusaldir.pipeline.progress import ProgressFn, silent
from refusaldir.pipeline.scoring import PARTIAL, Scoring, refusal_tokens, searched
from refusaldir.pipeline.selected import (
    FORMAT,
    FORMAT_VERSION,
    Selected,
    find_selected,
    folder_beside,
    refuse_existing,
    write_selected,
)
from refusaldir.pipeline.splits import Indices, Split
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import HARMFUL, HARMLESS
from refusaldir.store import Capture, default_path, default_store, find_capture

if TYPE_CHECKING:
    from refusaldir.directions.candidates import CausalChoice
    from refusaldir.models.bridge import HookedModel


def select(
    model: str | ModelSpec,
    *,
    prompts: str | Path | PromptSet = "contrast",
    harmful: str | Path | None = None,
    harmless: str | Path | None = None,
    column_map: Mapping[str, str] | None = None,
    limit: int | None = None,
    system: str = "default",
    thinking: bool | None = None,
    template: str | None = None,
    positions: str = "inst,post",
    batch_size: int | None = None,
    options: LoadOptions | None = None,
    backend: str = "auto",
    criteria: Criteria | None = None,
    check: int | None = None,
    out: str | Path | None = None,
    store: str | Path | None = None,
    force: bool = False,
    progress: ProgressFn = silent,
) -> Selected:
    """Choose the direction that causes refusal; see `refusaldir.directions.causal`.

    Directions are estimated on training prompts and scored on validation prompts; the test split
    takes no part. With `Criteria.filter_prompts` only harmful prompts that the model would
    refuse (refusal score above 0) and harmless ones that it would answer (below 0) are used.

    Args:
        model: As in `extract`.
        prompts: As in `extract`.
        harmful: As in `extract`.
        harmless: As in `extract`.
        column_map: As in `extract`.
        limit: As in `extract`.
        system: As in `extract`.
        thinking: As in `extract`.
        template: As in `extract`.
        positions: Positions to capture; as in `extract`. Candidates are those after the
            instruction, unless `Criteria.positions` names others.
        batch_size: As in `extract`.
        options: As in `extract`.
        backend: As in `extract`.
        criteria: What is asked of the direction; the published choices by default.
        check: Let the model answer held-out prompts with the direction (or, where none is valid,
            the nearest) ablated and added, against this many random ones; see
            `refusaldir.pipeline.check`.
        out: Folder for the results; None puts them beside the capture.
        store: The folder for captures.
        force: Overwrite an earlier result in the folder.
        progress: Called with stage, done and total.

    Returns:
        The choice and what was written: ``select.json``, the figure, the responses, and
        ``direction.safetensors`` where a valid direction was found. A selection from the same
        capture by the same criteria is kept as it is; one that was cut off goes on where it was.

    Raises:
        OutputExistsError: The folder holds another result and ``force`` is not set.
        PromptError: Too few prompts of a class are left.
        RefusaldirError: Whatever else the user can mend.
    """
    criteria = criteria or Criteria()
    opening = Opening(
        spec=ModelSpec.parse(model), options=options or LoadOptions(), backend=backend
    )
    plan = Plan.make(
        opening,
        prompt_set(prompts, harmful, harmless, column_map, limit),
        Rendering(system=system, thinking=thinking, template=template),
        hooks=(HOOK,),
        layers=None,
        positions=positions,
        batch_size=batch_size,
    )
    there = find_capture(default_store(store), plan.provenance.fingerprint())
    path = there or default_path(plan.provenance, store)
    folder = Path(out) if out is not None else folder_beside(path)
    if not force:
        kept = find_selected(folder, plan.provenance, criteria)
        if kept is not None and (check is None or kept.document["check"] is not None):
            return kept
        refuse_existing(folder)
    with opening.model() as hooked:
        if there is None:
            plan.run(hooked, path, "Capture", resume=True, force=False, progress=progress)
        return select_on(
            hooked,
            Material.of_plan(plan, path),
            criteria,
            folder,
            check=check,
            batch_size=batch_size,
            force=force,
            progress=progress,
        )


def select_on(
    model: "HookedModel",
    material: Material,
    criteria: Criteria,
    folder: Path,
    *,
    check: int | None = None,
    batch_size: int | None = None,
    force: bool = False,
    progress: ProgressFn = silent,
) -> Selected:
    """Select a direction in an open model from a capture of it, and write what was found."""
    labels, prompts = material.labels, material.rendered.prompts
    offsets = searched(material, criteria)
    split = Split.of(prompts, labels, criteria.seed)
    scored = split.at_most(criteria.validation, labels, criteria.seed).validation
    tokens = refusal_tokens(
        model,
        material,
        scored,
        criteria,
        folder / "responses.jsonl",
        batch_size=batch_size,
        force=force,
        progress=progress,
    )
    filtered, kept = criteria.filter_prompts and bool(tokens), split
    if filtered:
        kept = split.filtered(model, material, tokens.ids, batch_size, progress)
    used = kept.at_most(criteria.validation, labels, criteria.seed)
    scoring = Scoring(
        model=model,
        material=material,
        criteria=criteria,
        offsets=offsets,
        validation=used.validation,
        tokens=tokens,
        folder=folder,
        progress=progress,
    )
    choices, left_out = _choices(scoring, used.train)
    first = criteria.estimators[0]
    choice = choices[first]
    chosen = nearest = None
    about: dict[str, Any] = {"categories": None, "reading": None, "check": None}
    candidate = choice.chosen or choice.nearest
    if candidate is not None:
        with Capture.open(material.path) as capture:
            tried = direction_of(capture, used.train, candidate.site, first)
        chosen, nearest = (None, tried) if choice.chosen is None else (tried, None)
        x = material.at(tried.site)
        if check is not None:
            about["check"] = check_direction(
                model,
                material,
                tried,
                x,
                used.train,
                folder,
                n_random=check,
                batch_size=batch_size,
                seed=criteria.seed,
                progress=progress,
            )
        about["categories"] = categories_of(model, material, tried, x, used, tokens.ids)
        about["reading"] = reading_of(model, material, tried, x, used.train).to_dict()
    positions = material.provenance.positions
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "capture": str(material.path),
        "provenance": material.provenance.to_dict(),
        "criteria": criteria.to_dict(),
        "criterion": scoring.criterion,
        "positions": [
            {"offset": offset, "label": label}
            for offset, label in zip(positions.offsets, positions.labels, strict=True)
            if offset in offsets
        ],
        "split": split.how,
        "filtered": filtered,
        "train_ids": [prompts[int(i)].id for i in used.train],
        "prompts": _counts(labels, given=split, kept=kept, used=used),
        "refusal_tokens": tokens.to_dict(),
        "estimator": first,
        "selection": choice.to_dict(),
        "estimators": {
            name: {which: each.to_dict()[which] for which in ("chosen", "nearest")}
            for name, each in choices.items()
        },
        "estimators_left_out": left_out,
        **about,
    }
    selected = write_selected(document, choice, chosen, nearest, folder)
    for path in folder.glob(f"candidates-*{PARTIAL}"):
        path.unlink()
    return selected


def _choices(scoring: Scoring, train: Indices) -> tuple[dict[str, "CausalChoice"], dict[str, str]]:
    """What each estimator's candidates come to, and why an estimator was left out."""
    choices: dict[str, CausalChoice] = {}
    left_out: dict[str, str] = {}
    names = scoring.criteria.estimators
    for name in names:
        try:
            with Capture.open(scoring.material.path) as capture:
                directions = estimates(capture, train, HOOK, name, offsets=scoring.offsets)
        except DirectionError as error:
            if len(names) == 1:
                raise
            left_out[name] = str(error)  # e.g. paired PCA where there are no pairs
            continue
        choices[name] = scoring.choose(directions, name)
    return choices, left_out


def _counts(labels: Indices, **splits: Split) -> dict[str, dict[str, dict[str, int]]]:
    """Prompts of each part and class, as given, kept and used."""
    return {
        part: {
            side: {
                stage: int((labels[getattr(split, part)] == label).sum())
                for stage, split in splits.items()
            }
            for side, label in (("harmful", HARMFUL), ("harmless", HARMLESS))
        }
        for part in ("train", "validation")
    }
