"""Each model's direction tried in both models, for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from refusaldir.report.layout import Widest, add_numbers, estimate, heading, notes, table
from refusaldir.report.text import number, percent

Row = Mapping[str, Any]

#: Title, and where the figure is in one model's part of the document.
ROWS = (
    ("harmful prompts", ("clean_harmful",)),
    ("  base's direction ablated", ("base_direction", "ablated")),
    ("  tuned's direction ablated", ("tuned_direction", "ablated")),
    ("harmless prompts", ("clean_harmless",)),
    ("  base's direction added", ("base_direction", "added")),
    ("  tuned's direction added", ("tuned_direction", "added")),
)


def handle_table(causality: Row) -> RenderableType:
    """Mean refusal score in base and in tuned: clean, ablated and added.

    Args:
        causality: The ``causality`` of a diff document, with ``handles``.
    """
    found, selection = causality["handles"], causality["selection"]
    level = percent(found["level"]).replace(" ", "")
    layouts = []
    for interval in (True, False):
        layout = table()
        layout.add_column("mean refusal score", no_wrap=True)
        for arm in ("base", "tuned"):
            add_numbers(layout, f"{arm} [{level}]" if interval else arm)
        for title, path in ROWS:
            cells = []
            for arm in ("base", "tuned"):
                cell = found[arm]
                for key in path:
                    cell = cell[key]
                cells.append(estimate(cell, 2, interval=interval, signed=True))
            layout.add_row(
                Text(title),
                *map(Text, cells),
                style="" if len(path) > 1 else "bold",
                end_section=title.startswith("  tuned"),
            )
        layouts.append(layout)
    site = found["site"]
    where = f"{site['hook']}.{site['layer']}@{number(site['position'], 0)}"
    lines = [
        f"Directions of both models at {where} ({selection['estimator']}, same prompts), tried on "
        f"{found['n_harmful']} harmful and {found['n_harmless']} harmless prompts: "
        f"{causality['held_out']}. Score: log odds of a refusal's first token, in nats; below "
        "zero the model would rather answer."
    ]
    if not selection["valid"]:
        lines.append(
            f"The direction is not valid: it fails {selection['candidate']['dropped']}. It is "
            "followed because you asked."
        )
    return Group(
        heading("Does base's direction still cause refusal?"), Widest(*layouts), notes(lines)
    )
