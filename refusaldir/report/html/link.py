"""From mechanism to behaviour: what the projection explains of the change of refusals."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from refusaldir.report.canvas import BLUE, GREY, VERMILLION
from refusaldir.report.html.curves import curve_figure
from refusaldir.report.html.figure import Cell, Figure, Table
from refusaldir.report.html.frame import ends
from refusaldir.report.html.rows import ChartRow, Mark, rows_figure
from refusaldir.report.html.section import Block, sentence
from refusaldir.report.panel import Panel, Series
from refusaldir.report.text import number, visible

Row = Mapping[str, Any]

_PARTS = {
    "single": "prompts",
    "frozen": "escalations with canned answers",
    "live": "escalations with the model’s own answers",
}
_SIDES = {"refusal": "harmful", "over_refusal": "harmless"}
_MARKS = (
    ("observed", "c5", "diamond"),
    ("encoding", "c1", "dot"),
    ("readout", "c2", "dot"),
    ("residual", "c0", "ring"),
)
_DEFINITION = (
    "In each model, the chance of a refusal is fitted to the prompt’s projection on base’s "
    "direction. Encoding: what the change of refusals would be had only the projections moved. "
    "Readout: what it would be had only the answer to a given projection changed. Both are "
    "averaged over the two orders. Residual: what the two curves do not explain."
)


def link_block(behaviour: Row) -> list[Block]:
    """Blocks about the split; none where there are no projections."""
    link = behaviour["link"]
    if link is None:
        return []
    figures: list[Figure] = []
    for key, words in _PARTS.items():
        part = link[key]
        if part is None:
            continue
        if any(_known(parts) for parts in part["axes"]):
            figures.append(_split(key, words, part))
        if part["base"]["z"] or part["tuned"]["z"]:
            figures.append(_curves(key, words, part))
        figures.append(_histogram(key, words, part["histogram"]))
        for axis in _SIDES:
            groups = [g for g in part["groups"] if g["axis"] == axis and _known(g)]
            if len(groups) > 1:
                figures.append(_by_group(key, words, axis, part["group_kind"], groups))
    blocks = [
        Block(
            title="Did the representation move, or what the model does with it?",
            sentences=[visible(text) for text in link["sentences"]],
            figures=figures,
            note=sentence(link["note"]),
        )
    ]
    table = _correlations(link["categories"])
    if table is not None:
        blocks.append(
            Block(
                title="Does drift of a category go with its behaviour?",
                table=table,
                note=sentence(link["categories"]["note"]),
            )
        )
    return blocks


def _known(parts: Row) -> bool:
    """Whether the split could be made."""
    return parts["encoding"]["value"] is not None


def _marks(parts: Row) -> list[Mark]:
    return [
        Mark(name=name, cell=parts[name], colour=colour, form=form) for name, colour, form in _MARKS
    ]


def _split(key: str, words: str, part: Row) -> Figure:
    rows = []
    for parts in part["axes"]:
        side = _SIDES[parts["axis"]]
        rows += [
            ChartRow(
                label=f"{side}: {name}",
                marks=[Mark(name=name, cell=parts[name], colour=colour, form=form)],
            )
            for name, colour, form in _MARKS
        ]
    return rows_figure(
        rows,
        key=f"link-{key}-split",
        title=f"Change of refusals taken apart: {words}",
        unit="change of the share refused, points",
        first="part",
        caption="Encoding and readout sum to the modelled change; an interval that leaves out 0 "
        "is a part that is there.",
        definition=_DEFINITION,
        reference=0.0,
        scale=100.0,
        digits=1,
        signed=True,
    )


def _by_group(key: str, words: str, axis: str, kind: str, groups: Sequence[Row]) -> Figure:
    rows = [
        ChartRow(
            label=visible(str(group["group"])),
            marks=[m for m in _marks(group) if m.name in ("encoding", "readout")],
            joined=True,
        )
        for group in groups
    ]
    return rows_figure(
        rows,
        key=f"link-{key}-{axis}-{kind}",
        title=f"Encoding and readout by {kind}: {_SIDES[axis]} {words}",
        unit="change of the share refused, points",
        first=kind,
        caption="Blue: had only the projections moved. Orange-red: had only the answer to a given "
        "projection changed.",
        definition=_DEFINITION,
        reference=0.0,
        scale=100.0,
        digits=1,
        signed=True,
        link=f"by-{kind}",
    )


def _curves(key: str, words: str, part: Row) -> Figure:
    """The chance of a refusal against the projection, in both models."""
    grid = sorted({float(z) for arm in ("base", "tuned") for z in part[arm]["z"]})
    series = []
    for label, colour, style in (("base", GREY, "--"), ("tuned", BLUE, "-")):
        curve = part[label]
        at = {
            float(z): tuple(math.nan if v is None else 100.0 * v for v in values)
            for z, *values in zip(
                curve["z"], curve["probability"], curve["lower"], curve["upper"], strict=True
            )
        }
        none = (math.nan, math.nan, math.nan)
        columns = list(zip(*(at.get(z, none) for z in grid), strict=True))
        series.append(
            Series(
                label=label, values=columns[0], lower=columns[1], upper=columns[2], colour=colour,
                style=style, marker="",
            )
        )  # fmt: skip
    notes = [part[arm]["note"] for arm in ("base", "tuned") if part[arm]["note"]]
    return curve_figure(
        Panel(title="", series=series, reference=None, least_span=20.0, ceiling=100.0),
        grid,
        key=f"link-{key}-curves",
        title=f"Refusal against projection: {words}",
        unit="chance of a refusal, %",
        place="projection",
        names=[f"projection {number(z, 2)}" for z in grid],
        caption="The same curve in both models: the readout is as before. A curve that moved: the "
        "same projection is answered otherwise.",
        definition=" ".join([_DEFINITION, *map(visible, notes)]),
        digits=1,
    )


def _histogram(key: str, words: str, found: Row) -> Figure:
    """Where the prompts of both classes lie along the direction, in both models."""
    middles = [(a + b) / 2 for a, b in pairwise(found["edges"])]
    series = []
    for side, colour in (("harmful", VERMILLION), ("harmless", BLUE)):
        for arm, style in (("base", ":"), ("tuned", "-")):
            counts = found[arm][side]
            total = sum(counts) or 1
            series.append(
                Series(
                    label=f"{side}, {arm}",
                    values=[100.0 * count / total for count in counts],
                    colour=colour,
                    style=style,
                    marker="",
                )
            )
    return curve_figure(
        Panel(title="", series=series, reference=0.0, least_span=10.0),
        middles,
        key=f"link-{key}-places",
        title=f"Where {words} lie along the direction",
        unit="% of the class",
        place="projection",
        names=[f"projection {number(z, 2)}" for z in middles],
        caption="From dotted (base) to solid (tuned) of one colour: how the class moved along "
        "base’s direction.",
        definition="Shares of each class in bins of the projection, in units of the residual "
        "stream.",
        digits=1,
    )


def _correlations(categories: Row) -> Table | None:
    found = {
        axis: (part["correlations"], part["measures"])
        for axis, part in categories["axes"].items()
        if part is not None and any(map(_correlated, part["correlations"]))
    }
    return correlations_table(found) if found else None


def _correlated(each: Row) -> bool:
    return each["kendall"]["value"] is not None


def correlations_table(axes: Mapping[str, tuple[Sequence[Row], Row]]) -> Table:
    """List rank correlations of measures of the geometry with behaviour.

    Args:
        axes: Correlations by axis, and what each measure is, in words.
    """
    rows: list[tuple[Cell, ...]] = []
    for axis, (correlations, measures) in axes.items():
        for each in filter(_correlated, correlations):
            cells: list[Cell] = [_SIDES[axis], visible(measures[each["measure"]])]
            for name in ("kendall", "spearman"):
                cells += ends(each[name])
            rows.append(tuple(cells))
    columns = [
        "prompts", "measure of the geometry", "Kendall’s τ", "lower", "upper", "Spearman’s ρ",
        "lower ", "upper ",
    ]  # fmt: skip
    return Table(columns=columns, rows=rows)
