"""`refusaldir direction`: bring in, export and read a direction."""

from pathlib import Path
from typing import Annotated

import typer

from . import options

IMPORT_EXAMPLES = """[bold]Examples[/bold]

refusaldir direction import direction.pt --out d.safetensors

refusaldir direction import mean_diffs.pt --layer 12 --position -5 --out d.safetensors
"""

EXPORT_EXAMPLES = """[bold]Examples[/bold]

refusaldir direction export d.safetensors --format gguf --out refusal.gguf

refusaldir direction export d.safetensors --format steering-vectors --out refusal.pt
"""

READ_EXAMPLES = """[bold]Examples[/bold]

refusaldir direction read base-select/direction.safetensors smollm2-135m+aligned

refusaldir direction read d.safetensors org/model --prompts contrast --json
"""

app = typer.Typer(no_args_is_help=True, help="Bring in, export and read a direction.")

_File = Annotated[Path, typer.Argument(help="A direction file (.safetensors).", show_default=False)]
_Out = Annotated[Path, typer.Option(help="The file to write.", show_default=False)]


@app.command("import", epilog=IMPORT_EXAMPLES)
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="direction.pt or mean_diffs.pt of the code of Arditi et al. (2024).",
            show_default=False,
        ),
    ],
    out: _Out,
    layer: Annotated[
        int | None, typer.Option(help="Block whose input it was read at, from 0.")
    ] = None,
    position: Annotated[
        int | None, typer.Option(help="Token offset from the end of the prompt, e.g. -1.")
    ] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(help="JSON with layer and pos; direction_metadata.json beside it otherwise."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model it is meant for: check its width and depth.", metavar="MODEL"),
    ] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Turn a direction of the reference code into a direction file.

    Only tensors are read; a file that would run code is refused.
    """
    from refusaldir.models.options import LoadOptions
    from refusaldir.pipeline.direction_files import import_file

    found = import_file(
        file,
        out,
        layer=layer,
        position=position,
        metadata=metadata,
        model=model,
        options=LoadOptions(trust_remote_code=trust_remote_code),
        force=force,
    )
    _written(found.to_dict(), out, f"refusaldir direction read {out} {model or 'MODEL'}", json)


@app.command("export", epilog=EXPORT_EXAMPLES)
def export(
    file: _File,
    out: _Out,
    format: Annotated[
        str,
        typer.Option(
            help="gguf (control vector of llama.cpp) or steering-vectors (Python package).",
            metavar="gguf|steering-vectors",
            show_default=False,
        ),
    ],
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Write a direction for a tool that adds it; scale 1 is the raw vector."""
    from refusaldir.pipeline.direction_files import export_file

    found = export_file(file, out, format=format, force=force)
    use = {
        "gguf": f"llama-cli -m MODEL.gguf --control-vector {out}",
        "steering-vectors": f"SteeringVector(**torch.load({str(out)!r}, weights_only=True))",
    }
    _written(found.to_dict(), out, use[format], json)


def _written(about: dict[str, object], out: Path, use: str, json: bool) -> None:
    """Print the direction that was written, and what to do with the file."""
    from refusaldir.report.direction_table import direction_table
    from refusaldir.report.document import to_json

    from .console import stderr, stdout

    if json:
        about = {key: value for key, value in about.items() if key != "vector"}
        typer.echo(to_json({"file": str(out), "direction": about}))
        return
    stdout().print(direction_table(about))
    note = stderr()
    note.print(f"Written: {out}", soft_wrap=True, markup=False)
    note.print(f"Next: {use}", soft_wrap=True, markup=False)


@app.command("read", epilog=READ_EXAMPLES)
def read(
    file: _File,
    model: options.Model,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            "-p",
            help="Also score a set: built-in, a file with labels, a preset or a data set.",
            rich_help_panel="Prompts",
        ),
    ] = None,
    harmful: options.Harmful = None,
    harmless: options.Harmless = None,
    column_map: options.ColumnMap = None,
    limit: options.Limit = None,
    system: options.System = "default",
    thinking: options.Thinking = None,
    template: options.Template = None,
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    quantize: options.Quantize = None,
    trust_remote_code: options.TrustRemoteCode = False,
    backend: options.Backend = "auto",
    top: Annotated[int, typer.Option(min=1, help="Tokens on either side.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the split halves.")] = 0,
    json: options.Json = False,
) -> None:
    """Say what a direction speaks for in a model, and how it separates a prompt set.

    Prompts that the direction was fitted on are not scored: of their set,
    only the test split is.
    """
    from refusaldir.pipeline.direction_reading import read_direction
    from refusaldir.report.direction_table import reading_report

    from .console import progress, put

    with progress(quiet=json) as report:
        found = read_direction(
            file,
            model,
            **options.source(
                prompts, harmful, harmless, column_map, limit, system, thinking, template
            ),
            batch_size=batch_size,
            **options.opening(dtype, device, device_map, quantize, trust_remote_code, backend),
            top=top,
            seed=seed,
            progress=report,
        ).to_dict()
    put(found, reading_report, json=json)
