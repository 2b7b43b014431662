"""Did it drift: rotation, length, shift and separability by layer, and over positions."""

from collections.abc import Mapping
from typing import Any

from refusaldir.report.drift_figure import drift_panels
from refusaldir.report.html.curves import curve_figure
from refusaldir.report.html.figure import Figure
from refusaldir.report.html.frame import ends
from refusaldir.report.html.geometry import geometry_figures
from refusaldir.report.html.heat import HeatBand, HeatRow, heat_figure
from refusaldir.report.html.section import Block, Section
from refusaldir.report.layout import estimate
from refusaldir.report.tables import FLOORS, beyond
from refusaldir.report.text import number, percent, visible

Row = Mapping[str, Any]

#: Key, title, axis, decimals and definition of each panel of `drift_panels`.
_PANELS = (
    (
        "rotation",
        "Rotation",
        "cosine of base’s and tuned’s direction",
        3,
        "The direction of a model is the mean of its activations on harmful prompts less that on "
        "harmless ones. Sampling noise pulls the raw cosine away from the truth; the corrected one "
        "takes the noise off, so it may pass 1 by chance. 1: the same direction.",
    ),
    (
        "length",
        "Length",
        "norm of tuned’s direction over base’s",
        3,
        "Norm of tuned’s direction over the norm of base’s, both corrected for noise. Below 1: "
        "harmful and harmless prompts lie closer together in tuned.",
    ),
    (
        "shift",
        "Shift of the class means",
        "along base’s direction, base SDs",
        2,
        "How far the mean of harmful, and of harmless, prompts moved along base’s direction, over "
        "the spread within a class in base. Positive: towards the harmful side.",
    ),
    (
        "separability",
        "Separability in the tuned model",
        "AUROC, held out",
        3,
        "Chance that a random harmful prompt lies further along a direction than a random harmless "
        "one, on prompts that the direction was not fitted on. Base direction: base’s direction on "
        "tuned’s activations. Refitted: tuned’s own. Base on base: before the fine-tune.",
    ),
)


def drift_section(document: Row) -> Section:
    """Answer "did it drift" from a diff document."""
    drift = document["drift"]
    blocks = [
        Block(sentences=document["verdict"]["drift"]),
        Block(
            title="Drift by layer",
            figures=_curves(document),
            note=f"Bands are {percent(drift['level'])} intervals of one layer by itself; the paler "
            "band of the rotation holds over all layers at once. A change in one layer carries on "
            "to all later ones: curves show where drift appears, not which weights made it.",
        ),
    ]
    over = _positions(document)
    if over is not None:
        blocks.append(Block(title="Drift by layer and token position", figures=[over]))
    figures = geometry_figures(drift)
    if figures:
        blocks.append(
            Block(
                title="Both models’ activations, seen in two dimensions",
                figures=figures,
                note="A plane shows a small part of the space; the shares on its axes say how "
                "small. Conclusions rest on the figures above, not on how this looks.",
            )
        )
    return Section(key="drift", title="Did it drift?", short="Did it drift?", blocks=blocks)


def _curves(document: Row) -> list[Figure]:
    drift = document["drift"]
    rows, site = drift["layers"], drift["site"]
    layers = [row["layer"] for row in rows]
    lost = [row["layer"] for row in rows if row["rotation"]["value"] is None]
    captions = (
        f"At or near 1: the direction did not turn. Dotted: layer {site['layer']}, the site.",
        "At 1: as long as in base. The solid line at 1 means no change.",
        "At 0: the class did not move along base’s direction.",
        "The closer to 1, the better the two classes can be told apart.",
    )
    return [
        curve_figure(
            panel,
            layers,
            key=key,
            title=title,
            unit=unit,
            place="layer",
            caption=caption + (" Shaded: cannot be estimated." if lost else ""),
            definition=definition,
            mark=site["layer"],
            shaded=lost,
            digits=digits,
            link="layer",
        )
        for panel, (key, title, unit, digits, definition), caption in zip(
            drift_panels(drift), _PANELS, captions, strict=True
        )
    ]


def _positions(document: Row) -> Figure | None:
    """Rotation and length over layers and positions; None where there is one position."""
    drift = document["drift"]
    cells = {(c["site"]["layer"], c["site"]["position"]): c for c in drift["grid"]}
    captured = document["base"]["positions"]
    tokens = dict(zip(captured["offsets"], captured["labels"], strict=True))
    positions = sorted({position for _, position in cells})
    layers = [row["layer"] for row in drift["layers"]]
    if len(positions) < 2:
        return None
    bands = []
    for title, key, no_change, floor, signed in (
        ("Rotation, 1 − cosine", "rotation", 1.0, FLOORS["rotation"], False),
        ("Length, ratio − 1", "shrinkage", 1.0, FLOORS["length"], True),
    ):
        rows = []
        for position in positions:
            values: list[float | None] = []
            texts, marked = [], set()
            for j, layer in enumerate(layers):
                cell = cells.get((layer, position))
                value = None if cell is None else ends(cell[key])[0]
                if cell is None or value is None:
                    values.append(None)
                    texts.append("cannot be estimated")
                    continue
                off = float(value) - no_change
                values.append(off if signed else max(0.0, -off))
                name = "ratio" if signed else "cosine"
                texts.append(f"{name} {estimate(cell[key], 3)}")
                if beyond(cell[key], no_change, floor):
                    marked.add(j)
            label = f"{number(position, 0)} {visible(tokens[position])}"
            rows.append(HeatRow(label=label, values=values, texts=texts, marked=frozenset(marked)))
        bands.append(HeatBand(title=title, rows=rows, signed=signed))
    site = drift["site"]
    return heat_figure(
        bands,
        [str(layer) for layer in layers],
        key="positions",
        title="Rotation and length over layers and positions",
        place="layer",
        caption="The stronger the colour, the more drift. A dot: the interval of that place by "
        "itself leaves out no change. The ring is the site; empty places cannot be estimated.",
        definition="Positions count from the end of the prompt: −1 is the last token of the "
        "template. t_inst is the last token of the instruction itself, where harmfulness is "
        "encoded; the tokens after it belong to the chat template.",
        ring=(0, positions.index(site["position"]), layers.index(site["layer"])),
        link="layer",
    )
