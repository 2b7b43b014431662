"""`refusaldir gate`: hold a release to limits on behaviour."""

from pathlib import Path
from typing import Annotated

import typer

from . import options

EXAMPLES = """[bold]Examples[/bold]

refusaldir gate activations/demo/diff/diff.json --max-drop 5pp

refusaldir gate diff.json --max-drop 5pp --category medical=3pp --max-over-refusal 5pp

refusaldir gate diff.json --max-drop 10pp --junit gate.xml

Exit codes: 0 pass; 3 fail; 4 not enough data to decide."""


def gate(
    file: Annotated[
        Path,
        typer.Argument(
            help="A diff.json with behaviour, a behaviour.json, or their folder.",
            metavar="DIFF.json",
            show_default=False,
        ),
    ],
    max_drop: Annotated[
        str | None,
        typer.Option(
            help="Most that refusals of harmful prompts may fall, all categories together: 5pp, 5% "
            "or 0.05.",
            metavar="LIMIT",
            show_default=False,
        ),
    ] = None,
    category: Annotated[
        list[str] | None,
        typer.Option(
            help="Most that they may fall in one category, or else domain, e.g. medical=3pp. "
            "Repeat for more.",
            metavar="NAME=LIMIT",
            show_default=False,
        ),
    ] = None,
    max_over_refusal: Annotated[
        str | None,
        typer.Option(
            help="Most that refusals of harmless prompts may rise.",
            metavar="LIMIT",
            show_default=False,
        ),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option(
            help="Also write JUnit XML; a limit that cannot be decided is an error there.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Pass or fail a fine-tune by limits on its behaviour, or say that data is short.

    A limit passes when the whole interval of the change lies within it
    and fails when all of it lies beyond. Loads no model.
    """
    from refusaldir.report.behaviour_document import load_compared
    from refusaldir.report.files import write_atomic
    from refusaldir.report.gate import Limit, parse_category, parse_share
    from refusaldir.report.gate import gate as hold
    from refusaldir.report.gate_table import gate_report
    from refusaldir.report.junit import junit_xml

    from .console import put

    limits = []
    if max_drop is not None:
        most = parse_share(max_drop, "--max-drop")
        limits.append(Limit(axis="refusal", most=most))
    for text in category or ():
        name, most = parse_category(text, "--category")
        limits.append(Limit(axis="refusal", group=name, most=most))
    if max_over_refusal is not None:
        most = parse_share(max_over_refusal, "--max-over-refusal")
        limits.append(Limit(axis="over_refusal", most=most))
    found = hold(load_compared(file), limits)
    if junit is not None:
        write_atomic(junit, junit_xml(found))
    put(found.to_dict(), gate_report, json=json)
    raise typer.Exit(found.exit_code)
