"""`refusaldir diff`: compare two models, or two captures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from . import options

EXAMPLES = """[bold]Examples[/bold]

refusaldir diff smollm2-135m+aligned smollm2-135m+aligned+tuned

refusaldir diff ./base ./tuned --layers fast

refusaldir diff ./base ./tuned --battery battery --temperature 0,0.7 --escalations both

refusaldir diff base.h5 tuned.h5 --json

refusaldir diff ./base ./base+./my-lora --harmful bad.txt --harmless good.txt

refusaldir diff ./runs/base ./runs/tuned   (two folders of refusaldir probe, or two Inspect logs)

refusaldir diff ./base ./runs/tune   (a folder of checkpoints)
"""

_BEHAVIOUR = "Behaviour"


def diff(
    base: Annotated[
        str,
        typer.Argument(
            help="A model spec, a capture (.h5), or for behaviour alone what a model said: the "
            "folder of a probe, or an Inspect log.",
            show_default=False,
        ),
    ],
    tuned: Annotated[
        list[str],
        typer.Argument(
            help="The same; several, or a folder with checkpoint-100, checkpoint-200, …, for a "
            "series of checkpoints.",
            show_default=False,
        ),
    ],
    prompts: options.Prompts = "contrast",
    harmful: options.Harmful = None,
    harmless: options.Harmless = None,
    column_map: options.ColumnMap = None,
    limit: options.Limit = None,
    system: options.System = "default",
    thinking: options.Thinking = None,
    template: options.Template = None,
    hook: Annotated[
        str, typer.Option(help="Hook point to compare.", rich_help_panel="Capture")
    ] = "resid_pre",
    positions: options.PositionsChoice = "inst,post",
    position: Annotated[
        int | None,
        typer.Option(
            help="Token offset to compare at, e.g. -1; the selected direction's otherwise.",
            rich_help_panel="Capture",
        ),
    ] = None,
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    quantize: options.Quantize = None,
    trust_remote_code: options.TrustRemoteCode = False,
    backend: options.Backend = "auto",
    allow_dtype_mismatch: Annotated[
        bool,
        typer.Option(
            "--allow-dtype-mismatch",
            help="Where dtype or quantization differ, capture base once more in tuned's and tell "
            "apart what precision alone does.",
        ),
    ] = False,
    select: Annotated[
        str,
        typer.Option(
            help="Follow the direction that causes refusal in base: on, off, or auto: on for "
            "model specs; for captures, what lies beside base's.",
            rich_help_panel="Direction",
        ),
    ] = "auto",
    follow_nearest: Annotated[
        bool,
        typer.Option(
            "--follow-nearest",
            help="Where no direction is valid, follow the nearest candidate all the same.",
            rich_help_panel="Direction",
        ),
    ] = False,
    behaviour: Annotated[
        str,
        typer.Option(
            help="on, off, or auto: on for model specs, and where an option below asks for it.",
            rich_help_panel=_BEHAVIOUR,
        ),
    ] = "auto",
    battery: Annotated[
        str | None,
        typer.Option(
            help="What both models are asked: battery, contrast, a file, a preset or a data set; "
            "the held-out prompts of the comparison otherwise. --limit holds for it too.",
            rich_help_panel=_BEHAVIOUR,
        ),
    ] = None,
    temperature: options.Temperature = "0",
    samples: options.Samples = 5,
    seeds: options.Seeds = "0",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Budget of each reply: 64, or 192 with --battery.",
            rich_help_panel=_BEHAVIOUR,
            show_default=False,
        ),
    ] = None,
    escalations: options.Escalations = "off",
    judge: options.Judge = None,
    refusal_token: options.RefusalToken = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="Between two probes or logs, what may differ all the same: template, tokenizer, "
            "thinking, system, budget, sampling, judge or refusal-tokens. Repeat for more.",
            rich_help_panel=_BEHAVIOUR,
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str,
        typer.Option(
            help="Which layers were disturbed, as refusaldir layers finds it: fast, full or off. "
            "Both models are then in memory together.",
            rich_help_panel="Layers",
        ),
    ] = "off",
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    page: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html as well.")
    ] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for diff.json and the figures.")] = None,
    store: options.Store = None,
    force: options.Force = False,
    json: options.Json = False,
    csv: options.Csv = False,
) -> None:
    """Compare two models: drift of the refusal direction, its cause, and behaviour.

    Writes diff.json, the figures (PNG and SVG) and the replies of both models,
    which stay on this machine. Repeat the command to go on with what was cut
    off.

    With several checkpoints, each is compared with base in a folder of its
    own, and trajectory.json and its figure follow the drift over all of them.
    Finished checkpoints are kept.

    Two folders of refusaldir probe, or two Inspect logs, are compared by what
    the models said alone: no geometry is measured. Writes behaviour.json.
    """
    from refusaldir import pipeline
    from refusaldir.errors import RefusaldirError
    from refusaldir.pipeline.behaviour_pair import are_behaviour, diff_behaviour
    from refusaldir.pipeline.report import write_report
    from refusaldir.pipeline.stops import is_series
    from refusaldir.pipeline.trajectory import diff_series
    from refusaldir.report.behaviour_table import behaviour_report
    from refusaldir.report.layers_table import layers_report
    from refusaldir.report.tables import diff_report
    from refusaldir.report.trajectory_table import trajectory_report

    from .console import progress, put, stderr

    if are_behaviour(base, *tuned):
        found = diff_behaviour(
            base,
            tuned[0],
            column_map=options.parse_column_map(column_map),
            seed=seed,
            allow=allow or (),
            out=out,
            store=store,
            force=force,
        )
        files = dict(found.files)
        if page:
            files["report.html"] = write_report(found.folder)
        put(found.document, behaviour_report, json=json, csv=csv)
        if not (json or csv):
            _name_files(files, found.folder / "behaviour.json")
        return
    if allow:
        raise RefusaldirError(
            "Only between two probes or Inspect logs may something be allowed to differ",
            got=f"--allow {' '.join(allow)} between models or captures",
            next_step="Leave it out: both models are asked in the same way",
        )
    series = is_series(tuned)
    if series and layers != "off":
        raise RefusaldirError(
            "The layers of a series are looked at one checkpoint at a time",
            got=f"--layers {layers} with several checkpoints",
            next_step="refusaldir layers BASE CHECKPOINT",
        )
    with progress(quiet=json or csv) as report:
        result = (diff_series if series else pipeline.diff)(
            base,
            tuned if series else tuned[0],
            **options.source(
                prompts, harmful, harmless, column_map, limit, system, thinking, template
            ),
            hook=hook,
            positions=positions,
            position=position,
            batch_size=batch_size,
            **options.opening(dtype, device, device_map, quantize, trust_remote_code, backend),
            allow_dtype_mismatch=allow_dtype_mismatch,
            select=select,
            follow_nearest=follow_nearest,
            behaviour=behaviour,
            battery=battery,
            temperatures=options.parse_numbers(temperature, "--temperature", float),
            samples=samples,
            seeds=options.parse_numbers(seeds, "--seeds", int),
            max_new_tokens=max_new_tokens,
            escalations=escalations,
            judges=judge,
            refusal_tokens=refusal_token,
            **({} if series else {"layers": layers}),
            seed=seed,
            out=out,
            store=store,
            force=force,
            progress=report,
        )
    files = dict(result.files)
    if page:
        files["report.html"] = write_report(result.folder)
    put(result.document, trajectory_report if series else diff_report, json=json, csv=csv)
    if json or csv:
        return
    if layers != "off":
        put(result.layers.document, layers_report, json=False)
    note = stderr()
    if not series and result.reused:
        note.print(
            f"Kept: {result.folder} holds this comparison already (--force makes it anew).",
            soft_wrap=True,
            markup=False,
        )
    if not result.document["options"]["behaviour"] and behaviour == "auto":
        note.print("Behaviour was not measured: captures hold no model. Add --behaviour on.")
    _name_files(files, result.folder / ("trajectory.json" if series else "diff.json"))


def _name_files(files: Mapping[str, Path], main: Path) -> None:
    """Say what was written, and what comes next."""
    from .console import stderr

    note = stderr()
    for name, path in files.items():
        note.print(f"{name}: {path}", soft_wrap=True, markup=False)
    note.print(f"Next: refusaldir show {main}", soft_wrap=True, markup=False)
