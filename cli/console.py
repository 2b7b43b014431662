"""Consoles and the progress bar: results on stdout, everything else on stderr.

Colours are rich's: on terminals alone, and none where ``NO_COLOR`` is set.
"""

import codecs
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from json import dumps, loads
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

if TYPE_CHECKING:
    from refusaldir.pipeline import ProgressFn


#: What stands for a character that a terminal's encoding lacks; "?" for all others.
_PLAIN = {
    "−": "-", "–": "-", "—": "-", "…": "...", "·": "*", "•": "*", "▸": ">", "→": "->", "×": "x",
    "°": " deg", "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"', "≥": ">=", "≤": "<=", "±": "+-",
    "‖": "|", "²": "^2", "½": "1/2", "√": "sqrt", "τ": "tau", "ρ": "rho", "σ": "sigma",
    "Δ": "d", "δ": "d", "○": "o", "●": "*", "■": "#",
}  # fmt: skip


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(char, "?") for char in text), error.end


def forgive() -> None:
    """Let no character that a terminal's encoding lacks end the command."""
    codecs.register_error("refusaldir.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not _is_utf(stream.encoding):
            stream.reconfigure(errors="refusaldir.plain")


def _is_utf(encoding: str) -> bool:
    return codecs.lookup(encoding).name.startswith("utf")


def stdout() -> Console:
    """Return the console for results."""
    return Console(highlight=False)


def stderr() -> Console:
    """Return the console for notes."""
    return Console(stderr=True, highlight=False)


def put(
    document: Mapping[str, Any],
    draw: Callable[[Mapping[str, Any]], RenderableType],
    *,
    json: bool,
    csv: bool = False,
) -> None:
    """Print a result on stdout: the document as JSON, its figures as CSV, or what `draw` makes."""
    from refusaldir.report.document import to_json
    from refusaldir.report.long_form import long_csv

    if csv:
        typer.echo(long_csv(document), nl=False)
    elif json:
        text = to_json(document)
        # JSON has escapes of its own for what an encoding lacks.
        typer.echo(
            text if _is_utf(sys.stdout.encoding or "utf-8") else dumps(loads(text), indent=2)
        )
    else:
        stdout().print(draw(document))


def fail(message: str) -> None:
    """Say on stderr what is wrong."""
    stderr().print(Text.assemble(("Error: ", "bold red"), message), soft_wrap=True)


@contextmanager
def progress(quiet: bool = False) -> "Iterator[ProgressFn]":
    """Yield ``report(stage, done, total)``, drawn on stderr where that is a terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = stderr()
    if quiet or not console.is_terminal:
        yield lambda stage, done, total: None
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[dim]ETA"),
        TimeRemainingColumn(),
        TextColumn("[dim]elapsed"),
        TimeElapsedColumn(),
        console=console,
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield report
