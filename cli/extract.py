"""`refusaldir extract`: capture one model's activations."""

from pathlib import Path
from typing import Annotated

import typer

from . import options

EXAMPLES = """[bold]Examples[/bold]

refusaldir extract smollm2-135m+aligned

refusaldir extract ./my-model+./my-lora --harmful bad.txt --harmless good.txt --out mine.h5

refusaldir extract ./my-model --select --out mine.h5

refusaldir extract org/model@main --dtype bfloat16 --device cuda --positions inst,post --resume
"""


def extract(
    model: options.Model,
    prompts: options.Prompts = "contrast",
    harmful: options.Harmful = None,
    harmless: options.Harmless = None,
    column_map: options.ColumnMap = None,
    limit: options.Limit = None,
    system: options.System = "default",
    thinking: options.Thinking = None,
    template: options.Template = None,
    hook: options.Hook = ["resid_pre"],  # noqa: B006
    layers: options.Layers = None,
    positions: options.PositionsChoice = "inst,post",
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    quantize: options.Quantize = None,
    trust_remote_code: options.TrustRemoteCode = False,
    backend: options.Backend = "auto",
    select: Annotated[
        bool,
        typer.Option(
            "--select", help="Also select the direction that causes refusal (refusaldir select)."
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The HDF5 file to write; named by itself otherwise.")
    ] = None,
    store: options.Store = None,
    resume: options.Resume = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Capture a model's residual stream on harmful and harmless prompts.

    One HDF5 file holds every layer asked for at the same token positions of
    every prompt, and the mean differences. A file with the same provenance
    is kept as it is. With --select, a folder beside it holds the direction
    that causes refusal.
    """
    from refusaldir import pipeline
    from refusaldir.report.document import to_json
    from refusaldir.report.tables import capture_table
    from refusaldir.store import summary

    from .console import progress, stderr, stdout

    with progress(quiet=json) as report:
        result = pipeline.extract(
            model,
            **options.source(
                prompts, harmful, harmless, column_map, limit, system, thinking, template
            ),
            hooks=tuple(dict.fromkeys(hook)),
            layers=options.parse_layers(layers),
            positions=positions,
            batch_size=batch_size,
            **options.opening(dtype, device, device_map, quantize, trust_remote_code, backend),
            select=select,
            out=out,
            store=store,
            resume=resume,
            force=force,
            progress=report,
        )
    if json:
        found = {**summary(result.path), "reused": result.reused}
        if result.selected is not None:
            found["selected"] = result.selected.document
        typer.echo(to_json(found))
        return
    stdout().print(capture_table(summary(result.path)))
    if result.selected is not None:
        from refusaldir.report.selection_table import selection_report

        stdout().print(selection_report(result.selected.document))
    note = stderr()
    if result.reused:
        note.print(
            f"Kept: {result.path} holds this capture already (--force makes it anew).",
            soft_wrap=True,
            markup=False,
        )
    if not result.provenance.template.post_tokens and "post" in positions:
        note.print("The template puts nothing after the instruction: post stands for no token.")
    note.print(f"Next: refusaldir diff {result.path} OTHER_MODEL", soft_wrap=True, markup=False)
