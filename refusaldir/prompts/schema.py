"""Prompts: one labelled request, and an ordered set of them.

A prompt is a conversation that ends with the user's turn. Harmful and harmless prompts of one
*intent* (a matched pair, or one request in several framings) share an ``intent_id``: that is the
unit by which error bars are clustered.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

from refusaldir.errors import PromptError
from refusaldir.prompts.fields import FIELDS as FIELDS
from refusaldir.prompts.fields import FRAMINGS as FRAMINGS
from refusaldir.prompts.fields import LABELS as LABELS
from refusaldir.prompts.fields import SEVERITIES as SEVERITIES
from refusaldir.prompts.fields import SPLITS as SPLITS
from refusaldir.prompts.fields import Framing, Label, Severity, Split, check_fields, parse_turns
from refusaldir.prompts.fields import Turn as Turn
from refusaldir.records import HARMFUL, HARMLESS, content_hash


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One labelled conversation that ends with the user's turn.

    Attributes:
        id: Unique within its set.
        intent_id: What is asked for, however it is phrased; the unit of clustering.
        label: ``harmful`` or ``harmless``.
        category: Hazard category, by the MLCommons names in the built-in sets.
        severity: ``low``, ``medium``, ``high``, ``critical``, or None; a property of the intent.
        framing: How the intent is dressed: ``plain``, ``professional``, ``fictional``,
            ``domain`` or ``escalation``.
        domain: ``general``, ``medical``, ``legal``, …
        turns: An optional system message, then user and assistant in turn, the user last.
        twin_of: Id of the matched prompt of the other label, or None.
        source: Where the text comes from.
        licence: Licence of the text.
        split: ``train``, ``validation``, ``test``, or None.
        metadata: Anything else worth keeping; never read by refusaldir.
    """

    id: str
    intent_id: str
    label: Label
    category: str = "uncategorised"
    severity: Severity | None = None
    framing: Framing = "plain"
    domain: str = "general"
    turns: tuple[Turn, ...]
    twin_of: str | None = None
    source: str = ""
    licence: str = ""
    split: Split | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            PromptError: A field is missing, of the wrong type or not one of its known values.
        """
        check_fields(self.__dict__, f"prompt {self.id}")

    @property
    def text(self) -> str:
        """Content of the last user turn: the instruction."""
        return self.turns[-1].content

    @property
    def y(self) -> int:
        """Label as a number: harmless 0, harmful 1."""
        return HARMFUL if self.label == "harmful" else HARMLESS

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary in the canonical JSONL form."""
        names = ("id", "intent_id", "label", "category", "severity", "framing", "domain")
        data: dict[str, Any] = {name: getattr(self, name) for name in names}
        data["turns"] = [turn.to_dict() for turn in self.turns]
        for name in ("twin_of", "source", "licence", "split"):
            data[name] = getattr(self, name)
        if self.metadata:
            data["metadata"] = dict(self.metadata)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Prompt":
        """Rebuild from `to_dict`.

        Raises:
            PromptError: A field is unknown, missing or wrong.
        """
        where = f"prompt {data.get('id', '?')}"
        unknown = sorted(set(data) - set(FIELDS))
        missing = sorted({"id", "intent_id", "label", "turns"} - set(data))
        if unknown or missing:
            raise PromptError(
                "A prompt has unknown fields" if unknown else "A prompt lacks fields",
                expected=", ".join(FIELDS),
                got=", ".join(unknown) or f"no {', '.join(missing)}",
                where=where,
                next_step="Put anything else in a 'metadata' object" if unknown else None,
            )
        fields = {**data, "turns": parse_turns(data["turns"], where)}
        check_fields(fields, where)
        return cls(**fields)


@dataclass(frozen=True)
class PromptSet:
    """Prompts in a fixed order.

    Attributes:
        name: Short name for tables and provenance.
        prompts: The prompts; ids are unique.
        notes: What the loader did to the source that a reader should know, a sentence each.
    """

    name: str
    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that ids are unique."""
        seen: set[str] = set()
        for prompt in self.prompts:
            if prompt.id in seen:
                raise PromptError(
                    "Two prompts have the same id", got=repr(prompt.id), where=self.name
                )
            seen.add(prompt.id)

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        """Iterate in order."""
        return iter(self.prompts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> "PromptSet": ...
    def __getitem__(self, index: int | slice) -> "Prompt | PromptSet":
        """Return one prompt, or for a slice a set of them."""
        if isinstance(index, slice):
            return PromptSet(self.name, self.prompts[index], self.notes)
        return self.prompts[index]

    @cached_property
    def hash(self) -> str:
        """Hash of everything that results depend on, in order; notes on where it came from do not.

        Splits, intents and categories count: a stored capture carries them, and must not be
        reused after they were changed.
        """
        aside = ("source", "licence", "metadata")
        return content_hash(
            [{k: v for k, v in p.to_dict().items() if k not in aside} for p in self.prompts]
        )

    @property
    def labels(self) -> list[int]:
        """One label per prompt: harmless 0, harmful 1."""
        return [prompt.y for prompt in self.prompts]

    @property
    def ids(self) -> list[str]:
        """One id per prompt."""
        return [prompt.id for prompt in self.prompts]

    def select(
        self, *, split: str | None = None, label: str | None = None, category: str | None = None
    ) -> "PromptSet":
        """Return the prompts that match every argument given, in order; possibly none.

        Args:
            split: ``train``, ``validation`` or ``test``.
            label: ``harmful`` or ``harmless``.
            category: A category, spelled as in the prompts.

        Raises:
            PromptError: ``split`` or ``label`` is no such value.
        """
        for name, value, known in (("split", split, SPLITS), ("label", label, LABELS)):
            if value is not None and value not in known:
                raise PromptError(
                    f"No prompt can have this {name}", expected=" or ".join(known), got=repr(value)
                )
        kept = tuple(
            p
            for p in self.prompts
            if (split is None or p.split == split)
            and (label is None or p.label == label)
            and (category is None or p.category == category)
        )
        return PromptSet(self.name, kept, self.notes)

    def require_both_classes(self) -> None:
        """Check that there are harmful and harmless prompts.

        Raises:
            PromptError: One of the classes is empty.
        """
        harmful = sum(self.labels)
        if not 0 < harmful < len(self):
            lacking = "harmless" if harmful else "harmful"
            raise PromptError(
                "A refusal direction needs prompts of both classes",
                expected="harmful and harmless prompts",
                got=f"{harmful} harmful and {len(self) - harmful} harmless",
                where=self.name,
                next_step=f"Load it as a pair with a set of {lacking} prompts",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "name": self.name,
            "prompts": [prompt.to_dict() for prompt in self.prompts],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PromptSet":
        """Rebuild from `to_dict`."""
        prompts = tuple(Prompt.from_dict(prompt) for prompt in data["prompts"])
        return cls(data["name"], prompts, tuple(data.get("notes", ())))
