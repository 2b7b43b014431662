"""`diff`: two models or captures compared, geometry and behaviour, and the results written."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.drift.comparable import require_comparable
from refusaldir.errors import (
    CaptureMismatchError,
    OutputExistsError,
    PromptError,
    RefusaldirError,
)
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.plan import Opening, Plan, ProgressFn, Rendering, prompt_set, silent
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import content_hash
from refusaldir.store import Capture, default_path, default_store, find_capture

if TYPE_CHECKING:
    from refusaldir.drift.result import DriftResult
    from refusaldir.models.bridge import HookedModel
    from refusaldir.probes.behaviour import Behaviour
    from refusaldir.probes.compare import BehaviourComparison

BEHAVIOUR = ("auto", "on", "off")


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
        position: Token offset to compare at; None takes the one where the base separates best.
        batch_size: As in `extract`.
        options: As in `extract`.
        backend: As in `extract`.
        allow_dtype_mismatch: Compare captures made in different precision all the same.
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
    if behaviour not in BEHAVIOUR:
        raise RefusaldirError(
            "Unknown choice", expected=" | ".join(BEHAVIOUR), got=behaviour, where="behaviour"
        )
    options = options or LoadOptions()
    captures = [Path(str(side)) for side in (base, tuned) if _is_capture(side)]
    rendering = Rendering(system=system, thinking=thinking, template=template)
    wanted = _Wanted(hooks=(hook,), layers=None, positions=positions)
    if captures:
        if (prompts, harmful, harmless, limit) != ("contrast", None, None, None):
            raise PromptError(
                "The prompts of a capture are fixed",
                got="a choice of prompts beside a capture",
                where=captures[0],
                next_step="Leave the prompt options out, or give two model specs",
            )
        with Capture.open(captures[0]) as capture:
            chosen = capture.prompts
            found = capture.provenance
        rendering = Rendering(
            system=found.template.system, thinking=found.template.thinking, template=template
        )
        wanted = _Wanted(
            hooks=(hook,),
            layers=found.layers,
            positions=",".join(map(str, found.positions.offsets)),
        )
    else:
        chosen = prompt_set(prompts, harmful, harmless, column_map, limit)
    probe = behaviour == "on" or (behaviour == "auto" and not captures)

    arms = []
    for role, side in (("base", base), ("tuned", tuned)):
        if _is_capture(side):
            arms.append(_Arm.of_capture(role, Path(str(side)), options, backend))
        else:
            opening = Opening(spec=ModelSpec.parse(_text(side)), options=options, backend=backend)
            plan = Plan.make(
                opening,
                chosen,
                rendering,
                hooks=wanted.hooks,
                layers=wanted.layers,
                positions=wanted.positions,
                batch_size=batch_size,
            )
            arms.append(_Arm.of_plan(role, opening, plan, store))
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

    responses: list[Behaviour] = []
    for arm in arms:
        if not probe and arm.plan is None:
            continue
        heldout = _heldout(chosen) if probe else None
        with arm.opening.model() as model:
            arm.check(model)
            if arm.plan is not None:
                arm.plan.run(
                    model,
                    arm.path,
                    f"Capture {arm.role}",
                    resume=True,
                    force=False,
                    progress=progress,
                )
            if heldout is not None:
                responses.append(
                    _measure(
                        model,
                        arm,
                        heldout,
                        rendering,
                        base=responses[0] if responses else None,
                        refusal_tokens=refusal_tokens,
                        max_new_tokens=max_new_tokens,
                        batch_size=batch_size,
                        path=folder / f"responses-{arm.role}.jsonl",
                        force=force,
                        progress=progress,
                    )
                )
            del model
    return _conclude(
        arms,
        responses,
        folder,
        hook=hook,
        position=position,
        allow_dtype_mismatch=allow_dtype_mismatch,
        seed=seed,
        settings={
            "base": str(base),
            "tuned": str(tuned),
            "prompts": chosen.name,
            "hook": hook,
            "positions": wanted.positions,
            "position": position,
            "system": rendering.system,
            "thinking": rendering.thinking,
            "behaviour": probe,
            "max_new_tokens": max_new_tokens,
            "refusal_tokens": None if refusal_tokens is None else list(refusal_tokens),
            "allow_dtype_mismatch": allow_dtype_mismatch,
            "seed": seed,
        },
        progress=progress,
    )


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    hooks: tuple[str, ...]
    layers: tuple[int, ...] | None
    positions: str


@dataclass(frozen=True, kw_only=True)
class _Arm:
    """One side of the comparison: where its capture is or will be, and how to open its model."""

    role: str
    path: Path
    opening: Opening
    #: The capture still to be made; None when ``path`` holds it.
    plan: Plan | None
    weights_hash: str

    @classmethod
    def of_capture(cls, role: str, path: Path, options: LoadOptions, backend: str) -> "_Arm":
        """Take a capture as it is; its model is opened only for behaviour."""
        with Capture.open(path) as capture:
            model = capture.provenance.model
        return cls(
            role=role,
            path=path,
            opening=Opening(
                spec=ModelSpec.parse(model.spec),
                options=replace(options, dtype=model.dtype, quantize=model.quantization),
                backend=backend,
            ),
            plan=None,
            weights_hash=model.weights_hash,
        )

    @classmethod
    def of_plan(cls, role: str, opening: Opening, plan: Plan, store: str | Path | None) -> "_Arm":
        """Reuse the store's capture of the same provenance, or plan a new one there."""
        there = find_capture(default_store(store), plan.provenance.fingerprint())
        return cls(
            role=role,
            path=there or default_path(plan.provenance, store),
            opening=opening,
            plan=plan if there is None else None,
            weights_hash=plan.provenance.model.weights_hash,
        )

    @contextmanager
    def reader(self) -> "Iterator[Capture | Plan]":
        """The capture, or its plan, to compare before anything is run."""
        if self.plan is not None:
            yield self.plan
            return
        with Capture.open(self.path) as capture:
            yield capture

    def check(self, model: "HookedModel") -> None:
        """Refuse a model that is no longer the one that was captured.

        Raises:
            CaptureMismatchError: Its weights differ.
        """
        if model.identity.weights_hash != self.weights_hash:
            raise CaptureMismatchError(
                "The model has changed since it was captured",
                expected=f"weights {self.weights_hash}",
                got=f"weights {model.identity.weights_hash}",
                where=f"{self.role}: {self.opening.spec}",
                next_step="Extract it again, or leave behaviour out with --behaviour off",
            )


def _is_capture(side: str | Path | ModelSpec) -> bool:
    """Whether a side names a capture file rather than a model."""
    return not isinstance(side, ModelSpec) and Path(side).suffix in (".h5", ".hdf5")


def _text(side: str | Path | ModelSpec) -> str | ModelSpec:
    return str(side) if isinstance(side, Path) else side


def _default_folder(arms: Sequence[_Arm], store: str | Path | None) -> Path:
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


def _heldout(prompts: PromptSet) -> PromptSet:
    """The prompts that no direction was fitted or chosen on; all where there are no splits."""
    held = prompts.select(split="test")
    return held if len(held) else prompts


def _measure(
    model: "HookedModel",
    arm: _Arm,
    heldout: PromptSet,
    rendering: Rendering,
    *,
    base: "Behaviour | None",
    refusal_tokens: Sequence[str] | None,
    max_new_tokens: int,
    batch_size: int | None,
    path: Path,
    force: bool,
    progress: ProgressFn,
) -> "Behaviour":
    """Generate and score; the base's refusal tokens serve both arms."""
    from refusaldir.probes.measure import measure
    from refusaldir.probes.refusal_tokens import given_refusal_tokens
    from refusaldir.prompts.render import ChatRenderer

    renderer = ChatRenderer(
        model.tokenizer,
        system=rendering.system,
        thinking=rendering.thinking,
        template=rendering.template,
    )
    tokens = None if base is None else base.refusal_tokens
    if tokens is None and refusal_tokens:
        tokens = given_refusal_tokens(model.tokenizer, refusal_tokens)
    done = 0

    def on_batch(count: int) -> None:
        nonlocal done
        done += count
        progress(f"Respond {arm.role}", done, len(heldout))

    return measure(
        model,
        renderer.render(heldout, max_length=model.max_length),
        refusal_tokens=tokens,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        path=path,
        force=force,
        on_batch=on_batch,
    )


def _conclude(
    arms: Sequence[_Arm],
    responses: "Sequence[Behaviour]",
    folder: Path,
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

    with Capture.open(arms[0].path) as base, Capture.open(arms[1].path) as tuned:
        drift = compare(
            base,
            tuned,
            hook=hook,
            position=position,
            seed=seed,
            allow_dtype_mismatch=allow_dtype_mismatch,
            progress=lambda done, total: progress("Compare layers", done, total),
        )
    behaviour = compare_behaviour(responses[0], responses[1], seed=seed) if responses else None
    document = build_document(drift, behaviour, options=settings)
    figures = write_figures(document, folder)
    # Last, so that a folder with a diff.json is complete.
    written = {"diff.json": write_json(document, folder / "diff.json")}
    written |= {path.name: path for path in figures}
    if responses:
        names = [f"responses-{arm.role}.jsonl" for arm in arms]
        written |= {name: folder / name for name in names}
    return Diff(document=document, drift=drift, behaviour=behaviour, folder=folder, files=written)
