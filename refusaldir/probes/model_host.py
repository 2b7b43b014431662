"""A model in this process, as a host of replies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from refusaldir.errors import PromptError
from refusaldir.models.bridge import HookedModel
from refusaldir.probes.generation.generate import Response, generate, stop_ids
from refusaldir.probes.generation.in_process import InProcessRespond, reply_of
from refusaldir.probes.generation.projection import projections
from refusaldir.probes.host import Along, Reading
from refusaldir.probes.plan import Job, SamplingPlan
from refusaldir.probes.reply import Conversation, Reply
from refusaldir.prompts.render import ChatRenderer, RenderedSet
from refusaldir.prompts.schema import Prompt, PromptSet
from refusaldir.records import ModelIdentity, TemplateIdentity, content_hash
from refusaldir.refusal_score import refusal_scores, score_of_logits


@dataclass(frozen=True, kw_only=True)
class ModelHost:
    """A model and how prompts become its tokens, as `refusaldir.probes.host.Host`.

    Attributes:
        hooked: The model; hooks that are active at a call act.
        renderer: Renders conversations for its tokenizer.
        batch_size: Rows a batch; None finds one by itself.
    """

    hooked: HookedModel
    renderer: ChatRenderer
    batch_size: int | None = None

    @property
    def model(self) -> ModelIdentity:
        """What the model is."""
        return self.hooked.identity

    @property
    def template(self) -> TemplateIdentity:
        """How conversations are rendered."""
        return self.renderer.identity

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a turn."""
        return stop_ids(self.hooked)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.hooked.tokenizer

    def render(self, conversations: Sequence[Conversation]) -> RenderedSet:
        """Token ids of conversations."""
        return self.renderer.render(
            PromptSet(
                "conversations",
                tuple(
                    Prompt(
                        id=str(number),
                        intent_id=str(number),
                        label="harmful",  # Rendering does not look at it.
                        turns=tuple(turns),
                    )
                    for number, turns in enumerate(conversations)
                ),
            )
        )

    def hashes(self, conversations: Sequence[Conversation]) -> list[str]:
        """Hash of the token ids."""
        return [content_hash(list(ids)) for ids in self.render(conversations).ids]

    def reply(
        self,
        prompts: PromptSet,
        jobs: Sequence[Job],
        plan: SamplingPlan,
        along: Along,
        *,
        skip: frozenset[int],
        on_replies: Callable[[Sequence[tuple[int, Reply]]], None],
    ) -> None:
        """Generate in batches, scores and projections read off as the prompts go through.

        Raises:
            PromptError: A prompt leaves no room for a reply in the model's context.
            ProbeError: See `refusaldir.probes.generation.generate`.
        """
        rendered = self.renderer.render(prompts)
        self._check_room(rendered, plan.max_new_tokens)
        scores: dict[int, float] = {}

        def score(indices: Int[np.ndarray, " batch"], logits: Float[Tensor, "batch vocab"]) -> None:
            values = score_of_logits(logits, along.token_ids).tolist()
            scores.update(zip(indices.tolist(), values, strict=True))

        def keep(responses: Sequence[Response]) -> None:
            on_replies([(r.index, reply_of(r, scores.get(r.index))) for r in responses])

        generate(
            self.hooked,
            [rendered.ids[job.index] for job in jobs],
            max_new_tokens=plan.max_new_tokens,
            temperatures=[job.temperature for job in jobs],
            seeds=[job.drawn_seed for job in jobs],
            direction=along.direction,
            stop=self.stop_ids,
            skip=skip,
            batch_size=self.batch_size,
            on_batch=keep,
            on_prefill=score if along.token_ids else None,
        )

    def _check_room(self, rendered: RenderedSet, budget: int) -> None:
        longest = max(range(len(rendered)), key=lambda i: len(rendered.ids[i]))
        if len(rendered.ids[longest]) + budget > self.hooked.max_length:
            raise PromptError(
                "A prompt and its reply do not fit in the model's context",
                expected=f"at most {self.hooked.max_length} tokens",
                got=f"{len(rendered.ids[longest])} and {budget} new ones",
                where=f"prompt {rendered.prompts[longest].id}",
                next_step="Leave it out, or ask for fewer with --max-new-tokens",
            )

    def respond(self, plan: SamplingPlan, job: Job, along: Along) -> InProcessRespond:
        """Replies at the settings of a job."""
        return InProcessRespond(
            model=self.hooked,
            renderer=self.renderer,
            max_new_tokens=plan.max_new_tokens,
            temperature=job.temperature,
            seed=job.seed,
            sample=job.sample,
            refusal_tokens=along.token_ids,
            direction=along.direction,
            batch_size=self.batch_size,
        )

    def read(self, conversations: Sequence[Conversation], along: Along) -> list[Reading]:
        """Score and projection of every conversation, in passes of their own."""
        ids = self.render(conversations).ids
        scores: list[float | None] = [None] * len(ids)
        found: list[float | None] = [None] * len(ids)
        if along.token_ids:
            scores = refusal_scores(
                self.hooked, ids, along.token_ids, batch_size=self.batch_size
            ).tolist()
        if along.direction is not None:
            found = projections(
                self.hooked, ids, along.direction, batch_size=self.batch_size
            ).tolist()
        return list(zip(scores, found, strict=True))
