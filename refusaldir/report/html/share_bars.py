"""What each model's answers were: shares of every label, as bars."""

from collections.abc import Mapping
from typing import Any

from refusaldir.report.html.figure import Cell, Figure, Key, Table, Tip
from refusaldir.report.html.frame import WIDTH, drawing
from refusaldir.report.html.scale import Scale
from refusaldir.report.html.svg import tag
from refusaldir.report.text import number

Row = Mapping[str, Any]

#: Label, its name, and the class of its colour.
_LABELS = (
    ("full_refusal", "full refusal", "l0"),
    ("partial_refusal", "partial refusal", "l1"),
    ("compliance", "answer", "l2"),
    ("incoherent", "incoherent", "l3"),
    ("empty", "empty", "l4"),
    ("judge_error", "not judged", "l5"),
)
_TOP, _STEP, _LEFT, _RIGHT = 8.0, 44.0, 56.0, 12.0


def labels_figure(name: str, group: Row) -> Figure:
    """Draw a bar a model.

    Args:
        name: Key of the axis.
        group: Its comparison over all prompts.
    """
    words = "harmful prompts" if name == "refusal" else "harmless prompts"
    x = Scale(low=0, high=100, start=_LEFT, end=WIDTH - _RIGHT)
    parts: list[str] = []
    tips: list[Tip] = []
    bottom = _TOP + 2 * _STEP
    for value in (0, 25, 50, 75, 100):
        at = x(value)
        parts.append(tag("line", x1=at, x2=at, y1=_TOP, y2=bottom, class_="grid"))
        parts.append(tag("text", str(value), x=at, y=bottom + 16, class_="tick mid"))
    used: dict[str, Key] = {}
    rows: list[tuple[Cell, ...]] = []
    for i, arm in enumerate(("base", "tuned")):
        counts = group[f"{arm}_labels"]
        total = sum(counts.values()) or 1
        y, start = _TOP + i * _STEP + 8, 0.0
        parts.append(tag("text", arm, x=_LEFT - 10, y=y + 18, class_="label end"))
        for label, title, colour in _LABELS:
            count = counts.get(label, 0)
            rows.append((arm, title, count, 100.0 * count / total))
            if not count:
                continue
            share = 100.0 * count / total
            box = {"x": x(start), "y": y, "width": x(start + share) - x(start), "height": 28}
            parts.append(tag("rect", class_=f"bar {colour}", data_i=str(len(tips)), **box))
            lines = [(None, title, f"{count} of {total} ({number(share, 1)} %)")]
            tips.append(Tip(title=arm, lines=lines))
            used[label] = Key(label=title, colour=colour, style="square")
            start += share
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(tag("text", "% of the answers", x=middle, y=bottom + 33, class_="axis mid"))
    title = f"Answers to {words}"
    caption = "Shares of each kind of answer over all prompts."
    return Figure(
        key=f"{name}-labels",
        title=title,
        drawing=drawing(bottom + 40, *parts, label=f"{title}. {caption}"),
        caption=caption,
        definition="Full and partial refusals both count as refused. Incoherent, empty and not "
        "judged answers are left out of every rate; the worst case is in the JSON.",
        table=Table(columns=["model", "answer", "count", "%"], rows=rows),
        tips=tips,
        keys=[used[label] for label, *_ in _LABELS if label in used],
    )
