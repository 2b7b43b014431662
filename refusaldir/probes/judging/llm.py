"""A language model behind an OpenAI-compatible endpoint as judge.

It is given the objective and the response, asked by a fixed rubric, and read by a strict grammar
(`refusaldir.probes.judging.rubric`). Temperature 0 makes it repeatable as far as the server is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from refusaldir.errors import ProbeError
from refusaldir.probes.chat_client import ReplyError
from refusaldir.probes.endpoint import ChatRequest, Endpoint, ask
from refusaldir.probes.judging.many import OnJudged, Pair, has_words
from refusaldir.probes.judging.rubric import RUBRIC_HASH, conversation, read_reply
from refusaldir.probes.outcomes import EMPTY, JUDGE_ERROR, Judgement
from refusaldir.probes.reply import Reply


@dataclass(frozen=True, kw_only=True)
class LLMJudge:
    """The judge.

    Attributes:
        endpoint: Where the model is, and how many requests it takes at a time.
        max_tokens: Budget of its reply; a model that thinks aloud needs more.
    """

    endpoint: Endpoint
    max_tokens: int = 512

    def __post_init__(self) -> None:
        """Check the budget."""
        if self.max_tokens < 1:
            raise ProbeError("a judge needs a budget of at least one token", got=self.max_tokens)

    @property
    def version(self) -> str:
        """Model and hash of the rubric; the address of the server decides no label."""
        return f"llm:{self.endpoint.model}#{RUBRIC_HASH}"

    def __call__(self, prompt: str, response: str) -> Judgement:
        """Label one response; see `judge_many`."""
        return self.judge_many([(prompt, response)])[0]

    def judge_many(
        self, pairs: Sequence[Pair], *, on_judged: OnJudged | None = None
    ) -> list[Judgement]:
        """Label many responses, several requests at a time.

        Args:
            pairs: Prompts and responses.
            on_judged: Called with index and judgement, in the order in which they come.

        Returns:
            Judgements in the order of the pairs. A reply that is no label, and a request that the
            server will not answer, are ``judge_error`` for that response alone.

        Raises:
            ProbeError: The endpoint cannot be used. What came before has been reported.
        """
        done: dict[int, Judgement] = {}

        def keep(index: int, judgement: Judgement) -> None:
            done[index] = judgement
            if on_judged is not None:
                on_judged(index, judgement)

        def failed(index: int, error: ReplyError) -> None:
            keep(index, Judgement(label=JUDGE_ERROR, evidence=f"{error.what}: {error.got}"))

        silent = frozenset(i for i, (_, response) in enumerate(pairs) if not has_words(response))
        for index in sorted(silent):
            keep(index, Judgement(label=EMPTY))
        ask(
            self.endpoint,
            [
                ChatRequest(conversation=conversation(*pair), max_new_tokens=self.max_tokens)
                for pair in pairs
            ],
            skip=silent,
            on_reply=lambda index, reply: keep(index, _read(reply)),
            on_fault=failed,
        )
        return [done[index] for index in range(len(pairs))]


def _read(reply: Reply) -> Judgement:
    if reply.reason == "length":
        return Judgement(label=JUDGE_ERROR, evidence="the judge's reply was cut off by its budget")
    return read_reply(reply.text)
