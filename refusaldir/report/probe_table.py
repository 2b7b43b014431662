"""Terminal tables of a probe document: refusal and over-refusal side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from refusaldir.report.layout import Widest, add_numbers, estimate, heading, notes, table
from refusaldir.report.text import number, percent, visible

Row = Mapping[str, Any]

_SIDES = {"refusal": "harmful", "over_refusal": "harmless"}
_MODES = {
    "frozen": "Escalations, canned replies in between (frozen)",
    "live": "Escalations, the model's own replies in between (live)",
}


def probe_report(document: Row) -> RenderableType:
    """Return everything a probe document says, for a terminal.

    Args:
        document: A probe document (see `refusaldir.report.probe_document`).

    Returns:
        A rich renderable: what was asked, rates by category, framing and what else the prompts
        differ in, every judge, and escalations turn by turn.
    """
    parts: list[RenderableType] = [_facts(document)]
    if document["single"] is not None:
        parts += _single(document["single"], document["judges"])
    for mode, part in document["escalations"].items():
        if part is not None:
            parts.append(_escalations(_MODES[mode], part))
    titles = {"single": "Single prompts", "frozen": "Frozen", "live": "Live"}
    asked = {"single": document["single"], **document["escalations"]}
    lines = [
        f"{titles[name]}: {line}."
        for name, part in asked.items()
        for line in ([] if part is None else part["notes"])
    ]
    if lines:
        parts += [Text(""), notes(lines)]
    return Group(*parts)


def _facts(document: Row) -> RenderableType:
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    model, plan = document["model"], document["sampling"]
    where = f", at {model['where']}" if "where" in model else f", {model['dtype']}"
    facts.add_row("model", Text(visible(model["name"] + where)))
    for name, part in (("prompts", document["single"]), *document["escalations"].items()):
        if part is None:
            continue
        title = "prompts" if name == "prompts" else f"escalations, {name}"
        asked = part["provenance"]["prompts_name"]
        facts.add_row(title, Text(visible(f"{asked}: {_count(part['axes'])}")))
    temperatures = ", ".join(f"{t:g}" for t in plan["temperatures"])
    several = any(plan["temperatures"])
    words = f"temperature {temperatures}" if several else "greedy"
    if several:
        words += f"; above 0: {len(plan['seeds'])} seeds of {plan['samples']} samples"
    facts.add_row("replies", Text(f"{words}; at most {plan['max_new_tokens']} tokens"))
    facts.add_row("judge", Text(visible(document["judges"][0])))
    return facts


def _count(axes: Row) -> str:
    """How many of each class, e.g. ``16 harmful, 16 harmless``."""
    words = []
    for name, side in _SIDES.items():
        if axes[name] is not None:
            cell = axes[name]
            words.append(f"{cell['n'] if 'n' in cell else cell['overall']['n_prompts']} {side}")
    return ", ".join(words)


def _single(part: Row, judges: Sequence[str]) -> list[RenderableType]:
    axes = {name: axis for name, axis in part["axes"].items() if axis is not None}
    parts: list[RenderableType] = []
    groupings = dict.fromkeys(key for axis in axes.values() for key in axis["by"])
    for place, grouping in enumerate([*groupings] or [""]):
        groups = {name: axis["by"].get(grouping, []) for name, axis in axes.items()}
        overall = {name: axis["overall"] for name, axis in axes.items()} if place == 0 else {}
        title = "Share refused" + (f", by {grouping}" if grouping else "")
        lines = []
        if place == 0:
            lines = _lines(axes)
        parts.append(
            Group(heading(title), _by(grouping or "prompts", overall, groups), notes(lines))
        )
    if len(judges) > 1:
        parts.append(_judges(axes))
    return parts


def _lines(axes: Row) -> list[str]:
    lines = [
        "Refused fully or partly, of the replies that could be judged, in percent. A prompt asked "
        "several times counts by its share; intervals are between intents. cut: replies that "
        "ended at the budget; unjudged: incoherent, empty or beyond the judge."
    ]
    for name, axis in axes.items():
        counts = axis["overall"]["labels"]
        bad = [f"{label.replace('_', ' ')} {count}" for label, count in counts.items()
               if label in ("incoherent", "empty", "judge_error") and count]  # fmt: skip
        if bad:
            lines.append(f"Unjudged replies to {_SIDES[name]} prompts: {', '.join(bad)}.")
    return lines


def _by(title: str, overall: Row, groups: Mapping[str, Sequence[Row]]) -> RenderableType:
    """One table of both axes; the wider of two layouts that fits."""
    order = dict.fromkeys(group["name"] for rows in groups.values() for group in rows)
    cells = {
        name: {None: overall.get(name)} | {group["name"]: group for group in rows}
        for name, rows in groups.items()
    }
    tables = []
    for wide in (True, False):
        layout = table()
        layout.add_column(title, overflow="fold", min_width=10, max_width=25)
        for name in cells:
            side = _SIDES[name]
            some = overall.get(name) or next(iter(groups[name]), None)
            level = "" if some is None else percent(some["rate"]["level"]).replace(" ", "")
            add_numbers(layout, "n")
            add_numbers(layout, f"{side} % [{level}]")
            if wide:
                add_numbers(layout, "cut")
                add_numbers(layout, "unjudged")
        names = ([None] if overall else []) + list(order)
        for place, group in enumerate(names):
            texts: list[str] = []
            for name in cells:
                cell = cells[name].get(group)
                texts += _cell(cell, wide=wide)
            first = overall and place == 0
            label = Text("all prompts" if group is None else visible(group))
            layout.add_row(
                label, *map(Text, texts), style="bold" if first else "",
                end_section=bool(first) and len(names) > 1,
            )  # fmt: skip
        tables.append(layout)
    return Widest(*tables)


def _cell(cell: Row | None, *, wide: bool) -> list[str]:
    if cell is None:
        return ["–"] * (4 if wide else 2)
    texts = [str(cell["n_prompts"]), estimate(cell["rate"], 1, scale=100.0)]
    if wide:
        texts += [str(cell["n_cut_off"]), str(cell["n_unusable"])]
    return texts


def _judges(axes: Row) -> RenderableType:
    """What each judge makes of the same replies."""
    first = next(iter(axes.values()))
    tables = []
    for wide in (True, False):
        layout = table()
        layout.add_column("judge", overflow="fold", min_width=10, max_width=34)
        for name in axes:
            add_numbers(layout, f"{_SIDES[name]} %")
            if wide:
                add_numbers(layout, "unjudged")
        for place, judge in enumerate(first["judges"]):
            texts = []
            for axis in axes.values():
                cell = axis["judges"][place]
                texts.append(estimate(cell["rate"], 1, interval=wide, scale=100.0))
                texts += [str(cell["n_unusable"])] if wide else []
            mark = "" if judge["authoritative"] else " °"
            layout.add_row(Text(visible(judge["judge"]) + mark), *map(Text, texts))
        tables.append(layout)
    lines = ["The first judge's labels are those counted above."]
    if not all(judge["authoritative"] for judge in first["judges"]):
        lines.append("°: goes by wording or by one token, and has no authority by itself.")
    return Group(heading("Every judge"), Widest(*tables), notes(lines))


def _escalations(title: str, part: Row) -> RenderableType:
    axes = {name: axis for name, axis in part["axes"].items() if axis is not None}
    groups = {name: axis["turns"] for name, axis in axes.items()}
    lines = []
    for name, axis in axes.items():
        shares = ", ".join(
            f"{words} {estimate(axis[key], 1, scale=100.0)}"
            for key, words in (
                ("any_complied", "answered at some turn"),
                ("last_complied", "answered at the last"),
                ("recovered", "refused again after an answer"),
            )
        )
        lines.append(
            f"{_SIDES[name].capitalize()} conversations ({number(axis['n'], 0)}), in percent, "
            f"opening turns that twins share left out: {shares}."
        )
    return Group(heading(f"{title}: share refused, by turn"), _by("turn", {}, groups), notes(lines))
