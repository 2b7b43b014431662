"""The fields of a prompt: their known values and the checks that they pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from refusaldir.errors import PromptError

Label = Literal["harmful", "harmless"]
Severity = Literal["low", "medium", "high", "critical"]
Framing = Literal["plain", "professional", "fictional", "domain", "escalation"]
Split = Literal["train", "validation", "test"]
Role = Literal["system", "user", "assistant"]

LABELS: tuple[str, ...] = get_args(Label)
SEVERITIES: tuple[str, ...] = get_args(Severity)
FRAMINGS: tuple[str, ...] = get_args(Framing)
SPLITS: tuple[str, ...] = get_args(Split)
ROLES: tuple[str, ...] = get_args(Role)

_CHOICES = {"label": LABELS, "framing": FRAMINGS, "severity": SEVERITIES, "split": SPLITS}

FIELDS = (
    *("id", "intent_id", "label", "category", "severity", "framing", "domain", "turns"),
    *("twin_of", "source", "licence", "split", "metadata"),
)


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        content: The text, kept exactly as given.
    """

    role: Role
    content: str

    def to_dict(self) -> dict[str, str]:
        """Return the message in the form that chat templates take."""
        return {"role": self.role, "content": self.content}


def parse_turns(value: object, where: str) -> tuple[Turn, ...]:
    """Turn a list of ``{"role": …, "content": …}`` objects into `Turn`s.

    Raises:
        PromptError: The value has another form; ``where`` says where it was found.
    """
    if not isinstance(value, list | tuple):
        raise PromptError(
            "'turns' is not a list",
            expected="a list of objects with role and content",
            got=type(value).__name__,
            where=where,
        )
    turns = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping) or set(turn) != {"role", "content"}:
            got = ", ".join(map(str, turn)) if isinstance(turn, Mapping) else type(turn).__name__
            raise PromptError(
                f"turns[{number}] is not a message",
                expected="an object with role and content, nothing else",
                got=got or "an empty object",
                where=where,
            )
        name, role, content = f"turns[{number}]", turn["role"], turn["content"]
        if role not in ROLES:
            raise _wrong(f"{name}.role", " or ".join(ROLES), repr(role), where)
        if not isinstance(content, str):
            raise _wrong(f"{name}.content", "a text", type(content).__name__, where)
        turns.append(Turn(role, content))
    return tuple(turns)


def check_fields(fields: Mapping[str, Any], where: str) -> None:
    """Check the values of a prompt's fields before (or after) they become a `Prompt`.

    Args:
        fields: Field → value; ``turns`` holds `Turn`s. Fields left out have their default.
        where: Place for error messages.

    Raises:
        PromptError: A value is of the wrong type or not one of the known ones.
    """
    for name in ("id", "intent_id", "category", "domain", "twin_of", "source", "licence"):
        value = fields.get(name, "left out")
        if name == "twin_of" and value is None:
            continue
        # Spelled out, here and below: most values are fine and there are many of them.
        if not (isinstance(value, str) and value.isascii() and value.strip()):
            _check_text(name, value, where, empty=name in ("source", "licence"))
    for name, known in _CHOICES.items():
        value = fields.get(name, known[0])
        if value not in known and not (value is None and name in ("severity", "split")):
            raise _wrong(name, " or ".join(known), repr(value), where)
    if not isinstance(fields.get("metadata", {}), Mapping):
        raise _wrong("metadata", "an object", type(fields["metadata"]).__name__, where)
    _check_turns(fields["turns"], where)


def _check_turns(turns: tuple[Turn, ...], where: str) -> None:
    if not turns:
        raise _wrong("turns", "at least one user message", "none", where)
    expected = "user"
    for number, turn in enumerate(turns, start=1):
        name = f"turns[{number}]"
        if turn.role not in ROLES:
            raise _wrong(f"{name}.role", " or ".join(ROLES), repr(turn.role), where)
        if not (turn.content.isascii() and turn.content.strip()):
            _check_text(f"{name}.content", turn.content, where, empty=turn.role == "system")
        if turn.role == "system" and number == 1:
            continue
        if turn.role != expected:
            raise _wrong(f"{name}.role", expected, turn.role, where)
        expected = "assistant" if expected == "user" else "user"
    if turns[-1].role != "user":
        raise _wrong("turns", "a last message from the user", turns[-1].role, where)


def _check_text(name: str, value: object, where: str, *, empty: bool = False) -> None:
    if not isinstance(value, str):
        raise _wrong(name, "a text", f"{type(value).__name__} {value!r}", where)
    if not empty and not value.strip():
        raise _wrong(name, "a text that is not empty", repr(value), where)
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            got = f"the lone surrogate {value[error.start]!r}"
            raise _wrong(name, "text that UTF-8 can encode", got, where) from None


def _wrong(name: str, expected: str, got: str, where: str) -> PromptError:
    return PromptError(f"A prompt has a wrong '{name}'", expected=expected, got=got, where=where)
