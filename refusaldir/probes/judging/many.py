"""Judge many responses at once, whatever a judge looks at: the wording, the score, the id."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from refusaldir.probes.behaviour import BehaviourRow
from refusaldir.probes.outcomes import Judge, Judgement

#: A prompt's last turn and the response to it.
Pair = tuple[str, str]
#: Called with the index and the judgement of each response as it comes, from any order.
OnJudged = Callable[[int, Judgement], None]


@runtime_checkable
class RowJudge(Protocol):
    """A judge that needs more of a row than prompt and response."""

    @property
    def version(self) -> str:
        """Name and version."""
        ...

    def judge_row(self, row: BehaviourRow) -> Judgement:
        """Label one row."""
        ...


@runtime_checkable
class BatchJudge(Protocol):
    """A judge that is quicker on many responses than on one at a time."""

    @property
    def version(self) -> str:
        """Name and version."""
        ...

    def judge_many(
        self, pairs: Sequence[Pair], *, on_judged: OnJudged | None = None
    ) -> list[Judgement]:
        """Label prompts and responses, in their order."""
        ...


AnyJudge = Judge | RowJudge | BatchJudge


def judge_rows(
    judge: AnyJudge, rows: Sequence[BehaviourRow], *, on_judged: OnJudged | None = None
) -> list[Judgement]:
    """Label rows with any judge.

    Args:
        judge: The judge.
        rows: What was said.
        on_judged: Called with each index and judgement as they come, so that a caller can keep
            them when the judge fails midway.

    Returns:
        One judgement a row, in the order of the rows.

    Raises:
        ProbeError: The judge cannot be used at all (an endpoint that is gone); a response that
            it cannot read is labelled ``judge_error`` instead.
    """
    if isinstance(judge, BatchJudge):
        return judge.judge_many([(row.prompt, row.response) for row in rows], on_judged=on_judged)
    out = []
    for index, row in enumerate(rows):
        if isinstance(judge, RowJudge):
            out.append(judge.judge_row(row))
        else:
            out.append(judge(row.prompt, row.response))
        if on_judged is not None:
            on_judged(index, out[-1])
    return out


def has_words(response: str) -> bool:
    """Whether there is anything to judge; without words a response is ``empty``."""
    return any(c.isalnum() for c in response)


def report_all(judgements: Sequence[Judgement], on_judged: OnJudged | None) -> None:
    """Report judgements that all came at once."""
    if on_judged is not None:
        for index, judgement in enumerate(judgements):
            on_judged(index, judgement)
