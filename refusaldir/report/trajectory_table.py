"""The table of a series of checkpoints, for a terminal: built from the trajectory document."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

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
from refusaldir.report.link_table import correlation_table
from refusaldir.report.tables import FLOORS, beyond
from refusaldir.report.text import AXIS_TITLES, number, percent, visible

Row = Mapping[str, Any]

#: The angle of `FLOORS`'s smallest rotation.
_FLOOR_DEGREES = math.degrees(math.acos(1 - FLOORS["rotation"]))

_TITLES = {
    "angle": "rotation°",
    "norm": "norm\nratio",
    "harmful": "shift\nharmful",
    "harmless": "shift\nharmless",
    "d_prime": "d′\nchange",
    "refusal": "harmful\nrefused %",
    "over_refusal": "harmless\nrefused %",
}
#: Columns with interval (+) and without, the widest layout first.
_LAYOUTS = (
    ("angle+", "norm+", "harmful+", "harmless+", "d_prime+", "refusal+", "over_refusal+"),
    ("angle+", "norm+", "harmful+", "harmless+", "d_prime", "refusal", "over_refusal"),
    ("angle+", "norm", "harmful", "harmless", "d_prime", "refusal", "over_refusal"),
    ("angle+", "norm", "harmful", "harmless", "refusal"),
    ("angle+", "norm", "refusal"),
    ("angle", "refusal"),
    ("angle",),
)


def trajectory_report(document: Row) -> RenderableType:
    """Return everything a trajectory document says, for a terminal.

    Args:
        document: From `refusaldir.report.trajectory_document`.

    Returns:
        A rich renderable: the verdict, a row a checkpoint, and drift against behaviour over them.
    """
    return Group(_verdict(document), trajectory_table(document), *_links(document["link"]))


def _links(link: Row | None) -> list[RenderableType]:
    """Drift against behaviour over the checkpoints, an axis a table."""
    parts: list[RenderableType] = []
    for axis, title in AXIS_TITLES.items():
        found = None if link is None else link["axes"][axis]
        if link is not None and found:
            over = "fine-tunes" if link["independent"] else "checkpoints"
            parts.append(
                heading(f"Drift against behaviour over the {over}: {title[0].lower()}{title[1:]}")
            )
            parts += correlation_table(found, link, over=over)
    return parts


def _verdict(document: Row) -> RenderableType:
    verdict = document["verdict"]
    lines: list[RenderableType] = [Text(visible(verdict["headline"]), style="bold")]
    for key, title in (("sentences", "What drifted"), ("limits", "What this cannot tell")):
        lines.append(heading(title))
        lines += [Padding(Bullet(visible(sentence)), (0, 0, 0, 1)) for sentence in verdict[key]]
    points = document["checkpoints"]
    named = f"{document['base']['model']['name']} → {points[0]['name']}"
    if len(points) > 1:
        named += f" … {points[-1]['name']}"
    panel = Panel(Group(*lines), title=Text(visible(named)), title_align="left")
    return Constrain(panel, PROSE_WIDTH)


def trajectory_table(document: Row) -> RenderableType:
    """Return the table: a row a checkpoint, the first one found rotated marked."""
    site, points = document["site"], document["checkpoints"]
    level = percent(document["level"]).replace(" ", "")
    measured = {
        name for name in ("refusal", "over_refusal") if any(point[name] for point in points)
    }
    layouts = []
    for columns in _LAYOUTS:
        shown = [
            name
            for name in columns
            if name.rstrip("+") in measured or name.rstrip("+") not in ("refusal", "over_refusal")
        ]
        layouts.append(_layout(document, shown, level))
    lines = [
        f"At {site['hook']}, layer {site['layer']}, token {number(site['position'], 0)} "
        f"({visible(site['token'])}): {site['reason']}.",
        f"rotation: of the direction from base's, in degrees; its interval holds over all "
        f"checkpoints at once ({level} band), the others one at a time. norm: of base's; shift: "
        "of a class mean along the base direction, in base SDs; d′: along the base direction.",
        "▸: the first checkpoint found rotated. *: the interval leaves out “no change”.",
    ]
    if measured:
        lines.append("refused: on held-out prompts; * by the paired change from base.")
    lines += [visible(note) for note in document["notes"]]
    return Group(heading("Drift over the checkpoints"), Widest(*layouts), notes(lines))


def _layout(document: Row, columns: Sequence[str], level: str) -> Table:
    layout = table()
    layout.add_column("checkpoint", overflow="fold", min_width=10, max_width=24)
    for name in columns:
        title = _TITLES[name.rstrip("+")]
        add_numbers(layout, f"{title} [{level}]" if name.endswith("+") else title)
    if any(name.startswith(("refusal", "over_refusal")) for name in columns):
        layout.add_row(Text("base"), *(Text(_base(document, name)) for name in columns))
    for point in document["checkpoints"]:
        texts = [_cell(point, name.rstrip("+"), interval=name.endswith("+")) for name in columns]
        first = point["name"] == document["first_rotation"]
        label = f"▸ {point['name']}" if first else point["name"]
        layout.add_row(Text(visible(label)), *map(Text, texts), style="bold" if first else "")
    return layout


def _base(document: Row, name: str) -> str:
    """What base itself would say in a column."""
    key = name.rstrip("+")
    rates = next((p[key] for p in document["checkpoints"] if p.get(key)), None)
    if key not in ("refusal", "over_refusal") or rates is None:
        return ""
    return estimate(rates["base_rate"], 1, interval=name.endswith("+"), scale=100.0) + " "


def _cell(point: Row, name: str, *, interval: bool) -> str:
    if name in ("refusal", "over_refusal"):
        rates = point[name]
        if rates is None:
            return "– "
        text = estimate(rates["tuned_rate"], 1, interval=interval, scale=100.0)
        return text + _mark(rates["difference"], 0.0)
    band = point["angle_band"]
    cell, no_change, floor, digits = {
        "angle": (band or point["angle"], 0.0, _FLOOR_DEGREES, 1),
        "norm": (point["shrinkage"], 1.0, FLOORS["length"], 3),
        "harmful": (point["translation"]["harmful"], 0.0, FLOORS["shift"], 2),
        "harmless": (point["translation"]["harmless"], 0.0, FLOORS["shift"], 2),
        "d_prime": (point["d_prime_change"], 0.0, FLOORS["shift"], 2),
    }[name]
    signed = name in ("harmful", "harmless", "d_prime")
    # A rotation that is left out of a band has no mark: single intervals do not hold together.
    mark = " " if name == "angle" and band is None else _mark(cell, no_change, floor)
    return estimate(cell, digits, interval=interval, signed=signed) + mark


def _mark(cell: Row, no_change: float, floor: float = 0.0) -> str:
    return "*" if beyond(cell, no_change, floor) else " "
