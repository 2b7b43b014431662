"""Base and tuned side by side: settled before anything is run, then measured and compared."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from refusaldir.drift.comparable import require_comparable
from refusaldir.drift.handle import ARMS
from refusaldir.errors import OutputExistsError
from refusaldir.pipeline.arm import Arm, Terms
from refusaldir.pipeline.battery import Battery
from refusaldir.pipeline.choices import Choices, Side
from refusaldir.pipeline.measurement import Known, Measurement
from refusaldir.pipeline.model_run import SUMMARY
from refusaldir.pipeline.precision import Alike, precision_document, require_allowed
from refusaldir.pipeline.progress import ProgressFn, silent
from refusaldir.probes.run import ProbeRun
from refusaldir.records import Provenance, Site
from refusaldir.store import Capture

if TYPE_CHECKING:
    from refusaldir.drift.result import DriftResult
    from refusaldir.pipeline.layer_choices import LayersFound
    from refusaldir.probes.comparison import BehaviourComparison

#: Drift, and behaviour where it was measured.
Compared: TypeAlias = "tuple[DriftResult, BehaviourComparison | None]"


@dataclass(frozen=True, kw_only=True)
class Diff:
    """What `diff` found.

    Attributes:
        document: The content of ``diff.json``.
        folder: Where everything was written.
        files: What was written, by name.
        compared: Gives drift and behaviour.
        layers: Which layers the fine-tune disturbed, or None when that was not asked for.
        reused: True when all of it was there already.
    """

    document: dict[str, Any] = field(repr=False)
    folder: Path
    files: Mapping[str, Path]
    compared: "Callable[[], Compared]" = field(repr=False, compare=False)
    layers: "LayersFound | None" = None
    reused: bool = False

    @cached_property
    def _compared(self) -> "Compared":
        return self.compared()

    @property
    def drift(self) -> "DriftResult":
        """Drift of geometry, layer by layer; computed when asked where it was there already."""
        return self._compared[0]

    @property
    def behaviour(self) -> "BehaviourComparison | None":
        """Paired behaviour, or None when it was not measured."""
        return self._compared[1]

    def _repr_html_(self) -> str:
        from refusaldir.report.notebook import as_html
        from refusaldir.report.tables import diff_report

        return as_html(diff_report(self.document), self.files)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Base and tuned as they will be compared; nothing has been run yet.

    Attributes:
        choices: How.
        terms: What both have in common.
        battery: What both are asked; None where behaviour is not measured.
        base: Base, in its own precision.
        tuned: Tuned.
        alike: Base in tuned's precision, where the two differ.
        given: Base and tuned as they were given.
        specs: Whether only model specs were given, no capture.
    """

    choices: Choices
    terms: Terms
    battery: Battery | None
    base: Arm
    tuned: Arm
    alike: Alike | None
    given: tuple[Side, Side]
    specs: bool

    @classmethod
    def settle(
        cls,
        choices: Choices,
        terms: Terms,
        battery: Battery | None,
        base: Arm,
        given: tuple[Side, Side],
        *,
        specs: bool,
    ) -> "Pair":
        """Resolve tuned and check that the two can be compared, before anything is run.

        Raises:
            CaptureMismatchError: The two differ in something other than the model's weights.
            RefusaldirError: Whatever else can be known before weights are loaded.
        """
        tuned = choices.arm("tuned", given[1], terms)
        with base.reader() as left, tuned.reader() as right:
            require_comparable(left, right, choices.hook, allow_dtype_mismatch=True)
        if not choices.allow_dtype_mismatch:
            require_allowed(base, tuned)
        return cls(
            choices=choices,
            terms=terms,
            battery=battery,
            base=base,
            tuned=tuned,
            alike=Alike.find(base, tuned, terms, choices.batch_size, choices.store),
            given=given,
            specs=specs,
        )

    @property
    def bases(self) -> tuple[Arm, ...]:
        """Base as it may be compared: in its own precision, and in tuned's where they differ."""
        alike = None if self.alike is None else self.alike.arm
        return (self.base,) if alike is None else (alike, self.base)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the document."""
        choices, terms = self.choices, self.terms
        tokens = choices.refusal_tokens
        return {
            "base": str(self.given[0]),
            "tuned": str(self.given[1]),
            "prompts": terms.prompts.name,
            "hook": choices.hook,
            "positions": terms.positions,
            "position": choices.position,
            "system": terms.rendering.system,
            "thinking": terms.rendering.thinking,
            "follow_nearest": choices.follow_nearest,
            "behaviour": self.battery is not None,
            "refusal_tokens": None if tokens is None else list(tokens),
            "allow_dtype_mismatch": choices.allow_dtype_mismatch,
            "seed": choices.seed,
            **({} if self.battery is None else self.battery.settings),
        }

    def finished(self, folder: Path) -> "tuple[dict[str, Any], Arm] | None":
        """A document of this very comparison in a folder, and base as it was compared there.

        Raises:
            StoreError: A document is there and cannot be read.
        """
        from refusaldir.report.document import load_document

        path = folder / "diff.json"
        if not path.exists():
            return None
        document = load_document(path)
        wanted = json.loads(json.dumps(self.settings))
        if any(document["options"].get(key) != value for key, value in wanted.items()):
            return None
        selected = document["causality"] is not None
        if self.choices.select == ("off" if selected else "on"):
            return None
        made = [Provenance.from_dict(document[role]).fingerprint() for role in ARMS]
        for base in self.bases:
            if made == [arm.provenance.fingerprint() for arm in (base, self.tuned)]:
                return document, base
        return None

    def kept(self, folder: Path) -> Diff | None:
        """This very comparison, where the folder holds it whole.

        Raises:
            StoreError: A document is there and cannot be read.
        """
        there = None if self.choices.force else self.finished(folder)
        runs = [] if self.battery is None else [folder / role / SUMMARY for role in ARMS]
        if there is None or not all(path.exists() for path in runs):
            return None
        document, base = there
        at = document["drift"]["site"]
        site = Site(hook=at["hook"], layer=at["layer"], position=at["position"])

        def compared() -> Compared:
            read = {path.parent.name: ProbeRun.read(path.parent) for path in runs}
            return self._compare(base.path, self.tuned.path, site, read, silent)

        names = ("diff.json", "*.png", "*.svg", "*/*.json", "*/*.jsonl")
        found = [path for name in names for path in sorted(folder.glob(name))]
        return Diff(
            document=document,
            folder=folder,
            files={str(path.relative_to(folder)): path for path in found},
            compared=compared,
            reused=True,
        )

    def run(
        self,
        folder: Path,
        progress: ProgressFn,
        *,
        base_folder: Path | None = None,
        known: Known | None = None,
    ) -> Diff:
        """Measure what is missing, compare, and write the results.

        Args:
            folder: Where to; responses of base go to ``base_folder`` where that is given.
            progress: Called with stage, done and total.
            base_folder: Where the responses of base go.
            known: What is known of base already; what is found is added.

        Raises:
            OutputExistsError: The folder holds a result, and nobody asked to overwrite it.
            RefusaldirError: Whatever else the user can mend.
        """
        choices = self.choices
        if (folder / "diff.json").exists() and not choices.force:
            raise OutputExistsError(
                "The folder holds a result already",
                where=folder / "diff.json",
                next_step="Read it with refusaldir show, choose another --out, or use --force",
            )
        make_folder(folder)
        alike = None if self.alike is None else self.alike.made(self.base, progress)
        own = self.base.now
        base = own if alike is None or alike.arm is None else alike.arm
        measurement = Measurement(
            arms=(base, self.tuned.now),
            origin=None if base is own else own,
            prompts=self.terms.prompts,
            rendering=self.terms.rendering,
            criteria=choices.criteria,
            select=choices.by_cause and (choices.select == "on" or self.specs),
            read_select=choices.by_cause,
            follow_nearest=choices.follow_nearest,
            hook=choices.hook,
            position=choices.position,
            seed=choices.seed,
            battery=self.battery,
            refusal_tokens=choices.refusal_tokens,
            batch_size=choices.batch_size,
            folder=folder,
            base_folder=folder if base_folder is None else base_folder,
            known=Known() if known is None else known,
            force=choices.force,
            progress=progress,
        )
        measurement.run()
        return self._conclude(measurement, own, alike)

    def _conclude(self, done: Measurement, own: Arm, alike: Alike | None) -> Diff:
        """Compute what the captures and replies say and write it down."""
        from refusaldir.report.document import build_document, write_json
        from refusaldir.report.figures import write_figures

        choices, arms, folder = self.choices, done.arms, done.folder
        site = None if done.causality is None else done.causality.site
        runs = {role: run.run for role, run in done.runs.items()}
        found = self._compare(arms[0].path, arms[1].path, site, runs, done.progress)
        drift, behaviour = found
        precision = None
        if alike is not None:
            precision = precision_document(
                own, alike, arms[1], drift.site.site, level=drift.level, seed=choices.seed
            )
        document = build_document(
            drift,
            behaviour,
            done.causality_document(),
            precision,
            options={**self.settings, "select": done.causality is not None},
        )
        for run in done.runs.values():
            run.summarise(self.settings)
        figures = write_figures(document, folder)
        # Last, so that a folder with a diff.json is complete.
        written = {"diff.json": write_json(document, folder / "diff.json")}
        written |= {path.name: path for path in figures}
        for role, run in done.runs.items():
            written |= {f"{role}/{name}": path for name, path in run.files.items()}
        return Diff(document=document, folder=folder, files=written, compared=lambda: found)

    def _compare(
        self,
        base: Path,
        tuned: Path,
        site: Site | None,
        runs: Mapping[str, ProbeRun],
        progress: ProgressFn,
    ) -> "Compared":
        """Geometry from two captures, and behaviour from two runs where there are any."""
        from refusaldir.drift.compare import compare
        from refusaldir.pipeline.link import category_measures
        from refusaldir.probes.comparison import compare_runs
        from refusaldir.probes.link.runs import link_runs

        choices = self.choices
        with Capture.open(base) as left, Capture.open(tuned) as right:
            drift = compare(
                left,
                right,
                hook=choices.hook,
                position=choices.position,
                site=site,
                seed=choices.seed,
                allow_dtype_mismatch=choices.allow_dtype_mismatch,
                progress=lambda count, total: progress("Compare layers", count, total),
            )
            measures = category_measures(left, right, drift) if runs else ()
        if not drift.base.template.post_tokens:
            note = "the template puts nothing after the instruction, so there is no position there"
            drift = replace(drift, notes=(*drift.notes, note))
        if not runs:
            return drift, None
        pair = [runs[role] for role in ARMS]
        level, seed = drift.level, choices.seed
        link = link_runs(*pair, level=level, seed=seed, measures=measures)
        return drift, compare_runs(*pair, level=level, seed=seed, link=link)


def make_folder(folder: Path) -> None:
    """Make a folder for results.

    Raises:
        OutputExistsError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputExistsError(
            "The output folder cannot be made",
            got=error.strerror,
            where=folder,
            next_step="Choose another --out",
        ) from error
