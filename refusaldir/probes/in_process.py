"""Replies to conversations from a model in this process."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from refusaldir.models.bridge import HookedModel
from refusaldir.probes.generate import Response, generate
from refusaldir.probes.reply import Conversation, OnReply, Reply
from refusaldir.prompts.render import ChatRenderer
from refusaldir.prompts.schema import Prompt, PromptSet


@dataclass(frozen=True, kw_only=True)
class InProcessRespond:
    """Greedy replies of a model, as `refusaldir.probes.reply.Respond`.

    Attributes:
        model: The model; hooks that are active at a call act.
        renderer: Renders conversations for the model's tokenizer.
        max_new_tokens: Budget of each reply.
        batch_size: Rows a batch; None finds one by itself.
    """

    model: HookedModel
    renderer: ChatRenderer
    max_new_tokens: int
    batch_size: int | None = None

    def __call__(
        self,
        conversations: Sequence[Conversation],
        *,
        skip: Collection[int] = frozenset(),
        on_reply: OnReply | None = None,
    ) -> list[Reply]:
        """Reply to the conversations; ``on_reply`` is called after each batch.

        Raises:
            PromptError: A conversation leaves no room for the reply in the model's context.
            TemplateError: The template refuses one.
            ProbeError: See `refusaldir.probes.generate.generate`.
        """
        if not conversations:
            return []
        rendered = self.renderer.render(
            PromptSet(
                "conversations",
                tuple(
                    Prompt(
                        id=f"{number} of {len(conversations)} conversations",
                        intent_id=str(number),
                        label="harmful",  # Rendering does not look at it.
                        turns=tuple(turns),
                    )
                    for number, turns in enumerate(conversations, start=1)
                ),
            ),
            max_length=self.model.max_length - self.max_new_tokens,
        )

        def keep(responses: Sequence[Response]) -> None:
            if on_reply is not None:
                for response in responses:
                    on_reply(response.index, _reply(response))

        responses = generate(
            self.model,
            rendered.ids,
            max_new_tokens=self.max_new_tokens,
            skip=skip,
            batch_size=self.batch_size,
            on_batch=keep,
        )
        return [_reply(response) for response in responses]


def _reply(response: Response) -> Reply:
    return Reply(
        text=response.text,
        finished=response.finished,
        reason="stop" if response.finished else "length",
        n_tokens=len(response.ids),
        first_token=response.ids[0] if response.ids else None,
    )
