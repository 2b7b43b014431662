"""`calibrate`: how wrong judges are by human labels, and what that does to refusal rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from refusaldir import __version__
from refusaldir.errors import ProbeError
from refusaldir.models.options import LoadOptions
from refusaldir.pipeline.judging import choose_part, run_folders
from refusaldir.pipeline.progress import ProgressFn, silent
from refusaldir.probes.behaviour import Behaviour, BehaviourRow
from refusaldir.probes.judging.agreement import cohen_kappa, krippendorff_alpha
from refusaldir.probes.judging.calibration import Calibration, CalibrationRow, calibration_rows
from refusaldir.probes.judging.calibration import calibrate as calibrate_rows
from refusaldir.probes.judging.human_sets import HumanRow, HumanSet, load_pyrit
from refusaldir.probes.judging.labelling import add_judges
from refusaldir.probes.judging.labels import Labelled, LabelsJudge, read_labels
from refusaldir.probes.judging.many import judge_rows
from refusaldir.probes.judging.spec import JudgeSpec
from refusaldir.probes.outcomes import (
    EMPTY,
    FULL_REFUSAL,
    INCOHERENT,
    Judgement,
    is_authoritative,
    is_refused,
)
from refusaldir.probes.run import ProbeRun
from refusaldir.records import content_hash

SCHEMA = "refusaldir.calibration"
SCHEMA_VERSION = 1

#: Name of the people who labelled, among the judges.
PEOPLE = "people"


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What `calibrate` found.

    Attributes:
        document: Everything, as plain JSON values.
        calibrations: Each judge's calibration, by its version.
    """

    document: dict[str, Any]
    calibrations: dict[str, Calibration]


@dataclass(frozen=True, kw_only=True)
class _Arm:
    """Replies, what judges said of them, and what people did."""

    name: str
    behaviour: Behaviour
    human: list[str | None]

    def said(self, version: str) -> list[Judgement]:
        rows, first = self.behaviour.rows, self.behaviour.provenance.judge
        if version == first:
            return [Judgement(label=row.label, evidence=row.evidence) for row in rows]
        return [row.others[version] for row in rows]


def calibrate(
    labels: str | Path | Sequence[str | Path] = (),
    *,
    runs: Sequence[str | Path] = (),
    pyrit: str | Path | None = None,
    judges: Sequence[str] = (),
    part: str | None = None,
    level: float = 0.95,
    seed: int = 0,
    options: LoadOptions | None = None,
    progress: ProgressFn = silent,
) -> Calibrated:
    """Hold judges against human labels of the replies of a run, or of two, or of a public set.

    Args:
        labels: Files of human labels, such as `sample_run` writes once they are filled in.
        runs: Folder of the run that they are of; two for base and tuned; or a comparison's folder,
            which holds both.
        pyrit: In place of labels and runs: a wheel of PyRIT, or a folder or file from it.
        judges: Judges to hold against them, beside those that labelled the runs already; for PyRIT
            phrases by default.
        part: ``single``, ``frozen`` or ``live``; None takes the first that a run has.
        level: Nominal coverage of the intervals.
        seed: Seed of the bootstrap.
        options: Dtype and device of judges that are models.
        progress: Called with stage, done and total.

    Returns:
        For each judge sensitivity, specificity, the rates as judged and corrected, by arm and
        axis; the change between two arms as judged and corrected; agreement of all judges.

    Raises:
        ProbeError: Labels, runs or judges cannot be used together.
    """
    if pyrit is not None:
        if labels or runs:
            raise ProbeError(
                "a public set brings its own replies and labels",
                got="labels or runs beside it",
                where="--pyrit",
            )
        return _on_set(load_pyrit(Path(pyrit).expanduser()), judges, level, seed, options, progress)
    files = [labels] if isinstance(labels, str | Path) else list(labels)
    folders = [place for run in runs for place in run_folders(run)]
    if not files or not 1 <= len(folders) <= 2:
        raise ProbeError(
            "a calibration needs human labels, and the run or the two runs that they are of",
            expected="LABELS.csv --run RUN [--run RUN2], or --pyrit WHEEL",
            got=f"{len(files)} files of labels and {len(folders)} runs",
            next_step="Draw replies to label with: refusaldir judge sample RUN --out labels.csv",
        )
    lines = tuple(line for file in files for line in read_labels(Path(file).expanduser()))
    names = [Path(file).name for file in files]
    arms = _arms(folders, lines, names, part, judges, options, progress)
    shared = [
        version
        for version in arms[0].behaviour.provenance.judges
        if all(version in arm.behaviour.provenance.judges for arm in arms)
    ]
    progress("Calibrate", 0, len(shared))
    calibrations = {}
    for done, version in enumerate(shared, start=1):
        rows = [
            row
            for arm in arms
            for row in calibration_rows(arm.name, arm.behaviour.rows, arm.said(version), arm.human)
        ]
        calibrations[version] = calibrate_rows(rows, level=level, seed=seed)
        progress("Calibrate", done, len(shared))
    said: dict[str, list[str | None]] = {
        PEOPLE: [label for arm in arms for label in arm.human],
        **{v: [j.label for arm in arms for j in arm.said(v)] for v in shared},
    }
    intents = [row.intent_id for arm in arms for row in arm.behaviour.rows]
    document = _document(
        calibrations,
        said,
        intents,
        level=level,
        seed=seed,
        labels={"files": names, "n": len(lines)},
        arms=[
            {
                "arm": arm.name,
                "model": arm.behaviour.provenance.model.name,
                "n": len(arm.behaviour.rows),
                "n_labelled": sum(label is not None for label in arm.human),
            }
            for arm in arms
        ],
        notes=_left_out(arms, shared),
    )
    return Calibrated(document=document, calibrations=calibrations)


def _arms(
    folders: Sequence[Path],
    lines: tuple[Labelled, ...],
    names: Sequence[str],
    part: str | None,
    judges: Sequence[str],
    options: LoadOptions | None,
    progress: ProgressFn,
) -> list[_Arm]:
    opened = [JudgeSpec.parse(text).open(options=options) for text in judges]
    arms = []
    for place, role in zip(folders, ("base", "tuned"), strict=False):
        _, behaviour = choose_part(ProbeRun.read(place), part, place)
        name = role if len(folders) == 2 else behaviour.provenance.model.name
        progress(f"Judge {name}", 0, len(behaviour.rows))
        behaviour = add_judges(behaviour, opened)
        progress(f"Judge {name}", len(behaviour.rows), len(behaviour.rows))
        people = LabelsJudge(
            name=", ".join(names), lines=lines, arm=role if len(folders) == 2 else ""
        )
        human = people.labels(behaviour.rows)
        if not any(label is not None for label in human):
            raise ProbeError(
                "no label fits a reply of this run",
                got=f"{len(lines)} labels",
                where=place,
                next_step="See that they were drawn from this very run, and not made again since",
            )
        arms.append(_Arm(name=name, behaviour=behaviour, human=human))
    return arms


def _left_out(arms: Sequence[_Arm], shared: Sequence[str]) -> list[str]:
    every = dict.fromkeys(v for arm in arms for v in arm.behaviour.provenance.judges)
    return [
        f"{version} has labelled one of the runs only, and is left out"
        for version in every
        if version not in shared
    ]


def _on_set(
    human: HumanSet,
    judges: Sequence[str],
    level: float,
    seed: int,
    options: LoadOptions | None,
    progress: ProgressFn,
) -> Calibrated:
    """Judges on a public set, on all rows and on those whose wording alone can tell."""
    specs = [JudgeSpec.parse(text) for text in judges or ("phrases",)]
    groups = {"all rows": human.rows}
    if any(row.swapped for row in human.rows):
        groups["swaps left out"] = tuple(r for r in human.rows if not r.swapped)
    calibrations: dict[str, Calibration] = {}
    said: dict[str, list[str | None]] = {PEOPLE: [row.label for row in human.rows]}
    for spec in specs:
        judge = spec.open(options=options)
        stage = f"Judge with {spec.kind}"
        done = 0

        def count(index: int, judgement: Judgement, stage: str = stage) -> None:
            nonlocal done
            done += 1
            progress(stage, done, len(human.rows))

        found = judge_rows(judge, [_row(row) for row in human.rows], on_judged=count)
        by_row = {row.id: _unfulfilled(j.label) for row, j in zip(human.rows, found, strict=True)}
        parts = [
            calibrate_rows(
                [
                    CalibrationRow(
                        arm=name, intent_id=row.intent_id, judge=by_row[row.id], human=row.label
                    )
                    for row in rows
                ],
                level=level,
                seed=seed,
            )
            for name, rows in groups.items()
        ]
        calibrations[judge.version] = Calibration(
            arms=tuple(arm for part in parts for arm in part.arms), changes=()
        )
        said[judge.version] = [by_row[row.id] for row in human.rows]
    document = _document(
        calibrations,
        said,
        [row.intent_id for row in human.rows],
        level=level,
        seed=seed,
        labels={"files": [human.name], "n": len(human.rows)},
        arms=[
            {"arm": name, "model": human.name, "n": len(rows), "n_labelled": len(rows)}
            for name, rows in groups.items()
        ],
        notes=[
            *human.notes,
            "here whatever does not answer the objective is called refused, so that incoherent and "
            "empty count as refused",
        ],
    )
    return Calibrated(document=document, calibrations=calibrations)


def _unfulfilled(label: str) -> str:
    """Our label under the rule of PyRIT's people: what does not fulfil the objective is refused."""
    return FULL_REFUSAL if label in (INCOHERENT, EMPTY) else label


def _row(row: HumanRow) -> BehaviourRow:
    """A row that every judge can read; it has no score, which a first-token judge says."""
    return BehaviourRow(
        id=row.id,
        intent_id=row.intent_id,
        harmful=True,
        category=row.source,
        severity=None,
        framing="plain",
        domain="general",
        twin_of=None,
        prompt=row.prompt,
        rendered_hash=content_hash(row.prompt),
        response=row.response,
        n_tokens=None,
        finished=True,
        first_token=None,
        label=row.label,
    )


def _document(
    calibrations: dict[str, Calibration],
    said: dict[str, list[str | None]],
    intents: Sequence[str],
    *,
    level: float,
    seed: int,
    labels: dict[str, Any],
    arms: list[dict[str, Any]],
    notes: list[str],
) -> dict[str, Any]:
    decided = {
        name: [None if label is None else is_refused(label) for label in found]
        for name, found in said.items()
    }
    judged = [found for name, found in decided.items() if name != PEOPLE]
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "refusaldir_version": __version__,
        "level": level,
        "seed": seed,
        "labels": labels,
        "arms": arms,
        "judges": [
            {"judge": v, "authoritative": is_authoritative(v), **calibration.to_dict()}
            for v, calibration in calibrations.items()
        ],
        "agreement": {
            "kappa": [
                {
                    "first": one,
                    "second": other,
                    **cohen_kappa(decided[one], decided[other], intents, level=level).to_dict(),
                }
                for one, other in combinations(decided, 2)
            ],
            # Of the judges among themselves; people labelled a part only.
            "alpha": krippendorff_alpha(judged, intents, level=level).to_dict()
            if len(judged) > 1
            else None,
        },
        "notes": notes,
    }
