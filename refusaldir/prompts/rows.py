"""Turning rows of any source into prompts: fields, labels, ids, intents, twins, duplicates.

Rows are canonical objects (see `refusaldir.prompts.schema`), or plain ones whose text stands
under ``instruction``, ``prompt``, ``text``, ``goal``, ``question``, ``query`` or ``messages``,
or anything at all with a column map. A field that nobody asked for is an error, not a silent
loss, except inside ``metadata``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from refusaldir.errors import PromptError
from refusaldir.prompts.fields import FIELDS, LABELS, Turn, check_fields, parse_turns
from refusaldir.prompts.files import Row
from refusaldir.prompts.schema import Prompt, PromptSet
from refusaldir.prompts.twins import Draft as Draft
from refusaldir.prompts.twins import resolve_twins

#: Names under which plain data sets keep a single-turn prompt.
TEXT_NAMES = ("instruction", "prompt", "text", "goal", "question", "query")

#: Fields that a column map can name: those of a prompt, and ``text`` for a single turn.
MAPPABLE = (*(name for name in FIELDS if name != "metadata"), "text")

_LABEL_WORDS = {
    "harmful": "harmful",
    "unsafe": "harmful",
    "harmless": "harmless",
    "safe": "harmless",
    "benign": "harmless",
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How to read the rows of one source.

    Attributes:
        label: Label of every row, or None to read it from the rows.
        columns: Prompt field (or ``text``) → column of the source, or None to go by name.
        prefix: Put before every id (and before ids that were derived).
        twin_prefix: Put before every ``twin_of``.
    """

    label: str | None = None
    columns: Mapping[str, str] | None = None
    prefix: str = ""
    twin_prefix: str = ""

    def __post_init__(self) -> None:
        """Check label and column map."""
        if self.label is not None and self.label not in LABELS:
            raise PromptError(
                "This is not a label", expected=" or ".join(LABELS), got=repr(self.label)
            )
        for name in self.columns or {}:
            if name not in MAPPABLE:
                close = get_close_matches(name, MAPPABLE, n=1)
                raise PromptError(
                    "A column map names a field that prompts do not have",
                    expected=", ".join(MAPPABLE),
                    got=repr(name),
                    next_step=f"Did you mean '{close[0]}'?"
                    if close
                    else "Write field=column, e.g. text=Goal",
                )


def read_drafts(rows: Sequence[Row], reading: Reading) -> list[Draft]:
    """Read the fields of every row; ids are set, intents and twins not yet resolved.

    Raises:
        PromptError: A row has unknown, missing or contradictory fields.
    """
    return [(row, _fields(row, reading)) for row in rows]


def build_set(
    name: str, drafts: Sequence[Draft], *, drop_duplicates: bool = False, notes: Sequence[str] = ()
) -> PromptSet:
    """Check drafts against each other and make the set, in order.

    Args:
        name: Name of the set.
        drafts: From `read_drafts`.
        drop_duplicates: Keep the first of several equal prompts of one class, and note it,
            rather than refuse (for downloaded sets, which the user cannot edit).
        notes: Put first among the set's notes.

    Raises:
        PromptError: Repeated ids or texts, twins that do not exist or have the same label, or a
            field with a wrong value; the message names the rows.
    """
    prompts: list[Prompt] = []
    kept: list[Draft] = []
    first: dict[tuple[str, ...], tuple[Row, str]] = {}
    dropped = 0
    for row, fields in drafts:
        key = tuple(" ".join(turn.content.split()) for turn in fields["turns"])
        before = first.setdefault(key, (row, fields["label"]))
        if before[0] is row:
            kept.append((row, fields))
        elif drop_duplicates and before[1] == fields["label"]:
            dropped += 1
        else:
            both = before[1] != fields["label"]
            raise PromptError(
                "The same prompt is harmful and harmless"
                if both
                else "The same prompt is given twice",
                got=_shorten(key[-1]),
                where=f"{before[0].where}; {row.where}",
                next_step="Keep one of them",
            )
    if not kept:
        raise PromptError("No prompts were found", where=name)
    resolve_twins(kept)
    for row, fields in kept:
        check_fields(fields, row.where)
        prompts.append(Prompt(**fields))
    told = [f"{dropped} repeated prompt{'s' if dropped > 1 else ''} left out."] if dropped else []
    return PromptSet(name, tuple(prompts), (*notes, *told))


def _fields(row: Row, reading: Reading) -> dict[str, Any]:
    fields = _by_name(row) if reading.columns is None else _by_column(row, reading.columns)
    text, turns = fields.pop("text", None), fields.get("turns")
    if turns is not None and text is not None:
        raise PromptError("A prompt has both turns and a text", where=row.where)
    if turns is None:
        if text is None:
            raise PromptError(
                "A prompt has no text",
                expected=f"turns, messages or one of {', '.join(TEXT_NAMES)}",
                got=", ".join(row.data) or "nothing",
                where=row.where,
                next_step="Name the column that holds it with a column map, e.g. text=Goal",
            )
        fields["turns"] = (Turn("user", _single(text, row)),)
    else:
        if isinstance(turns, str):  # A cell of a CSV file.
            try:
                turns = json.loads(turns)
            except json.JSONDecodeError:
                raise PromptError("'turns' is not valid JSON", where=row.where) from None
        fields["turns"] = parse_turns(turns, row.where)
        if not fields["turns"]:
            raise PromptError(
                "A prompt has no messages", expected="at least one user message", where=row.where
            )
    fields["label"] = _label(fields.get("label"), reading.label, row)
    for name in ("id", "intent_id", "twin_of"):
        if isinstance(fields.get(name), int) and not isinstance(fields[name], bool):
            fields[name] = str(fields[name])
    if not isinstance(fields.setdefault("id", row.key), str):
        raise PromptError("An id is not a text", got=type(fields["id"]).__name__, where=row.where)
    fields["id"] = reading.prefix + fields["id"]
    if fields.get("twin_of") is not None:
        fields["twin_of"] = f"{reading.twin_prefix}{fields['twin_of']}"
    return fields


def _by_name(row: Row) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in row.data.items():
        name = str(key).lower()
        if name in TEXT_NAMES:
            name = "text"
        elif name == "messages":
            name = "turns"
        elif name not in FIELDS:
            accepted = ", ".join((*FIELDS, *TEXT_NAMES, "messages"))
            raise PromptError(
                f"Prompts have no field '{key}'",
                expected=accepted,
                where=row.where,
                next_step="Put it in a 'metadata' object, or say which columns to read with a "
                f"column map, e.g. {_suggest(row.data)}",
            )
        if value is None:
            continue
        if name in fields:
            raise PromptError(f"A prompt gives '{name}' twice", got=str(key), where=row.where)
        fields[name] = value
    return fields


def _by_column(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    missing = [column for column in columns.values() if column not in row.data]
    if missing:
        raise PromptError(
            "A column map names a column that is not there",
            expected=", ".join(map(str, row.data)),
            got=", ".join(missing),
            where=row.where,
        )
    fields = {name: row.data[column] for name, column in columns.items()}
    if not {"text", "turns"} & set(columns):
        names = [key for key in row.data if key.lower() in (*TEXT_NAMES, "turns", "messages")]
        free = [key for key in names if key not in columns.values()]
        if len(free) != 1:
            raise PromptError(
                "The column that holds the prompt is not clear",
                expected="text=COLUMN in the column map",
                got=", ".join(map(str, row.data)),
                where=row.where,
            )
        field = "text" if free[0].lower() in TEXT_NAMES else "turns"
        fields[field] = row.data[free[0]]
    return {name: value for name, value in fields.items() if value is not None and value != ""}


def _single(value: object, row: Row) -> str:
    # Some sets keep a single-turn prompt as a list of one.
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        raise PromptError(
            f"A prompt's text is {'empty' if isinstance(value, str) else 'no text'}",
            expected="a text that is not empty",
            got=repr(value)[:60],
            where=row.where,
        )
    return value


def _label(value: object, given: str | None, row: Row) -> str:
    if value is None:
        if given is None:
            raise PromptError(
                "A prompt has no label",
                expected=" or ".join(LABELS),
                where=row.where,
                next_step="Give the label of the whole file, add a 'label' field, or load a "
                "harmful and a harmless file as a pair",
            )
        return given
    label = _LABEL_WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if label is None:
        raise PromptError(
            "Unknown label",
            expected="harmful (or unsafe) or harmless (or safe, benign)",
            got=repr(value),
            where=row.where,
        )
    if given is not None and label != given:
        raise PromptError(
            "A prompt's own label contradicts the one given for all",
            expected=given,
            got=label,
            where=row.where,
        )
    return label


def _suggest(data: Mapping[str, Any]) -> str:
    texts = [key for key in data if str(key).lower() in TEXT_NAMES]
    texts += [key for key, value in data.items() if isinstance(value, str)]
    return f"text={texts[0]}" if texts else "text=COLUMN"


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")
