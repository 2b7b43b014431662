"""Judges of replies that are there: add their labels, and sample for people to label."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from refusaldir.errors import ProbeError
from refusaldir.models.options import LoadOptions
from refusaldir.pipeline.model_run import SUMMARY
from refusaldir.pipeline.progress import ProgressFn, silent
from refusaldir.probes.behaviour import Behaviour
from refusaldir.probes.judging.labelling import add_judges
from refusaldir.probes.judging.sample import draw_sample, sample_csv
from refusaldir.probes.judging.spec import JudgeSpec
from refusaldir.probes.judging.toxicity import TOXICITY, add_toxicity, open_toxicity
from refusaldir.probes.run import FILES, ProbeRun
from refusaldir.report.files import write_atomic

#: A comparison's folder holds a run of each arm.
_ARMS = ("base", "tuned")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What `judge_run` did.

    Attributes:
        documents: Summary of each run, as in its ``probe.json``.
        folders: Folders of the runs.
    """

    documents: tuple[dict[str, Any], ...]
    folders: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What `sample_run` wrote.

    Attributes:
        path: The file of replies to label.
        n: Replies in it.
        n_all: Replies that it was drawn from.
    """

    path: Path
    n: int
    n_all: int


def run_folders(folder: str | Path) -> tuple[Path, ...]:
    """A run's own folder, or those of base and tuned in a comparison's.

    Raises:
        ProbeError: There are no replies in it.
    """
    folder = Path(folder).expanduser()
    if any((folder / name).exists() for name in FILES.values()):
        return (folder,)
    arms = tuple(
        folder / arm
        for arm in _ARMS
        if any((folder / arm / name).exists() for name in FILES.values())
    )
    if not arms:
        raise ProbeError(
            "the folder holds no replies",
            expected=f"{' or '.join(FILES.values())}, or a comparison's base and tuned with them",
            where=folder,
            next_step="Make them with refusaldir probe or refusaldir diff",
        )
    return arms


def judge_run(
    folder: str | Path,
    judges: Sequence[str] = (),
    *,
    primary: bool = False,
    toxicity: str | None = None,
    options: LoadOptions | None = None,
    progress: ProgressFn = silent,
) -> Judged:
    """Add labels of further judges to a run's files; no model is asked again.

    Each judge is asked about what it has not labelled yet. What it says is kept as it comes: when
    it is stopped, repeat the call.

    Args:
        folder: A run's folder, or a comparison's with ``base`` and ``tuned`` in it.
        judges: Judges as `refusaldir.probes.judging.spec` names them, or by the version of one that
            has labelled all of it.
        primary: Whether the first of them becomes the judge whose labels count.
        toxicity: Classifier for the secondary score: ``default`` or ``hf:NAME``; None adds none.
        options: Dtype and device of judges that are models.
        progress: Called with stage, done and total.

    Returns:
        The summaries; where a folder has a ``probe.json`` it is rewritten.

    Raises:
        ProbeError: There are no replies, nothing is asked for, or a judge cannot be used; what it
            has said is kept.
        RefusaldirError: Whatever else the user can mend.
    """
    if not judges and toxicity is None:
        raise ProbeError(
            "there is nothing to add",
            expected="a judge or a toxicity classifier",
            next_step="Add --judge hf:NousResearch/Minos-v1, another judge, or --toxicity default",
        )
    if primary and not judges:
        raise ProbeError("a judge that is to be the first must be named", where="--primary")
    folders = run_folders(folder)
    parts = [(place, *part) for place in folders for part in _parts(place)]
    # Judges that are named by the version that tables show have spoken; they are not opened.
    there = set.intersection(*(set(behaviour.provenance.judges) for *_, behaviour in parts))
    specs = [JudgeSpec.parse(text) for text in judges if text not in there]
    # Labels from a file may be told apart by arm; all else is opened once.
    opened = {spec: spec.open(options=options) for spec in specs if spec.kind != "labels"}
    scorer = None if toxicity is None else open_toxicity(toxicity, options=options)
    for place, part, path, behaviour in parts:
        arm = place.name if len(folders) > 1 else ""
        asked = [opened[s] if s in opened else s.open(arm=arm) for s in specs]
        first = None
        if primary:
            first = judges[0] if judges[0] in there else asked[0].version
        stage = _Stages(f"{place.name} {part}", len(behaviour.rows), progress)
        labelled = add_judges(behaviour, asked, primary=first, path=path, on_labelled=stage)
        if scorer is not None:
            add_toxicity(labelled, scorer, path=path, on_scored=partial(stage, TOXICITY))
    return Judged(documents=tuple(_summary(place) for place in folders), folders=folders)


def sample_run(
    folder: str | Path,
    out: str | Path,
    *,
    n: int = 100,
    part: str | None = None,
    seed: int = 0,
    force: bool = False,
) -> Sampled:
    """Write a random sample of a run's replies for people to label.

    Args:
        folder: A run's folder.
        out: The CSV to write. It holds replies, so that it should stay on this machine.
        n: How many replies.
        part: ``single``, ``frozen`` or ``live``; None takes the first that the run has.
        seed: Seed of the draw.
        force: Replace an existing file.

    Raises:
        ProbeError: There are no replies, or the folder is that of a comparison.
        OutputExistsError: The file exists and ``force`` is not set.
    """
    folders = run_folders(folder)
    if len(folders) > 1:
        raise ProbeError(
            "each arm is labelled by itself",
            got="a comparison's folder",
            where=folder,
            next_step=f"Sample from {folders[0]} and from {folders[1]}",
        )
    _, behaviour = choose_part(ProbeRun.read(folders[0]), part, folders[0])
    drawn = draw_sample(behaviour.rows, n, seed=seed)
    path = write_atomic(Path(out).expanduser(), sample_csv(drawn), force=force)
    return Sampled(path=path, n=len(drawn), n_all=len(behaviour.rows))


def choose_part(run: ProbeRun, part: str | None, where: Path) -> tuple[str, Behaviour]:
    """A part of a run by name, or its first.

    Raises:
        ProbeError: It has none of that name.
    """
    there = dict(run.parts())
    name = next(iter(there)) if part is None else part
    if name not in there:
        raise ProbeError(
            "the run has no such part", expected=" or ".join(there), got=name, where=where
        )
    return name, there[name]


class _Stages:
    """Progress of several counts over the same replies."""

    def __init__(self, name: str, total: int, progress: ProgressFn) -> None:
        self.name, self.total, self.progress = name, total, progress
        self.done: dict[str, int] = {}

    def __call__(self, what: str, count: int) -> None:
        self.done[what] = self.done.get(what, 0) + count
        self.progress(f"{self.name}: {what[:40]}", self.done[what], self.total)


def _parts(folder: Path) -> Iterator[tuple[str, Path, Behaviour]]:
    for part, behaviour in ProbeRun.read(folder).parts():
        yield part, folder / FILES[part], behaviour


def _summary(folder: Path) -> dict[str, Any]:
    """Sum the run up anew, as `refusaldir.probe` does, and write it where it was."""
    from refusaldir.probes.summary import summarise
    from refusaldir.report.document import write_json
    from refusaldir.report.probe_document import build_probe, load_probe

    path = folder / SUMMARY
    old: Mapping[str, Any] = load_probe(path) if path.exists() else {}
    document = build_probe(
        summarise(ProbeRun.read(folder)), options=old.get("options"), created=old.get("created")
    )
    if old:
        write_json(document, path)
    return document
