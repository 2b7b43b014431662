"""`refusaldir select`: the direction that causes refusal in one model."""

from pathlib import Path
from typing import Annotated

import typer

from . import options

EXAMPLES = """[bold]Examples[/bold]

refusaldir select smollm2-135m+aligned

refusaldir select ./my-model --harmful bad.txt --harmless good.txt --refusal-token I

refusaldir select org/model --device cuda --dtype bfloat16 --exhaustive
"""

_CRITERIA = "Criteria"


def select(
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
    positions: options.PositionsChoice = "post",
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    quantize: options.Quantize = None,
    trust_remote_code: options.TrustRemoteCode = False,
    backend: options.Backend = "auto",
    kl: Annotated[
        float, typer.Option(help="Largest mean KL, in nats.", rich_help_panel=_CRITERIA)
    ] = 0.1,
    induce: Annotated[
        float,
        typer.Option(
            help="Least mean refusal score with the vector added.", rich_help_panel=_CRITERIA
        ),
    ] = 0.0,
    depth: Annotated[
        float, typer.Option(help="Share of the layers searched.", rich_help_panel=_CRITERIA)
    ] = 0.8,
    refusal_token: Annotated[
        list[str] | None,
        typer.Option(
            help="First token of a refusal; found from the model's own refusals otherwise. "
            "Repeat for more.",
            rich_help_panel=_CRITERIA,
        ),
    ] = None,
    filter_prompts: Annotated[
        bool,
        typer.Option(
            "--filter/--no-filter",
            help="Use only prompts that the model refuses or answers as their label says.",
            rich_help_panel=_CRITERIA,
        ),
    ] = True,
    exhaustive: Annotated[
        bool,
        typer.Option(
            "--exhaustive",
            help="Measure every score, also where it cannot change the choice.",
            rich_help_panel=_CRITERIA,
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the split where there is none.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    store: options.Store = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Choose the direction that causes refusal: ablated, refusals go; added, they come.

    The criteria are those of Arditi et al. (2024). That no direction meets
    them is a result too, and ends with exit code 0.
    """
    from refusaldir import pipeline
    from refusaldir.models.options import LoadOptions
    from refusaldir.report.document import to_json
    from refusaldir.report.selection_table import selection_report

    from .console import progress, stderr, stdout

    with progress(quiet=json) as report:
        result = pipeline.select(
            model,
            prompts=prompts,
            harmful=harmful,
            harmless=harmless,
            column_map=options.parse_column_map(column_map),
            limit=limit,
            system=system,
            thinking=thinking,
            template=options.read_template(template),
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
            refusal_tokens=refusal_token,
            filter_prompts=filter_prompts,
            kl=kl,
            induce=induce,
            depth=depth,
            exhaustive=exhaustive,
            seed=seed,
            out=out,
            store=store,
            force=force,
            progress=report,
        )
    if json:
        typer.echo(to_json(result.document))
        return
    stdout().print(selection_report(result.document))
    note = stderr()
    for name, path in result.files.items():
        note.print(f"{name}: {path}", soft_wrap=True)
    note.print(f"Next: refusaldir diff {model} TUNED_MODEL", soft_wrap=True)
