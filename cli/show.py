"""`refusaldir show`: say what is in a file that refusaldir wrote."""

from pathlib import Path
from typing import Annotated

import typer

from . import options

EXAMPLES = """[bold]Examples[/bold]

refusaldir show activations/base.h5

refusaldir show activations/demo/diff/diff.json --csv

refusaldir show series/trajectory.json

refusaldir show activations/demo/diff/base

refusaldir show base-select/direction.safetensors
"""


def show(
    file: Annotated[
        Path,
        typer.Argument(
            help="A capture (.h5), a diff.json, behaviour.json, trajectory.json, select.json, "
            "layers.json or probe.json, responses (.jsonl), a direction (.safetensors), or a "
            "folder of these.",
            show_default=False,
        ),
    ],
    json: options.Json = False,
    csv: Annotated[
        bool, typer.Option("--csv", help="Print the figures as CSV, one a row.")
    ] = False,
) -> None:
    """Print what is in a file that refusaldir wrote; loads no model."""
    from refusaldir.pipeline.showing import shown
    from refusaldir.report.long_form import long_csv

    from .console import put

    found = shown(file)
    if csv:
        typer.echo(long_csv(found.document), nl=False)
    else:
        put(found.document, found.draw, json=json)
