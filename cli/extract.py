"""`refusaldir extract`: capture one model's activations."""

from pathlib import Path
from typing import Annotated

import typer

from . import options

EXAMPLES = """[bold]Examples[/bold]

refusaldir extract smollm2-135m+aligned

refusaldir extract ./my-model+./my-lora --harmful bad.txt --harmless good.txt --out mine.h5

refusaldir extract org/model@main --dtype bfloat16 --device cuda --positions inst,post --resume
"""


def extract(
    model: Annotated[
        str,
        typer.Argument(
            help="WHERE\\[@REVISION]\\[+ADAPTER…]: Hub id, directory, .gguf file or bundled name.",
            metavar="MODEL",
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
    hook: options.Hook = ["resid_pre"],  # noqa: B006
    layers: options.Layers = None,
    positions: options.PositionsChoice = "post",
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    quantize: options.Quantize = None,
    trust_remote_code: options.TrustRemoteCode = False,
    backend: options.Backend = "auto",
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
    is kept as it is.
    """
    from refusaldir import pipeline
    from refusaldir.models.options import LoadOptions
    from refusaldir.report.document import to_json
    from refusaldir.report.tables import capture_table
    from refusaldir.store import summary

    from .console import progress, stderr, stdout

    with progress(quiet=json) as report:
        result = pipeline.extract(
            model,
            prompts=prompts,
            harmful=harmful,
            harmless=harmless,
            column_map=options.parse_column_map(column_map),
            limit=limit,
            system=system,
            thinking=thinking,
            template=options.read_template(template),
            hooks=tuple(dict.fromkeys(hook)),
            layers=options.parse_layers(layers),
            positions=positions,
            batch_size=batch_size,
            options=LoadOptions(
                dtype=dtype,
                device=device,
                device_map=device_map,
                quantize=quantize,
                trust_remote_code=trust_remote_code,
            ),
            backend=backend,
            out=out,
            store=store,
            resume=resume,
            force=force,
            progress=report,
        )
    if json:
        typer.echo(to_json({**summary(result.path), "reused": result.reused}))
        return
    stdout().print(capture_table(summary(result.path)))
    note = stderr()
    if result.reused:
        note.print(f"Kept: {result.path} holds this capture already (--force makes it anew).")
    note.print(f"Next: refusaldir diff {result.path} OTHER_MODEL", soft_wrap=True)
