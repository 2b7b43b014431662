"""The layers of one pair of models: what is settled before weights are loaded, run and written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.errors import OutputExistsError
from refusaldir.pipeline.arm import Arm
from refusaldir.pipeline.battery import SHORT
from refusaldir.pipeline.layer_choices import Asked, LayersFound
from refusaldir.pipeline.layer_prompts import Along, outcome_prompts
from refusaldir.pipeline.layer_run import RESPONSES, LayerRun
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.opening import Opening, release
from refusaldir.pipeline.pair import Diff, Pair, make_folder
from refusaldir.pipeline.plan import Plan, Rendering
from refusaldir.pipeline.progress import ProgressFn
from refusaldir.records import Site

if TYPE_CHECKING:
    from refusaldir.layers.result import LayersResult
    from refusaldir.probes.refusal_tokens import RefusalTokens


@dataclass(frozen=True, kw_only=True)
class LayersJob:
    """A pair of models whose layers are to be told apart; nothing has been run yet.

    Attributes:
        openings: How base and tuned are opened.
        rendering: How prompts become tokens.
        plan: A capture of base on the prompts.
        arm: Base, with its capture.
        asked: What was asked for.
        limit: Most prompts of each class that were read, for the document.
        tokens: Base's refusal tokens where they are known already.
    """

    openings: tuple[Opening, Opening]
    rendering: Rendering
    plan: Plan
    arm: Arm
    asked: Asked
    limit: int | None = None
    tokens: "RefusalTokens | None" = None

    @classmethod
    def of_diff(cls, pair: Pair, done: Diff, mode: str) -> "LayersJob":
        """The layers of a comparison: its prompts, its site, its refusal tokens.

        Args:
            pair: Base and tuned as they were compared.
            done: What was found.
            mode: ``"fast"`` or ``"full"``.

        Raises:
            RefusaldirError: Whatever can be known before weights are loaded.
        """
        from refusaldir.probes.run import ProbeRun

        choices, openings = pair.choices, (pair.base.opening, pair.tuned.opening)
        site, tokens = done.document["drift"]["site"], None
        if pair.battery is not None:
            first = next(part for _, part in ProbeRun.read(done.folder / "base").parts())
            tokens = first.refusal_tokens
        job = cls(
            openings=openings,
            rendering=pair.terms.rendering,
            plan=pair.terms.plan(openings[0], choices.batch_size),
            arm=pair.base.now,
            asked=Asked(
                mode=mode,
                outcome="score",
                category=None,
                heads=False,
                repair=False,
                task_text=None,
                site=Site(hook=site["hook"], layer=site["layer"], position=site["position"]),
                refusal_tokens=choices.refusal_tokens,
                max_new_tokens=SHORT if pair.battery is None else pair.battery.plan.max_new_tokens,
                batch_size=choices.batch_size,
                seed=choices.seed,
                force=choices.force,
            ),
            tokens=tokens,
        )
        job.check()
        return job

    def check(self) -> None:
        """Refuse what can be known to fail before weights are loaded.

        Raises:
            PromptError: There are too few prompts.
        """
        outcome_prompts(self.plan.rendered.prompts, (), self.asked.category, held_out=False)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the document."""
        return {
            "base": str(self.openings[0].spec),
            "tuned": str(self.openings[1].spec),
            "prompts": self.plan.rendered.prompts.name,
            "limit": self.limit,
            "system": self.rendering.system,
            "thinking": self.rendering.thinking,
            **self.asked.to_dict(),
        }

    def kept(self, folder: Path) -> LayersFound | None:
        """The layers of these very models and settings, where the folder holds them.

        Raises:
            StoreError: A document is there and cannot be read.
        """
        from refusaldir.report.document import to_json
        from refusaldir.report.layers_document import load_layers

        path = folder / "layers.json"
        if not path.exists():
            return None
        document = load_layers(path)
        hashes = [opening.identity().weights_hash for opening in self.openings]
        if document["options"] != json.loads(to_json(self.settings)) or hashes != [
            document[role]["weights_hash"] for role in ("base", "tuned")
        ]:
            return None
        files = {each.name: each for each in (path, *sorted(folder.glob("layers*.??g")))}
        return LayersFound(document=document, result=None, folder=folder, files=files)

    def run(self, folder: Path, progress: ProgressFn) -> LayersFound:
        """Run the lenses and write what they say.

        Raises:
            OutputExistsError: The folder holds a result, and nobody asked to overwrite it.
            RefusaldirError: Whatever else the user can mend.
        """
        require_no_layers(folder, force=self.asked.force)
        make_folder(folder)
        try:
            run = self._open(folder, progress)
            return _write(run, run.run(), self.settings)
        finally:
            release()

    def _open(self, folder: Path, progress: ProgressFn) -> LayerRun:
        """Load the pair, capture base if need be, and choose direction and prompts."""
        from refusaldir.layers.weight_pair import WeightPair

        asked, (first, second) = self.asked, self.openings
        progress("Open models", 0, 1)
        pair = WeightPair.open(first.spec, second.spec, first.options, backend=first.backend)
        progress("Open models", 1, 1)
        self.plan.rendered.check_length(pair.model.max_length)
        pair.set_base()
        self.arm.capture(pair.model, "Capture base", progress)
        material = Material.of_plan(self.plan, self.arm.path)
        along = Along.find(self.arm, material, asked.site, asked.seed)
        chosen = outcome_prompts(
            material.rendered.prompts,
            along.split.train.tolist(),
            asked.category,
            held_out=asked.outcome == "projection",
        )
        return LayerRun(
            pair=pair,
            openings=self.openings,
            material=material,
            along=along,
            chosen=chosen,
            asked=asked,
            known_tokens=self.tokens,
            folder=folder,
            progress=progress,
        )


def require_no_layers(folder: Path, *, force: bool) -> None:
    """Refuse to overwrite a result unless that was asked for.

    Raises:
        OutputExistsError: There is one.
    """
    if (folder / "layers.json").exists() and not force:
        raise OutputExistsError(
            "The folder holds a result already",
            where=folder / "layers.json",
            next_step="Read it with refusaldir show, choose another --out, or use --force",
        )


def _write(run: LayerRun, result: "LayersResult", settings: Mapping[str, Any]) -> LayersFound:
    from refusaldir.report.document import write_json
    from refusaldir.report.layers_document import build_layers
    from refusaldir.report.layers_figure import write_layers_figure

    rendered = run.material.rendered
    document = build_layers(
        result,
        base=run.pair.base,
        tuned=run.pair.tuned,
        prompts={
            "name": rendered.prompts.name,
            "which": run.chosen.which,
            "rendered_hash": rendered.take(run.chosen.harmful.tolist()).hash,
        },
        refusal_tokens=None if run.tokens is None else run.tokens.texts,
        site=run.along.document,
        options=settings,
    )
    figures = write_layers_figure(document, run.folder)
    # Last, so that a folder with a layers.json is complete.
    files = {"layers.json": write_json(document, run.folder / "layers.json")}
    files |= {path.name: path for path in figures}
    responses = run.folder / RESPONSES
    files |= {responses.name: responses} if responses.exists() else {}
    return LayersFound(document=document, result=result, folder=run.folder, files=files)
