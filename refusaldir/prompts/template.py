"""What a chat template does with a conversation: system message, thinking switch, tail.

Everything here is found by rendering the template, never by knowing the model's family.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refusaldir.errors import TemplateError

Message = Mapping[str, str]

#: For models without a chat template: the messages as they are, a blank line between them.
PLAIN = "{% for m in messages %}{{ m['content'] }}{% if not loop.last %}\n\n{% endif %}{% endfor %}"

#: Some templates print today's date. Captures of two days would then differ, so the day is
#: always this one, the one that Llama 3.1's own template falls back to.
_FIXED_DATE = (
    ("%Y-%m-%d", "2024-07-26"),
    ("%d", "26"),
    ("%b", "Jul"),
    ("%B", "July"),
    ("%m", "07"),
    ("%Y", "2024"),
    ("%y", "24"),
    ("%A", "Friday"),
    ("%a", "Fri"),
    ("%H", "00"),
    ("%M", "00"),
    ("%S", "00"),
)

_SWITCHES = (
    ("enable_thinking", re.compile(r"\benable_thinking\b")),
    ("thinking", re.compile(r"\bthinking\s+is\s+(?:not\s+)?defined\b")),
)

# They end in different kinds of characters, since tokenizers may merge the instruction's last
# characters with the template's first ones.
_SENTINELS = (
    "Which rivers run through Quebec",
    "Compare zinc with jade",
    "Sort these by weight: 17",
    "Describe a violin.",
    "Who wrote it?",
)


@dataclass(frozen=True, kw_only=True)
class Tail:
    """What a template puts after the instruction.

    Attributes:
        text: The text between the instruction and the model's reply.
        ids: Its token ids where they do not merge with the instruction.
    """

    text: str
    ids: tuple[int, ...]


class ChatTemplate:
    """A chat template together with the options with which it is rendered.

    Args:
        tokenizer: A Hugging Face tokenizer.
        template: Jinja text; ``"plain"`` for `PLAIN`; None for the tokenizer's own.
        system: ``"default"``, ``"none"``, or the text of a system message.
        thinking: Position of the template's thinking switch; None leaves it alone.

    Attributes:
        text: The template.
        thinking: The switch's position as rendered, None where the template has none.

    Raises:
        TemplateError: There is no template, it is broken, or it lacks what is asked of it.
    """

    def __init__(
        self, tokenizer: Any, *, template: str | None, system: str, thinking: bool | None
    ) -> None:
        """Find the template and settle how to render it; see the class docstring."""
        self._tokenizer = tokenizer
        self.text = _template_text(tokenizer, template)
        self._frozen = _with_fixed_date(self.text)
        self._switch: dict[str, bool] = {}
        self._system = system
        self._lead: tuple[Message, ...] = ()
        self.thinking = self._settle_thinking(thinking)
        self._settle_system()

    def render(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """Render conversations up to where the model's reply begins.

        Args:
            conversations: Messages with role and content; the last from the user.

        Raises:
            TemplateError: The template refuses a conversation, or one has a system message
                while another one is asked for.
        """
        chats = [[*self._lead, *conversation] for conversation in conversations]
        if self._system != "default" and any(
            message["role"] == "system" for chat in conversations for message in chat
        ):
            raise TemplateError(
                "A prompt has a system message of its own while one is set for all",
                expected="prompts without system message, or system 'default'",
                got=repr(self._system),
            )
        return self._apply(chats)

    def tail(self, tokenize: Callable[[Sequence[str]], list[list[int]]]) -> Tail:
        """Find what follows the instruction, by rendering around different instructions.

        Args:
            tokenize: Turns texts into ids without adding special tokens.

        Raises:
            TemplateError: What follows depends on the instruction, or the instruction is not in
                the rendered text.
        """
        texts = self.render([[_user(sentinel)] for sentinel in _SENTINELS])
        heads = []
        tails = set()
        for sentinel, text in zip(_SENTINELS, texts, strict=True):
            before, found, after = text.rpartition(sentinel)
            if not found:
                raise TemplateError(
                    "The chat template changes the instruction, so its end cannot be found",
                    expected=repr(sentinel),
                    got=repr(text[-80:]),
                )
            heads.append(before + found)
            tails.add(after)
        if len(tails) > 1:
            raise TemplateError(
                "What the chat template puts after the instruction depends on the instruction",
                got=" and ".join(repr(tail) for tail in sorted(tails)),
            )
        # A clean boundary: the head's own tokens are the first tokens of the whole.
        ids = {
            tuple(whole[len(head) :])
            for head, whole in zip(tokenize(heads), tokenize(texts), strict=True)
            if whole[: len(head)] == head
        }
        text = tails.pop()
        if len(ids) != 1:
            raise TemplateError(
                "The tokens after the instruction cannot be told from those of the instruction",
                expected=f"the same tokens for {text!r} after every instruction",
                got=" and ".join(map(str, sorted(ids))) or "merged tokens every time",
                next_step="Use another template, e.g. template='plain'",
            )
        return Tail(text=text, ids=ids.pop())

    def _apply(
        self, chats: Sequence[Sequence[Message]], switch: Mapping[str, bool] | None = None
    ) -> list[str]:
        options = self._switch if switch is None else switch
        try:
            rendered: list[str] = self._tokenizer.apply_chat_template(
                [list(chat) for chat in chats],
                chat_template=self._frozen,
                tokenize=False,
                add_generation_prompt=True,
                **options,
            )
        except Exception as error:  # Templates raise what they like.
            raise TemplateError(
                "The chat template refuses this conversation",
                got=str(error).strip() or type(error).__name__,
                next_step="Check the roles; a system text can be left out with system 'none'",
            ) from error
        return rendered

    def _settle_thinking(self, asked: bool | None) -> bool | None:
        names = [name for name, pattern in _SWITCHES if pattern.search(self.text)]
        probe = [[_user(_SENTINELS[0])]]
        for name in names:
            on, off = (self._apply(probe, {name: value}) for value in (True, False))
            if on == off:
                continue
            if asked is not None:
                self._switch = {name: asked}
                return asked
            default = self._apply(probe, {})
            return True if default == on else False if default == off else None
        if asked is not None:
            raise TemplateError(
                "This chat template has no switch for thinking",
                expected="a template with enable_thinking",
                got=f"thinking={asked}",
                next_step="Leave the option out",
            )
        return None

    def _settle_system(self) -> None:
        if self._system == "default":
            return
        user = _user(_SENTINELS[0])
        if self._system == "none":
            self._lead = self._least_system(user)
            return
        lead = _system(self._system)
        try:
            rendered = self._apply([[lead, user]])[0]
        except TemplateError as error:
            raise TemplateError(
                "This chat template takes no system message",
                got=error.got and str(error.got),
                next_step="Use system 'default' or 'none'",
            ) from error
        if self._system.strip() not in rendered:
            raise TemplateError(
                "This chat template leaves the system message out or changes it",
                expected=repr(self._system),
                got=repr(rendered[:200]),
                next_step="Use system 'default' or 'none'",
            )
        self._lead = (lead,)

    def _least_system(self, user: Message) -> tuple[Message, ...]:
        """Find what to put before the user's message so that no system text remains."""
        # Templates that insert a system text of their own when there is none can often be kept
        # from it by an empty one; others write more with an empty one than without.
        leads: list[tuple[Message, ...]] = [(), *((_system(text),) for text in ("", " "))]
        rendered: list[tuple[int, int, str]] = []
        for order, lead in enumerate(leads):
            try:
                text = self._apply([[*lead, user]])[0]
            except TemplateError:
                if not lead:
                    raise
                continue
            rendered.append((len(text), order, text))
        _, best, least = min(rendered)
        try:
            other = self._apply([[_system("\u00a7\u00b6\u00a7"), user]])[0]
        except TemplateError:
            return leads[best]  # No system message at all: nothing to leave out.
        left = _differing(least, other)
        if any(character.isalnum() for character in left):
            raise TemplateError(
                "This chat template has a system text that cannot be left out",
                got=repr(left),
                next_step="Use system 'default', or give a text that takes its place",
            )
        return leads[best]


def _differing(text: str, other: str) -> str:
    """Return ``text`` without what it shares with ``other`` at both ends."""
    start = _shared(text, other)
    end = _shared(text[start:][::-1], other[start:][::-1])
    return text[start : len(text) - end]


def _shared(a: str, b: str) -> int:
    """Number of leading characters that two texts share."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _system(content: str) -> Message:
    return {"role": "system", "content": content}


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _template_text(tokenizer: Any, template: str | None) -> str:
    if template == "plain":
        ids = tokenizer("a")["input_ids"]
        starts = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
        return "{{ bos_token }}" + PLAIN if starts else PLAIN
    if template is not None:
        return template
    try:
        return str(tokenizer.get_chat_template())
    except (ValueError, AttributeError) as error:
        raise TemplateError(
            "This model's tokenizer has no chat template",
            got=type(tokenizer).__name__,
            next_step="Give one: template='plain' feeds prompts as they are, or pass Jinja text",
        ) from error


def _with_fixed_date(template: str) -> str:
    if "strftime_now" not in template:
        return template
    frozen = "format"
    for directive, value in _FIXED_DATE:
        frozen += f' | replace("{directive}", "{value}")'
    # The empty expression keeps the macro from trimming the template's first line.
    macro = "{% macro strftime_now(format) %}{{ " + frozen + " }}{% endmacro %}{{ '' }}"
    return macro + template
