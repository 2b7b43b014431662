"""Where replies come from, and what can be known of the prompts there.

Two hosts: `refusaldir.probes.model_host.ModelHost`, a model in this process, and
`refusaldir.probes.server_host.ServerHost`, one behind an OpenAI-compatible server.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from refusaldir.probes.behaviour import ServedModel
from refusaldir.probes.plan import Job, SamplingPlan
from refusaldir.probes.refusal_tokens import RefusalTokens
from refusaldir.probes.reply import Conversation, Reply, Respond
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import ModelIdentity, TemplateIdentity, content_hash

if TYPE_CHECKING:
    from refusaldir.directions.mean_diff import Direction


@dataclass(frozen=True, kw_only=True, eq=False)
class Along:
    """What is read off the prompts while they are answered.

    Attributes:
        tokens: Refusal tokens, for the refusal score; None or empty for no score.
        direction: The direction that prompts are projected on, or None.
    """

    tokens: RefusalTokens | None = None
    direction: "Direction | None" = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of the refusal tokens."""
        return () if self.tokens is None else self.tokens.ids

    @property
    def direction_name(self) -> str | None:
        """Site and hash of the direction."""
        if self.direction is None:
            return None
        return f"{self.direction.site} {content_hash(self.direction.unit.tolist())}"


#: What was read off one conversation: refusal score in nats and projection, each where it can be.
Reading = tuple[float | None, float | None]


class Host(Protocol):
    """A model that can be asked."""

    @property
    def model(self) -> ModelIdentity | ServedModel:
        """What it is."""
        ...

    @property
    def template(self) -> TemplateIdentity | None:
        """How prompts are rendered; None where a server does it."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a reply; empty where a server decides."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer; None where it is not known."""
        ...

    def hashes(self, conversations: Sequence[Conversation]) -> list[str]:
        """Hash of each conversation as the model reads it: its token ids, or its messages."""
        ...

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
        """Reply to prompts of one turn.

        Args:
            prompts: The prompts.
            jobs: Everything to generate.
            plan: Budget of each reply.
            along: What to read off the prompts where that costs nothing.
            skip: Numbers of the jobs whose reply is known; the others get the replies that they
                would have got without it.
            on_replies: Called with numbers of jobs and their replies as soon as they are there.
        """
        ...

    def respond(self, plan: SamplingPlan, job: Job, along: Along) -> Respond:
        """Replies to conversations at the temperature, seed and sample of a job."""
        ...

    def read(self, conversations: Sequence[Conversation], along: Along) -> list[Reading]:
        """Refusal score and projection of conversations, without generating."""
        ...
