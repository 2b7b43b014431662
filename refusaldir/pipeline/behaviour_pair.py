"""Two models compared by what they said: run folders or Inspect logs in place of models."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.errors import OutputExistsError, ProbeError
from refusaldir.probes.run import FILES, ProbeRun
from refusaldir.records import content_hash
from refusaldir.store.paths import default_store

if TYPE_CHECKING:
    from refusaldir.probes.comparison import BehaviourComparison

#: Name of the document in its folder.
NAME = "behaviour.json"


@dataclass(frozen=True, kw_only=True)
class BehaviourDiff:
    """What `diff_behaviour` found.

    Attributes:
        document: The content of ``behaviour.json``.
        behaviour: The comparison.
        folder: Where everything was written.
        files: What was written, by name.
    """

    document: dict[str, Any] = field(repr=False)
    behaviour: "BehaviourComparison"
    folder: Path
    files: Mapping[str, Path]

    def _repr_html_(self) -> str:
        """What a notebook shows: the tables of the terminal and the figures."""
        from refusaldir.report.behaviour_table import behaviour_report
        from refusaldir.report.notebook import as_html

        return as_html(behaviour_report(self.document), self.files)


def is_behaviour(path: str | Path) -> bool:
    """Whether a path holds what a model said: a run's folder, an Inspect log, or a folder of them.

    A model's folder or spec and a capture are none of these.
    """
    from refusaldir.probes.inspect.log import is_inspect_log

    path = Path(path)
    if path.is_dir():
        return any((path / name).exists() for name in FILES.values()) or bool(_logs(path))
    return is_inspect_log(path)


def are_behaviour(base: str | Path, *tuned: str | Path) -> bool:
    """Whether both sides of a comparison are what models said.

    Raises:
        ProbeError: Only one side is, or there are several on the other.
    """
    said = [is_behaviour(path) for path in (base, *tuned)]
    if not any(said):
        return False
    if not all(said) or len(tuned) != 1:
        lacking = [str(path) for path, one in zip((base, *tuned), said, strict=True) if not one]
        raise ProbeError(
            "what models said is compared with what another said",
            expected="two folders of probes, or two Inspect logs",
            got=", ".join(lacking) or f"{len(tuned)} of them against one",
            next_step="Ask the other model the same with refusaldir probe",
        )
    return True


def read_behaviour(path: str | Path, *, column_map: Mapping[str, str] | None = None) -> ProbeRun:
    """Read what a model said.

    Args:
        path: A run's folder, an Inspect log, or a folder of one model's Inspect logs.
        column_map: For logs of other tasks: prompt field → key of the samples' metadata.

    Raises:
        ProbeError: There are no responses, or a file of them cannot be read.
        MissingExtraError: It is an Inspect log, and Inspect is not installed.
    """
    from refusaldir.probes.inspect.log import is_inspect_log, read_inspect_run

    path = Path(path)
    if path.is_dir() and not any((path / name).exists() for name in FILES.values()):
        logs = _logs(path)
        if logs:
            return read_inspect_run(*logs, column_map=column_map)
    if is_inspect_log(path):
        return read_inspect_run(path, column_map=column_map)
    if path.is_file():
        raise ProbeError(
            "the file is no Inspect log",
            expected="a run's folder, or an Inspect log (.eval or .json)",
            where=path,
        )
    return ProbeRun.read(path)


def diff_behaviour(
    base: str | Path,
    tuned: str | Path,
    *,
    column_map: Mapping[str, str] | None = None,
    level: float = 0.95,
    margin: float = 0.05,
    seed: int = 0,
    allow: Sequence[str] = (),
    out: str | Path | None = None,
    store: str | Path | None = None,
    force: bool = False,
) -> BehaviourDiff:
    """Compare what two models said to the same prompts; no geometry is measured.

    Where both runs logged projections on the same direction, the change is also split into
    encoding and readout.

    Args:
        base: Base's responses: a run's folder (``refusaldir probe``, or ``base`` and ``tuned`` in
            a diff's folder), an Inspect log, or a folder of one model's Inspect logs.
        tuned: Tuned's, likewise.
        column_map: As in `read_behaviour`.
        level: Nominal coverage of the intervals.
        margin: Differences smaller than this either way count as equivalent.
        seed: Seed of the resampling.
        allow: What may differ between the two, of `refusaldir.probes.comparison.ALLOWANCES`.
        out: Folder for the results; None names one in the store.
        store: The folder for captures.
        force: Overwrite an earlier result in the folder.

    Returns:
        The document, the comparison, and what was written: ``behaviour.json`` and the figures as
        PNG and SVG.

    Raises:
        ProbeError: The responses cannot be read or may not be compared.
        OutputExistsError: The folder holds a result already.
        MissingExtraError: A log is Inspect's, and Inspect is not installed.
    """
    from refusaldir.probes.comparison import compare_runs
    from refusaldir.probes.link.runs import link_runs
    from refusaldir.report.behaviour_document import build_behaviour
    from refusaldir.report.document import write_json
    from refusaldir.report.figures import write_behaviour_figures

    runs = [read_behaviour(path, column_map=column_map) for path in (base, tuned)]
    folder = Path(out) if out is not None else _default_folder(runs, store)
    if (folder / NAME).exists() and not force:
        raise OutputExistsError(
            "The folder holds a result already",
            where=folder / NAME,
            next_step="Read it with refusaldir show, choose another --out, or use --force",
        )
    compared = compare_runs(
        *runs,
        level=level,
        margin=margin,
        seed=seed,
        allow=allow,
        link=link_runs(*runs, level=level, seed=seed),
    )
    document = build_behaviour(
        compared,
        options={"base": str(base), "tuned": str(tuned), "allow": list(allow), "seed": seed},
    )
    files = {NAME: write_json(document, folder / NAME)}
    files.update({path.name: path for path in write_behaviour_figures(document, folder)})
    return BehaviourDiff(document=document, behaviour=compared, folder=folder, files=files)


def _logs(folder: Path) -> list[Path]:
    """Inspect's logs in a folder."""
    from refusaldir.probes.inspect.log import is_inspect_log

    return sorted(path for path in folder.iterdir() if is_inspect_log(path))


def _default_folder(runs: Sequence[ProbeRun], store: str | Path | None) -> Path:
    firsts = [next(part for _, part in run.parts()) for run in runs]
    names = "-to-".join(
        re.sub(r"[^A-Za-z0-9._+-]+", "-", part.provenance.model.name).strip(".-")[:80] or "model"
        for part in firsts
    )
    made = [[part.provenance.to_dict() for _, part in run.parts()] for run in runs]
    return default_store(store) / f"behaviour-{names}-{content_hash(made)[:8]}"
