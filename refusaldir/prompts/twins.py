"""Linking matched prompts and giving every prompt its intent."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from refusaldir.errors import PromptError
from refusaldir.prompts.files import Row

#: A row of a source and the fields read from it, which are yet to become a prompt.
Draft = tuple[Row, dict[str, Any]]


def resolve_twins(drafts: Sequence[Draft]) -> None:
    """Check ids and twins and give an intent to every prompt that has none, in place.

    Twins without an intent share one: the first given among them, else the first one's id.

    Raises:
        PromptError: Two prompts have the same id, or a twin is missing or of the same label.
    """
    by_id: dict[str, Draft] = {}
    for row, fields in drafts:
        before = by_id.setdefault(fields["id"], (row, fields))
        if before[0] is not row:
            raise PromptError(
                "Two prompts have the same id",
                got=repr(fields["id"]),
                where=f"{before[0].where}; {row.where}",
                next_step="Give each prompt an id of its own, or leave the ids out",
            )
    group = {id_: id_ for id_ in by_id}  # Union-find over twins.

    def root(id_: str) -> str:
        while group[id_] != id_:
            group[id_] = id_ = group[group[id_]]
        return id_

    for row, fields in drafts:
        twin = fields.get("twin_of")
        if twin is None:
            continue
        if twin not in by_id:
            close = get_close_matches(str(twin), by_id, n=1)
            raise PromptError(
                "'twin_of' names a prompt that does not exist",
                got=repr(twin),
                where=row.where,
                next_step=f"Did you mean '{close[0]}'?" if close else None,
            )
        other_row, other = by_id[twin]
        if other["label"] == fields["label"]:
            raise PromptError(
                "Twins have the same label",
                expected="one harmful and one harmless prompt",
                got=f"both {fields['label']}",
                where=f"{row.where}; {other_row.where}",
            )
        group[root(fields["id"])] = root(twin)
    # Of each group: the first intent given, else the first id.
    intents: dict[str, str] = {}
    for _, fields in drafts:
        if fields.get("intent_id") is not None:
            intents.setdefault(root(fields["id"]), fields["intent_id"])
    for _, fields in drafts:
        if fields.get("intent_id") is None:
            fields["intent_id"] = intents.setdefault(root(fields["id"]), fields["id"])
