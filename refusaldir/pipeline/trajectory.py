"""`diff_series`: several checkpoints of one fine-tune against one base."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.errors import CaptureMismatchError, OutputExistsError
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.arm import Arm, is_capture
from refusaldir.pipeline.battery import SAMPLES, Asked
from refusaldir.pipeline.choices import Choices, Side, make_terms
from refusaldir.pipeline.criteria import Criteria
from refusaldir.pipeline.measurement import Known
from refusaldir.pipeline.model_run import SUMMARY
from refusaldir.pipeline.pair import Pair, make_folder
from refusaldir.pipeline.progress import ProgressFn, silent
from refusaldir.pipeline.stops import Stop, find_stops, short_name
from refusaldir.probes.run import FILES
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import Provenance, Site, content_hash
from refusaldir.store import Capture, default_store

if TYPE_CHECKING:
    from refusaldir.drift.trajectory import Checkpoint, Trajectory
    from refusaldir.probes.link.series import SeriesLink


@dataclass(frozen=True, kw_only=True)
class Series:
    """What `diff_series` found.

    Attributes:
        document: The content of ``trajectory.json``.
        trajectory: Drift over the checkpoints.
        folder: Where everything was written, a folder a checkpoint among it.
        files: What was written, by name.
    """

    document: dict[str, Any] = field(repr=False)
    trajectory: "Trajectory" = field(repr=False)
    folder: Path
    files: Mapping[str, Path]

    def _repr_html_(self) -> str:
        from refusaldir.report.notebook import as_html
        from refusaldir.report.trajectory_table import trajectory_report

        return as_html(trajectory_report(self.document), self.files)


def diff_series(
    base: str | Path | ModelSpec,
    tuned: Sequence[str | Path | ModelSpec],
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
    seed: int = 0,
    out: str | Path | None = None,
    store: str | Path | None = None,
    force: bool = False,
    progress: ProgressFn = silent,
) -> Series:
    """Compare base with every checkpoint of a series, and follow the drift over them.

    Base is captured, selected in and probed once. Every checkpoint is a `diff` in a subfolder of
    its own; one that is finished already is kept, so that a series that was cut off, or that has
    grown by a checkpoint, goes on where it stopped.

    Args:
        base: A model spec, or the path of a capture.
        tuned: Checkpoints in order: model specs, captures, or folders that hold checkpoints
            (``checkpoint-100``, ``checkpoint-200``, …: whole models, or adapters of base).
        prompts: As in `diff`, like all that follow.
        harmful: See there.
        harmless: See there.
        column_map: See there.
        limit: See there.
        system: See there.
        thinking: See there.
        template: See there.
        hook: See there.
        positions: See there.
        position: See there.
        batch_size: See there.
        options: See there.
        backend: See there.
        allow_dtype_mismatch: See there.
        select: See there.
        criteria: See there.
        follow_nearest: See there.
        behaviour: See there.
        battery: See there.
        escalations: See there.
        temperatures: See there.
        samples: See there.
        seeds: See there.
        max_new_tokens: See there.
        judges: See there.
        refusal_tokens: See there.
        seed: See there.
        out: Folder for the results; None names one in the store.
        store: See there.
        force: Do finished checkpoints again.
        progress: Called with stage, done and total; the stage names the checkpoint.

    Returns:
        The series and what was written: ``trajectory.json``, the figure as PNG and SVG, and a
        folder a checkpoint.

    Raises:
        CaptureMismatchError: A checkpoint differs from base in something other than the weights,
            or the checkpoints are of unlike precision or on unlike prompts.
        RefusaldirError: Whatever else the user can mend.
    """
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
    stops = find_stops(base, tuned)
    sides = [base, *(stop.side for stop in stops)]
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
        sides,
        choices,
        prompts=prompts,
        harmful=harmful,
        harmless=harmless,
        column_map=column_map,
        limit=asked.limit_of(sides, limit),
        system=system,
        thinking=thinking,
        positions=positions,
    )
    arm = choices.arm("base", base, terms)
    specs = not any(map(is_capture, sides))
    battery_of = choices.battery(asked, terms, specs=specs, column_map=column_map, limit=limit)
    pairs = [
        Pair.settle(choices, terms, battery_of, arm, (base, stop.side), specs=specs)
        for stop in stops
    ]
    _require_alike(stops, pairs)
    folder = Path(out) if out is not None else _default_folder(arm, tuned, store)
    return _follow(stops, pairs, folder, progress)


def _require_alike(stops: Sequence[Stop], pairs: Sequence[Pair]) -> None:
    """Refuse checkpoints that cannot be joined by one band.

    Raises:
        CaptureMismatchError: They differ in precision or prompts.
    """
    found = [(pair.tuned.precision, pair.tuned.provenance.rendered_hash) for pair in pairs]
    for stop, each in zip(stops, found, strict=True):
        for what, first, own in zip(("precision", "rendered prompts"), found[0], each, strict=True):
            if own != first:
                raise CaptureMismatchError(
                    f"The checkpoints of a series must not differ in {what}",
                    expected=f"{first} as in {stops[0].name}",
                    got=own,
                    where=stop.name,
                    next_step="Give model specs instead of captures, and one --dtype",
                )


def _default_folder(base: Arm, tuned: Sequence[Side], store: str | Path | None) -> Path:
    """Named after what was asked for, so that a folder that has grown keeps its series."""
    key = content_hash([str(base.path), *map(str, tuned)])[:8]
    return default_store(store) / f"series-{base.opening.spec.name}-to-{short_name(tuned[0])}-{key}"


def _follow(
    stops: Sequence[Stop], pairs: Sequence[Pair], folder: Path, progress: ProgressFn
) -> Series:
    """Compare one checkpoint after the other, join them, and write the series."""
    from refusaldir.drift.trajectory import trajectory
    from refusaldir.report.document import write_json
    from refusaldir.report.trajectory_document import build_trajectory
    from refusaldir.report.trajectory_figure import write_trajectory_figure

    choices = pairs[0].choices
    _refuse_another(pairs, folder)
    make_folder(folder)
    documents: list[dict[str, Any]] = []
    points: list[Checkpoint] = []
    for document, point in _compared(stops, pairs, folder, progress):
        documents.append(document)
        points.append(point)
        _require_one_site(documents, stops, folder)
    site = documents[0]["drift"]["site"]
    found = trajectory(
        Site(hook=site["hook"], layer=site["layer"], position=site["position"]),
        points,
        level=documents[0]["drift"]["level"],
        seed=choices.seed,
    )
    document = build_trajectory(
        found,
        documents,
        _behaviour(stops, pairs, documents, progress),
        options={**pairs[0].settings, "tuned": [str(s.side) for s in stops]},
    )
    figures = write_trajectory_figure(document, folder)
    # Last, so that a folder with a trajectory.json is complete.
    files = {"trajectory.json": write_json(document, folder / "trajectory.json")}
    files |= {path.name: path for path in figures}
    for name in (SUMMARY, *FILES.values()):
        path = folder / "base" / name
        files |= {f"base/{name}": path} if path.exists() else {}
    files |= {f"{stop.name}/diff.json": folder / stop.name / "diff.json" for stop in stops}
    return Series(document=document, trajectory=found, folder=folder, files=files)


def _behaviour(
    stops: Sequence[Stop],
    pairs: Sequence[Pair],
    documents: Sequence[Mapping[str, Any]],
    progress: ProgressFn,
) -> "SeriesLink | None":
    """Drift against behaviour over the checkpoints, with their weight distance where it counts."""
    from refusaldir.pipeline.series_measures import distance_between, series_measures
    from refusaldir.probes.rank_correlation import FEWEST_ROWS

    distances: list[float | None] = [None] * len(pairs)
    if len(pairs) >= FEWEST_ROWS and all(document["behaviour"] for document in documents):
        for i, pair in enumerate(pairs):
            progress("Weight distance", i, len(pairs))
            distances[i] = distance_between(pair.base.opening.spec, pair.tuned.opening.spec)
        progress("Weight distance", len(pairs), len(pairs))
    return series_measures(
        [stop.name for stop in stops],
        documents,
        distances,
        independent=all(stop.step is None for stop in stops),
        level=documents[0]["drift"]["level"],
        seed=pairs[0].choices.seed,
    )


def _compared(
    stops: Sequence[Stop], pairs: Sequence[Pair], folder: Path, progress: ProgressFn
) -> "Iterator[tuple[dict[str, Any], Checkpoint]]":
    """Every checkpoint's diff document and figures; finished ones are read."""
    from refusaldir.drift.at_site import drift_at

    known = Known()
    for number, (stop, pair) in enumerate(zip(stops, pairs, strict=True), start=1):
        where = f"{number}/{len(stops)} {stop.name}"

        def report(stage: str, done: int, total: int, where: str = where) -> None:
            progress(f"{where}: {stage}", done, total)

        seed, place = pair.choices.seed, folder / stop.name
        finished = None if pair.choices.force else pair.finished(place)
        if finished is None:
            result = pair.run(place, report, base_folder=folder, known=known)
            document, deviations = result.document, result.drift.deviations
        else:
            document, base = finished
            site = document["drift"]["site"]
            at = Site(hook=site["hook"], layer=site["layer"], position=site["position"])
            for arm in (base, pair.tuned):  # gone only where somebody took them away
                arm.make(f"Capture {arm.role}", report)
            with Capture.open(base.path) as left, Capture.open(pair.tuned.path) as right:
                _, deviations = drift_at(left, right, at, seed=seed, allow_dtype_mismatch=True)
            report("Kept", 1, 1)
        yield document, _checkpoint(stop, document, deviations)


def _checkpoint(stop: Stop, document: Mapping[str, Any], deviations: Any) -> "Checkpoint":
    """The figures at the site of one diff document."""
    from refusaldir.drift.layer_result import ByClass
    from refusaldir.drift.trajectory import Checkpoint
    from refusaldir.records import Estimate

    drift = document["drift"]
    row = next(r for r in drift["layers"] if r["layer"] == drift["site"]["layer"])
    shifts = row["translation"]
    return Checkpoint(
        name=stop.name,
        step=stop.step,
        rotation=Estimate(**row["rotation"]),
        angle=Estimate(**row["angle"]),
        shrinkage=Estimate(**row["shrinkage"]),
        translation=ByClass(**{name: Estimate(**cell) for name, cell in shifts.items()}),
        d_prime_change=Estimate(**row["d_prime_change"]["base_direction"]),
        detected=tuple(each["kind"] for each in drift["findings"] if each["detected"]),
        deviations=deviations,
    )


def _refuse_another(pairs: Sequence[Pair], folder: Path) -> None:
    """Refuse a folder that holds the series of another base.

    Raises:
        OutputExistsError: It does, and nobody asked to overwrite it.
        StoreError: Its series cannot be read.
    """
    from refusaldir.report.trajectory_document import load_trajectory

    path = folder / "trajectory.json"
    if not path.exists() or pairs[0].choices.force:
        return
    made = Provenance.from_dict(load_trajectory(path)["base"]).fingerprint()
    if made not in {base.provenance.fingerprint() for base in pairs[0].bases}:
        raise OutputExistsError(
            "The folder holds the series of another base",
            where=path,
            next_step="Read it with refusaldir show, choose another --out, or use --force",
        )


def _require_one_site(
    documents: Sequence[Mapping[str, Any]], stops: Sequence[Stop], folder: Path
) -> None:
    """Refuse checkpoints that were compared at unlike sites, or with unlike bases.

    Raises:
        OutputExistsError: The last one was.
    """
    first, last = (
        (
            [document["drift"]["site"][key] for key in ("hook", "layer", "position")],
            Provenance.from_dict(document["base"]).fingerprint(),
        )
        for document in (documents[0], documents[-1])
    )
    if first != last:
        raise OutputExistsError(
            "Checkpoints that were finished before were compared at another site of base",
            where=folder / stops[len(documents) - 1].name,
            next_step="Do all of them again with --force, or choose another --out",
        )
