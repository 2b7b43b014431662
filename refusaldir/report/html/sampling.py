"""Several replies a prompt: temperatures, how steady outcomes are, and where they vary."""

from collections.abc import Mapping
from typing import Any

from refusaldir.report.html.figure import Cell, Figure, Table
from refusaldir.report.html.frame import ends
from refusaldir.report.html.rows import ChartRow, Mark, rows_figure
from refusaldir.report.html.section import Block
from refusaldir.report.layout import estimate
from refusaldir.report.text import AXIS_TITLES, number, visible

Row = Mapping[str, Any]

_COLOURS = {"refusal": "c2", "over_refusal": "c1"}
_COMPONENTS = (
    ("intents", "between intents"),
    ("prompts", "between prompts"),
    ("prompt_by_temperature", "prompt by temperature"),
    ("temperatures", "between temperatures"),
    ("seeds", "between seeds"),
    ("replies", "from reply to reply"),
)


def sampling_blocks(axes: Mapping[str, Row]) -> list[Block]:
    """What several replies a prompt say; none where there was one a prompt."""
    found = {name: axis["sampling"] for name, axis in axes.items() if axis["sampling"] is not None}
    if not found:
        return []
    figures = []
    for name, sampling in found.items():
        figures += [_temperatures(name, sampling), _stability(name, sampling)]
    blocks = [
        Block(
            title="Several replies a prompt",
            figures=figures,
            note="A reply is a draw. Rates above are means over the replies of a prompt, "
            "temperatures weighing alike.",
        )
    ]
    rows: list[tuple[Cell, ...]] = []
    for name, sampling in found.items():
        for arm in ("base", "tuned", "change"):
            parts = sampling["variance"][arm]
            for key, words in _COMPONENTS if parts is not None else ():
                if parts[key] is not None:
                    rows.append((AXIS_TITLES[name], arm, words, *ends(parts[key])))
    if rows:
        columns = ["axis", "of", "variance", "size", "lower", "upper"]
        blocks.append(
            Block(
                title="Where replies vary",
                table=Table(columns=columns, rows=rows),
                note="Variance of the outcome (refused 1, else 0) in base and in tuned, and of "
                "their difference from reply to reply.",
            )
        )
    return blocks


def _temperatures(name: str, sampling: Row) -> Figure:
    rows = []
    for each in sampling["temperatures"]:
        group = each["comparison"]
        change = group["difference"]
        rows.append(
            ChartRow(
                label=f"temperature {number(each['temperature'], 1)}",
                marks=[
                    Mark(name="base", cell=group["base_rate"], colour=_COLOURS[name], form="ring"),
                    Mark(name="tuned", cell=group["tuned_rate"], colour=_COLOURS[name]),
                ],
                joined=True,
                text=estimate(change, 0, scale=100.0, signed=True, interval=False),
                extra=[
                    (
                        "change, points",
                        estimate(change, 1, scale=100.0, signed=True),
                        ends(change, 100.0)[0],
                    )
                ],
            )
        )
    return rows_figure(
        rows,
        key=f"{name}-temperatures",
        title=f"{AXIS_TITLES[name]}, by temperature",
        unit="replies refused, %",
        first="temperature",
        caption="From base (ring) to tuned (dot); at the right the paired change in points.",
        definition="Temperature 0 is greedy: one reply a prompt.",
        text_title="change",
        span=(0.0, 100.0),
        scale=100.0,
        digits=1,
    )


def _stability(name: str, sampling: Row) -> Figure:
    parts = [("all replies", sampling["stability"])]
    parts += [
        (f"temperature {number(each['temperature'], 1)}", each["stability"])
        for each in sampling["temperatures"]
        if each["temperature"] > 0
    ]
    rows = [
        ChartRow(
            label=visible(label),
            marks=[
                Mark(
                    name=arm,
                    cell=part[arm]["flipping"],
                    colour=_COLOURS[name],
                    form="ring" if arm == "base" else "dot",
                )
                for arm in ("base", "tuned")
            ],
            joined=True,
            extra=[
                (
                    f"{arm}: one reply agrees with most",
                    estimate(part[arm]["agreement"], 1, scale=100.0),
                    ends(part[arm]["agreement"], 100.0)[0],
                )
                for arm in ("base", "tuned")
            ],
        )
        for label, part in parts
    ]
    return rows_figure(
        rows,
        key=f"{name}-stability",
        title=f"{AXIS_TITLES[name]}: prompts with both outcomes",
        unit="of the prompts, %",
        first="replies",
        caption="The further right, the more prompts are refused by some replies and answered by "
        "others.",
        definition="Over prompts with at least two replies that could be judged; the share grows "
        "with the number of replies.",
        span=(0.0, 100.0),
        scale=100.0,
        digits=1,
    )
