"""Prompts to token ids through the model's own chat template.

Each prompt is rendered to text with the template and then tokenised without adding special
tokens, so BOS is never doubled. The tokens after the instruction (Arditi et al. 2024, arXiv
2406.11717, section 2.3: the post-instruction tokens) are found by rendering the template around
different instructions, and every prompt is checked to end with them.

It needs a tokenizer, but neither torch nor transformers by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from refusaldir.errors import PromptError, TemplateError
from refusaldir.prompts.identity import tokenizer_hash
from refusaldir.prompts.schema import Prompt, PromptSet
from refusaldir.prompts.template import ChatTemplate
from refusaldir.records import (
    LAST_INSTRUCTION,
    Positions,
    TemplateIdentity,
    common_prefix_length,
    content_hash,
)


@dataclass(frozen=True)
class RenderedSet:
    """Prompts as token ids.

    Attributes:
        prompts: The prompts, in order.
        ids: Token ids of each, up to where the model's reply begins.
        texts: The rendered text of each.
        identity: How they were rendered.
    """

    prompts: PromptSet
    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    identity: TemplateIdentity

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.ids)

    @cached_property
    def hash(self) -> str:
        """Hash of the token ids, in order."""
        return content_hash(self.ids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each prompt."""
        return tuple(map(len, self.ids))

    def take(self, indices: Sequence[int]) -> "RenderedSet":
        """Some of the prompts, in the order given."""
        prompts = tuple(self.prompts[i] for i in indices)
        return RenderedSet(
            prompts=PromptSet(self.prompts.name, prompts, self.prompts.notes),
            ids=tuple(self.ids[i] for i in indices),
            texts=tuple(self.texts[i] for i in indices),
            identity=self.identity,
        )

    def check_positions(self, positions: Positions) -> None:
        """Check that every prompt reaches back to every position.

        Raises:
            PromptError: The shortest prompt does not.
        """
        shortest = min(range(len(self.ids)), key=lambda i: len(self.ids[i]))
        if len(self.ids[shortest]) < -positions.offsets[0]:
            raise PromptError(
                "A position lies before the first token of a prompt",
                expected=f"positions from {-len(self.ids[shortest])} to -1",
                got=str(positions.offsets[0]),
                where=f"prompt {self.prompts[shortest].id}",
            )

    def check_length(self, max_length: int) -> None:
        """Check that every prompt fits the model's context.

        Raises:
            PromptError: One does not.
        """
        longest = max(range(len(self.ids)), key=lambda i: len(self.ids[i]))
        if len(self.ids[longest]) > max_length:
            raise PromptError(
                "A prompt is longer than the model's context",
                expected=f"at most {max_length} tokens",
                got=f"{len(self.ids[longest])} tokens",
                where=f"prompt {self.prompts[longest].id}",
                next_step="Shorten it or leave it out",
            )

    def prefix_length(self, positions: Positions) -> int:
        """Number of leading tokens that all prompts share and that no position touches.

        At least one token more than there are positions is left after it.

        Raises:
            PromptError: As `check_positions`.
        """
        self.check_positions(positions)
        left = max(len(positions.offsets) + 1, -positions.offsets[0])
        return max(0, min(common_prefix_length(self.ids), min(self.lengths) - left))


class ChatRenderer:
    """Renders prompts with one tokenizer and chat template.

    Args:
        tokenizer: A Hugging Face tokenizer.
        system: ``"default"`` leaves the system message to the template. ``"none"`` leaves it
            out, with an empty one where that is the only way to keep the template from
            inserting its own (what a template writes in any case, such as a date, stays).
            Anything else is the text of the system message.
        thinking: True or False sets the template's switch for thinking; None leaves it.
        template: Jinja text to use instead of the tokenizer's own; ``"plain"`` for none at all:
            the prompt as it is, after BOS where the tokenizer adds one.

    Attributes:
        identity: How prompts are rendered, to compare captures by.
        post_ids: Ids of the tokens after the instruction; empty if the template has none.

    Raises:
        TemplateError: The tokenizer has no chat template, or it takes no system message, has no
            thinking switch, or hides where the instruction ends.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        system: str = "default",
        thinking: bool | None = None,
        template: str | None = None,
    ) -> None:
        """Find the post-instruction tokens; see the class docstring."""
        self._tokenizer = tokenizer
        self._template = ChatTemplate(
            tokenizer, template=template, system=system, thinking=thinking
        )
        self._tail = self._template.tail(self._tokenize)
        self.post_ids: tuple[int, ...] = self._tail.ids
        self.identity = TemplateIdentity(
            tokenizer_hash=tokenizer_hash(tokenizer),
            template_hash=content_hash(self._template.text),
            system=system,
            thinking=self._template.thinking,
            post_tokens=tuple(map(self._token_text, self.post_ids)),
        )

    def render(
        self, prompts: PromptSet | Sequence[Prompt], *, max_length: int | None = None
    ) -> RenderedSet:
        """Render prompts to token ids.

        Where a tokenizer merges the instruction's last characters with the template's first
        ones, the instruction and what follows it are tokenised apart: the model reads the same
        text, and the positions mean the same in every prompt.

        Args:
            prompts: The prompts.
            max_length: Most tokens a prompt may have, e.g. the model's context.

        Raises:
            PromptError: There are no prompts, or one has no tokens or more than ``max_length``.
            TemplateError: The template refuses a prompt, or one does not end with the
                post-instruction tokens.
        """
        if not isinstance(prompts, PromptSet):
            prompts = PromptSet("prompts", tuple(prompts))
        if not prompts:
            raise PromptError("There are no prompts to render", where=prompts.name)
        texts = self._texts(prompts)
        ids = self._tokenize(texts)
        merged = [i for i, row in enumerate(ids) if not self._ends_well(row)]
        if merged:
            self._split(prompts, texts, ids, merged)
        rendered = RenderedSet(
            prompts=prompts,
            ids=tuple(map(tuple, ids)),
            texts=tuple(texts),
            identity=self.identity,
        )
        if max_length is not None:
            rendered.check_length(max_length)
        return rendered

    def positions(self, choice: str = "post") -> Positions:
        """Turn a choice of positions into offsets from the end of every prompt.

        Args:
            choice: Comma-separated: ``post`` (all tokens after the instruction), ``inst``
                (``t_inst``, the last token of the instruction), negative offsets such as
                ``-1,-2``. Where the template puts nothing after the instruction, ``post`` adds
                nothing to the others.

        Raises:
            TemplateError: A word that is none of these, or ``post`` alone with a template that
                puts nothing after the instruction.
        """
        after = len(self.post_ids)
        offsets: set[int] = set()
        words = [part.strip() for part in choice.split(",")]
        for word in words:
            if word == "post":
                if not after and set(words) == {"post"}:
                    raise TemplateError(
                        "This template puts nothing after the instruction",
                        expected="inst or offsets such as -1,-2",
                        got="post",
                    )
                offsets.update(range(-after, 0))
            elif word == "inst":
                offsets.add(-after - 1)
            elif word.startswith("-") and word[1:].isdecimal() and int(word) < 0:
                offsets.add(int(word))
            else:
                raise TemplateError(
                    "This is not a position",
                    expected="post, inst, or offsets from the end such as -1,-2",
                    got=repr(word),
                )
        ordered = tuple(sorted(offsets))
        return Positions(offsets=ordered, labels=tuple(map(self._label, ordered)))

    def _label(self, offset: int) -> str:
        behind = offset + len(self.post_ids)  # -1 is the last token of the instruction.
        if behind >= 0:
            return self.identity.post_tokens[behind]
        return LAST_INSTRUCTION if behind == -1 else f"{LAST_INSTRUCTION}{behind + 1}"

    def _texts(self, prompts: PromptSet) -> list[str]:
        chats = [[turn.to_dict() for turn in prompt.turns] for prompt in prompts]
        try:
            return self._template.render(chats)
        except TemplateError:
            for prompt, chat in zip(prompts, chats, strict=True):
                try:
                    self._template.render([chat])
                except TemplateError as error:
                    raise TemplateError(
                        error.what,
                        expected=error.expected,
                        got=error.got,
                        where=f"prompt {prompt.id}",
                        next_step=error.next_step,
                    ) from error
            raise

    def _split(
        self, prompts: PromptSet, texts: list[str], ids: list[list[int]], merged: list[int]
    ) -> None:
        """Tokenise the prompts ``merged`` in two parts, in place."""
        for i in merged:
            if not ids[i]:
                raise PromptError("A prompt has no tokens", where=f"prompt {prompts[i].id}")
            if not texts[i].endswith(self._tail.text):
                raise TemplateError(
                    "A prompt does not end with the template's post-instruction text",
                    expected=repr(self._tail.text),
                    got=repr(texts[i][-len(self._tail.text) - 20 :]),
                    where=f"prompt {prompts[i].id}",
                )
        cut = len(self._tail.text)
        heads = self._tokenize([texts[i][: len(texts[i]) - cut] for i in merged])
        for i, head in zip(merged, heads, strict=True):
            apart = [*head, *self.post_ids]
            if self._text(apart) != self._text(ids[i]):
                at = self._first_difference(ids[i], apart)
                raise TemplateError(
                    "The tokenizer merges the end of a prompt with the template",
                    expected=f"the tokens {list(self.identity.post_tokens)} at the end",
                    got=f"the token {self._token_text(ids[i][at])!r}",
                    where=f"prompt {prompts[i].id}",
                    next_step="End the prompt with another character",
                )
            ids[i] = apart

    def _ends_well(self, row: list[int]) -> bool:
        count = len(self.post_ids)
        return len(row) > count and tuple(row[len(row) - count :]) == self.post_ids

    @staticmethod
    def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
        return min(common_prefix_length([tuple(a), tuple(b)]), len(a) - 1)

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        encoded: list[list[int]] = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        return encoded

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _token_text(self, token: int) -> str:
        return self._text([token])
