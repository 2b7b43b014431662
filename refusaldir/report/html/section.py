"""Parts of the page before they become HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from refusaldir.report.html.figure import Figure, Table
from refusaldir.report.text import visible


def sentence(note: str) -> str:
    """Write a note of a document, which may begin small and end open, as a sentence."""
    text = visible(note).strip()
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


@dataclass(frozen=True, kw_only=True)
class Block:
    """Something under a heading of its own.

    Attributes:
        title: The heading; empty for none.
        sentences: What it says, a bullet each.
        note: A paragraph in small print, such as why something is missing.
        figures: Side by side where there is room.
        table: A table that is shown at once.
        facts: Terms and what they are.
        code: A command to copy.
        flips: Prompts whose answer changed.
    """

    title: str = ""
    sentences: Sequence[str] = ()
    note: str = ""
    figures: Sequence[Figure] = ()
    table: Table | None = None
    facts: Sequence[tuple[str, str]] = ()
    code: str = ""
    flips: "Flips | None" = None


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What was asked and said for one prompt; labels by the first judge."""

    prompt: str
    base: str
    tuned: str
    base_label: str
    tuned_label: str


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Prompts whose answer changed.

    Attributes:
        table: One a row; the first column is the prompt's id.
        texts: By id; empty where responses are not there.
        note: What is left out, if anything.
    """

    table: Table
    texts: dict[str, Texts] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One question and its answer.

    Attributes:
        key: Its name in the page's address.
        title: The question.
        short: The same in the list of contents.
        blocks: The answer.
    """

    key: str
    title: str
    short: str
    blocks: Sequence[Block]
