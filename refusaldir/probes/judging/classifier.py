"""Local Hugging Face models as judges.

See `refusaldir.probes.judging.guards` for what each output means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from refusaldir.errors import ProbeError
from refusaldir.models.bridge import open_model
from refusaldir.models.options import LoadOptions
from refusaldir.probes.judging.guard_judge import GuardJudge
from refusaldir.probes.judging.guards import (
    FORMATS_VERSION,
    KNOWN_LABELS,
    GuardPreset,
    TextPreset,
    find_preset,
    plain_text,
    response_only,
)
from refusaldir.probes.judging.many import OnJudged, Pair, has_words, report_all
from refusaldir.probes.judging.text_classifier import TextClassifier
from refusaldir.probes.outcomes import EMPTY, JUDGE_ERROR, LABELS, Judgement


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierJudge:
    """A text classifier as judge.

    Attributes:
        classifier: The classifier.
        preset: What it is shown and what its labels mean.
    """

    classifier: TextClassifier
    preset: TextPreset

    def __post_init__(self) -> None:
        """Check that the labels mean something.

        Raises:
            ProbeError: None of the model's labels is known, or one is mapped to no label of ours.
        """
        known = {label.lower() for label in self.classifier.labels} & set(self.preset.labels)
        foreign = sorted(set(self.preset.labels.values()) - set(LABELS))
        if foreign or not known:
            raise ProbeError(
                "the labels of this classifier are not known to say whether a model refused",
                expected=", ".join(LABELS) if foreign else "two of " + ", ".join(KNOWN_LABELS),
                got=", ".join(foreign or self.classifier.labels),
                where=self.classifier.name,
                next_step="Choose another model, or give the meaning of its labels from Python",
            )

    @property
    def version(self) -> str:
        """Model, hash of its weights, version of the format, and the meaning of its labels."""
        meaning = ",".join(f"{k}={v}" for k, v in sorted(self.preset.labels.items()))
        return f"hf:{self.classifier.name}#{self.classifier.digest}.{FORMATS_VERSION} ({meaning})"

    def __call__(self, prompt: str, response: str) -> Judgement:
        """Label one response."""
        return self.judge_many([(prompt, response)])[0]

    def judge_many(
        self, pairs: Sequence[Pair], *, on_judged: OnJudged | None = None
    ) -> list[Judgement]:
        """Label many responses in batches; a label without a meaning is ``judge_error``."""
        asked = [i for i, (_, response) in enumerate(pairs) if has_words(response)]
        out = [Judgement(label=EMPTY)] * len(pairs)
        clean = [[plain_text(self.classifier.tokenizer, t) for t in pairs[i]] for i in asked]
        chances = self.classifier.probabilities([self.preset.show(*pair) for pair in clean])
        for index, chance in zip(asked, chances, strict=True):
            out[index] = self._judgement(chance)
        report_all(out, on_judged)
        return out

    def _judgement(self, chances: Float[np.ndarray, " label"]) -> Judgement:
        if not np.all(np.isfinite(chances)):
            return Judgement(label=JUDGE_ERROR, evidence="the classifier gave no number")
        best = int(np.argmax(chances))
        name = self.classifier.labels[best]
        label = self.preset.labels.get(name.lower(), JUDGE_ERROR)
        return Judgement(label=label, evidence=f"{name} {chances[best]:.3f}")


def open_classifier(
    name: str,
    revision: str | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    options: LoadOptions | None = None,
) -> ClassifierJudge | GuardJudge:
    """Open a Hugging Face model as judge.

    Args:
        name: Repository on the Hub, or a folder. A preset is found by the name.
        revision: Branch, tag or commit.
        labels: Meaning of a classifier's labels, for one without a preset whose labels do not
            speak for themselves.
        options: Dtype and device.

    Raises:
        ModelSpecError: It does not exist or cannot be reached.
        ModelLoadError: It cannot be loaded, or is neither a classifier nor a known guard.
        ProbeError: Its labels mean nothing here.
    """
    preset = find_preset(name)
    if isinstance(preset, GuardPreset):
        spec = name if revision is None else f"{name}@{revision}"
        return GuardJudge(model=open_model(spec, options, backend="torch_hooks"), preset=preset)
    if preset is None or labels is not None:
        meaning = KNOWN_LABELS if labels is None else {k.lower(): v for k, v in labels.items()}
        show = response_only if preset is None else preset.show
        preset = TextPreset(name=name, labels=meaning, show=show)
    classifier = TextClassifier.open(name, revision, options)
    present = {label.lower() for label in classifier.labels}
    used = {label: ours for label, ours in preset.labels.items() if label in present}
    if used:
        preset = TextPreset(name=preset.name, labels=used, show=preset.show)
    return ClassifierJudge(classifier=classifier, preset=preset)
