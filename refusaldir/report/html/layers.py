"""Which layers: shares of the change, the lenses side by side, and how far they agree."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from refusaldir.report.canvas import BLUE, GREY, VERMILLION
from refusaldir.report.html.curves import HEIGHT, curve_figure
from refusaldir.report.html.figure import Cell, Figure, Table
from refusaldir.report.html.frame import BOTTOM, TOP, ends
from refusaldir.report.html.heat import HeatBand, HeatRow, heat_figure, height_of
from refusaldir.report.html.section import Block, Section
from refusaldir.report.layers_document import by_layer
from refusaldir.report.layout import estimate
from refusaldir.report.panel import Panel, Series
from refusaldir.report.text import number, percent, visible

Row = Mapping[str, Any]

#: Attention heads listed.
_HEADS = 12
_ABSENT = (
    "Which layers’ weights did it was not looked at: refusaldir layers BASE TUNED --out FOLDER, or "
    "refusaldir diff … --layers fast, does that, and its layers.json in this folder comes on this "
    "page."
)


def layers_section(diff: Row | None, layers: Row | None) -> Section:
    """Answer "which layers" from a diff document, a layers document, or both."""
    blocks = []
    if layers is not None:
        blocks += _found(layers)
    if diff is not None and diff["verdict"]["layers"]:
        title = "Where drift shows" if layers is not None else ""
        ranking = _ranking(diff["drift"]) if diff["drift"]["ranking"] else None
        blocks.append(
            Block(
                title=title,
                sentences=diff["verdict"]["layers"],
                table=ranking,
                note=diff["drift"]["ranking_rule"] if ranking else "",
            )
        )
    if layers is None:
        blocks.append(Block(note=_ABSENT))
    return Section(key="layers", title="Which layers?", short="Which layers?", blocks=blocks)


def _found(document: Row) -> list[Block]:
    words = document["verdict"]
    rows = by_layer(document)
    bands = _bands(document, rows)
    figures = [
        None if document["ranking"] is None else _shares(document, rows, height_of(bands)),
        _lenses(bands, rows) if bands else None,
        _fronts(document),
    ]
    blocks = [
        Block(sentences=[words["headline"], *words["layers"]]),
        Block(title="The lenses side by side", figures=[f for f in figures if f is not None]),
    ]
    if document["agreement"]:
        blocks.append(
            Block(
                title="Do the lenses agree?",
                table=_agreement(document["agreement"]),
                note="Kendall’s τ-b over the changed layers; 1 where two lenses order them alike.",
            )
        )
    residual = document["residual"]
    if residual is not None and residual["heads"] is not None:
        blocks.append(
            Block(
                title="Attention heads in the residual stream",
                table=_heads(residual["heads"]["terms"]),
                note="The heads whose contribution along the direction changed most on harmful "
                "prompts, in residual norm, with bands over all heads: where it is written, not "
                "where weights changed.",
            )
        )
    blocks.append(
        Block(title="How sure the layers are", sentences=[*words["certainty"], *words["limits"]])
    )
    return blocks


def _names(rows: Mapping[int | None, Row]) -> list[str]:
    return ["out" if layer is None else str(layer) for layer in rows]


def _shares(document: Row, rows: Mapping[int | None, Row], height: float) -> Figure:
    """Each layer's share of the change with its band."""
    least = document["ranking"]["least_share"]
    series = []
    for label, disturbs, colour in (
        ("disturbs", True, VERMILLION),
        ("does not stand out", False, GREY),
    ):
        cells = [
            row["combined"]["band"]
            if row["combined"] is not None and row["combined"]["disturbs"] is disturbs
            else None
            for row in rows.values()
        ]
        value, low, high = (
            [math.nan if v is None else float(v) for v in column]
            for column in zip(*(ends(cell, 100.0) for cell in cells), strict=True)
        )
        series.append(
            Series(
                label=label, values=value, lower=low, upper=high, colour=colour, style="",
                filled=disturbs,
            )
        )  # fmt: skip
    names = _names(rows)
    return curve_figure(
        Panel(title="", series=series, reference=0.0, least_span=5.0),
        list(range(len(rows))),
        key="shares",
        title=f"Share of the change of {document['measured']['subject']}",
        unit="% of the change",
        place="layer",
        names=[f"layer {name}" for name in names],
        caption=f"Filled: the band leaves out 0 and the share is {percent(least)} or more. Below "
        "0: worked against the change.",
        definition="Shares sum to the whole change of the mean outcome from base to tuned. Bands "
        f"hold over all layers at once at {percent(document['level'])}. Combined from: "
        f"{', '.join(document['ranking']['lenses'])}.",
        digits=1,
        # As tall as the lenses beside it.
        height=max(HEIGHT, height - TOP - BOTTOM),
        link="layer",
    )


def _bands(document: Row, rows: Mapping[int | None, Row]) -> list[HeatBand]:
    """Every lens as rows over layers; a lens that was not used, or saw nothing, is left out."""
    ranked = document["ranking"] is not None
    unit = "% of the change" if ranked else document["measured"]["unit"]
    key, scale, digits = ("share", 100.0, 1) if ranked else ("effect", 1.0, 2)

    def effects(title: str, names: Sequence[tuple[str, str]]) -> HeatBand:
        cells = [(label, [_part(row[name], key) for row in rows.values()]) for label, name in names]
        return _band(f"{title}, {unit}", cells, scale, digits)

    def stream(label: str, name: str) -> tuple[str, list[Row | None]]:
        found = [row[name] for row in rows.values()]
        return label, [None if c is None else c["harmful"]["pointwise"] for c in found]

    def weights(label: str, name: str) -> tuple[str, list[Row | None]]:
        found = [row[name] for row in rows.values()]
        return label, [
            None if c is None else {"value": c["relative_change"], "lower": None, "upper": None}
            for c in found
        ]

    bands = [
        effects("Path attribution", (("attention", "attn"), ("MLP", "mlp"))),
        effects("Transplant", (("restore", "restored"), ("inject", "injected"))),
        _band(
            "Residual stream, norm",
            [stream("attention", "residual_attn"), stream("MLP", "residual_mlp")],
            1.0,
            3,
        ),
        _band(
            "Weights, relative change %",
            [weights("attention", "weights_attn"), weights("MLP", "weights_mlp")],
            100.0,
            2,
            signed=False,
        ),
    ]
    return [b for b in bands if any(v is not None for row in b.rows for v in row.values)]


def _lenses(bands: Sequence[HeatBand], rows: Mapping[int | None, Row]) -> Figure:
    return heat_figure(
        bands,
        _names(rows),
        key="lenses",
        title="Layer × component, a lens a band",
        place="layer",
        caption="Purple: with the change, orange: against it, each lens on its own scale. A dot: "
        "the interval of that place by itself leaves out 0. Empty: not changed, or not measured.",
        definition="Path attribution: the outcome’s gradient integrated from base’s weights to "
        "tuned’s, exact in sum. Transplant: base’s block put into tuned (restore), tuned’s into "
        "base (inject). Residual stream: change of what a component writes along the direction on "
        "harmful prompts, also where weights are as before. Weights: norm of the change over the "
        "norm of base’s.",
        link="layer",
    )


def _part(cell: Row | None, key: str) -> Row | None:
    return None if cell is None else dict(cell[key])


def _band(
    title: str,
    rows: Sequence[tuple[str, Sequence[Row | None]]],
    scale: float,
    digits: int,
    *,
    signed: bool = True,
) -> HeatBand:
    out = []
    for label, cells in rows:
        values, texts, marked = [], [], set()
        for j, cell in enumerate(cells):
            value, low, high = ends(cell, scale)
            values.append(None if value is None else float(value))
            if cell is None or value is None:
                texts.append("not changed, or not measured")
                continue
            texts.append(estimate(cell, digits, scale=scale, signed=signed))
            if signed and low is not None and high is not None:
                if float(low) > 0 or float(high) < 0:
                    marked.add(j)
        out.append(HeatRow(label=label, values=values, texts=texts, marked=frozenset(marked)))
    return HeatBand(title=title, rows=out, signed=signed, digits=min(digits, 2))


def _fronts(document: Row) -> Figure | None:
    """How much comes back as ever more blocks are base's; None where it was not tried."""
    found = document["transplant"]
    if found is None or not found["fronts"]:
        return None
    value, low, high = (
        [math.nan if v is None else float(v) for v in column]
        for column in zip(*(ends(cell, 100.0) for cell in found["fronts"]), strict=True)
    )
    depth = found["recovery_depth"]
    half = "" if depth is None else f" Dotted: front {depth}, the first at which half is back."
    return curve_figure(
        Panel(
            title="",
            reference=0.0,
            least_span=50.0,
            series=[Series(label="taken back", values=value, lower=low, upper=high, colour=BLUE)],
        ),
        list(range(len(value))),
        key="fronts",
        title="Given back from the bottom up",
        unit="% of the change taken back",
        place="front",
        x_label="Blocks before this one are base’s",
        caption=f"At 100 %: the outcome is base’s again.{half}",
        definition="At front f, the blocks before f in tuned are replaced by base’s.",
        mark=depth,
        digits=1,
    )


def _ranking(drift: Row) -> Table:
    columns = [
        "rank", "layer", "1 − cosine", "lower", "upper", "added by this layer", "lower ", "upper ",
    ]  # fmt: skip
    rows: list[tuple[Cell, ...]] = [
        (entry["rank"], entry["layer"], *ends(entry["drift"]), *ends(entry["increment"]))
        for entry in drift["ranking"]
    ]
    return Table(columns=columns, rows=rows)


def _agreement(rows: Sequence[Row]) -> Table:
    return Table(
        columns=["lens", "and", "τ", "lower", "upper", "largest shared"],
        rows=[
            (row["first"], row["second"], *ends(row["tau"]), f"{row['shared']} of {row['top']}")
            for row in rows
        ],
    )


def _heads(terms: Sequence[Row]) -> Table:
    first = sorted(terms, key=lambda term: -abs(term["harmful"]["pointwise"]["value"] or 0))
    return Table(
        columns=["layer", "head", "harmful", "lower", "upper", "harmless", "lower ", "upper "],
        rows=[
            (
                term["layer"],
                term["head"],
                *ends(term["harmful"]["simultaneous"]),
                *ends(term["harmless"]["simultaneous"]),
            )
            for term in first[:_HEADS]
        ],
    )


def site_text(site: Row) -> str:
    """A site in words."""
    token = f" ({visible(site['token'])})" if "token" in site else ""
    return f"{site['hook']}, layer {site['layer']}, token {number(site['position'], 0)}{token}"
