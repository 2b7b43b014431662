"""Which first tokens mean "no" to this model: read off what it says when it refuses.

A token is kept when it begins at least `MIN_SHARE` of the refusals of harmful prompts (and at
least `MIN_COUNT` of them), and begins answers to harmless prompts so much more rarely that its
specificity ``rate among refusals / (rate among refusals + rate among answers)`` reaches
`MIN_SPECIFICITY`. Tokens that together begin less than `MIN_COVERAGE` of the refusals cannot
tell; neither can fewer than `MIN_REFUSALS` refusals or `MIN_ANSWERS` answers. Then nothing is
found, and the result says why: the first token is not where this model decides.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from refusaldir.errors import ProbeError
from refusaldir.probes.outcomes import COMPLIANCE, is_refused

MIN_REFUSALS = 8
MIN_ANSWERS = 8
MIN_COUNT = 2
MIN_SHARE = 0.02
MIN_SPECIFICITY = 0.9
MIN_COVERAGE = 0.5


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """How often a token begins refusals and answers.

    Attributes:
        id: Token id.
        text: The token as text.
        refusals: Refusals of harmful prompts that begin with it.
        answers: Answers to harmless prompts that begin with it.
        kept: Whether it is one of the refusal tokens.
    """

    id: int
    text: str
    refusals: int
    answers: int
    kept: bool


@dataclass(frozen=True, kw_only=True)
class RefusalTokens:
    """Refusal tokens of one model, or the reason why there are none.

    Attributes:
        ids: Token ids, the most frequent first; empty when none was found.
        texts: The tokens as text.
        source: ``"found"`` or ``"given"``.
        counts: Every first token of a refusal, the most frequent first.
        n_refusals: Refusals of harmful prompts looked at.
        n_answers: Answers to harmless prompts looked at.
        coverage: Share of those refusals that begin with one of the tokens.
        leakage: Share of those answers that do.
        note: Why nothing was found, if so.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    source: str
    counts: tuple[TokenCount, ...] = ()
    n_refusals: int = 0
    n_answers: int = 0
    coverage: float | None = None
    leakage: float | None = None
    note: str = ""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.ids)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RefusalTokens":
        """Rebuild from `to_dict`."""
        return cls(
            **{
                **data,
                "ids": tuple(data["ids"]),
                "texts": tuple(data["texts"]),
                "counts": tuple(TokenCount(**count) for count in data["counts"]),
            }
        )


def find_refusal_tokens(
    tokenizer: Any,
    first_tokens: Sequence[int | None],
    labels: Sequence[str],
    harmful: Sequence[bool],
) -> RefusalTokens:
    """Find the refusal tokens of a model from its judged responses.

    Args:
        tokenizer: Turns ids into text.
        first_tokens: First generated token of each response; None for an empty one.
        labels: Response labels, see `refusaldir.probes.outcomes`.
        harmful: Whether each prompt is harmful.

    Returns:
        The tokens; none, with a note, when the first token cannot tell.

    Raises:
        ProbeError: When the three sequences differ in length.
    """
    if not len(first_tokens) == len(labels) == len(harmful):
        raise ProbeError(
            "each response needs a first token, a label and a side",
            got=f"{len(first_tokens)} tokens, {len(labels)} labels, {len(harmful)} sides",
        )
    refusals: Counter[int] = Counter()
    answers: Counter[int] = Counter()
    for token, label, is_harmful in zip(first_tokens, labels, harmful, strict=True):
        if token is None:
            continue
        if is_harmful and is_refused(label):
            refusals[token] += 1
        elif not is_harmful and label == COMPLIANCE:
            answers[token] += 1
    n_refusals, n_answers = refusals.total(), answers.total()
    kept = {
        token
        for token, count in refusals.items()
        if n_answers and _keep(count, n_refusals, answers[token], n_answers)
    }
    coverage = sum(refusals[token] for token in kept) / n_refusals if n_refusals else None
    leakage = sum(answers[token] for token in kept) / n_answers if n_answers else None
    note = _why_not(n_refusals, n_answers, coverage or 0.0)
    if note:
        kept = set()
    order = sorted(refusals, key=lambda token: (-refusals[token], token))
    ids = tuple(token for token in order if token in kept)
    return RefusalTokens(
        ids=ids,
        texts=tuple(tokenizer.decode([token]) for token in ids),
        source="found",
        counts=tuple(
            TokenCount(
                id=token,
                text=tokenizer.decode([token]),
                refusals=refusals[token],
                answers=answers[token],
                kept=token in kept,
            )
            for token in order
        ),
        n_refusals=n_refusals,
        n_answers=n_answers,
        coverage=coverage,
        leakage=leakage,
        note=note,
    )


def given_refusal_tokens(tokenizer: Any, tokens: Sequence[int | str]) -> RefusalTokens:
    """Refusal tokens named by the user.

    Args:
        tokenizer: Turns texts into ids.
        tokens: Token ids, or texts such as ``"I"`` and ``"Sorry"``. Of a text that is several
            tokens the first is taken, since only the first is generated first.

    Raises:
        ProbeError: Nothing given, or a text without tokens.
    """
    if not tokens:
        raise ProbeError("no refusal token was given", next_step="Give at least one, e.g. I")
    ids: list[int] = []
    notes = []
    for token in tokens:
        if isinstance(token, str):
            encoded = tokenizer.encode(token, add_special_tokens=False)
            if not encoded:
                raise ProbeError("a refusal token has no text", got=repr(token))
            if len(encoded) > 1:
                notes.append(f"{token!r} is several tokens; only the first is used")
            token = encoded[0]
        if token not in ids:
            ids.append(token)
    return RefusalTokens(
        ids=tuple(ids),
        texts=tuple(tokenizer.decode([token]) for token in ids),
        source="given",
        note="; ".join(notes),
    )


def _keep(refusals: int, n_refusals: int, answers: int, n_answers: int) -> bool:
    share, rate = refusals / n_refusals, answers / n_answers
    return (
        refusals >= MIN_COUNT and share >= MIN_SHARE and share / (share + rate) >= MIN_SPECIFICITY
    )


def _why_not(n_refusals: int, n_answers: int, coverage: float) -> str:
    if n_refusals < MIN_REFUSALS:
        return f"{n_refusals} refusals of harmful prompts; at least {MIN_REFUSALS} are needed"
    if n_answers < MIN_ANSWERS:
        return f"{n_answers} answers to harmless prompts; at least {MIN_ANSWERS} are needed"
    if coverage == 0:
        return "no first token tells refusals from answers"
    if coverage < MIN_COVERAGE:
        return (
            f"the tokens that tell begin only {coverage:.0%} of the refusals; "
            f"at least {MIN_COVERAGE:.0%} is needed"
        )
    return ""
