"""Wiring of the `refusaldir` command: commands, errors and exit codes.

Exit codes: 0 done; 2 a mistake the user can mend; 1 a fault of refusaldir; 130 interrupted.
"""

import sys
import traceback
from typing import Annotated

import typer

from refusaldir import __version__
from refusaldir.errors import RefusaldirError

from . import (
    console,
    diff,
    direction,
    extract,
    gate,
    judge,
    layers,
    plan,
    probe,
    report,
    select,
    show,
    view,
)

app = typer.Typer(
    name="refusaldir",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Try it: [bold]refusaldir extract smollm2-135m+aligned[/bold], then "
        "[bold]refusaldir diff smollm2-135m+aligned smollm2-135m+aligned+tuned[/bold]"
    ),
)
app.command("extract", epilog=extract.EXAMPLES)(extract.extract)
app.command("select", epilog=select.EXAMPLES)(select.select)
app.command("diff", epilog=diff.EXAMPLES)(diff.diff)
app.command("probe", epilog=probe.EXAMPLES)(probe.probe)
app.command("layers", epilog=layers.EXAMPLES)(layers.layers)
app.command("gate", epilog=gate.EXAMPLES)(gate.gate)
app.command("plan", epilog=plan.EXAMPLES)(plan.plan)
app.command("view", epilog=view.EXAMPLES)(view.view)
app.command("report", epilog=report.EXAMPLES)(report.report)
app.command("show", epilog=show.EXAMPLES)(show.show)
app.add_typer(direction.app, name="direction")
app.add_typer(judge.app, name="judge")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"refusaldir {__version__}")
        raise typer.Exit


@app.callback()
def _refusaldir(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere in a line).")
    ] = False,
) -> None:
    """Measure what a fine-tune did to a chat model's refusal direction.

    It diagnoses and writes no model.
    """


def main() -> None:
    """Run the command line and exit; the console script's entry point."""
    console.forgive()
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(arguments, prog_name="refusaldir")
    except RefusaldirError as error:
        _fail(str(error), error.exit_code, debug)
    except SystemExit as stop:
        if stop.code != 130:  # What typer makes of Ctrl-C.
            raise
        _fail(
            "Interrupted. What was finished is kept: repeat the command to go on "
            "(extract with --resume)",
            130,
            debug,
        )
    except Exception as error:
        _fail(
            f"This is a fault of refusaldir: {type(error).__name__}: {error}. "
            "Please report it with the output of the same command and --debug.",
            1,
            debug,
        )


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    console.fail(message)
    sys.exit(code)
