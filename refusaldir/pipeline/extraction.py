"""`extract`: one model's activations into one file, and the direction in them if asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refusaldir.directions.candidates import HOOK
from refusaldir.errors import CaptureError, OutputExistsError, StoreError
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.criteria import Criteria
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.opening import Opening
from refusaldir.pipeline.plan import Plan, Rendering, prompt_set
from refusaldir.pipeline.progress import ProgressFn, silent
from refusaldir.pipeline.selected import Selected, find_selected, folder_beside
from refusaldir.pipeline.selection import select_on
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import Provenance
from refusaldir.store import default_path, peek


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """A capture on disk.

    Attributes:
        path: The HDF5 file; open it with `refusaldir.store.Capture.open`.
        provenance: What decided its values.
        reused: True when a file with the same provenance was there already.
        selected: The direction that causes refusal, where it was asked for.
    """

    path: Path
    provenance: Provenance
    reused: bool
    selected: Selected | None = None

    def _repr_html_(self) -> str:
        from refusaldir.report.capture_table import capture_table
        from refusaldir.report.notebook import as_html
        from refusaldir.store import summary

        return as_html(capture_table(summary(self.path)))


def extract(
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
    hooks: Sequence[str] = ("resid_pre",),
    layers: Sequence[int] | None = None,
    positions: str = "inst,post",
    batch_size: int | None = None,
    options: LoadOptions | None = None,
    backend: str = "auto",
    select: bool = False,
    criteria: Criteria | None = None,
    out: str | Path | None = None,
    store: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: ProgressFn = silent,
) -> Extracted:
    """Capture one model's residual stream on harmful and harmless prompts.

    Args:
        model: ``WHERE[@REVISION][+ADAPTER…]``; see `refusaldir.models.spec`.
        prompts: A built-in set, a labelled file, a preset, a Hugging Face data set, or a set.
        harmful: A file of harmful prompts; with ``harmless`` it replaces ``prompts``.
        harmless: A file of harmless prompts.
        column_map: Field → column, for files and data sets with columns of their own.
        limit: Use the first this many prompts of each class.
        system: ``"default"``, ``"none"`` or the system prompt's text.
        thinking: On or off for templates that have such a switch.
        template: Jinja text instead of the tokenizer's chat template, or ``"plain"``.
        hooks: Hook points, from `refusaldir.records.HOOKS`.
        layers: Block indices; None for all.
        positions: ``"post"`` (the template's tokens after the instruction), ``"inst"`` (the last
            token of the instruction, where harmfulness is encoded: Zhao et al. 2025, arXiv
            2507.11878), offsets such as ``"-1,-2"``, or several with commas.
        batch_size: Prompts a batch; None finds a good size by itself.
        options: Dtype, device and so on.
        backend: ``"auto"``, ``"transformer_lens"`` or ``"torch_hooks"``.
        select: Also select the direction that causes refusal, into a folder beside the file; see
            `refusaldir.pipeline.select`.
        criteria: What is asked of that direction.
        out: The file to write; None names it after model and provenance in the store.
        store: The folder for captures when ``out`` is None.
        resume: Go on where an earlier run of the same capture stopped.
        force: Overwrite an existing file.
        progress: Called with stage, done and total.

    Returns:
        Where the capture is. A finished file with the same provenance is kept as it is.

    Raises:
        RefusaldirError: Whatever the user can mend; see `refusaldir.errors`.
    """
    opening = Opening(
        spec=ModelSpec.parse(model), options=options or LoadOptions(), backend=backend
    )
    plan = Plan.make(
        opening,
        prompt_set(prompts, harmful, harmless, column_map, limit),
        Rendering(system=system, thinking=thinking, template=template),
        hooks=hooks,
        layers=layers,
        positions=positions,
        batch_size=batch_size,
    )
    if select and HOOK not in plan.hooks:
        raise CaptureError(
            f"A direction is selected at {HOOK}",
            expected=f"{HOOK} among the hooks",
            got=", ".join(plan.hooks),
            where="--hook",
            next_step=f"Add --hook {HOOK}",
        )
    path = default_path(plan.provenance, store) if out is None else Path(out)
    kept = None
    if path.exists() and not force:
        kept = _kept(path, plan.provenance)
        if kept is None:
            raise OutputExistsError(
                "The output exists and holds something else",
                where=path,
                next_step="Choose another --out, or overwrite it with --force",
            )
    criteria = criteria or Criteria()
    selected = (
        find_selected(folder_beside(path), kept, criteria) if select and kept is not None else None
    )
    if kept is None or (select and selected is None):
        with opening.model() as hooked:
            if kept is None:
                plan.run(hooked, path, "Capture", resume=resume, force=force, progress=progress)
            if select:
                selected = select_on(
                    hooked,
                    Material.of_plan(plan, path),
                    criteria,
                    folder_beside(path),
                    batch_size=batch_size,
                    force=True,
                    progress=progress,
                )
    return Extracted(
        path=path,
        provenance=kept or peek(path),
        reused=kept is not None,
        selected=selected,
    )


def _kept(path: Path, wanted: Provenance) -> Provenance | None:
    """Provenance of the capture at ``path`` if it is the one wanted."""
    try:
        found = peek(path)
    except StoreError:
        return None
    return found if found.fingerprint() == wanted.fingerprint() else None
