"""`refusaldir report`: one HTML page of a result."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """[bold]Examples[/bold]

refusaldir report activations/demo/diff

refusaldir report series --open

refusaldir report diff.json --out drift.html
"""


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A folder with diff.json, trajectory.json, behaviour.json or layers.json, or such "
            "a file.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to write; report.html in the folder otherwise.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser when it is written.")
    ] = False,
) -> None:
    """Write one HTML page: the verdict, every figure, and how it was done.

    The page needs nothing beside it, opens from disk and fetches nothing. Where
    responses lie beside the result, those of flipped prompts are in it, hidden
    until asked for: think before you publish it. Loads no model.
    """
    from refusaldir.pipeline.report import write_report

    path = write_report(folder, out)
    typer.echo(str(path))
    if show:
        typer.launch(path.resolve().as_uri())
