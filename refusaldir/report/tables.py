"""Terminal tables of a diff document, as rich renderables.

Everything is built from the document, so that ``refusaldir show`` redraws what ``refusaldir
diff`` printed. Tables fit 80 columns; a wider terminal gets more intervals, a narrower one fewer
columns, and no number is ever wrapped or cut. Colours, their absence (``NO_COLOR``) and
terminals are left to rich.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from refusaldir.drift.floors import FLOOR_COSINE, FLOOR_NORM, FLOOR_SD
from refusaldir.report.capture_table import capture_table
from refusaldir.report.handle_table import handle_table
from refusaldir.report.layout import (
    PROSE_WIDTH,
    Bullet,
    Widest,
    add_numbers,
    estimate,
    heading,
    notes,
    select_layers,
    table,
)
from refusaldir.report.precision_table import precision_table
from refusaldir.report.text import (
    ALPHA,
    AXIS_TITLES,
    category_order,
    model_names,
    number,
    passes_holm,
    percent,
    visible,
)

__all__ = [
    "behaviour_tables",
    "capture_table",
    "diff_report",
    "drift_table",
    "ranking_table",
    "verdict_panel",
]

Row = Mapping[str, Any]

#: How far an interval must stay away from "no change" to be marked.
FLOORS = {"rotation": FLOOR_COSINE, "length": FLOOR_NORM, "shift": FLOOR_SD}


def diff_report(document: Row) -> RenderableType:
    """Return everything a diff document says, for a terminal.

    Args:
        document: A diff document (see `refusaldir.report.document`).

    Returns:
        A rich renderable: verdict, drift by layer, ranked layers and, where they were measured,
        what precision alone does, what each model's direction does in both, and behaviour by
        category.
    """
    parts: list[RenderableType] = [verdict_panel(document), drift_table(document)]
    if document["drift"]["ranking"]:
        parts.append(ranking_table(document))
    if document["precision"] is not None and document["precision"]["like_with_like"]:
        parts.append(precision_table(document))
    if document["causality"] is not None and document["causality"]["handles"] is not None:
        parts.append(handle_table(document["causality"]))
    if document["behaviour"] is not None:
        parts.extend(behaviour_tables(document))
    return Group(*parts)


def verdict_panel(document: Row) -> RenderableType:
    """Return the verdict in words: what drifted, where, what changed, how sure, what is open."""
    verdict = document["verdict"]
    lines: list[RenderableType] = [Text(visible(verdict["headline"]), style="bold")]
    for key, title in (
        ("drift", "What drifted"),
        ("layers", "Which layers"),
        ("context", "What to hold it against"),
        ("causality", "What causes refusal"),
        ("behaviour", "What changed in behaviour"),
        ("certainty", "How sure"),
        ("limits", "What this cannot tell"),
    ):
        if verdict[key]:
            lines.append(heading(title))
            for sentence in verdict[key]:
                lines.append(Padding(Bullet(visible(sentence)), (0, 0, 0, 1)))
    panel = Panel(Group(*lines), title=Text(model_names(document)), title_align="left")
    return Constrain(panel, PROSE_WIDTH)


def drift_table(document: Row) -> RenderableType:
    """Return the drift table: a row per layer, the chosen layer marked."""
    drift = document["drift"]
    site = drift["site"]
    top = [entry["layer"] for entry in drift["ranking"][:5]]
    rows, left_out = select_layers(drift["layers"], [site["layer"], *top])
    level = percent(drift["level"]).replace(" ", "")
    layouts = [
        _drift_layout(rows, site["layer"], level, columns)
        for columns in (
            ("rotation+", "raw", "length+", "harmful+", "harmless+", "base+", "refit+"),
            ("rotation+", "raw", "length+", "harmful+", "harmless+", "base", "refit"),
            ("rotation+", "raw", "length", "harmful", "harmless", "base", "refit"),
            ("rotation+", "raw", "length"),
            ("rotation", "raw"),
            ("rotation",),
        )
    ]
    lines = [
        f"At {drift['hook']}, token {number(site['position'], 0)} "
        f"({visible(site['token'])}). ▸ layer {site['layer']}: {site['reason']}.",
        "rotation: corrected cosine of base and tuned direction; raw: uncorrected; length: of "
        "tuned over base; shift: of a class mean along the base direction, in base SDs; AUROC: "
        "held out, on tuned activations, along base's direction and a refitted one.",
        f"[{level}]: interval of one layer by itself. *: it leaves out “no change” (rotation 1, "
        "length 1, shift 0).",
    ]
    if any(row["rotation"]["value"] is None for row in rows):
        lines.append("–: cannot be estimated there; the JSON says why.")
    return Group(
        heading("Drift of the refusal direction by layer"),
        Widest(*layouts),
        notes([*lines, *([left_out] if left_out else [])]),
    )


def _drift_layout(rows: Sequence[Row], chosen: int, level: str, columns: Sequence[str]) -> Table:
    """Build one layout; a ``+`` after a column's name asks for its interval."""
    titles = {
        "rotation": "rotation",
        "raw": "raw\ncosine",
        "length": "length\nratio",
        "harmful": "shift\nharmful",
        "harmless": "shift\nharmless",
        "base": "AUROC\nbase",
        "refit": "AUROC\nrefit",
    }
    layout = table()
    add_numbers(layout, "layer")
    for name in columns:
        title = titles[name.rstrip("+")]
        add_numbers(layout, f"{title} [{level}]" if name.endswith("+") else title)
    for row in rows:
        cells = {
            "rotation": (row["rotation"], 3, 1.0, FLOORS["rotation"]),
            "raw": (row["rotation_raw"], 3, None, 0.0),
            "length": (row["shrinkage"], 2, 1.0, FLOORS["length"]),
            "harmful": (row["translation"]["harmful"], 2, 0.0, FLOORS["shift"]),
            "harmless": (row["translation"]["harmless"], 2, 0.0, FLOORS["shift"]),
            "base": (row["auroc"]["base_direction_on_tuned"], 3, None, 0.0),
            "refit": (row["auroc"]["tuned_direction_on_tuned"], 3, None, 0.0),
        }
        texts = []
        for name in columns:
            cell, digits, no_change, floor = cells[name.rstrip("+")]
            text = estimate(cell, digits, interval=name.endswith("+"))
            mark = "" if no_change is None else "*" if beyond(cell, no_change, floor) else " "
            texts.append(text + mark)
        here = row["layer"] == chosen
        style = "bold" if here else "dim" if row["rotation"]["value"] is None else ""
        label = f"▸ {row['layer']}" if here else str(row["layer"])
        layout.add_row(Text(label), *map(Text, texts), style=style)
    return layout


def ranking_table(document: Row, *, limit: int = 10) -> RenderableType:
    """Return the layers ranked by how far the direction rotated there."""
    drift = document["drift"]
    entries = drift["ranking"]
    level = percent(drift["level"]).replace(" ", "")
    layout = table()
    for title in ("rank", "layer", f"1 − cosine [{level}]", f"added by this layer [{level}]"):
        add_numbers(layout, title)
    floor = FLOORS["rotation"]
    for entry in entries[:limit]:
        cells = [entry["drift"], entry["increment"]]
        texts = [
            "–" if cell is None else estimate(cell, 3) + ("*" if beyond(cell, 0.0, floor) else " ")
            for cell in cells
        ]
        layout.add_row(str(entry["rank"]), str(entry["layer"]), *map(Text, texts))
    lines = [drift["ranking_rule"]]
    if len(entries) > limit:
        lines.append(f"The first {limit} of {len(entries)} layers; all are in the JSON.")
    return Group(heading("Layers, most drifted first"), layout, notes(lines))


def behaviour_tables(document: Row) -> list[RenderableType]:
    """Return a table per axis of behaviour (rates by category, paired change, Holm p).

    A last one has the change of the refusal score, where it was measured.
    """
    behaviour = document["behaviour"]
    order = category_order(behaviour)
    axes = {name: axis for name, axis in behaviour["axes"].items() if axis is not None}
    tables = [
        _behaviour_table(title, axes[name], order, behaviour["test"])
        for name, title in AXIS_TITLES.items()
        if name in axes
    ]
    if any(axis["overall"]["score_difference"] is not None for axis in axes.values()):
        tables.append(_score_table(behaviour, axes, order))
    return tables


def _score_table(behaviour: Row, axes: Mapping[str, Row], order: Sequence[str]) -> RenderableType:
    """Change of the first-token refusal score by category, harmful and harmless side by side."""
    sides = {"refusal": "harmful", "over_refusal": "harmless"}
    names = [name for name in sides if name in axes]
    tables = []
    for interval in (True, False):
        layout = table()
        layout.add_column("category", overflow="fold", min_width=10, max_width=25)
        for name in names:
            cell = axes[name]["overall"]["score_difference"]
            level = percent(cell["level"]).replace(" ", "") if cell else ""
            add_numbers(layout, f"{sides[name]} [{level}]" if interval and level else sides[name])
        rows = {
            name: {
                row["category"]: row for row in [axes[name]["overall"], *axes[name]["categories"]]
            }
            for name in names
        }
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


def _behaviour_table(title: str, axis: Row, order: Sequence[str], test: str) -> RenderableType:
    lines = [
        f"Share refused, fully or partly. Change: tuned minus base on the same prompts, in "
        f"points. p: McNemar, {test}; by category after Holm's correction. *: p < {ALPHA}."
    ]
    overall = axis["overall"]
    unjudged = overall["n"] - overall["n_paired"]
    if unjudged:
        counts = ", ".join(
            f"{arm} {label.replace('_', ' ')} {overall[f'{arm}_labels'][label]}"
            for arm in ("base", "tuned")
            for label in ("incoherent", "empty", "judge_error")
            if overall[f"{arm}_labels"].get(label)
        )
        lines.append(f"{unjudged} prompts left out because a response says nothing: {counts}.")
    layouts = [_behaviour_layout(axis, order, narrow=narrow) for narrow in (False, True)]
    return Group(heading(title), Widest(*layouts), notes(lines))


def _behaviour_layout(axis: Row, order: Sequence[str], *, narrow: bool) -> Table:
    overall = axis["overall"]
    level = percent(overall["difference"]["level"]).replace(" ", "")
    layout = table()
    # 25 columns leave 80 for the whole; longer names go on in the next line.
    layout.add_column("category", overflow="fold", min_width=10, max_width=25)
    for title in ("change",) if narrow else ("n", "base %", "tuned %", f"change [{level}]", "p"):
        add_numbers(layout, title)
    rows = sorted(axis["categories"], key=lambda row: order.index(row["category"]))
    for i, row in enumerate([overall, *rows]):
        p = row["p_holm"] if i else row["p_value"]
        mark = "*" if (passes_holm(row) if i else p is not None and p < ALPHA) else " "
        change = estimate(row["difference"], 1, interval=not narrow, scale=100.0, signed=True)
        texts = [
            str(row["n_paired"]),
            number(row["base_rate"]["value"], 1, scale=100.0),
            number(row["tuned_rate"]["value"], 1, scale=100.0),
            change,
            _p_value(p) + mark,
        ]
        texts = [change + mark] if narrow else texts
        name = Text(visible(row["category"]) if i else "all prompts")
        layout.add_row(name, *map(Text, texts), style="" if i else "bold", end_section=i == 0)
    return layout


def beyond(cell: Row, no_change: float, floor: float) -> bool:
    """Whether an interval leaves out "no change" by more than a floor."""
    low, high = cell["lower"], cell["upper"]
    if cell["value"] is None or low is None or high is None:
        return False
    return bool(low > no_change + floor or high < no_change - floor)


def _p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{min(p, 1.0):.3f}"
