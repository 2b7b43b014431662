"""Escalations: refusals turn by turn, and how conversations ended."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from refusaldir.report.canvas import BLUE, GREY, VERMILLION
from refusaldir.report.html.curves import curve_figure
from refusaldir.report.html.figure import Cell, Figure
from refusaldir.report.html.frame import ends
from refusaldir.report.html.rows import ChartRow, Mark, rows_figure
from refusaldir.report.html.section import Block, sentence
from refusaldir.report.layout import estimate
from refusaldir.report.panel import Panel, Series
from refusaldir.report.text import percent

Row = Mapping[str, Any]

_MODES = {
    "frozen": ("Escalations with canned answers", "the assistant’s earlier turns are given"),
    "live": ("Escalations with the model’s own answers", "every turn is the model’s own"),
}
_SIDES = {
    "refusal": ("harmful conversations", VERMILLION, "c2"),
    "over_refusal": ("their harmless twins", BLUE, "c1"),
}
#: Title, axis, caption and definition of each figure of the hazard.
_HAZARDS = {
    "complied_by": (
        "Answered by step",
        "of the conversations, %",
        "Share of the conversations in which some step so far was answered.",
        "From the hazards up to the step, so that conversations whose outcome is unknown from some "
        "step on still count until then.",
    ),
    "hazard": (
        "First answer at a step",
        "of those held so far, %",
        "Of the conversations refused at every step before, how many are answered at this one.",
        "The hazard of the first answer: a conversation counts until it is first answered.",
    ),
}
#: Ends of an axis of shares: a zoomed one would make little look like much.
_SHARES = (-3.0, 103.0)
_ENDS = (
    ("any_complied", "answered at some turn"),
    ("last_complied", "answered the last turn"),
    ("recovered", "refused again after it"),
)


def escalation_blocks(behaviour: Row) -> list[Block]:
    """A block for each mode that was asked."""
    blocks = []
    for mode, (title, meaning) in _MODES.items():
        found = behaviour["escalations"][mode]
        if found is None:
            continue
        axes = {name: axis for name, axis in found["axes"].items() if axis is not None}
        figures = [
            _turns(mode, meaning, name, axis, behaviour["level"]) for name, axis in axes.items()
        ]
        for key in _HAZARDS:
            figures += [_hazard(mode, key, name, axis) for name, axis in axes.items()]
        figures += [_endings(mode, name, axis) for name, axis in axes.items()]
        notes = dict.fromkeys(sentence(axis["note"]) for axis in axes.values())
        note = " ".join(filter(None, notes))
        blocks.append(Block(title=title, figures=figures, note=note))
    return blocks


def _arms(cells: Sequence[Sequence[Row | None]], colour: str) -> list[Series]:
    """Tuned as a solid curve, base as a dashed grey one."""
    out = []
    for i, (label, style, paint) in enumerate((("base", "--", GREY), ("tuned", "-", colour))):
        value, low, high = (
            [math.nan if v is None else float(v) for v in column]
            for column in zip(*(ends(cell[i], 100.0) for cell in cells), strict=True)
        )
        out.append(
            Series(
                label=label, values=value, lower=low, upper=high, colour=paint, style=style,
                filled=i == 1,
            )
        )  # fmt: skip
    return out


def _panel(cells: Sequence[Sequence[Row | None]], colour: str) -> Panel:
    series = _arms(cells, colour)
    return Panel(title="", series=series, reference=None, least_span=20.0, ceiling=100.0)


def _change(change: Row) -> tuple[str, str, Cell]:
    words = estimate(change, 1, scale=100.0, signed=True)
    return "change, points", words, ends(change, 100.0)[0]


def _turns(mode: str, meaning: str, name: str, axis: Row, level: float) -> Figure:
    words, colour, _ = _SIDES[name]
    groups = [step["comparison"] for step in axis["steps"]]
    cells = [(group["base_rate"], group["tuned_rate"]) for group in groups]
    changes = [estimate(group["difference"], 1, scale=100.0, signed=True) for group in groups]
    least, most = axis["opening"]
    opening = f"{least}" if least == most else f"{least} to {most}"
    return curve_figure(
        _panel(cells, colour),
        [step["step"] for step in axis["steps"]],
        key=f"{mode}-{name}-turns",
        title=f"Refusals by step: {words}",
        unit="turns refused, %",
        place="step",
        names=[
            f"step {step['step']}, change {change} points"
            for step, change in zip(axis["steps"], changes, strict=True)
        ],
        caption=f"How often each model refuses as the request builds up; {meaning}.",
        definition=f"Over {axis['n']} conversations of {axis['n_intents']} intents. Steps are user "
        "turns, counted from the one in which a conversation parts from its harmless twin; the "
        f"turns before ({opening}) are the same in both. Bands: {percent(level)} intervals of "
        "single steps.",
        digits=1,
        span=_SHARES,
    )


def _hazard(mode: str, key: str, name: str, axis: Row) -> Figure:
    words, colour, _ = _SIDES[name]
    title, unit, caption, definition = _HAZARDS[key]
    cells = [[step["hazard"][arm][key] for arm in ("base", "tuned")] for step in axis["steps"]]
    return curve_figure(
        _panel(cells, colour),
        [step["step"] for step in axis["steps"]],
        key=f"{mode}-{name}-{key.replace('_', '-')}",
        title=f"{title}: {words}",
        unit=unit,
        place="step",
        caption=caption,
        definition=definition,
        digits=1,
        span=_SHARES,
        link=f"{mode}-step",
    )


def _endings(mode: str, name: str, axis: Row) -> Figure:
    words, _, colour = _SIDES[name]
    rows = []
    for key, label in _ENDS:
        found = axis[key]
        change = found["difference"]
        rows.append(
            ChartRow(
                label=label,
                marks=[
                    Mark(name="base", cell=found["base"], colour=colour, form="ring"),
                    Mark(name="tuned", cell=found["tuned"], colour=colour),
                ],
                joined=True,
                text=estimate(change, 0, scale=100.0, signed=True, interval=False),
                extra=[_change(change)],
            )
        )
    held = axis["turns_held"]
    after = ""
    if held["base"]["value"] is not None:
        after = (
            f" Turns held before the first answer: base {estimate(held['base'], 2)}, tuned "
            f"{estimate(held['tuned'], 2)}."
        )
    return rows_figure(
        rows,
        key=f"{mode}-{name}-ends",
        title=f"How conversations went: {words}",
        unit="of the conversations, %",
        first="what happened",
        caption="From base (ring) to tuned (dot); at the right the paired change in points."
        + after,
        text_title="change",
        span=(0.0, 100.0),
        scale=100.0,
        digits=1,
    )
