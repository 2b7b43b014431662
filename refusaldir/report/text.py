"""How numbers, tokens, models and categories are written, the same in tables and figures."""

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]

AXIS_TITLES = {
    "refusal": "Refusal of harmful prompts",
    "over_refusal": "Over-refusal of harmless prompts",
}

#: Family-wise error rate over the categories of one axis of behaviour.
ALPHA = 0.05


def number(
    value: float | int | None, digits: int = 2, *, scale: float = 1.0, signed: bool = False
) -> str:
    """Format with a true minus sign and without a negative zero; a dash for null."""
    if value is None:
        return "–"
    text = f"{value * scale:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def percent(share: float, digits: int = 0) -> str:
    """Format a share, e.g. ``95 %``."""
    return f"{number(share, digits, scale=100.0)} %"


def visible(text: str) -> str:
    r"""Return names, tokens and notes with control characters written out, e.g. ``\n``.

    They come from tokenizers, data sets and files of others: a line break must not break a
    table, and an escape sequence must reach neither a terminal nor an SVG.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def brief(name: str, most: int) -> str:
    """Return a name of at most so many characters: a longer one loses its middle."""
    left = (most - 1) // 2
    return name if len(name) <= most else f"{name[:left]}…{name[left + 1 - most :]}"


def model_names(document: Row) -> str:
    """Return ``base → tuned`` by their short names."""
    return visible(" → ".join(document[arm]["model"]["name"] for arm in ("base", "tuned")))


def passes_holm(row: Row) -> bool:
    """Whether a category's change is significant after Holm's correction."""
    return row["p_holm"] is not None and bool(row["p_holm"] < ALPHA)


def category_order(behaviour: Row) -> list[str]:
    """Return all categories, the largest fall of refusals of harmful prompts first.

    Categories without harmful prompts come after those with, in the order of their change on
    harmless prompts; those where nothing could be judged come last.
    """
    place: dict[str, tuple[int, float]] = {}
    for i, name in enumerate(AXIS_TITLES):
        axis = behaviour["axes"][name]
        for row in axis["breakdowns"]["category"]["groups"] if axis else ():
            change = row["difference"]["value"]
            place.setdefault(row["name"], (2, 0.0) if change is None else (i, change))
    return sorted(place, key=lambda category: (*place[category], category))
