"""One reply of a model to one conversation, wherever the model runs."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from refusaldir.prompts.fields import Turn

#: An optional system message, then user and assistant in turn, the user last.
Conversation: TypeAlias = Sequence[Turn]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model said.

    Attributes:
        text: The reply, special tokens left out; empty when it said nothing.
        finished: Whether it ended by itself within the budget.
        reason: Why it ended, in the words of whoever generated it (``stop``, ``length``, …).
        n_tokens: Tokens it took; None when that is not known. A server may count the stop token.
        first_token: Its first token, by id in process and by text from a server; None when the
            reply is empty or the server does not say.
        score: Refusal score of the prompt in nats, where refusal tokens were given.
        projection: Projection of the prompt on the unit direction, in units of the residual
            stream, where a direction was given.
    """

    text: str
    finished: bool
    reason: str = ""
    n_tokens: int | None = None
    first_token: int | str | None = None
    score: float | None = None
    projection: float | None = None


#: Called with the index of a conversation and its reply, as soon as that is there.
OnReply: TypeAlias = Callable[[int, Reply], None]


@runtime_checkable
class Respond(Protocol):
    """Anything that replies to conversations: a model in process or a server."""

    def __call__(
        self,
        conversations: Sequence[Conversation],
        *,
        skip: Collection[int] = frozenset(),
        on_reply: OnReply | None = None,
    ) -> list[Reply]:
        """Reply to conversations, in their order.

        Args:
            conversations: Everything that belongs together.
            skip: Indices of those whose reply is known; the others get the replies that they
                would have got without it, to the last digit.
            on_reply: Called once for each, in any order and in the caller's thread, so that
                nothing that came is lost when a later one fails.
        """
        ...
