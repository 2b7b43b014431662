"""Several tuned models against one base: the figures over checkpoints, and their table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from refusaldir.report.canvas import BLUE, VERMILLION
from refusaldir.report.html.curves import curve_figure
from refusaldir.report.html.figure import Cell, Table
from refusaldir.report.html.frame import ends
from refusaldir.report.html.link import correlations_table
from refusaldir.report.html.section import Block, Section, sentence
from refusaldir.report.panel import Panel, Series
from refusaldir.report.text import brief, percent, visible
from refusaldir.report.trajectory_figure import places_of, trajectory_panels

Row = Mapping[str, Any]

#: Key, title and axis of each panel of `trajectory_panels`.
_PANELS = (
    ("over-rotation", "Rotation", "degrees from base’s direction"),
    ("over-length", "Length", "norm over base’s"),
    ("over-shift", "Shift of the class means", "along base’s direction, base SDs"),
    ("over-separability", "Separability", "change of held-out d′"),
    ("over-refusals", "Prompts refused", "%, held out"),
)
#: More checkpoints than this are not named on the axis.
_NAMED = 8


def trajectory_section(document: Row) -> Section:
    """Follow the drift over the checkpoints of a trajectory document."""
    points = document["checkpoints"]
    places, by_step = places_of(points)
    names = [visible(point["name"]) for point in points]
    ticks: list[tuple[float, str]] = []
    if len(points) <= _NAMED and not by_step:
        ticks = list(zip(places, (brief(name, 12) for name in names), strict=True))
    mark = next(
        (
            place
            for place, point in zip(places, points, strict=True)
            if point["name"] == document["first_rotation"]
        ),
        None,
    )
    first = "" if mark is None else " Dotted: the first checkpoint found rotated."
    panels = list(zip(trajectory_panels(points), _PANELS, strict=False))
    scores = _scores(points)
    if scores is not None:
        panels.append((scores, ("over-scores", "Refusal score", "change from the start, nats")))
    figures = [
        curve_figure(
            panel,
            places,
            key=key,
            title=title,
            unit=unit,
            place="training step" if by_step else "checkpoint",
            names=names,
            x_ticks=ticks,
            caption=panel.title[0].upper() + panel.title[1:] + "." + first,
            definition=f"Bands: {percent(document['level'])} intervals of single checkpoints; the "
            "paler band of the rotation holds over all checkpoints at once.",
            mark=mark,
            link="checkpoint",
        )
        for panel, (key, title, unit) in panels
    ]
    words = document["verdict"]
    blocks = [
        Block(sentences=words["sentences"]),
        Block(title="Over the checkpoints", figures=figures),
        Block(title="All checkpoints", table=_table(document)),
        *_links(document["link"]),
        Block(
            title="What a series cannot tell",
            sentences=[*words["limits"], *map(sentence, document["notes"])],
        ),
    ]
    return Section(key="trajectory", title="How did it go?", short="How did it go?", blocks=blocks)


def _scores(points: Sequence[Row]) -> Panel | None:
    """Change of the first-token refusal score, where a training monitor measured it."""
    found = [point.get("score") for point in points]
    if not any(found):
        return None
    series = []
    for side, colour, style in (("harmful", VERMILLION, "-"), ("harmless", BLUE, "--")):
        cells = [None if score is None else score[side]["change"] for score in found]
        value, low, high = (
            [math.nan if v is None else float(v) for v in column]
            for column in zip(*map(ends, cells), strict=True)
        )
        series.append(
            Series(
                label=side, values=value, lower=low, upper=high, colour=colour, style=style,
                filled=style == "-",
            )
        )  # fmt: skip
    title = "Change of the first-token refusal score, in nats (0: none)"
    return Panel(title=title, series=series, reference=0.0, least_span=0.5)


def _links(link: Row | None) -> list[Block]:
    """Drift against behaviour over the checkpoints."""
    axes = {} if link is None else link["axes"]
    found = {axis: rows for axis, rows in axes.items() if rows}
    if link is None or not found:
        return []
    over = "fine-tunes" if link["independent"] else "checkpoints"
    rivals = ", ".join(visible(link["measures"][name]) for name in link["rivals"])
    note = f"Rank correlation over the {over} with the change of refusals."
    if rivals:
        note += f" Rivals, which know nothing of refusal: {rivals}."
    table = correlations_table({axis: (rows, link["measures"]) for axis, rows in found.items()})
    return [Block(title="Does drift go with behaviour?", table=table, note=note)]


def _table(document: Row) -> Table:
    columns = ["checkpoint", "rotation °", "lower", "upper", "length", "shift harmful",
               "shift harmless", "d′ change"]  # fmt: skip
    rates = [
        (key, title)
        for key, title in (("refusal", "harmful refused %"), ("over_refusal", "harmless refused %"))
        if any(point[key] is not None for point in document["checkpoints"])
    ]
    rows: list[tuple[Cell, ...]] = []
    for point in document["checkpoints"]:
        rows.append(
            (
                visible(point["name"]),
                *ends(point["angle_band"] or point["angle"]),
                point["shrinkage"]["value"],
                point["translation"]["harmful"]["value"],
                point["translation"]["harmless"]["value"],
                point["d_prime_change"]["value"],
                *(
                    None if point[key] is None else ends(point[key]["tuned_rate"], 100.0)[0]
                    for key, _ in rates
                ),
            )
        )
    return Table(columns=[*columns, *(title for _, title in rates)], rows=rows)
