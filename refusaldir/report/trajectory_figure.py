"""The figure of a series of checkpoints: built from the trajectory document."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.report.canvas import (
    BLACK,
    BLUE,
    VERMILLION,
    WIDTH,
    footnote,
    heading,
    save_figure,
    style,
)
from refusaldir.report.panel import Panel, Series, stack_panels
from refusaldir.report.text import brief, number, percent, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

#: More checkpoints than this are told apart by step alone.
_NAMED = 8


def trajectory_figure(document: Row) -> "Figure":
    """Draw rotation, norm, shifts, separability and refusal rates against the checkpoint.

    The horizontal axis is the training step where every checkpoint has one, else their order.
    The first checkpoint found rotated is marked by a vertical line, "no change" by a horizontal
    one.

    Args:
        document: A trajectory document.

    Returns:
        The figure; `save_figure` writes it.
    """
    with style():
        from matplotlib.figure import Figure

        points = document["checkpoints"]
        places, by_step = places_of(points)
        panels = trajectory_panels(points)
        figure = Figure(figsize=(WIDTH, WIDTH))
        stack = stack_panels(figure, panels, places, height=1.28, bottom=1.16)
        heading(figure, "Refusal-direction drift over checkpoints", _subtitle(document))
        for place, point in zip(places, points, strict=True):
            if point["name"] == document["first_rotation"]:
                for axes in stack:
                    axes.axvline(place, color=BLACK, lw=0.8, ls=(0, (1, 2)), zorder=1)
        axes = stack[-1]
        room = 0.5 if len(places) == 1 else 0.03 * (places[-1] - places[0])
        axes.set_xlim(places[0] - room, places[-1] + room)
        if len(points) <= _NAMED:
            words = [
                number(p["step"], 0) if by_step else brief(visible(p["name"]), 14) for p in points
            ]
            axes.set_xticks(places, words)
        axes.set_xlabel("Training step" if by_step else "Checkpoint")
        footnote(figure, *_notes(document))
        return figure


def write_trajectory_figure(document: Row, folder: str | Path) -> tuple[Path, ...]:
    """Write ``trajectory.png`` and ``trajectory.svg``.

    Raises:
        StoreError: A file cannot be written.
    """
    verdict = document["verdict"]
    return save_figure(
        trajectory_figure(document),
        Path(folder) / "trajectory",
        title=f"Refusal-direction drift over checkpoints of "
        f"{visible(document['base']['model']['name'])}",
        description="Small charts over checkpoints. "
        + visible(" ".join([verdict["headline"], *verdict["sentences"]])),
    )


def places_of(points: Sequence[Row]) -> tuple[list[int], bool]:
    """Where each checkpoint is drawn, and whether that is its step."""
    steps = [point["step"] for point in points]
    if all(step is not None for step in steps) and all(a < b for a, b in pairwise(steps)):
        return steps, True
    return list(range(1, len(points) + 1)), False


def _subtitle(document: Row) -> str:
    site = document["site"]
    return (
        f"{visible(document['base']['model']['name'])} against "
        f"{len(document['checkpoints'])} checkpoints · {site['hook']}, layer {site['layer']}, "
        f"token {number(site['position'], 0)} ({visible(site['token'])}) · "
        f"{document['n_harmful']} harmful and {document['n_harmless']} harmless prompts from "
        f"{document['n_clusters']} intents"
    )


def _notes(document: Row) -> list[str]:
    level = percent(document["level"])
    first = document["first_rotation"]
    lines = [
        f"Bands: {level} intervals of single checkpoints; the paler band of the rotation holds "
        "over all checkpoints at once."
    ]
    if first is not None:
        lines.append(f"Dotted: {visible(first)}, the first checkpoint found rotated.")
    return lines


def _curve(
    label: str,
    cells: Sequence[Row | None],
    *,
    colour: str,
    outer: Sequence[Row | None] = (),
    scale: float = 1.0,
    dashed: bool = False,
) -> Series:
    """One curve; NaN for null."""
    return Series(
        label=label,
        values=_ends(cells, "value", scale),
        lower=_ends(cells, "lower", scale),
        upper=_ends(cells, "upper", scale),
        outer_lower=_ends(outer, "lower", scale),
        outer_upper=_ends(outer, "upper", scale),
        colour=colour,
        style="--" if dashed else "-",
        filled=not dashed,
    )


def _ends(cells: Sequence[Row | None], key: str, scale: float) -> list[float]:
    values = [None if cell is None else cell[key] for cell in cells]
    return [math.nan if value is None else scale * float(value) for value in values]


def trajectory_panels(points: Sequence[Row]) -> list[Panel]:
    """Define the small charts; that of refusals only where they were measured."""
    shifts = [point["translation"] for point in points]
    panels = [
        Panel(
            title="Rotation of the direction from base's, degrees (0: none)",
            reference=0.0,
            least_span=5.0,
            series=[
                _curve(
                    "rotation",
                    [point["angle"] for point in points],
                    colour=BLUE,
                    outer=[point["angle_band"] for point in points],
                )
            ],
        ),
        Panel(
            title="Norm of the direction over base's (1: same length)",
            reference=1.0,
            least_span=0.1,
            series=[_curve("norm", [point["shrinkage"] for point in points], colour=BLUE)],
        ),
        Panel(
            title="Shift of the class means along the base direction, in base SDs (0: none)",
            reference=0.0,
            least_span=0.2,
            series=[
                _curve("harmful", [cell["harmful"] for cell in shifts], colour=VERMILLION),
                _curve("harmless", [cell["harmless"] for cell in shifts], colour=BLUE, dashed=True),
            ],
        ),
        Panel(
            title="Change of held-out d′ along the base direction (0: none)",
            reference=0.0,
            least_span=0.2,
            series=[_curve("d′", [point["d_prime_change"] for point in points], colour=BLUE)],
        ),
    ]
    rates = []
    for name, label, colour, dashed in (
        ("refusal", "harmful", VERMILLION, False),
        ("over_refusal", "harmless", BLUE, True),
    ):
        base, own = (
            [None if point[name] is None else point[name][key] for point in points]
            for key in ("base_rate", "tuned_rate")
        )
        if any(own):
            rates.append(_curve(label, own, colour=colour, scale=100.0, dashed=dashed))
            line = _curve(f"{label}, base", base, colour=colour, scale=100.0)
            rates.append(replace(line, style=":", marker="", lower=(), upper=()))
    if rates:
        panels.append(
            Panel(
                title="Prompts refused, % (held out, greedy)",
                reference=None,
                least_span=20.0,
                ceiling=100.0,
                series=rates,
            )
        )
    return panels
