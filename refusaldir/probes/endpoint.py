"""Replies from a server that speaks the OpenAI protocol (``/v1/chat/completions``).

One request is one reply: servers differ in whether they know ``n``, and a reply of its own can
be repeated by itself. Several requests run at a time, in threads, each tried again as
`refusaldir.probes.chat_client` says. When one has failed for good no other is begun; those under
way are waited for, every reply that came has been handed over, and the error says how many. A
caller that can do without single replies, such as a judge, is told of those and the rest go on.

The server applies its own chat template and sampling settings, and some do not sample at all
unless their model's generation config says so (see `refusaldir.probes.plan.constant`). With
several requests at a time a seed is repeatable only where the server keeps a generator for each
request.
"""

import queue
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from refusaldir.errors import ProbeError
from refusaldir.probes.chat_client import ChatClient, Patience, ReplyError, chat_address
from refusaldir.probes.plan import drawn_seed
from refusaldir.probes.reply import Conversation, OnReply, Reply

#: What servers write in ``finish_reason`` when the model ended by itself.
_ENDED = frozenset({"stop", "eos", "eos_token", "stop_sequence"})

#: Called with the index of a request and why it alone gets no reply.
OnFault: TypeAlias = Callable[[int, ReplyError], None]

_Came: TypeAlias = "queue.SimpleQueue[tuple[int, Reply | BaseException] | None]"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server and how to treat it.

    Attributes:
        url: Address, with or without ``/v1`` and the route.
        model: Name that the server knows the model by.
        concurrency: Requests at a time.
        patience: How long to wait and how often to try.
        first_tokens: Whether to ask for the first token's text (by ``logprobs``, which not every
            server takes).
        extra: Further fields of every request, e.g. ``{"top_p": 1.0}``.
        system: System message of conversations that have none of their own; None leaves that to
            the server's template.
    """

    url: str
    model: str
    concurrency: int = 8
    patience: Patience = field(default_factory=Patience)
    first_tokens: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    system: str | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        chat_address(self.url)
        if not self.model.strip():
            raise ProbeError("a server needs the name of the model it serves", where=self.url)
        if self.concurrency < 1:
            raise ProbeError("concurrency must be at least 1", got=self.concurrency)

    def messages(self, conversation: Conversation) -> list[dict[str, str]]:
        """The messages of a request."""
        own = [] if self.system is None or conversation[0].role == "system" else [self.system]
        return [
            *({"role": "system", "content": text} for text in own),
            *(turn.to_dict() for turn in conversation),
        ]


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One reply to ask for.

    Attributes:
        conversation: The messages, the user's last.
        max_new_tokens: Budget.
        temperature: 0 for greedy decoding.
        seed: Seed that the server is given; None gives none.
    """

    conversation: Conversation
    max_new_tokens: int
    temperature: float = 0.0
    seed: int | None = None

    def body(self, endpoint: Endpoint) -> dict[str, Any]:
        """Fields of the request."""
        fields: dict[str, Any] = {
            **endpoint.extra,
            "model": endpoint.model,
            "messages": endpoint.messages(self.conversation),
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
        }
        if self.seed is not None:
            fields["seed"] = self.seed
        if endpoint.first_tokens:
            fields["logprobs"] = True
        return fields


@dataclass(frozen=True, kw_only=True)
class EndpointRespond:
    """Replies to conversations from a server, as `refusaldir.probes.reply.Respond`.

    Attributes:
        endpoint: The server.
        max_new_tokens: Budget of each reply.
        temperature: 0 for greedy decoding.
        seed: Seed of the run; above temperature 0 each conversation gets one of its own from it.
        sample: Number of the repetition.
    """

    endpoint: Endpoint
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    sample: int = 0

    def __call__(
        self,
        conversations: Sequence[Conversation],
        *,
        skip: Collection[int] = frozenset(),
        on_reply: OnReply | None = None,
    ) -> list[Reply]:
        """Reply to the conversations; see `ask`."""
        requests = [
            ChatRequest(
                conversation=turns,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                seed=drawn_seed(turns, self.seed, self.sample) if self.temperature > 0 else None,
            )
            for turns in conversations
        ]
        return list(ask(self.endpoint, requests, skip=skip, on_reply=on_reply).values())


def ask(
    endpoint: Endpoint,
    requests: Sequence[ChatRequest],
    *,
    skip: Collection[int] = frozenset(),
    on_reply: OnReply | None = None,
    on_fault: OnFault | None = None,
) -> dict[int, Reply]:
    """Ask a server for replies, several at a time.

    Args:
        endpoint: The server.
        requests: What to ask for.
        skip: Indices not to ask for (already stored).
        on_reply: Called in this thread with each reply as soon as it is there, so that a caller
            can store it and resume.
        on_fault: Called likewise with the error of a request that alone gets no reply; the others
            go on. Without it such an error ends the run like any other.

    Returns:
        Replies by index, in the order of the requests, without those skipped or at fault.

    Raises:
        ProbeError: The server cannot be reached, refuses, keeps failing or does not speak the
            protocol. Every reply that came has been given to ``on_reply``.
    """
    todo = [index for index in range(len(requests)) if index not in skip]
    replies: dict[int, Reply] = {}
    if not todo:
        return replies
    threads = min(endpoint.concurrency, len(todo))
    client = ChatClient(endpoint.url, patience=endpoint.patience, concurrency=threads)
    bodies = [(i, requests[i].body(endpoint)) for i in todo]
    came = _start(client, bodies, threads, tolerant=on_fault is not None)
    failure: ProbeError | None = None
    try:
        while threads:
            item = came.get()
            if item is None:
                threads -= 1
                continue
            index, outcome = item
            if on_fault is not None and isinstance(outcome, ReplyError):
                on_fault(index, outcome)
            elif isinstance(outcome, ProbeError):
                failure = failure or outcome
            elif isinstance(outcome, Reply):
                replies[index] = outcome
                if on_reply is not None:
                    on_reply(index, outcome)
            else:
                raise outcome
    finally:
        client.stop.set()
    if failure is not None:
        raise ProbeError(
            failure.what,
            expected=failure.expected,
            got=f"{failure.got} ({len(replies)} of {len(todo)} replies had come)",
            where=failure.where,
            next_step=failure.next_step,
        ) from failure
    return {index: replies[index] for index in todo if index in replies}


def _start(
    client: ChatClient,
    bodies: Sequence[tuple[int, dict[str, Any]]],
    threads: int,
    *,
    tolerant: bool,
) -> _Came:
    """Work through the requests in threads; each puts None when it ends, the last one closes.

    The threads are daemons: a run that is interrupted need not wait for replies under way.
    """
    work: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
    came: _Came = queue.SimpleQueue()
    last = threading.Semaphore(threads - 1)
    for item in bodies:
        work.put(item)

    def run() -> None:
        while not client.stop.is_set():
            try:
                index, body = work.get_nowait()
            except queue.Empty:
                break
            try:
                data = client.post(body)
                if data is not None:
                    came.put((index, reply_of(data)))
            except BaseException as error:
                if not (tolerant and isinstance(error, ReplyError)):
                    client.stop.set()
                came.put((index, error))
        if not last.acquire(blocking=False):
            client.close()
        came.put(None)

    for _ in range(threads):
        threading.Thread(target=run, daemon=True).start()
    return came


def reply_of(data: Mapping[str, Any]) -> Reply:
    """The first choice of an answer.

    Raises:
        ProbeError: Its text or the reason why it ended are of another type.
    """
    choice = data["choices"][0]
    text, reason = choice["message"].get("content"), choice.get("finish_reason")
    if not isinstance(text, str | None) or not isinstance(reason, str | None):
        raise ProbeError(
            "the server does not answer in the OpenAI protocol",
            expected="texts in message.content and finish_reason",
            got=f"{type(text).__name__} and {type(reason).__name__}",
            next_step="Check the address",
        )
    n_tokens, first = _at(data, "usage", "completion_tokens"), _at(choice, "logprobs", "content")
    first = _at(first[0], "token") if isinstance(first, list) and first else None
    return Reply(
        # A lone surrogate, which JSON can spell, could not be stored.
        text=(text or "").encode("utf-8", "replace").decode("utf-8"),
        finished=reason in _ENDED,
        reason=reason or "",
        n_tokens=n_tokens if isinstance(n_tokens, int) else None,
        first_token=first if isinstance(first, str) else None,
    )


def _at(value: Any, *names: str) -> Any:
    """What an optional field holds; None where it, or what it lies in, is not there."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value
