"""Does this direction cause refusal: its selection in base, and what it does in both models."""

from collections.abc import Mapping, Sequence
from typing import Any

from refusaldir.report.handle_table import ROWS
from refusaldir.report.html.figure import Cell, Figure, Table
from refusaldir.report.html.heat import HeatBand, HeatRow, heat_figure
from refusaldir.report.html.rows import ChartRow, Mark, rows_figure
from refusaldir.report.html.section import Block, Section
from refusaldir.report.selection_figure import PANELS
from refusaldir.report.selection_table import sentences
from refusaldir.report.text import number, percent, visible

Row = Mapping[str, Any]

#: Candidates listed.
_LISTED = 12
_ABSENT = (
    "No direction was selected by what it causes, so nothing here is about cause: the direction "
    "followed is the one that separates best. refusaldir select BASE finds one that causes refusal."
)


def cause_section(document: Row | None, selection: Row | None) -> Section | None:
    """Answer "does it cause refusal"; None where there is no geometry.

    Args:
        document: The diff document.
        selection: The content of ``select.json``.
    """
    if document is None:
        return None
    causality = document["causality"]
    blocks = []
    if document["verdict"]["causality"]:
        blocks.append(Block(sentences=document["verdict"]["causality"]))
    if causality is not None and causality["handles"] is not None:
        blocks.append(
            Block(title="Does base’s direction still work?", figures=[_handles(causality)])
        )
    if selection is not None:
        blocks.append(
            Block(
                title="How it was selected in base",
                sentences=[
                    text
                    for text in sentences(selection)
                    if text not in document["verdict"]["causality"]
                ],
                figures=[_heat(selection)],
                table=_candidates(selection),
                note="The best candidates; empty cells were not measured, since they could not "
                "change the choice.",
            )
        )
    if not blocks:
        blocks.append(Block(note=_ABSENT))
    return Section(
        key="cause",
        title="Does this direction cause refusal?",
        short="Is it the cause?",
        blocks=blocks,
    )


def _handles(causality: Row) -> Figure:
    found = causality["handles"]
    rows = []
    for title, path in ROWS:
        cells = []
        for arm in ("base", "tuned"):
            cell = found[arm]
            for key in path:
                cell = cell[key]
            cells.append(cell)
        colour = "c2" if "harmful" in title or "ablated" in title else "c1"
        rows.append(
            ChartRow(
                label=title.strip(),
                marks=[
                    Mark(name="base", cell=cells[0], colour=colour, form="ring"),
                    Mark(name="tuned", cell=cells[1], colour=colour),
                ],
                joined=True,
            )
        )
    return rows_figure(
        rows,
        key="handles",
        title="Refusal score with a direction ablated or added",
        unit="mean refusal score, nats",
        first="what was done",
        caption="Ring: base, dot: tuned. Ablating a direction that causes refusal moves harmful "
        "prompts left; adding it moves harmless prompts right.",
        definition="Refusal score: log odds that the first token of the answer begins a refusal; "
        f"below 0 the model would rather answer. On {found['n_harmful']} harmful and "
        f"{found['n_harmless']} harmless prompts: {visible(str(causality['held_out']))}. Intervals "
        f"of {percent(found['level'])}.",
        reference=0.0,
        signed=True,
    )


def _heat(selection: Row) -> Figure:
    """Every candidate's scores over layers, a row a position."""
    found = selection["selection"]
    cells = {(c["site"]["layer"], c["site"]["position"]): c for c in found["candidates"]}
    layers = sorted({layer for layer, _ in cells})
    tokens = {p["offset"]: visible(p["label"]) for p in selection["positions"]}
    offsets = list(tokens)
    bands = []
    for title, key, scale in PANELS[selection["criterion"]]:
        rows = []
        for offset in offsets:
            row = [cells.get((layer, offset)) for layer in layers]
            texts = ["not measured" if c is None else _text(c, key) for c in row]
            rows.append(
                HeatRow(
                    label=f"{number(offset, 0)} {tokens[offset]}",
                    values=[None if c is None else c[key] for c in row],
                    texts=texts,
                    marked=frozenset(
                        j for j, c in enumerate(row) if c is not None and not c["dropped"]
                    ),
                )
            )
        log = scale == "log"
        low = found["thresholds"]["kl"] / 10 if log else 0.0
        bands.append(
            HeatBand(
                title=title, rows=rows, signed=scale == "diverging", log=log, low=low, digits=2
            )
        )
    chosen = found["chosen"] or found["nearest"]
    ring = None
    if chosen is not None:
        site = chosen["site"]
        ring = (0, offsets.index(site["position"]), layers.index(site["layer"]))
    return heat_figure(
        bands,
        [str(layer) for layer in layers],
        key="selection",
        title="Every candidate direction, by layer and position",
        place="layer",
        caption="Ring: the direction chosen"
        + ("" if found["chosen"] else " (none is valid; this is the nearest)")
        + ". A dot: meets every criterion. Empty: not measured.",
        definition="Bypass: refusal score of harmful prompts with the direction ablated. Induce: "
        "that of harmless prompts with it added. KL: how much ablating it changes the next token "
        "of harmless prompts; a lower bound where it was given up.",
        ring=ring,
        link="layer",
    )


def _text(cell: Row, key: str) -> str:
    if cell[key] is None:
        return "not measured"
    bound = "at least " if key == "kl" and not cell["kl_exact"] else ""
    why = f" (fails {cell['dropped']})" if cell["dropped"] else ""
    return f"{bound}{number(cell[key], 3)}{why}"


def _candidates(selection: Row) -> Table:
    found = selection["selection"]
    keys = [key for _, key, _ in PANELS[selection["criterion"]]]
    tokens = {p["offset"]: visible(p["label"]) for p in selection["positions"]}

    def order(row: Row) -> tuple[bool, float]:
        score = row[keys[0]]
        best = float("inf") if score is None else float(score)
        return bool(row["dropped"]), best if selection["criterion"] != "cosmic" else -best

    ranked: Sequence[Row] = sorted(found["candidates"], key=order)[:_LISTED]
    rows: list[tuple[Cell, ...]] = []
    for row in ranked:
        site = row["site"]
        chosen = found["chosen"] is not None and found["chosen"]["site"] == site
        rows.append(
            (
                site["layer"],
                site["position"],
                tokens[site["position"]],
                *(row[key] for key in keys),
                row["norm"],
                "chosen" if chosen else f"fails {row['dropped']}" if row["dropped"] else "valid",
            )
        )
    columns = ["layer", "position", "token", *(key.replace("_", " ") for key in keys), "norm", ""]
    return Table(columns=columns, rows=rows)
