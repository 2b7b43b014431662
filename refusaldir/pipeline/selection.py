"""`select`: the direction of one model that causes refusal, if there is one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refusaldir.directions.exchange import direction_bytes
from refusaldir.directions.mean_diff import Direction, class_means
from refusaldir.directions.reader import MIN_INTENTS, clusters_of, read_layer
from refusaldir.errors import OutputExistsError, PromptError
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.plan import Opening, Plan, ProgressFn, Rendering, prompt_set, silent
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import HARMFUL, HARMLESS
from refusaldir.store import Capture, default_path, default_store, find_capture

if TYPE_CHECKING:
    from refusaldir.directions.candidates import CausalChoice
    from refusaldir.models.bridge import HookedModel
    from refusaldir.probes.refusal_tokens import RefusalTokens

FORMAT, FORMAT_VERSION = "refusaldir-select", 1
HOOK = "resid_pre"

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Selected:
    """What `select` found.

    Attributes:
        document: The content of ``select.json``.
        choice: Every candidate with its scores, and the chosen one; None when no refusal token
            was found, so that nothing could be scored.
        direction: The direction chosen, raw, or None.
        folder: Where everything was written.
        files: What was written, by name.
    """

    document: dict[str, Any]
    choice: "CausalChoice | None"
    direction: Direction | None
    folder: Path
    files: Mapping[str, Path]


@dataclass(frozen=True, kw_only=True)
class _Split:
    """Indices of the prompts that make directions and of those that score them."""

    train: Indices
    validation: Indices
    how: str


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
    refusal_tokens: Sequence[str] | None = None,
    filter_prompts: bool = True,
    kl: float = 0.1,
    induce: float = 0.0,
    depth: float = 0.8,
    exhaustive: bool = False,
    max_new_tokens: int = 32,
    seed: int = 0,
    out: str | Path | None = None,
    store: str | Path | None = None,
    force: bool = False,
    progress: ProgressFn = silent,
) -> Selected:
    """Choose the direction that causes refusal; see `refusaldir.directions.causal`.

    Directions are mean differences over training prompts, scored on validation prompts; the
    test split takes no part. With ``filter_prompts`` only harmful prompts that the model would
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
        refusal_tokens: First tokens of refusals; None finds them in the model's own refusals of
            validation prompts.
        filter_prompts: Keep only prompts that the model treats as their label says.
        kl: Largest mean KL of a valid direction, in nats.
        induce: Least mean refusal score of harmless prompts with the vector added.
        depth: Share of the layers searched.
        exhaustive: Also measure scores that cannot change the choice.
        max_new_tokens: Length of the responses that refusal tokens are read off.
        seed: Seed of the split where the prompts have none.
        out: Folder for the results; None names one in the store.
        store: The folder for captures.
        force: Overwrite an earlier result in the folder.
        progress: Called with stage, done and total.

    Returns:
        The choice and what was written: ``select.json``, the figure, the responses, and
        ``direction.safetensors`` where a valid direction was found.

    Raises:
        OutputExistsError: The folder holds a result already and ``force`` is not set.
        PromptError: Too few prompts of a class are left.
        RefusaldirError: Whatever else the user can mend.
    """
    from refusaldir.directions.candidates import Thresholds
    from refusaldir.directions.causal import select_causal

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
    print_of = plan.provenance.fingerprint()
    folder = Path(out) if out is not None else _default_folder(plan, store)
    if (folder / "select.json").exists() and not force:
        raise OutputExistsError(
            "The folder holds a result already",
            where=folder / "select.json",
            next_step="Read it, choose another --out, or use --force",
        )
    there = find_capture(default_store(store), print_of)
    path = there or default_path(plan.provenance, store)
    split = _split(plan, seed)
    thresholds = Thresholds(kl=kl, induce=induce, depth=depth)
    labels = np.asarray(plan.labels)
    choice: CausalChoice | None = None
    direction: Direction | None = None
    with opening.model() as hooked:
        if there is None:
            plan.run(hooked, path, "Capture", resume=True, force=False, progress=progress)
        tokens = _tokens(
            hooked,
            plan,
            split,
            refusal_tokens,
            max_new_tokens,
            batch_size,
            folder / "responses.jsonl",
            force,
            progress,
        )
        kept = split
        if tokens:
            if filter_prompts:
                kept = _filtered(hooked, plan, split, labels, tokens, batch_size, progress)
            means = _class_means(path, kept.train, labels)
            sequences = plan.rendered.ids
            chosen = {
                label: [sequences[i] for i in kept.validation if labels[i] == label]
                for label in (HARMFUL, HARMLESS)
            }
            choice = select_causal(
                hooked,
                means[:, :, 1] - means[:, :, 0],
                layers=plan.layers,
                offsets=plan.positions.offsets,
                harmful=chosen[HARMFUL],
                harmless=chosen[HARMLESS],
                refusal_tokens=tokens.ids,
                thresholds=thresholds,
                exhaustive=exhaustive,
                on_progress=lambda done, total: progress("Candidates", done, total),
            )
            if choice.chosen is not None:
                site = choice.chosen.site
                row = plan.layers.index(site.layer)
                column = plan.positions.offsets.index(site.position)
                direction = Direction(
                    vector=means[row, column, 1] - means[row, column, 0],
                    site=site,
                    n_harmful=int((labels[kept.train] == HARMFUL).sum()),
                    n_harmless=int((labels[kept.train] == HARMLESS).sum()),
                    provenance=plan.provenance,
                )
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "capture": str(path),
        "provenance": plan.provenance.to_dict(),
        "positions": [
            {"offset": offset, "label": label}
            for offset, label in zip(plan.positions.offsets, plan.positions.labels, strict=True)
        ],
        "split": split.how,
        "filtered": filter_prompts,
        "prompts": {
            name: {
                side: {
                    "given": int((labels[getattr(split, name)] == label).sum()),
                    "kept": int((labels[getattr(kept, name)] == label).sum()),
                }
                for side, label in (("harmful", HARMFUL), ("harmless", HARMLESS))
            }
            for name in ("train", "validation")
        },
        "refusal_tokens": tokens.to_dict(),
        "selection": None if choice is None else choice.to_dict(),
    }
    return _written(document, choice, direction, folder)


def _written(
    document: dict[str, Any],
    choice: "CausalChoice | None",
    direction: Direction | None,
    folder: Path,
) -> Selected:
    from refusaldir.report.document import write_json
    from refusaldir.report.files import write_atomic
    from refusaldir.report.selection_figure import write_selection_figure

    written = {"responses.jsonl": folder / "responses.jsonl"}
    stale = folder / "direction.safetensors"
    if direction is not None:
        written[stale.name] = write_atomic(stale, direction_bytes(direction))
    else:
        stale.unlink(missing_ok=True)
    written |= {path.name: path for path in write_selection_figure(document, folder)}
    # Last, so that a folder with a select.json is complete.
    written["select.json"] = write_json(document, folder / "select.json")
    files = {name: path for name, path in written.items() if path.exists()}
    return Selected(
        document=document, choice=choice, direction=direction, folder=folder, files=files
    )


def _default_folder(plan: Plan, store: str | Path | None) -> Path:
    name = plan.provenance.model.name
    return default_store(store) / f"select-{name}-{plan.provenance.fingerprint()[:8]}"


def _split(plan: Plan, seed: int) -> _Split:
    """The set's own train and validation split, else four fifths and one fifth of the intents."""
    labels = np.asarray(plan.labels)
    names = np.array([prompt.split or "" for prompt in plan.prompts])
    train, validation = np.flatnonzero(names == "train"), np.flatnonzero(names == "validation")
    if all(
        len({plan.prompts[int(i)].intent_id for i in part if labels[i] == label}) >= MIN_INTENTS
        for part in (train, validation)
        for label in (HARMFUL, HARMLESS)
    ):
        return _Split(train=train, validation=validation, how="the set's own splits")
    fold = clusters_of(plan.prompts, labels).folds(5, seed)
    return _Split(
        train=np.flatnonzero(fold != 0),
        validation=np.flatnonzero(fold == 0),
        how=f"no splits in the set: a fifth of the intents validates (seed {seed})",
    )


def _tokens(
    model: "HookedModel",
    plan: Plan,
    split: _Split,
    given: Sequence[str] | None,
    max_new_tokens: int,
    batch_size: int | None,
    path: Path,
    force: bool,
    progress: ProgressFn,
) -> "RefusalTokens":
    """Refusal tokens: the user's, or those of the model's own refusals."""
    from refusaldir.probes.measure import measure
    from refusaldir.probes.refusal_tokens import given_refusal_tokens

    if given:
        return given_refusal_tokens(model.tokenizer, given)
    rendered = plan.rendered.take(split.validation.tolist())
    done = 0

    def on_batch(count: int) -> None:
        nonlocal done
        done += count
        progress("Respond", done, len(rendered))

    return measure(
        model,
        rendered,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        path=path,
        force=force,
        on_batch=on_batch,
    ).refusal_tokens


def _filtered(
    model: "HookedModel",
    plan: Plan,
    split: _Split,
    labels: Indices,
    tokens: "RefusalTokens",
    batch_size: int | None,
    progress: ProgressFn,
) -> _Split:
    """Leave out harmful prompts the model would answer and harmless ones it would refuse."""
    from refusaldir.refusal_score import refusal_scores

    both = np.concatenate([split.train, split.validation])
    progress("Score prompts", 0, len(both))
    found = refusal_scores(
        model, [plan.rendered.ids[i] for i in both], tokens.ids, batch_size=batch_size
    )
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
                    where=plan.provenance.model.name,
                    next_step="Use --no-filter, more prompts, or a model that refuses",
                )
    return kept


def _class_means(path: Path, rows: Indices, labels: Indices) -> NDArray[np.float64]:
    """Class means of some prompts at every site, ``[layer pos class d_model]``."""
    means = []
    with Capture.open(path) as capture:
        for layer in capture.layers:
            x = read_layer(capture, HOOK, layer)[rows]
            means.append(np.stack([class_means(x[:, p], labels[rows]) for p in range(x.shape[1])]))
    return np.stack(means)
