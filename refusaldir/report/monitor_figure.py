"""The figure of a monitored training run: drift and refusal score against the step."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.report.canvas import BLUE, VERMILLION, WIDTH, footnote, heading, save_figure, style
from refusaldir.report.panel import Panel, Series, stack_panels
from refusaldir.report.text import number, percent, visible
from refusaldir.report.trajectory_figure import places_of, trajectory_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOTHING = float("nan")


def monitor_figure(document: Mapping[str, Any]) -> "Figure":
    """Draw a monitor's document; `save_figure` writes the figure."""
    with style():
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        points = document["checkpoints"]
        places, _ = places_of(points)
        panels = trajectory_panels(points)
        if any("score" in point for point in points):
            panels.insert(0, _scores(points))
        figure = Figure(figsize=(WIDTH, WIDTH))
        stack = stack_panels(figure, panels, places, height=1.28, bottom=0.86)
        heading(figure, "Refusal during training", _subtitle(document))
        room = 0.5 if len(places) == 1 else 0.03 * (places[-1] - places[0])
        stack[-1].set_xlim(places[0] - room, places[-1] + room)
        stack[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        stack[-1].set_xlabel("Training step")
        level = percent(document["level"])
        footnote(
            figure,
            f"Bands: {level} intervals of single measurements; the paler band of the rotation "
            "holds over all measurements at once.",
        )
        return figure


def write_monitor_figure(document: Mapping[str, Any], folder: str | Path) -> tuple[Path, ...]:
    """Write ``trajectory.png`` and ``trajectory.svg``.

    Raises:
        StoreError: A file cannot be written.
    """
    return save_figure(
        monitor_figure(document),
        Path(folder) / "trajectory",
        title=f"Refusal during the training of {visible(document['base']['model']['name'])}",
        description="Small charts over training steps. "
        + visible(" ".join([document["verdict"]["headline"], *document["verdict"]["sentences"]])),
    )


def _scores(points: Any) -> Panel:
    curves = []
    for side, colour, dashed in (("harmful", VERMILLION, False), ("harmless", BLUE, True)):
        cells = [point["score"][side]["value"] if "score" in point else {} for point in points]
        values, lower, upper = (
            [_NOTHING if cell.get(end) is None else float(cell[end]) for cell in cells]
            for end in ("value", "lower", "upper")
        )
        curves.append(
            Series(
                label=side,
                values=values,
                lower=lower,
                upper=upper,
                colour=colour,
                style="--" if dashed else "-",
                filled=not dashed,
            )
        )
    return Panel(
        title="First-token refusal score, nats (above 0: would rather refuse)",
        reference=0.0,
        least_span=2.0,
        series=curves,
    )


def _subtitle(document: Mapping[str, Any]) -> str:
    site = document["site"]
    return (
        f"{visible(document['base']['model']['name'])}, {len(document['checkpoints'])} measurements"
        f" · {site['hook']}, layer {site['layer']}, token {number(site['position'], 0)} "
        f"({visible(site['token'])}) · {document['n_harmful']} harmful and "
        f"{document['n_harmless']} harmless prompts from {document['n_clusters']} intents"
    )
