"""`select`: the direction of one model that causes refusal, if there is one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from refusaldir.directions.mean_diff import Direction
from refusaldir.directions.reader import MIN_INTENTS, clusters_of, read_layer
from refusaldir.errors import DirectionError, PromptError
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.categories import categories_of
from refusaldir.pipeline.check import check_direction
from refusaldir.pipeline.criteria import Criteria
from refusaldir.pipeline.direction_reading import reading_of
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.plan import Opening, Plan, ProgressFn, Rendering, prompt_set, silent
from refusaldir.pipeline.selected import (
    FORMAT,
    FORMAT_VERSION,
    Selected,
    find_selected,
    folder_beside,
    refuse_existing,
    write_selected,
)
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import HARMFUL, HARMLESS, Site
from refusaldir.store import Capture, default_path, default_store, find_capture

if TYPE_CHECKING:
    from refusaldir.directions.candidates import CausalChoice
    from refusaldir.models.bridge import HookedModel
    from refusaldir.probes.refusal_tokens import RefusalTokens

HOOK = "resid_pre"

Indices = NDArray[np.int64]


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
    positions: str = "post",
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
        positions: Candidate positions; as in `extract`.
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
        capture by the same criteria is kept as it is.

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
    labels = material.labels
    searched = _searched(material, criteria)
    split = _split(material, criteria.seed)
    tokens = _tokens(
        model,
        material,
        _at_most(split, labels, criteria).validation,
        criteria,
        batch_size,
        folder / "responses.jsonl",
        force,
        progress,
    )
    # Without refusal tokens there is no refusal score: COSMIC does without.
    criterion = criteria.criterion if tokens else "cosmic"
    filtered = criteria.filter_prompts and bool(tokens)
    kept = split
    if filtered:
        kept = _filtered(model, material, split, tokens, batch_size, progress)
    used = _at_most(kept, labels, criteria)
    choices: dict[str, CausalChoice] = {}
    directions: dict[str, NDArray[np.float64]] = {}
    left_out: dict[str, str] = {}
    for name in criteria.estimators:
        try:
            directions[name] = estimates(material.path, used.train, name)
        except DirectionError as error:
            if len(criteria.estimators) == 1:
                raise
            left_out[name] = str(error)  # e.g. paired PCA where there are no pairs
            continue
        choices[name] = _scored(
            model, material, used, directions[name], tokens, criterion, criteria, name, progress
        )
    first = criteria.estimators[0]
    choice = choices[first]

    def direction(site: Site | None) -> Direction | None:
        if site is None:
            return None
        row = material.provenance.layers.index(site.layer)
        column = material.provenance.positions.offsets.index(site.position)
        return Direction(
            vector=directions[first][row, column],
            site=site,
            estimator=first,
            n_harmful=int((labels[used.train] == HARMFUL).sum()),
            n_harmless=int((labels[used.train] == HARMLESS).sum()),
            provenance=material.provenance,
        )

    chosen = direction(None if choice.chosen is None else choice.chosen.site)
    nearest = direction(None if choice.nearest is None else choice.nearest.site)
    checked = None
    tried = chosen or nearest
    if check is not None and tried is not None:
        checked = check_direction(
            model,
            material,
            tried,
            used.train.tolist(),
            folder,
            n_random=check,
            batch_size=batch_size,
            seed=criteria.seed,
            progress=progress,
        )
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "capture": str(material.path),
        "provenance": material.provenance.to_dict(),
        "criteria": criteria.to_dict(),
        "criterion": criterion,
        "positions": [
            {"offset": offset, "label": label}
            for offset, label in zip(
                material.provenance.positions.offsets,
                material.provenance.positions.labels,
                strict=True,
            )
            if offset in searched
        ],
        "split": split.how,
        "filtered": filtered,
        "train_ids": [material.rendered.prompts[int(i)].id for i in used.train],
        "prompts": {
            name: {
                side: {
                    "given": int((labels[getattr(split, name)] == label).sum()),
                    "kept": int((labels[getattr(kept, name)] == label).sum()),
                    "used": int((labels[getattr(used, name)] == label).sum()),
                }
                for side, label in (("harmful", HARMFUL), ("harmless", HARMLESS))
            }
            for name in ("train", "validation")
        },
        "refusal_tokens": tokens.to_dict(),
        "estimator": first,
        "selection": choice.to_dict(),
        "estimators": {
            name: {
                "chosen": None if c.chosen is None else c.to_dict()["chosen"],
                "nearest": None if c.nearest is None else c.to_dict()["nearest"],
            }
            for name, c in choices.items()
        },
        "estimators_left_out": left_out,
        "categories": None
        if tried is None
        else categories_of(model, material, tried, used.train, used.validation, tokens.ids),
        "reading": None
        if tried is None
        else reading_of(model, material, tried, used.train).to_dict(),
        "check": checked,
    }
    return write_selected(document, choice, chosen, nearest, folder)


@dataclass(frozen=True, kw_only=True)
class _Split:
    """Indices of the prompts that make directions and of those that score them."""

    train: Indices
    validation: Indices
    how: str


def estimates(
    path: Path, rows: Indices, estimator: str, site: Site | None = None
) -> NDArray[np.float64]:
    """Directions from some of a capture's prompts, ``[layer pos d_model]``; zero without signal.

    Args:
        path: The capture.
        rows: The prompts to estimate from.
        estimator: One of `refusaldir.pipeline.criteria.ESTIMATORS`.
        site: The only site to fill in; all by default.
    """
    from refusaldir.directions.estimators import estimate
    from refusaldir.directions.mean_diff import mean_diff
    from refusaldir.directions.site import has_signal

    with Capture.open(path) as capture:
        offsets, prompts = capture.positions.offsets, list(capture.prompts)
        labels = np.asarray(capture.labels)[rows]
        intents = [prompts[int(i)].intent_id for i in rows]
        found = np.zeros((len(capture.layers), len(offsets), capture.provenance.model.d_model))
        for row, layer in enumerate(capture.layers):
            if site is not None and layer != site.layer:
                continue
            x = read_layer(capture, HOOK, layer)[rows]
            for column, offset in enumerate(offsets):
                if site is not None and offset != site.position:
                    continue
                values = x[:, column].astype(np.float64)
                if has_signal(values, mean_diff(values, labels)):
                    found[row, column] = estimate(
                        values, labels, estimator=estimator, intents=intents
                    )
    return found


def _scored(
    model: "HookedModel",
    material: Material,
    used: _Split,
    directions: NDArray[np.float64],
    tokens: "RefusalTokens",
    criterion: str,
    criteria: Criteria,
    name: str,
    progress: ProgressFn,
) -> "CausalChoice":
    from refusaldir.directions.causal import select_causal

    labels = material.labels
    searched = _searched(material, criteria)
    columns = [material.provenance.positions.offsets.index(offset) for offset in searched]
    stage = "Candidates" if len(criteria.estimators) == 1 else f"Candidates {name}"
    return select_causal(
        model,
        directions[:, columns],
        layers=material.provenance.layers,
        offsets=searched,
        harmful=material.ids(used.validation[labels[used.validation] == HARMFUL]),
        harmless=material.ids(used.validation[labels[used.validation] == HARMLESS]),
        refusal_tokens=tokens.ids,
        thresholds=criteria.thresholds,
        criterion=criterion,
        exhaustive=criteria.exhaustive,
        on_progress=lambda done, total: progress(stage, done, total),
    )


def _searched(material: Material, criteria: Criteria) -> tuple[int, ...]:
    """Positions of the candidates."""
    there = material.provenance.positions.offsets
    if criteria.positions is None:
        return there
    missing = sorted(set(criteria.positions) - set(there))
    if missing or not criteria.positions:
        raise DirectionError(
            "A position to search was not captured",
            expected=there,
            got=missing or "none",
            where="--at",
            next_step="Choose among those, or capture more with --positions",
        )
    return tuple(sorted(set(criteria.positions)))


def _split(material: Material, seed: int) -> _Split:
    """The set's own train and validation split, else four fifths and one fifth of the intents."""
    prompts, labels = material.rendered.prompts, material.labels
    names = np.array([prompt.split or "" for prompt in prompts])
    train, validation = np.flatnonzero(names == "train"), np.flatnonzero(names == "validation")
    if all(
        len({prompts[int(i)].intent_id for i in part if labels[i] == label}) >= MIN_INTENTS
        for part in (train, validation)
        for label in (HARMFUL, HARMLESS)
    ):
        return _Split(train=train, validation=validation, how="the set's own splits")
    fold = clusters_of(prompts, labels).folds(5, seed)
    return _Split(
        train=np.flatnonzero(fold != 0),
        validation=np.flatnonzero(fold == 0),
        how=f"no splits in the set: a fifth of the intents validates (seed {seed})",
    )


def _tokens(
    model: "HookedModel",
    material: Material,
    rows: Indices,
    criteria: Criteria,
    batch_size: int | None,
    path: Path,
    force: bool,
    progress: ProgressFn,
) -> "RefusalTokens":
    """Refusal tokens: the user's, or those of the model's own refusals of some prompts."""
    from refusaldir.probes.measure import measure
    from refusaldir.probes.refusal_tokens import given_refusal_tokens

    if criteria.refusal_tokens:
        return given_refusal_tokens(model.tokenizer, criteria.refusal_tokens)
    rendered = material.rendered.take(rows.tolist())
    done = 0

    def on_batch(count: int) -> None:
        nonlocal done
        done += count
        progress("Respond", done, len(rendered))

    return measure(
        model,
        rendered,
        max_new_tokens=criteria.max_new_tokens,
        batch_size=batch_size,
        path=path,
        force=force,
        on_batch=on_batch,
    ).refusal_tokens


def _filtered(
    model: "HookedModel",
    material: Material,
    split: _Split,
    tokens: "RefusalTokens",
    batch_size: int | None,
    progress: ProgressFn,
) -> _Split:
    """Leave out harmful prompts the model would answer and harmless ones it would refuse."""
    from refusaldir.refusal_score import refusal_scores

    labels = material.labels
    both = np.concatenate([split.train, split.validation])
    progress("Score prompts", 0, len(both))
    found = refusal_scores(model, material.ids(both), tokens.ids, batch_size=batch_size)
    progress("Score prompts", len(both), len(both))
    good = dict(zip(both.tolist(), (found > 0) == (labels[both] == HARMFUL), strict=True))
    kept = _Split(
        train=np.array([i for i in split.train if good[int(i)]], dtype=np.int64),
        validation=np.array([i for i in split.validation if good[int(i)]], dtype=np.int64),
        how=split.how,
    )
    for name, part in (("training", kept.train), ("validation", kept.validation)):
        for label, side in ((HARMFUL, "harmful"), (HARMLESS, "harmless")):
            count = int((labels[part] == label).sum())
            if count < MIN_INTENTS:
                raise PromptError(
                    f"Too few {side} {name} prompts are left after the model's own refusals "
                    "decided which to keep",
                    expected=f"at least {MIN_INTENTS}",
                    got=count,
                    where=material.provenance.model.name,
                    next_step="Use --no-filter, more prompts, or a model that refuses",
                )
    return kept


def _at_most(split: _Split, labels: Indices, criteria: Criteria) -> _Split:
    """At most so many validation prompts a class, drawn by the seed."""
    order = np.random.default_rng(criteria.seed).permutation(split.validation)
    parts = [order[labels[order] == label][: criteria.validation] for label in (HARMFUL, HARMLESS)]
    return _Split(train=split.train, validation=np.sort(np.concatenate(parts)), how=split.how)
