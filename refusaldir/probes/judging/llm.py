"""A language model behind an OpenAI-compatible endpoint as judge.

It is given the objective and the response, asked by a fixed rubric, and read by a strict grammar
(`refusaldir.probes.judging.rubric`). Temperature 0 makes it repeatable as far as the server is.
"""

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from refusaldir.errors import ProbeError
from refusaldir.probes.judging.chat import ChatEndpoint, ReplyError
from refusaldir.probes.judging.many import OnJudged, Pair, has_words
from refusaldir.probes.judging.rubric import RUBRIC_HASH, messages, read_reply
from refusaldir.probes.outcomes import EMPTY, JUDGE_ERROR, Judgement


@dataclass(frozen=True, kw_only=True)
class LLMJudge:
    """The judge.

    Attributes:
        endpoint: Where the model is.
        max_tokens: Budget of its reply; a model that thinks aloud needs more.
        workers: Requests under way at once.
    """

    endpoint: ChatEndpoint
    max_tokens: int = 512
    workers: int = 8

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.max_tokens < 1 or self.workers < 1:
            raise ProbeError(
                "a judge needs a budget and at least one worker",
                got=f"{self.max_tokens} tokens, {self.workers} workers",
            )

    @property
    def version(self) -> str:
        """Model and hash of the rubric; the address of the server decides no label."""
        return f"llm:{self.endpoint.model}#{RUBRIC_HASH}"

    def __call__(self, prompt: str, response: str) -> Judgement:
        """Label one response.

        Raises:
            ProbeError: The endpoint cannot be used; a reply that is no label is ``judge_error``.
        """
        if not has_words(response):
            return Judgement(label=EMPTY)
        try:
            reply = self.endpoint.complete(messages(prompt, response), max_tokens=self.max_tokens)
        except ReplyError as error:
            return Judgement(label=JUDGE_ERROR, evidence=str(error))
        return read_reply(reply)

    def judge_many(
        self, pairs: Sequence[Pair], *, on_judged: OnJudged | None = None
    ) -> list[Judgement]:
        """Label many responses, several requests at a time.

        Args:
            pairs: Prompts and responses.
            on_judged: Called with index and judgement, in the order in which they come.

        Returns:
            Judgements in the order of the pairs.

        Raises:
            ProbeError: The endpoint cannot be used. Requests not begun are dropped; those under
                way are waited for and reported first.
        """
        done: dict[int, Judgement] = {}
        failure: ProbeError | None = None
        pool = ThreadPoolExecutor(max_workers=self.workers)
        try:
            running: dict[Future[Judgement], int] = {
                pool.submit(self, *pair): index for index, pair in enumerate(pairs)
            }
            while running:
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(finished, key=running.__getitem__):
                    index = running.pop(future)
                    try:
                        done[index] = future.result()
                    except ProbeError as error:
                        failure = failure or error
                        for waiting in [f for f in running if f.cancel()]:
                            del running[waiting]
                        continue
                    if on_judged is not None:
                        on_judged(index, done[index])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        if failure is not None:
            raise failure
        return [done[index] for index in range(len(pairs))]
