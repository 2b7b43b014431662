"""Prompts as the columns of ``/prompts``, and back."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from refusaldir.errors import PromptError, StoreError
from refusaldir.prompts.schema import Prompt, PromptSet

# An empty string stands for None in _OPTIONAL.
_REQUIRED = ("id", "intent_id", "label", "category", "framing", "domain", "source", "licence")
_OPTIONAL = ("severity", "split", "twin_of")
#: Columns of short text.
TEXT_COLUMNS = (*_REQUIRED, *_OPTIONAL)
#: Columns of one JSON value per prompt.
JSON_COLUMNS = ("turns", "metadata")

_MAX_BYTES = 4096
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def storable(text: str) -> str:
    """Show what HDF5 strings cannot hold (NUL, lone surrogates) as U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


def prompt_columns(prompts: PromptSet, lengths: Sequence[int]) -> dict[str, list[Any]]:
    """Turn prompts into the columns of ``/prompts``.

    ``turns`` and ``metadata`` are JSON with every non-ASCII character escaped, hence lossless
    for any text. ``text`` (the instruction, with NUL shown as U+FFFD) is for people and other
    programs; `prompt_set` does without it.

    Raises:
        PromptError: A short field is too long or holds a NUL, or the metadata are not JSON.
        StoreError: There is not one positive length per prompt.
    """
    if len(lengths) != len(prompts) or any(n < 1 for n in lengths):
        raise StoreError(
            "A capture needs one token count per prompt",
            expected=f"{len(prompts)} positive counts",
            got=f"{len(lengths)} counts, the smallest {min(lengths, default=None)}",
        )
    columns: dict[str, list[Any]] = {name: [] for name in (*TEXT_COLUMNS, *JSON_COLUMNS, "text")}
    for prompt in prompts:
        data = prompt.to_dict()
        for name in TEXT_COLUMNS:
            columns[name].append(_short_text(data[name], name, prompt.id))
        columns["text"].append(storable(prompt.text))
        columns["turns"].append(json.dumps(data["turns"]))
        columns["metadata"].append(_metadata(data.get("metadata"), prompt.id))
    return {**columns, "n_tokens": [int(n) for n in lengths]}


def prompt_set(
    name: str, columns: Mapping[str, Sequence[Any]], notes: Iterable[str] = ()
) -> PromptSet:
    """Rebuild the prompts from `prompt_columns`."""
    prompts = []
    for i, turns in enumerate(columns["turns"]):
        data: dict[str, Any] = {field: columns[field][i] for field in _REQUIRED}
        data |= {field: columns[field][i] or None for field in _OPTIONAL}
        data["turns"] = json.loads(turns)
        data["metadata"] = json.loads(columns["metadata"][i])
        prompts.append(Prompt.from_dict(data))
    return PromptSet(name, tuple(prompts), tuple(notes))


def _short_text(value: str | None, field: str, prompt_id: str) -> str:
    if value is None:
        return ""
    if _UNSTORABLE.search(value):
        raise PromptError(
            f"The field '{field}' of a prompt holds a character that cannot be stored",
            expected="text without NUL characters and lone surrogates",
            got=repr(value),
            where=f"prompt {prompt_id!r}",
        )
    if len(value.encode()) > _MAX_BYTES:
        raise PromptError(
            f"The field '{field}' of a prompt is too long to store",
            expected=f"at most {_MAX_BYTES} bytes",
            got=len(value.encode()),
            where=f"prompt {prompt_id[:80]!r}",
        )
    return value


def _metadata(value: Mapping[str, Any] | None, prompt_id: str) -> str:
    try:
        return json.dumps(value or {})
    except (TypeError, ValueError) as error:
        raise PromptError(
            "The metadata of a prompt cannot be written as JSON",
            got=str(error),
            where=f"prompt {prompt_id!r}",
        ) from error
