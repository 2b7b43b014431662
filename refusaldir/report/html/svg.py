"""SVG and HTML elements as safe strings: every text and attribute is escaped."""

import math

from markupsafe import Markup, escape

#: Width of one character over the size of the font, on average, for labels that must fit.
_CHARACTER = 0.55


def tag(name: str, *children: str, **attributes: str | float | bool | None) -> Markup:
    """Return an element.

    Args:
        name: Its name.
        children: Text, which is escaped, or markup.
        attributes: By name, with ``_`` for ``-`` and a last ``_`` dropped; None and False leave
            one out, numbers keep a tenth of a unit.
    """
    parts = [Markup("<") + name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        text = _number(value) if isinstance(value, int | float) and value is not True else value
        parts.append(
            Markup(' {}="{}"').format(
                key.rstrip("_").replace("_", "-"), "" if text is True else text
            )
        )
    if not children and name not in ("g", "text", "span", "td", "th", "div", "svg"):
        return Markup("").join([*parts, Markup("/>")])
    return Markup("").join(
        [*parts, Markup(">"), *map(escape, children), Markup("</{}>").format(name)]
    )


def path(points: list[tuple[float, float]], *, closed: bool = False) -> str:
    """Return path data through points; a point that is not finite breaks the line."""
    out, pen = [], "M"
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        out.append(f"{pen}{_number(x)},{_number(y)}")
        pen = "L"
    return "".join(out) + ("Z" if closed and out else "")


def clip(text: str, width: float, size: float = 12.0) -> str:
    """Cut text that would be wider than ``width`` at a font size, with "…" at its end."""
    most = max(1, int(width / (size * _CHARACTER)))
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _number(value: float) -> str:
    text = f"{value:.1f}"
    text = text[:-2] if text.endswith(".0") else text
    return "0" if text == "-0" else text
