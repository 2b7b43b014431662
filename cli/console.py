"""Consoles and the progress bar: results on stdout, everything else on stderr."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, RenderableType

if TYPE_CHECKING:
    from refusaldir.pipeline import ProgressFn


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
) -> None:
    """Print a result on stdout: the document as JSON, or what `draw` makes of it."""
    from refusaldir.report.document import to_json

    if json:
        typer.echo(to_json(document))
    else:
        stdout().print(draw(document))


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
