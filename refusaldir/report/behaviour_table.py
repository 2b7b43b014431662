"""Terminal tables of behaviour: both axes, escalations, and what other instruments say.

Categories and framings always show; severities and domains where one of them changed. Tables fit
80 columns; a wider terminal gets more columns, a narrower one fewer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from refusaldir.report.behaviour_verdict import points, variance_words
from refusaldir.report.layout import Widest, add_numbers, estimate, heading, notes, table
from refusaldir.report.link_table import link_tables
from refusaldir.report.text import (
    ALPHA,
    AXIS_TITLES,
    category_order,
    number,
    passes_holm,
    percent,
    visible,
)
from refusaldir.report.verdict_panel import verdict_panel

Row = Mapping[str, Any]

#: Breakdowns beside the categories that always show where there are any.
_ALWAYS = ("framing",)

#: Columns of the axes' tables, from wide to narrow.
_COLUMNS = (
    ("n", "base %", "tuned %", "change+", "p", "flips"),
    ("n", "base %", "tuned %", "change+", "p"),
    ("change",),
)

_ESCALATION_COLUMNS = (
    ("n", "base %", "tuned %", "change+", "p", "by base %", "by tuned %"),
    ("n", "base %", "tuned %", "change+", "p"),
    ("change",),
)


def behaviour_report(document: Row) -> RenderableType:
    """Return everything a behaviour document says: the verdict, then the tables.

    Args:
        document: From `refusaldir.report.behaviour_document`.
    """
    return Group(verdict_panel(document), *behaviour_tables(document), *link_tables(document))


def behaviour_tables(document: Row) -> list[RenderableType]:
    """Return a table for each axis and for each mode of escalations, then one of the scores.

    Args:
        document: A diff or behaviour document whose ``behaviour`` is not null.
    """
    behaviour = document["behaviour"]
    order = category_order(behaviour)
    axes = {name: axis for name, axis in behaviour["axes"].items() if axis is not None}
    tables = [
        _axis_table(title, axes[name], order, behaviour["test"])
        for name, title in AXIS_TITLES.items()
        if name in axes
    ]
    tables += [
        _escalation_table(mode, part["axes"]["refusal"], part["axes"]["over_refusal"])
        for mode, part in behaviour["escalations"].items()
        if part is not None and part["axes"]["refusal"] is not None
    ]
    if any(axis["overall"]["score_difference"] is not None for axis in axes.values()):
        tables.append(_score_table(behaviour, axes, order))
    return tables


def _axis_table(title: str, axis: Row, order: Sequence[str], test: str) -> RenderableType:
    overall = axis["overall"]
    lines = [
        "Share refused, fully or partly. Change: tuned minus base on the same prompts, in points. "
        f"p: {_test_words(overall, test)}; by group after Holm's correction over the groups of "
        f"that kind. *: p < {ALPHA}.",
        f"Flips: {overall['flips_to_answer']} prompts to an answer, {overall['flips_to_refusal']} "
        "to a refusal.",
    ]
    unjudged = overall["n"] - overall["n_paired"]
    if unjudged:
        counts = ", ".join(
            f"{arm} {label.replace('_', ' ')} {overall[f'{arm}_labels'][label]}"
            for arm in ("base", "tuned")
            for label in ("incoherent", "empty", "judge_error")
            if overall[f"{arm}_labels"].get(label)
        )
        lines.append(f"{unjudged} prompts left out because a response says nothing: {counts}.")
    parts = _variance_line(axis), _instruments_line(axis), _secondary_line(axis)
    lines += [line for line in parts if line]
    layouts = [_axis_layout(axis, order, columns) for columns in _COLUMNS]
    return Group(heading(title), Widest(*layouts), notes(lines))


def _test_words(row: Row, test: str) -> str:
    single = row["n_intents"] == row["n_paired"]
    return f"McNemar, {test}" if single else f"signs of whole intents flipped, {test}"


def _axis_layout(axis: Row, order: Sequence[str], columns: Sequence[str]) -> Table:
    layout = table()
    # 25 columns leave 80 for the whole; longer names go on in the next line.
    layout.add_column("group", overflow="fold", min_width=10, max_width=25)
    _add_columns(layout, columns, axis["overall"]["difference"]["level"])
    sections = [list(section) for section in _sections(axis, order)]
    for number_of, section in enumerate(sections):
        for i, (name, row) in enumerate(section):
            layout.add_row(
                Text(visible(name)),
                *_cells(row, columns),
                style="" if number_of else "bold",
                end_section=i == len(section) - 1,
            )
    return layout


def _sections(axis: Row, order: Sequence[str]) -> Iterator[Iterator[tuple[str, Row]]]:
    """Rows of the table in sections: all prompts, categories, then what else says something."""
    yield iter([("all prompts", axis["overall"])])
    groups = axis["breakdowns"]["category"]["groups"]
    yield ((r["name"], r) for r in sorted(groups, key=lambda row: order.index(row["name"])))
    for by, breakdown in axis["breakdowns"].items():
        if by == "category" or breakdown is None:
            continue
        if by in _ALWAYS or any(map(passes_holm, breakdown["groups"])):
            yield ((f"{by} {row['name']}", row) for row in breakdown["groups"])
    sampling = axis["sampling"]
    if sampling is not None and len(sampling["temperatures"]) > 1:
        yield (
            (f"temperature {one['temperature']:g}", one["comparison"])
            for one in sampling["temperatures"]
        )


def _add_columns(layout: Table, columns: Sequence[str], level: float) -> None:
    for name in columns:
        interval = f" [{percent(level).replace(' ', '')}]" if name.endswith("+") else ""
        add_numbers(layout, name.rstrip("+") + interval)


def _cells(row: Row, columns: Sequence[str]) -> list[Text]:
    adjusted = row["p_holm"] is not None
    p = row["p_holm"] if adjusted else row["p_value"]
    mark = "*" if p is not None and p < ALPHA else " "
    change = {
        interval: estimate(row["difference"], 1, interval=interval, scale=100.0, signed=True)
        for interval in (True, False)
    }
    cells = {
        "n": str(row["n_paired"]),
        "base %": number(row["base_rate"]["value"], 1, scale=100.0),
        "tuned %": number(row["tuned_rate"]["value"], 1, scale=100.0),
        "change+": change[True],
        "change": change[False] + mark,
        "p": _p_value(p) + mark,
        "flips": f"−{row['flips_to_answer']} +{row['flips_to_refusal']}",
    }
    return [Text(cells[name]) for name in columns]


def _variance_line(axis: Row) -> str:
    """How steady outcomes are and where the change varies; empty with one response a prompt."""
    sampling = axis["sampling"]
    if sampling is None:
        return ""
    arms = [sampling["stability"][arm] for arm in ("base", "tuned")]
    line = (
        f"Up to {sampling['replies']} responses a prompt: the outcome flips among them in "
        + " → ".join(estimate(arm["flipping"], 0, scale=100.0) for arm in arms)
        + " % of prompts; one agrees with the majority in "
        + " → ".join(estimate(arm["agreement"], 0, scale=100.0, interval=False) for arm in arms)
        + " %."
    )
    parts = variance_words(sampling["variance"]["change"])
    return line + (f" Variance of the change: {parts}." if parts else "")


def _instruments_line(axis: Row) -> str:
    """What each instrument says of all prompts; empty with one instrument."""
    found = axis["instruments"]
    if found["disagreement"] is None:
        return ""
    parts = []
    for one in found["instruments"]:
        share = one["unit"] == "share"
        change = estimate(
            one["overall"], 1 if share else 2, scale=100.0 if share else 1.0, signed=True
        )
        parts.append(f"{visible(one['name'])} {change}" + ("" if share else " nats"))
    mixed = found["disagreement"]["mixed_categories"]
    taus = [pair["tau"]["value"] for pair in found["disagreement"]["pairs"]]
    known = [tau for tau in taus if tau is not None]
    order = (
        f"; Kendall's τ over categories {number(min(known))}"
        + (f" to {number(max(known))}" if len(known) > 1 else "")
        if known
        else ""
    )
    signs = f"opposite signs in {len(mixed)} of {found['disagreement']['n_categories']} categories"
    return f"By instrument: {'; '.join(parts)}. They have {signs}{order}."


def _secondary_line(axis: Row) -> str:
    """Further scores of the replies, base → tuned; empty without."""
    parts = [
        f"{visible(one['name'])} {number(one['base']['value'], 3)} → "
        f"{number(one['tuned']['value'], 3)} ({estimate(one['difference'], 3, signed=True)}, by "
        f"{visible(one['scorer'])})"
        for one in axis["secondary"]
    ]
    return f"Mean of each response: {'; '.join(parts)}." if parts else ""


def _escalation_table(mode: str, axis: Row, twins: Row | None) -> RenderableType:
    words = {"frozen": "canned assistant turns", "live": "each model's own replies"}[mode]
    layouts = [_escalation_layout(axis, columns) for columns in _ESCALATION_COLUMNS]
    lines = [
        f"{axis['n']} conversations with {words}; turns from the one in which they part from their "
        "harmless twins. Share refused at that turn; by: share that has complied by it. p after "
        f"Holm's correction over the turns. *: p < {ALPHA}.",
        "Whole conversations, base → tuned: " + "; ".join(_measures(axis)) + ".",
    ]
    if twins is not None:
        rates = [twins["last_complied"][arm]["value"] for arm in ("base", "tuned")]
        answered = " → ".join(number(rate, 1, scale=100.0) for rate in rates)
        lines.append(f"Their harmless twins: last turn answered in {answered} %.")
    if axis["note"]:
        lines.append(f"{axis['note'][0].upper()}{axis['note'][1:]}.")
    return Group(heading(f"Harmful escalations, {mode}"), Widest(*layouts), notes(lines))


def _escalation_layout(axis: Row, columns: Sequence[str]) -> Table:
    layout = table()
    add_numbers(layout, "turn")
    _add_columns(layout, columns, axis["any_complied"]["difference"]["level"])
    shared = [name for name in columns if not name.startswith("by ")]
    for step in axis["steps"]:
        cells = dict(zip(shared, _cells(step["comparison"], shared), strict=True))
        for arm in ("base", "tuned"):
            share = step["hazard"][arm]["complied_by"]["value"]
            cells[f"by {arm} %"] = Text(number(share, 1, scale=100.0))
        layout.add_row(str(step["step"]), *(cells[name] for name in columns))
    return layout


def _measures(axis: Row) -> Iterator[str]:
    for key, words in (
        ("any_complied", "complied at some turn"),
        ("last_complied", "at the last"),
        ("recovered", "refused again after complying"),
    ):
        seen = axis[key]
        if seen["difference"]["value"] is None:
            continue
        rates = " → ".join(number(seen[arm]["value"], 1, scale=100.0) for arm in ("base", "tuned"))
        ends = [seen["difference"][end] for end in ("lower", "upper")]
        interval = "" if None in ends else f" [{points(ends[0])}, {points(ends[1])}]"
        yield f"{words} {rates} % ({points(seen['difference']['value'])}{interval})"
    held = axis["turns_held"]
    if held["difference"]["value"] is not None:
        rates = " → ".join(number(held[arm]["value"], 1) for arm in ("base", "tuned"))
        yield f"turns held {rates} ({estimate(held['difference'], 1, signed=True)})"


def _score_table(behaviour: Row, axes: Mapping[str, Row], order: Sequence[str]) -> RenderableType:
    """Change of the first-token refusal score by category, harmful and harmless side by side."""
    sides = {"refusal": "harmful", "over_refusal": "harmless"}
    names = [name for name in sides if name in axes]
    rows = {
        name: {
            row["name"]: row
            for row in [axes[name]["overall"], *axes[name]["breakdowns"]["category"]["groups"]]
        }
        for name in names
    }
    tables = []
    for interval in (True, False):
        layout = table()
        layout.add_column("category", overflow="fold", min_width=10, max_width=25)
        for name in names:
            cell = axes[name]["overall"]["score_difference"]
            level = percent(cell["level"]).replace(" ", "") if cell else ""
            add_numbers(layout, f"{sides[name]} [{level}]" if interval and level else sides[name])
        for i, category in enumerate([None, *order]):
            if not any(category in rows[name] for name in names):
                continue
            cells = [rows[name].get(category, {}).get("score_difference") for name in names]
            texts = [
                "–" if cell is None else estimate(cell, 2, interval=interval, signed=True)
                for cell in cells
            ]
            title = Text("all prompts" if category is None else visible(category))
            layout.add_row(title, *map(Text, texts), style="" if i else "bold", end_section=i == 0)
        tables.append(layout)
    tokens = ", ".join(f"“{visible(text)}”" for text in behaviour["refusal_tokens"])
    line = (
        "Mean change of the refusal score, tuned minus base, in nats: log odds that the first "
        f"token of the response is {tokens}. Below zero: refusal is less likely."
    )
    return Group(heading("First-token refusal score"), Widest(*tables), notes([line]))


def _p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{min(p, 1.0):.3f}"
