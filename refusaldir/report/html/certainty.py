"""How sure: tests, rulers, categories, the smallest change that would have been seen, limits."""

import math
from collections.abc import Mapping
from typing import Any

from refusaldir.report.canvas import BLUE, GREEN, GREY, VERMILLION
from refusaldir.report.html.behaviour import p_text
from refusaldir.report.html.curves import curve_figure
from refusaldir.report.html.figure import Cell, Figure, Table
from refusaldir.report.html.frame import ends
from refusaldir.report.html.rows import ChartRow, Mark, rows_figure
from refusaldir.report.html.section import Block, Section, sentence
from refusaldir.report.layout import estimate
from refusaldir.report.panel import Panel, Series, limits
from refusaldir.report.text import number, percent, visible

Row = Mapping[str, Any]

_FIGURES = {
    "rotation": ("Rotation by category", "corrected cosine", 1.0),
    "shrinkage": ("Length by category", "norm of tuned’s direction over base’s", 1.0),
    "translation": ("Shift of harmful prompts by category", "base SDs", 0.0),
}


def certainty_section(document: Row) -> Section:
    """Answer "how sure" from a diff or a behaviour document."""
    words = document["verdict"]
    blocks = [Block(sentences=[*words["certainty"], *words.get("context", ())])]
    context = document["drift"]["context"] if "drift" in document else None
    if context is not None:
        blocks.append(
            Block(title="What the figures are held against", figures=_rulers(document, context))
        )
        figures = _categories(context["categories"])
        if figures:
            blocks.append(Block(title="Do the categories move alike?", figures=figures))
        blocks.append(_detectable(context["detectable"]))
    precision = document.get("precision")
    if precision is not None:
        blocks.append(Block(title="Precision", sentences=[precision["sentence"]]))
    blocks.append(Block(title="What this cannot tell", sentences=words["limits"]))
    return Section(key="sure", title="How sure is this?", short="How sure?", blocks=blocks)


def _rulers(document: Row, context: Row) -> list[Figure]:
    rows = document["drift"]["layers"]
    layers = [row["layer"] for row in rows]
    mark = document["drift"]["site"]["layer"]
    figures = [_halves(rows, context["nulls"], layers, mark)]
    figures.append(_random(rows, context["nulls"], layers, mark))
    figures.append(_tested(context["test"], layers, mark))
    selectivity = _selectivity(context["selectivity"], layers, mark)
    return [f for f in (*figures, selectivity) if f is not None]


def _quantiles(row: Row, name: str) -> dict[float, float]:
    ruler = row["rulers"].get(name)
    return {} if ruler is None else {float(q): float(v) for q, v in ruler["quantiles"]}


def _nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _halves(rows: list[Row], nulls: Row, layers: list[int], mark: int) -> Figure:
    """Rotation beside what base's own two halves and prompt length do."""
    found = [_quantiles(row, "halves_cosine") for row in nulls["layers"]]
    lengths = [
        None if row["length"] is None else row["length"]["cosine"] for row in nulls["layers"]
    ]
    value, low, high = _columns([row["rotation"] for row in rows])
    series = [
        Series(label="base → tuned", values=value, lower=low, upper=high, colour=BLUE, marker=""),
        Series(
            label="two halves of base’s prompts",
            values=[_nan(q.get(0.5)) for q in found],
            lower=[_nan(q.get(0.025)) for q in found],
            upper=[_nan(q.get(0.975)) for q in found],
            colour=GREY,
            style="--",
            marker="",
        ),
    ]
    if any(cell is not None for cell in lengths):
        series.append(
            Series(
                label="direction of prompt length",
                values=_columns(lengths)[0],
                colour=GREEN,
                style=":",
                marker="",
            )
        )
    own = Panel(title="", series=[series[0], *series[2:]], reference=1.0, least_span=0.05)
    return curve_figure(
        Panel(title="", series=series, reference=1.0, least_span=0.05),
        layers,
        key="halves",
        # Where a direction is lost in noise its halves have any cosine: they do not set the scale.
        span=limits(own),
        title="Rotation beside rulers",
        unit="corrected cosine",
        place="layer",
        caption="Refusal’s direction turned more than sampling and prompt length explain where "
        "blue lies below the others; what leaves the panel is cut.",
        definition="Two halves: base’s directions from disjoint halves of the intents, 95 % of the "
        "draws. Prompt length: the direction from short to long prompts, from base to tuned.",
        mark=mark,
        link="layer",
    )


def _random(rows: list[Row], nulls: Row, layers: list[int], mark: int) -> Figure:
    """Shifts beside the largest along random directions."""
    series = []
    for side, colour in (("harmful", VERMILLION), ("harmless", BLUE)):
        found = [_quantiles(row, f"random_shift_{side}") for row in nulls["layers"]]
        shifts = [_nan(row["translation"][side]["value"]) for row in rows]
        series.append(Series(label=side, values=[abs(v) for v in shifts], colour=colour, marker=""))
        series.append(
            Series(
                label=f"{side}, 97.5 % of random directions",
                values=[_nan(q.get(0.975)) for q in found],
                colour=colour,
                style=":",
                marker="",
            )
        )
    return curve_figure(
        Panel(title="", series=series, reference=0.0, least_span=0.2),
        layers,
        key="random",
        title="Shift beside random directions",
        unit="size of the shift, base SDs",
        place="layer",
        caption="Solid above dotted of the same colour: the class moved further along base’s "
        "direction than along nearly all random directions.",
        definition="Random directions vary as much as base’s activations do within a class.",
        mark=mark,
        digits=2,
        link="layer",
    )


def _tested(test: Row, layers: list[int], mark: int) -> Figure:
    """Evidence against no drift at all, by layer."""
    by_layer = {row["site"]["layer"]: row for row in test["by_layer"]}
    adjusted, alone = (
        [
            math.nan if layer not in by_layer else -math.log10(max(by_layer[layer][key], 1e-12))
            for layer in layers
        ]
        for key in ("adjusted", "p_value")
    )
    series = [
        Series(label="among all layers", values=adjusted, colour=BLUE),
        Series(label="by itself", values=alone, colour=GREY, style="--", marker=""),
    ]
    return curve_figure(
        Panel(title="", series=series, reference=-math.log10(0.05), least_span=1.0),
        layers,
        key="test",
        title="Test of no drift at all",
        unit="−log₁₀ p",
        place="layer",
        caption=f"Above the line (p = 0.05): the direction is not the same. Over all layers: p "
        f"{_equals(test['p_value'])}.",
        definition=f"{visible(test['method'])}. {test['draws']} draws, so no p-value is below "
        f"{number(1 / (test['draws'] + 1), 4)}; changes up to {100 * test['floor']:.1g} % of the "
        "direction’s length count as none.",
        mark=mark,
        digits=2,
        link="layer",
    )


def _equals(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def _selectivity(found: Row, layers: list[int], mark: int) -> Figure | None:
    """Whether refusal was singled out, by layer."""
    rows = {row["site"]["layer"]: row["prompts"] for row in found["layers"]}
    cells = [rows.get(layer) for layer in layers]
    value, low, high = _columns([None if c is None else c["ratio"] for c in cells])
    if not any(math.isfinite(v) for v in value):
        return None
    nulls = [None if c is None else c["null"] for c in cells]
    series = [
        Series(label="refusal subspace", values=value, lower=low, upper=high, colour=BLUE),
        Series(
            label="random subspaces",
            values=[math.nan if q is None else _nan(q[1]) for q in nulls],
            lower=[math.nan if q is None else _nan(q[0]) for q in nulls],
            upper=[math.nan if q is None else _nan(q[2]) for q in nulls],
            colour=GREY,
            style="--",
            marker="",
        ),
    ]
    return curve_figure(
        Panel(title="", series=series, reference=1.0, least_span=0.5),
        layers,
        key="selectivity",
        title="Was refusal singled out?",
        unit="energy of the change, over chance",
        place="layer",
        caption="Above 1: more of the change lies in the refusal subspace than in subspaces that "
        "vary as much.",
        definition=f"{found['k']} dimension{'s' if found['k'] != 1 else ''}; grey: 95 % of "
        f"{found['draws']} random subspaces of the same covariance. {visible(found['sentence'])}",
        mark=mark,
        digits=2,
        link="layer",
    )


def _columns(cells: list[Row | None]) -> tuple[list[float], list[float], list[float]]:
    value, low, high = (
        [math.nan if v is None else float(v) for v in column]
        for column in zip(*(ends(cell) for cell in cells), strict=True)
    )
    return value, low, high


def _categories(found: Row) -> list[Figure]:
    """Every figure of every category."""
    singled = {tuple(pair) for pair in found["singled_out"]}
    figures = []
    for each in found["figures"]:
        title, unit, reference = _FIGURES.get(each["figure"], (each["figure"], "", 0.0))
        rows = []
        for i, name in enumerate(found["categories"]):
            p = each["p_adjusted"][i]
            star = "*" if (name, each["figure"]) in singled else ""
            other = each["versus_others"][i]
            extra: list[tuple[str, str, Cell]] = [
                ("against the others", "–" if other is None else estimate(other, 3), None),
                ("p (Holm)", p_text(p), p),
                ("intents", str(found["n_intents"][i]), found["n_intents"][i]),
            ]
            rows.append(
                ChartRow(
                    label=visible(name) + star,
                    marks=[Mark(name=each["figure"], cell=each["estimates"][i], colour="c1")],
                    extra=[extra[1], extra[2]] if other is None else extra,
                )
            )
        alike = each["alike_p_adjusted"]
        figures.append(
            rows_figure(
                rows,
                key=f"categories-{each['figure']}",
                title=title,
                unit=unit,
                first="category",
                caption="* differs from the mean of the other categories after Holm. All alike: "
                f"p {'not tested' if alike is None else _equals(alike)}.",
                definition=f"At the site. {visible(found['sentence'])}",
                reference=reference,
                digits=3,
                link="categories",
            )
        )
    return figures


def _detectable(found: Row) -> Block:
    rows: list[tuple[Cell, ...]] = []
    for name, key, scale, unit in (
        ("rotation", "rotation", 1.0, "degrees"),
        ("shorter norm", "norm", 100.0, "%"),
        ("shift of harmful prompts", "translation_harmful", 1.0, "base SDs"),
        ("shift of harmless prompts", "translation_harmless", 1.0, "base SDs"),
    ):
        value = found[key]
        rows.append((name, None if value is None else scale * value, unit))
    return Block(
        title="The smallest change that would have been seen",
        table=Table(columns=["change", "size", "unit"], rows=rows),
        note=f"With {found['n']} intents, shown with a chance of {percent(found['power'])}, at "
        f"{percent(found['level'], 1)} for each. {sentence(found['note'])}".strip(),
    )
