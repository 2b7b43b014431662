"""Replies to conversations from a model in this process."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from refusaldir.directions.mean_diff import Direction
from refusaldir.models.bridge import HookedModel
from refusaldir.probes.generation.generate import Response, generate
from refusaldir.probes.plan import drawn_seed
from refusaldir.probes.reply import Conversation, OnReply, Reply
from refusaldir.prompts.render import ChatRenderer
from refusaldir.prompts.schema import Prompt, PromptSet
from refusaldir.refusal_score import score_of_logits


@dataclass(frozen=True, kw_only=True)
class InProcessRespond:
    """Replies of a model, as `refusaldir.probes.reply.Respond`.

    Each call renders whole conversations and starts from the tokens that they all share: a reply
    is read back as the template writes it, which need not be the tokens that it came as.

    Attributes:
        model: The model; hooks that are active at a call act.
        renderer: Renders conversations for the model's tokenizer.
        max_new_tokens: Budget of each reply.
        temperature: 0 for greedy decoding.
        seed: Seed of the run; above temperature 0 each conversation gets one of its own from it
            (`refusaldir.probes.plan.drawn_seed`).
        sample: Number of the repetition.
        refusal_tokens: Ids of the tokens behind `Reply.score`; none gives no score.
        direction: What conversations are projected on for `Reply.projection`.
        batch_size: Rows a batch; None finds one by itself.
    """

    model: HookedModel
    renderer: ChatRenderer
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    sample: int = 0
    refusal_tokens: tuple[int, ...] = ()
    direction: Direction | None = None
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
            ProbeError: See `refusaldir.probes.generation.generate`.
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
        scores: dict[int, float] = {}

        def score(indices: Int[np.ndarray, " batch"], logits: Float[Tensor, "batch vocab"]) -> None:
            values = score_of_logits(logits, self.refusal_tokens).tolist()
            scores.update(zip(indices.tolist(), values, strict=True))

        def keep(responses: Sequence[Response]) -> None:
            if on_reply is not None:
                for response in responses:
                    on_reply(response.index, reply_of(response, scores.get(response.index)))

        responses = generate(
            self.model,
            rendered.ids,
            max_new_tokens=self.max_new_tokens,
            temperatures=[self.temperature] * len(conversations),
            seeds=[
                drawn_seed(turns, self.seed, self.sample) if self.temperature > 0 else None
                for turns in conversations
            ],
            direction=self.direction,
            skip=skip,
            batch_size=self.batch_size,
            on_batch=keep,
            on_prefill=score if self.refusal_tokens else None,
        )
        return [reply_of(response, scores.get(response.index)) for response in responses]


def reply_of(response: Response, score: float | None = None) -> Reply:
    """A generated response as a reply.

    Args:
        response: The response.
        score: Refusal score of its prompt, in nats.
    """
    return Reply(
        text=response.text,
        finished=response.finished,
        reason="stop" if response.finished else "length",
        n_tokens=len(response.ids),
        first_token=response.ids[0] if response.ids else None,
        score=score,
        projection=response.projection,
    )
