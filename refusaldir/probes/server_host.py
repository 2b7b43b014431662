"""A model behind an OpenAI-compatible server, as a host of replies.

What it reads is the server's affair: neither its template nor its tokens nor its activations are
known, so there are neither scores nor projections.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from refusaldir.probes.behaviour import ServedModel
from refusaldir.probes.chat_client import chat_address
from refusaldir.probes.endpoint import ChatRequest, Endpoint, EndpointRespond, ask
from refusaldir.probes.host import Along, Reading
from refusaldir.probes.plan import Job, SamplingPlan
from refusaldir.probes.reply import Conversation, Reply
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import content_hash


@dataclass(frozen=True, kw_only=True)
class ServerHost:
    """A server, as `refusaldir.probes.host.Host`.

    Attributes:
        endpoint: The server.
    """

    endpoint: Endpoint

    template = None
    tokenizer = None
    stop_ids: tuple[int, ...] = ()

    @property
    def model(self) -> ServedModel:
        """Name, address and what every request says."""
        return ServedModel(
            name=self.endpoint.model,
            where=chat_address(self.endpoint.url),
            system=self.endpoint.system or "default",
            extra=dict(self.endpoint.extra),
        )

    def hashes(self, conversations: Sequence[Conversation]) -> list[str]:
        """Hash of the messages that are sent."""
        return [content_hash(self.endpoint.messages(turns)) for turns in conversations]

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
        """Ask for the replies, several at a time; see `refusaldir.probes.endpoint.ask`."""
        requests = [
            ChatRequest(
                conversation=prompts[job.index].turns,
                max_new_tokens=plan.max_new_tokens,
                temperature=job.temperature,
                seed=job.drawn_seed,
            )
            for job in jobs
        ]
        ask(
            self.endpoint,
            requests,
            skip=skip,
            on_reply=lambda number, reply: on_replies([(number, reply)]),
        )

    def respond(self, plan: SamplingPlan, job: Job, along: Along) -> EndpointRespond:
        """Replies at the settings of a job."""
        return EndpointRespond(
            endpoint=self.endpoint,
            max_new_tokens=plan.max_new_tokens,
            temperature=job.temperature,
            seed=job.seed,
            sample=job.sample,
        )

    def read(self, conversations: Sequence[Conversation], along: Along) -> list[Reading]:
        """Nothing: a server shows neither logits nor activations."""
        return [(None, None)] * len(conversations)
