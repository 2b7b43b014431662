"""Rows of the link to the mechanism, the same in table and figure."""

from collections.abc import Iterator, Mapping
from typing import Any

from refusaldir.report.text import visible

Row = Mapping[str, Any]

#: Parts of a link, and what they are called.
PARTS = {
    "single": "prompts",
    "frozen": "escalations, canned replies",
    "live": "escalations, own replies",
}

_SIDES = {"refusal": "harmful", "over_refusal": "harmless"}


def link_of(document: Row) -> Row | None:
    """The link of a document that has a part to show, or None."""
    behaviour = document["behaviour"]
    link = None if behaviour is None else behaviour["link"]
    if link is None or not any(link[part] for part in PARTS):
        return None
    found: Row = link
    return found


def part_rows(name: str, part: Row) -> Iterator[tuple[str, Row, bool]]:
    """Label, parts and whether it is of all prompts, for every row of one part.

    Groups are those of harmful prompts, categories by the observed change, the largest fall first,
    turns in their order.

    Args:
        name: ``"single"``, ``"frozen"`` or ``"live"``.
        part: The document's part of that name.
    """
    where = "all" if name == "single" else f"{name},"
    for parts in part["axes"]:
        yield f"{where} {_SIDES[parts['axis']]}", parts, True
    groups = [parts for parts in part["groups"] if parts["axis"] == "refusal"]
    if part["group_kind"] == "category":
        groups.sort(key=lambda parts: (parts["observed"]["value"], parts["group"]))
    if len(groups) > 1:
        for parts in groups:
            label = visible(str(parts["group"])).replace("_", " ")
            yield (label if part["group_kind"] == "category" else f"turn {label}"), parts, False
