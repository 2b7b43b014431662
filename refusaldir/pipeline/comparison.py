"""`diff`: two models or captures compared, geometry and behaviour, and the results written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.directions.candidates import HOOK
from refusaldir.drift.comparable import require_comparable
from refusaldir.errors import OutputExistsError, PromptError, RefusaldirError
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.arm import Arm, Terms, is_capture
from refusaldir.pipeline.criteria import Criteria
from refusaldir.pipeline.measurement import Measurement
from refusaldir.pipeline.opening import Opening
from refusaldir.pipeline.plan import Rendering, prompt_set
from refusaldir.pipeline.progress import ProgressFn, silent
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import content_hash
from refusaldir.store import Capture, default_store

if TYPE_CHECKING:
    from refusaldir.drift.result import DriftResult
    from refusaldir.probes.compare import BehaviourComparison

#: What may be left out of a comparison is on, off, or auto: on where model specs are given.
SWITCH = ("auto", "on", "off")


@dataclass(frozen=True, kw_only=True)
class Diff:
    """What `diff` found.

    Attributes:
        document: The content of ``diff.json``.
        drift: Drift of geometry, layer by layer.
        behaviour: Paired behaviour, or None when it was not measured.
        folder: Where everything was written.
        files: What was written, by name.
    """

    document: dict[str, Any]
    drift: "DriftResult"
    behaviour: "BehaviourComparison | None"
    folder: Path
    files: Mapping[str, Path]


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
    positions: str = "post",
    position: int | None = None,
    batch_size: int | None = None,
    options: LoadOptions | None = None,
    backend: str = "auto",
    allow_dtype_mismatch: bool = False,
    select: str = "auto",
    criteria: Criteria | None = None,
    follow_nearest: bool = False,
    behaviour: str = "auto",
    max_new_tokens: int = 64,
    refusal_tokens: Sequence[str] | None = None,
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
        allow_dtype_mismatch: Compare captures made in different precision all the same.
        select: Whether to select base's direction by what it causes: ``"on"``, ``"off"``, or
            ``"auto"``: on when both sides are model specs, else only what already lies beside the
            base capture.
        criteria: What is asked of that direction.
        follow_nearest: Where no direction is valid, follow the nearest candidate all the same.
        behaviour: ``"on"``, ``"off"``, or ``"auto"``: on when both sides are model specs.
        max_new_tokens: Length of the greedy generations on the held-out prompts.
        refusal_tokens: First tokens of refusals; None finds them in the base's own refusals.
        seed: Seed of folds and resampling.
        out: Folder for the results; None names one in the store.
        store: The folder for captures.
        force: Overwrite an earlier result in the folder.
        progress: Called with stage, done and total.

    Returns:
        The document, the result objects, and what was written: ``diff.json``, the figures as
        PNG and SVG, and the responses as JSON lines.

    Raises:
        CaptureMismatchError: The two differ in something other than the model's weights.
        RefusaldirError: Whatever else the user can mend.
    """
    for where, value in (("behaviour", behaviour), ("select", select)):
        if value not in SWITCH:
            raise RefusaldirError(
                "Unknown choice", expected=" | ".join(SWITCH), got=value, where=f"--{where}"
            )
    if select == "on" and (hook != HOOK or position is not None):
        raise RefusaldirError(
            "A selected direction brings its own site",
            expected=f"--hook {HOOK} and no --position",
            got=f"--hook {hook}" + ("" if position is None else f" --position {position}"),
            where="--select on",
        )
    options = options or LoadOptions()
    captures = [Path(str(side)) for side in (base, tuned) if is_capture(side)]
    if captures:
        if (prompts, harmful, harmless, limit) != ("contrast", None, None, None):
            raise PromptError(
                "The prompts of a capture are fixed",
                got="a choice of prompts beside a capture",
                where=captures[0],
                next_step="Leave the prompt options out, or give two model specs",
            )
        terms = Terms.of_capture(captures[0], hook, template)
    else:
        terms = Terms(
            prompts=prompt_set(prompts, harmful, harmless, column_map, limit),
            rendering=Rendering(system=system, thinking=thinking, template=template),
            hooks=(hook,),
            layers=None,
            positions=positions,
        )
    probe = behaviour == "on" or (behaviour == "auto" and not captures)

    arms = []
    for role, side in (("base", base), ("tuned", tuned)):
        if is_capture(side):
            arms.append(Arm.of_capture(role, Path(str(side)), options, backend))
        else:
            opening = Opening(spec=ModelSpec.parse(_text(side)), options=options, backend=backend)
            arms.append(Arm.of_plan(role, opening, terms.plan(opening, batch_size), store))
    with arms[0].reader() as left, arms[1].reader() as right:
        require_comparable(left, right, hook, allow_dtype_mismatch=allow_dtype_mismatch)
    folder = Path(out) if out is not None else _default_folder(arms, store)
    if (folder / "diff.json").exists() and not force:
        raise OutputExistsError(
            "The folder holds a result already",
            where=folder / "diff.json",
            next_step="Read it with refusaldir show, choose another --out, or use --force",
        )
    _make_folder(folder)

    by_cause = hook == HOOK and position is None and select != "off"
    measurement = Measurement(
        arms=arms,
        prompts=terms.prompts,
        rendering=terms.rendering,
        criteria=criteria,
        select=by_cause and (select == "on" or not captures),
        read_select=by_cause,
        follow_nearest=follow_nearest,
        probe=probe,
        refusal_tokens=refusal_tokens,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        folder=folder,
        force=force,
        progress=progress,
    )
    measurement.run()
    return _conclude(
        measurement,
        hook=hook,
        position=position,
        allow_dtype_mismatch=allow_dtype_mismatch,
        seed=seed,
        settings={
            "base": str(base),
            "tuned": str(tuned),
            "prompts": terms.prompts.name,
            "hook": hook,
            "positions": terms.positions,
            "position": position,
            "system": terms.rendering.system,
            "thinking": terms.rendering.thinking,
            "select": measurement.causality is not None,
            "follow_nearest": follow_nearest,
            "behaviour": probe,
            "max_new_tokens": max_new_tokens,
            "refusal_tokens": None if refusal_tokens is None else list(refusal_tokens),
            "allow_dtype_mismatch": allow_dtype_mismatch,
            "seed": seed,
        },
        progress=progress,
    )


def _text(side: str | Path | ModelSpec) -> str | ModelSpec:
    return str(side) if isinstance(side, Path) else side


def _default_folder(arms: Sequence[Arm], store: str | Path | None) -> Path:
    names = "-to-".join(arm.opening.spec.name for arm in arms)
    return default_store(store) / f"diff-{names}-{content_hash([str(a.path) for a in arms])[:8]}"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputExistsError(
            "The output folder cannot be made",
            got=error.strerror,
            where=folder,
            next_step="Choose another --out",
        ) from error


def _conclude(
    done: Measurement,
    *,
    hook: str,
    position: int | None,
    allow_dtype_mismatch: bool,
    seed: int,
    settings: Mapping[str, Any],
    progress: ProgressFn,
) -> Diff:
    """Compute what the captures and responses say and write it down."""
    from refusaldir.drift.compare import compare
    from refusaldir.probes.compare import compare_behaviour
    from refusaldir.report.document import build_document, write_json
    from refusaldir.report.figures import write_figures

    arms, folder, responses = done.arms, done.folder, done.responses
    site = None if done.causality is None else done.causality.site
    with Capture.open(arms[0].path) as base, Capture.open(arms[1].path) as tuned:
        drift = compare(
            base,
            tuned,
            hook=hook,
            position=position,
            site=site,
            seed=seed,
            allow_dtype_mismatch=allow_dtype_mismatch,
            progress=lambda done, total: progress("Compare layers", done, total),
        )
    behaviour = None
    if responses:
        behaviour = compare_behaviour(responses["base"], responses["tuned"], seed=seed)
    document = build_document(drift, behaviour, done.causality_document(), options=settings)
    figures = write_figures(document, folder)
    # Last, so that a folder with a diff.json is complete.
    written = {"diff.json": write_json(document, folder / "diff.json")}
    written |= {path.name: path for path in figures}
    if responses:
        names = [f"responses-{arm.role}.jsonl" for arm in arms]
        written |= {name: folder / name for name in names}
    return Diff(document=document, drift=drift, behaviour=behaviour, folder=folder, files=written)
