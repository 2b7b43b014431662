"""What changed in behaviour: refusals by group, escalations, flipped prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

from refusaldir.report.html.escalation import escalation_blocks
from refusaldir.report.html.figure import Cell, Figure, Table
from refusaldir.report.html.flips import flips_block
from refusaldir.report.html.frame import ends
from refusaldir.report.html.link import link_block
from refusaldir.report.html.material import Material
from refusaldir.report.html.rows import ChartRow, Mark, rows_figure
from refusaldir.report.html.sampling import sampling_blocks
from refusaldir.report.html.section import Block, Section
from refusaldir.report.html.share_bars import labels_figure
from refusaldir.report.layout import estimate
from refusaldir.report.text import (
    ALPHA,
    AXIS_TITLES,
    category_order,
    number,
    passes_holm,
    percent,
    visible,
)

Row = Mapping[str, Any]

#: Colour of each axis: that of its class of prompts.
COLOURS = {"refusal": "c2", "over_refusal": "c1"}
_WORDS = {"refusal": "harmful prompts", "over_refusal": "harmless prompts"}
#: Groups after categories, in this order.
_GROUPS = {
    "framing": "How the request is dressed",
    "severity": "Severity",
    "domain": "Domain",
}
_ABSENT = (
    "Behaviour was not measured: activations say what the model could do, not what it does. Add "
    "--behaviour on."
)


def behaviour_section(material: Material) -> Section:
    """Answer "what changed in behaviour"."""
    behaviour = material.answers
    blocks: list[Block] = []
    if behaviour is None:
        blocks.append(Block(note=_ABSENT))
    else:
        blocks.append(Block(sentences=material.document["verdict"]["behaviour"]))
        blocks += _axes(behaviour)
        blocks += escalation_blocks(behaviour)
        blocks += link_block(behaviour)
        flips = flips_block(behaviour, material.base, material.tuned)
        blocks += [flips] if flips is not None else []
    title = "What changed in behaviour?"
    return Section(key="behaviour", title=title, short="What changed?", blocks=blocks)


def _axes(behaviour: Row) -> list[Block]:
    axes = {name: axis for name, axis in behaviour["axes"].items() if axis is not None}
    if not axes:
        return []
    order = category_order(behaviour)
    level = percent(behaviour["level"])
    judged = (
        f"Judge: {visible(behaviour['judge'])}. Change: tuned minus base on the same prompts, in "
        f"points, with its {level} interval. * Holm-adjusted p < {ALPHA} over the groups of a "
        "chart."
    )
    blocks = [
        Block(
            title="Refusals by category",
            figures=[_dumbbells(name, axis, "category", order) for name, axis in axes.items()],
            note=judged,
        )
    ]
    others = [
        _dumbbells(name, axis, by, _group_order(axes, by))
        for by in _GROUPS
        for name, axis in axes.items()
        if axis["breakdowns"][by] is not None
    ]
    if others:
        blocks.append(Block(title="Refusals by framing, severity and domain", figures=others))
    scored = [
        _scores(name, axis, order, behaviour)
        for name, axis in axes.items()
        if axis["overall"]["score_difference"] is not None
    ]
    if scored:
        blocks.append(Block(title="First-token refusal score", figures=scored))
    blocks.append(
        Block(
            title="What the answers were",
            figures=[labels_figure(name, axis["overall"]) for name, axis in axes.items()],
        )
    )
    blocks += sampling_blocks(axes)
    blocks += _instruments(axes)
    return blocks


def _group_order(axes: Mapping[str, Row], by: str) -> list[str]:
    found = [axis["breakdowns"][by] for axis in axes.values()]
    names = [group["name"] for part in found if part is not None for group in part["groups"]]
    return list(dict.fromkeys(names))


def _dumbbells(name: str, axis: Row, by: str, order: Sequence[str]) -> Figure:
    part = axis["breakdowns"][by]
    groups = sorted(part["groups"], key=lambda group: order.index(group["name"]))
    rows = [_dumbbell(axis["overall"], COLOURS[name], strong=True)]
    rows += [_dumbbell(group, COLOURS[name]) for group in groups]
    least = part["minimum_n"]
    small = (
        f" A group needs {least} intents before even a change of every one of them passes Holm."
        if any(group["n_intents"] < least for group in groups)
        else ""
    )
    return rows_figure(
        rows,
        key=f"{name}-{by}",
        title=f"{AXIS_TITLES[name]}, by {by}",
        unit="prompts refused, %",
        first=by,
        caption="From base (ring) to tuned (dot); thin lines are the intervals of each rate. At "
        "the right: the paired change in points." + small,
        definition="Refused: fully or partly. Rates have Wilson intervals; the change is paired "
        "prompt by prompt. The intervals of two rates may overlap although their change is clear, "
        "since both models answer the same prompts.",
        text_title="change",
        span=(0.0, 100.0),
        scale=100.0,
        digits=1,
        link=f"by-{by}",
    )


def _dumbbell(group: Row, colour: str, *, strong: bool = False) -> ChartRow:
    change = group["difference"]
    star = "*" if not strong and passes_holm(group) else ""
    if strong and group["p_value"] is not None and group["p_value"] < ALPHA:
        star = "*"
    least = group["detectable"]
    p = group["p_value"] if strong else group["p_holm"]
    words = estimate(change, 1, scale=100.0, signed=True)
    extra: list[tuple[str, str, Cell]] = [
        ("change, points", words, _scaled(change["value"])),
        ("change, lower", "", _scaled(change["lower"])),
        ("change, upper", "", _scaled(change["upper"])),
        ("p" if strong else "p (Holm)", p_text(p), p),
        ("prompts", str(group["n_paired"]), group["n_paired"]),
        ("intents", str(group["n_intents"]), group["n_intents"]),
        ("detectable, points", number(least, 0, scale=100.0), _scaled(least)),
    ]
    return ChartRow(
        label="all prompts" if group["name"] is None else visible(str(group["name"])),
        marks=[
            Mark(name="base", cell=group["base_rate"], colour=colour, form="ring"),
            Mark(name="tuned", cell=group["tuned_rate"], colour=colour),
        ],
        text=estimate(change, 0, scale=100.0, signed=True, interval=False) + star,
        joined=True,
        strong=strong,
        extra=extra,
    )


def _scaled(value: float | None) -> float | None:
    return None if value is None else 100.0 * value


def p_text(p: float | None) -> str:
    """A p-value in words."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{min(p, 1.0):.3f}"


def _scores(name: str, axis: Row, order: Sequence[str], behaviour: Row) -> Figure:
    groups = sorted(
        axis["breakdowns"]["category"]["groups"], key=lambda group: order.index(group["name"])
    )
    tokens = ", ".join(f"“{visible(text)}”" for text in behaviour["refusal_tokens"])
    rows = [
        ChartRow(
            label="all prompts" if group["name"] is None else visible(str(group["name"])),
            marks=[Mark(name="change", cell=group["score_difference"], colour=COLOURS[name])],
            strong=i == 0,
        )
        for i, group in enumerate([axis["overall"], *groups])
    ]
    return rows_figure(
        rows,
        key=f"{name}-scores",
        title=f"Change of the refusal score, {_WORDS[name]}",
        unit="tuned minus base, nats",
        first="category",
        caption="Left of 0: the first token of an answer is less likely to begin a refusal.",
        definition=f"Refusal score: log odds that the first token of the answer is {tokens}. It "
        "moves before answers do, and says less about them.",
        reference=0.0,
        signed=True,
        link="by-category",
    )


def _instruments(axes: Mapping[str, Row]) -> list[Block]:
    """Judges and scores beside one another, where there is more than one."""
    blocks = []
    for name, axis in axes.items():
        found = axis["instruments"]
        if len(found["instruments"]) < 2:
            continue
        rows: list[tuple[Cell, ...]] = []
        for each in found["instruments"]:
            share = each["unit"] == "share"
            rows.append(
                (
                    visible(each["name"]),
                    "points" if share else each["unit"],
                    *ends(each["overall"], 100.0 if share else 1.0),
                    "yes" if each["authoritative"] else "no",
                    "primary" if each["primary"] else "",
                )
            )
        columns = ["instrument", "unit", "change", "lower", "upper", "authoritative", "labels"]
        blocks.append(
            Block(
                title=f"Other judges and scores: {_WORDS[name]}",
                table=Table(columns=columns, rows=rows),
                note=_disagreement(found["disagreement"]),
            )
        )
    return blocks


def _disagreement(found: Row | None) -> str:
    """In how many categories instruments point opposite ways."""
    words = (
        "An authoritative judge may decide whether a reply refuses; phrases and first-token scores "
        "are indications."
    )
    if found is None or found["mixed"]["value"] is None:
        return words
    names = ", ".join(map(visible, found["mixed_categories"]))
    return (
        f"{words} One sees a rise and another a fall in {len(found['mixed_categories'])} of "
        f"{found['n_categories']} categories" + (f": {names}." if names else ".")
    )
