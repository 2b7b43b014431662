"""`refusaldir show`: say what is in a file that refusaldir wrote."""

from pathlib import Path
from typing import Annotated

import typer

from . import options

EXAMPLES = """[bold]Examples[/bold]

refusaldir show activations/base.h5

refusaldir show activations/demo/diff/diff.json --csv

refusaldir show series/trajectory.json

refusaldir show activations/layers/layers.json

refusaldir show activations/demo/diff/base
"""


def show(
    file: Annotated[
        Path,
        typer.Argument(
            help="A capture (.h5), a diff.json, trajectory.json, select.json, layers.json or "
            "probe.json, or their folder.",
            show_default=False,
        ),
    ],
    json: options.Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print a diff's tables as CSV.")] = False,
) -> None:
    """Print what is in a capture, selection, diff, series, layers or run; loads no model."""
    from refusaldir.report.document import load_document, tables_csv
    from refusaldir.report.selection_table import selection_report
    from refusaldir.report.tables import capture_table, diff_report

    from .console import put

    path = file
    if file.is_dir():
        names = ("select.json", "trajectory.json", "diff.json", "layers.json", "probe.json")
        path = file / next((name for name in names if (file / name).exists()), "diff.json")
    if path.name == "select.json":
        from refusaldir.pipeline.selected import read_document

        put(read_document(path), selection_report, json=json)
        return
    if path.name == "trajectory.json":
        from refusaldir.report.trajectory_document import load_trajectory
        from refusaldir.report.trajectory_table import trajectory_report

        put(load_trajectory(path), trajectory_report, json=json)
        return
    if path.name == "probe.json":
        from refusaldir.report.probe_document import load_probe
        from refusaldir.report.probe_table import probe_report

        put(load_probe(path), probe_report, json=json)
        return
    if path.name == "layers.json":
        from refusaldir.report.layers_document import load_layers
        from refusaldir.report.layers_table import layers_report

        put(load_layers(path), layers_report, json=json)
        return
    if path.suffix == ".json":
        document = load_document(path)
        if csv:
            typer.echo(tables_csv(document), nl=False)
        else:
            put(document, diff_report, json=json)
        return
    from refusaldir.store import summary

    put(summary(path), capture_table, json=json)
