"""Which layers a fine-tune disturbed, for a terminal: built from the layers document."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from refusaldir.report.layers_document import by_layer, pair_names
from refusaldir.report.layout import (
    PROSE_WIDTH,
    Bullet,
    Widest,
    add_numbers,
    estimate,
    heading,
    notes,
    table,
)
from refusaldir.report.text import number, percent, visible

Row = Mapping[str, Any]

#: Layers, and heads, shown.
_LIMIT, _HEADS = 16, 8

_TITLES = {
    "share": "share %",
    "attn": "attn",
    "mlp": "MLP",
    "restored": "restore",
    "injected": "inject",
    "weight": "ΔW %",
    "write": "write",
    "read": "read",
    "path": "path",
}
#: The widest first; + asks for the interval.
_LAYOUTS: tuple[tuple[str, ...], ...] = (
    ("share+", "attn+", "mlp+", "restored+", "injected+", "weight", "write", "read"),
    ("share+", "attn", "mlp", "restored+", "injected+", "weight", "write", "read"),
    ("share+", "attn", "mlp", "restored", "injected", "weight", "write", "read"),
    ("share+", "attn", "mlp", "restored", "injected", "weight"),
    ("share+", "attn", "mlp"),
    ("share+",),
    ("share",),
)
_EFFECTS: tuple[tuple[str, ...], ...] = (
    ("path+", "restored+", "injected+", "weight", "write", "read"),
    ("path+", "restored", "injected", "weight", "write", "read"),
    ("path+", "restored", "injected"),
    ("path", "restored", "injected"),
)


def layers_report(document: Row) -> RenderableType:
    """Return everything a layers document says, for a terminal.

    Args:
        document: From `refusaldir.report.layers_document`.

    Returns:
        A rich renderable: the verdict, the layers, heads where they were read, and how far the
        lenses agree.
    """
    parts: list[RenderableType] = [_verdict(document), layers_table(document)]
    residual = document["residual"]
    if residual is not None and residual["heads"] is not None:
        parts.append(_heads_table(document))
    if document["agreement"]:
        parts.append(_agreement_table(document["agreement"]))
    return Group(*parts)


def _verdict(document: Row) -> RenderableType:
    verdict = document["verdict"]
    lines: list[RenderableType] = [Text(visible(verdict["headline"]), style="bold")]
    for key, title in (
        ("layers", "Which layers"),
        ("certainty", "How sure"),
        ("limits", "What this cannot tell"),
    ):
        if verdict[key]:
            lines.append(heading(title))
            lines += [Padding(Bullet(visible(text)), (0, 0, 0, 1)) for text in verdict[key]]
    panel = Panel(Group(*lines), title=Text(pair_names(document)), title_align="left")
    return Constrain(panel, PROSE_WIDTH)


def layers_table(document: Row) -> RenderableType:
    """Return the layers in order, the disturbing ones marked.

    Without a change to attribute, the effects themselves by layer.
    """
    rows = by_layer(document)
    ranking = document["ranking"]
    if ranking is None:
        order = [layer for layer in rows if rows[layer]["path"] or rows[layer]["restored"]]
        form, title = _EFFECTS, "Effects by layer"
    else:
        order = [entry["layer"] for entry in ranking["layers"]]
        form, title = _LAYOUTS, "Layers, most of the change first"
    if not order:
        return Group()
    shown = order[:_LIMIT]
    measured = {
        name
        for name in _TITLES
        if any(_cell(rows[layer], name, ranking is not None)[0] is not None for layer in order)
    }
    layouts = [
        _layout(rows, shown, [c for c in columns if c.rstrip("+") in measured], document)
        for columns in form
    ]
    lines = _notes(document, measured)
    if len(order) > _LIMIT:
        lines.append(f"The first {_LIMIT} of {len(order)} changed layers; all are in the JSON.")
    return Group(heading(title), Widest(*layouts), notes(lines))


def _layout(
    rows: Mapping[int | None, Row],
    shown: Sequence[int | None],
    columns: Sequence[str],
    document: Row,
) -> Table:
    ranked = document["ranking"] is not None
    level = percent(document["level"]).replace(" ", "")
    layout = table()
    add_numbers(layout, "layer")
    for name in columns:
        title = _TITLES[name.rstrip("+")]
        add_numbers(layout, f"{title} [{level}]" if name.endswith("+") else title)
    for layer in shown:
        row = rows[layer]
        disturbs = ranked and row["combined"]["disturbs"]
        texts = []
        for name in columns:
            cell, digits, scale = _cell(row, name.rstrip("+"), ranked)
            if cell is None:
                texts.append("")
            elif isinstance(cell, Mapping):
                text = estimate(cell, digits, interval=name.endswith("+"), scale=scale)
                mark = ("*" if disturbs else " ") if name.startswith("share") else ""
                texts.append(text + mark)
            else:
                texts.append(number(cell, digits, scale=scale))
        label = "outside" if layer is None else str(layer)
        layout.add_row(Text(label), *map(Text, texts), style="bold" if disturbs else "")
    return layout


def _cell(row: Row, name: str, ranked: bool) -> tuple[Row | float | None, int, float]:
    """A figure of a layer, its decimals and its scale."""
    if name == "share":
        combined = row["combined"]
        return (None if combined is None else combined["band"]), 0, 100.0
    if name == "path" and ranked:
        return None, 0, 1.0
    if name in ("path", "attn", "mlp", "restored", "injected"):
        cell = row[name]
        if cell is None:
            return None, 0, 1.0
        return (cell["share"], 0, 100.0) if ranked else (cell["effect"], 2, 1.0)
    totals = [row[f"weights_{part}"] for part in ("attn", "mlp") if row[f"weights_{part}"]]
    squares = sum(total["change_norm"] ** 2 for total in totals)
    if name == "weight":
        # Of the larger of the two: norms of base are not kept by component.
        changes = [t["relative_change"] for t in totals if t["relative_change"] is not None]
        return (max(changes) if changes else None), 2, 100.0
    sides = [t for t in totals if t[f"{name}_alignment"] is not None]
    if not sides or not squares:
        return None, 1, 1.0
    weight = sum(t["change_norm"] ** 2 for t in sides)
    mean = sum(t["change_norm"] ** 2 * t[f"{name}_alignment"] for t in sides) / weight
    return mean, 1, 1.0


def _notes(document: Row, measured: set[str]) -> list[str]:
    found = document["measured"]
    level = percent(document["level"]).replace(" ", "")
    lines = []
    if document["ranking"] is None:
        unit = "points of 1" if found["unit"] == "share" else found["unit"]
        lines.append(f"Mean effect on {found['subject']}, in {unit}; intervals one at a time.")
    else:
        how = " and ".join(
            filter(
                None,
                [
                    "path attribution" if document["path"] is not None else "",
                    "the mean of restore and inject" if document["transplant"] is not None else "",
                ],
            )
        )
        lines.append(
            f"In % of the change of {found['subject']}. share: by {how}; its {level} band "
            "holds over all layers at once, other intervals one at a time. *: disturbs, its band "
            f"leaves out 0 and it is {percent(document['ranking']['least_share'])} or more. "
            "Negative: worked against the change."
        )
    said = {
        "attn": "attn, MLP: its parts by path attribution.",
        "restored": "restore: base's block put into tuned; inject: tuned's block put into base.",
        "weight": "ΔW: relative change of the weights, of attention or MLP, whichever is larger; "
        "write, read: its alignment with the direction, 1 by chance.",
    }
    if document["ranking"] is None:
        del said["attn"]
    lines += [text for name, text in said.items() if name in measured]
    site = document["site"]
    if site is not None:
        lines.append(
            f"Direction at {site['hook']}, layer {site['layer']}, token "
            f"{number(site['position'], 0)}: {visible(site['reason'])}."
        )
    if document["refusal_tokens"]:
        words = ", ".join(f"“{visible(text)}”" for text in document["refusal_tokens"])
        lines.append(f"Refusal score: log odds that the first token of the answer is {words}.")
    path = document["path"]
    if path is not None and path["gap_relative"] is not None:
        lines.append(
            f"Path attribution: {path['nodes']} nodes, completeness gap "
            f"{percent(path['gap_relative'], 3)} of the change."
        )
    return [*lines, *map(visible, document["notes"])]


def _heads_table(document: Row) -> RenderableType:
    terms = document["residual"]["heads"]["terms"]
    first = sorted(terms, key=lambda term: -abs(term["harmful"]["pointwise"]["value"] or 0))
    level = percent(document["level"]).replace(" ", "")
    layout = table()
    for title in ("layer", "head", f"harmful [{level}]", f"harmless [{level}]"):
        add_numbers(layout, title)
    for term in first[:_HEADS]:
        cells = [term[label]["simultaneous"] for label in ("harmful", "harmless")]
        layout.add_row(
            str(term["layer"]),
            str(term["head"]),
            *(Text(estimate(cell, 3, signed=True)) for cell in cells),
        )
    line = (
        f"The {min(_HEADS, len(terms))} of {len(terms)} heads whose contribution along the "
        "direction changed most on harmful prompts, in residual norm; bands over all heads. Where "
        "it is written, not where weights changed."
    )
    return Group(heading("Attention heads in the residual stream"), layout, notes([line]))


def _agreement_table(rows: Sequence[Row]) -> RenderableType:
    layouts = []
    for interval in (True, False):
        layout = table()
        layout.add_column("lenses", overflow="fold")
        add_numbers(layout, "τ" if not interval else f"τ [{percent(rows[0]['tau']['level'])}]")
        add_numbers(layout, "largest\nshared")
        for row in rows:
            layout.add_row(
                Text(f"{row['first']} / {row['second']}"),
                Text(estimate(row["tau"], 2, interval=interval)),
                f"{row['shared']} of {row['top']}",
            )
        layouts.append(layout)
    line = "Kendall's τ-b over the changed layers; 1 where two lenses order them alike."
    return Group(heading("Do the lenses agree"), Widest(*layouts), notes([line]))
