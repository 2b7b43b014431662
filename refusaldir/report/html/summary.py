"""The verdict at a glance: one tile a finding, its interval drawn against "no change"."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from refusaldir.report.html.behaviour import p_text
from refusaldir.report.html.frame import ends
from refusaldir.report.html.scale import Scale
from refusaldir.report.html.svg import tag
from refusaldir.report.layout import estimate
from refusaldir.report.text import ALPHA, number, percent

Row = Mapping[str, Any]

#: Title, unit, decimals, no change, and key of the margin of each finding.
_FINDINGS = {
    "rotation": ("Rotation", "°", 1, 0.0, "rotation"),
    "norm": ("Length, of base’s", "", 3, 1.0, "norm"),
    "translation_harmful": ("Shift of harmful prompts", " SD", 2, 0.0, "translation"),
    "translation_harmless": ("Shift of harmless prompts", " SD", 2, 0.0, "translation"),
    "separability": ("Separability, refitted", " d′", 2, 0.0, "separability"),
    "separability_base_direction": ("Separability, base direction", " d′", 2, 0.0, "separability"),
}
_AXES = {"refusal": "Refusal of harmful prompts", "over_refusal": "Refusal of harmless prompts"}


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure of the verdict.

    Attributes:
        title: What it is.
        value: The figure.
        interval: Its interval, in words.
        state: What that comes to.
        changed: Whether a change was found; None when it cannot be told.
        glyph: The interval beside "no change" and the margin.
    """

    title: str
    value: str
    interval: str
    state: str
    changed: bool | None
    glyph: Markup


def tiles(document: Row) -> list[Tile]:
    """Return the tiles of a diff or behaviour document."""
    out = []
    if "drift" in document:
        drift = document["drift"]
        out = [_finding(finding, drift["margins"]) for finding in drift["findings"]]
    behaviour = document.get("behaviour")
    if behaviour is not None:
        out += [
            _rates(_AXES[name], axis["overall"], behaviour["margin"])
            for name, axis in behaviour["axes"].items()
            if axis is not None
        ]
    return out


def _finding(finding: Row, margins: Row) -> Tile:
    title, unit, digits, no_change, key = _FINDINGS[finding["kind"]]
    cell = _degrees(finding["estimate"]) if finding["kind"] == "rotation" else finding["estimate"]
    value, low, high = ends(cell)
    signed = no_change == 0.0 and finding["kind"] != "rotation"
    interval = ""
    if low is not None and high is not None:
        both = (number(float(v), digits, signed=signed) for v in (low, high))
        interval = f"{' to '.join(both)} ({percent(cell['level'], 1)})"
    words = {
        (True, False): "changed",
        (True, None): "changed",
        (True, True): "changed, within the margin",
        (False, True): "no change beyond the margin",
        (False, False): "no change found",
        (False, None): "no change found",
    }
    state = words.get((finding["detected"], finding["small"]), "cannot be told")
    return Tile(
        title=title,
        value=number(None if value is None else float(value), digits, signed=signed) + unit,
        interval=interval,
        state=state,
        changed=finding["detected"],
        glyph=_glyph(value, low, high, no_change, margins[key]),
    )


def _degrees(cell: Row) -> Row:
    """A cosine's estimate as an angle."""

    def angle(value: float | None) -> float | None:
        return None if value is None else math.degrees(math.acos(min(1.0, max(-1.0, value))))

    ends_at = {"lower": angle(cell["upper"]), "upper": angle(cell["lower"])}
    return {**cell, "value": angle(cell["value"]), **ends_at}


def _rates(title: str, group: Row, margin: float) -> Tile:
    base, tuned = (group[f"{arm}_rate"]["value"] for arm in ("base", "tuned"))
    change = group["difference"]
    value, low, high = ends(change)
    changed = None if group["p_value"] is None else group["p_value"] < ALPHA
    state = "changed" if changed else "no change found"
    if changed is None:
        state = "cannot be told"
    elif group["equivalent"]:
        state = "changed, within the margin" if changed else "no change beyond the margin"
    both = (number(rate, 1, scale=100.0) for rate in (base, tuned))
    words = estimate(change, 1, scale=100.0, signed=True)
    return Tile(
        title=title,
        value=" → ".join(both) + " %",
        interval=f"{words} points, p {p_text(group['p_value'])}",
        state=state,
        changed=changed,
        glyph=_glyph(value, low, high, 0.0, margin),
    )


def _glyph(
    value: Any, low: Any, high: Any, no_change: float, margin: float, width: float = 150.0
) -> Markup:
    """Draw an interval on a line that is centred on "no change", the margin shaded."""
    known = [abs(float(v) - no_change) for v in (value, low, high) if v is not None]
    reach = 1.15 * max([*known, 1.6 * margin])
    x = Scale(low=no_change - reach, high=no_change + reach, start=2, end=width - 2)
    left, right = x(no_change - margin), x(no_change + margin)
    parts = [
        tag("rect", x=left, y=3, width=right - left, height=14, class_="margin"),
        tag("line", x1=2, x2=width - 2, y1=10, y2=10, class_="grid"),
        tag("line", x1=x(no_change), x2=x(no_change), y1=1, y2=19, class_="reference"),
    ]
    if low is not None and high is not None:
        box = {"x1": x(float(low)), "x2": x(float(high)), "y1": 10, "y2": 10}
        parts.append(tag("line", class_="whisker strong c1", **box))
    if value is not None:
        parts.append(tag("circle", cx=x(float(value)), cy=10, r=4, class_="dot c1"))
    return tag("svg", *parts, viewBox=f"0 0 {width:g} 20", class_="glyph", aria_hidden="true")
