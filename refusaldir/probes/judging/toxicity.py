"""Toxicity of replies, a secondary score from a classifier on this machine; no network service.

Toxic wording is not harmful help: a polite recipe for poison scores low, and a refusal that quotes
an insult scores high. It stands beside the labels and never decides one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from refusaldir.errors import ProbeError
from refusaldir.models.options import LoadOptions
from refusaldir.probes.behaviour import Behaviour
from refusaldir.probes.judging.guards import plain_text
from refusaldir.probes.judging.many import has_words
from refusaldir.probes.judging.spec import JudgeSpec
from refusaldir.probes.judging.text_classifier import TextClassifier

#: Name of the score in a row's ``secondary``.
TOXICITY = "toxicity"

#: The classifier that ``default`` names: Jigsaw's toxic comments, Apache 2.0.
DEFAULT = "hf:unitary/toxic-bert"

#: Labels whose probability is the score, in lower case.
_TOXIC = ("toxic", "toxicity")

#: Replies scored between two calls of ``on_scored``.
_CHUNK = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Toxicity:
    """A classifier of toxic comments.

    Attributes:
        classifier: The classifier.
    """

    classifier: TextClassifier

    def __post_init__(self) -> None:
        """Find the label.

        Raises:
            ProbeError: Not exactly one of its labels says toxic.
        """
        if sum(label.lower() in _TOXIC for label in self.classifier.labels) != 1:
            raise ProbeError(
                "this classifier does not say how toxic a text is",
                expected=f"one label named {' or '.join(_TOXIC)}",
                got=", ".join(self.classifier.labels),
                where=self.classifier.name,
                next_step=f"Try {DEFAULT}",
            )

    @property
    def version(self) -> str:
        """Name and hash of its weights."""
        return f"hf:{self.classifier.name}#{self.classifier.digest}"

    def scores(self, responses: Sequence[str]) -> list[float | None]:
        """Probability that each response is toxic, 0 to 1; None for one without words.

        Of a long response only the first tokens are seen, as many as the classifier takes.
        """
        asked = [i for i, response in enumerate(responses) if has_words(response)]
        texts = [plain_text(self.classifier.tokenizer, responses[i]) for i in asked]
        column = [label.lower() in _TOXIC for label in self.classifier.labels].index(True)
        out: list[float | None] = [None] * len(responses)
        chances = self.classifier.probabilities(texts)[:, column]
        for index, chance in zip(asked, chances.tolist(), strict=True):
            out[index] = chance
        return out


def open_toxicity(text: str, *, options: LoadOptions | None = None) -> Toxicity:
    """Open the classifier that a line of text names: ``default`` or ``hf:NAME[@REVISION]``.

    Raises:
        ProbeError: It names something else, or does not say how toxic a text is.
        ModelSpecError: It does not exist or cannot be reached.
        ModelLoadError: It cannot be loaded.
    """
    spec = JudgeSpec.parse(DEFAULT if text == "default" else text)
    if spec.kind != "hf":
        raise ProbeError(
            "toxicity is scored by a classifier on this machine",
            expected="default, or hf:NAME[@REVISION]",
            got=repr(text),
        )
    return Toxicity(classifier=TextClassifier.open(spec.name, spec.revision, options))


def add_toxicity(
    behaviour: Behaviour,
    scorer: Toxicity,
    *,
    path: Path | None = None,
    on_scored: Callable[[int], None] | None = None,
) -> Behaviour:
    """Score every reply that the same classifier has not scored yet.

    Args:
        behaviour: The replies.
        scorer: The classifier.
        path: The file that holds ``behaviour``, to be rewritten.
        on_scored: Called with a number of replies as they are scored.

    Returns:
        The replies with ``secondary["toxicity"]``, left out where a reply has no words.
    """
    same = behaviour.provenance.scorers.get(TOXICITY) == scorer.version
    rows = list(behaviour.rows)
    todo = [i for i, row in enumerate(rows) if not (same and TOXICITY in row.secondary)]
    for start in range(0, len(todo), _CHUNK):
        part = todo[start : start + _CHUNK]
        for index, score in zip(part, scorer.scores([rows[i].response for i in part]), strict=True):
            rest = {k: v for k, v in rows[index].secondary.items() if k != TOXICITY}
            secondary = rest if score is None else {**rest, TOXICITY: score}
            rows[index] = replace(rows[index], secondary=secondary)
        if on_scored is not None:
            on_scored(len(part))
    scorers = {**behaviour.provenance.scorers, TOXICITY: scorer.version}
    scored = replace(
        behaviour,
        rows=tuple(rows),
        provenance=replace(behaviour.provenance, scorers=scorers),
    )
    if path is not None and scored != behaviour:
        scored.to_jsonl(path, force=True)
    return scored
