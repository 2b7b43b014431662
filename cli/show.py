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
    csv: options.Csv = False,
) -> None:
    """Print what is in a file that refusaldir wrote; loads no model."""
    from refusaldir.pipeline.showing import shown

    from .console import put

    found = shown(file)
    put(found.document, found.draw, json=json, csv=csv)
