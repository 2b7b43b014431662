"""One line of text names a judge.

======================  =========================================================================
``phrases``             the wording, `refusaldir.probes.phrases`
``first-token``         the refusal score, above 0
``hf:NAME[@REVISION]``  a Hugging Face classifier or guard, from the Hub or a folder
``llm:MODEL@URL``       a language model behind an OpenAI-compatible endpoint
``labels:FILE``         labels from a CSV or JSONL file
======================  =========================================================================
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from refusaldir.errors import ProbeError
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import is_local
from refusaldir.probes.judging.many import AnyJudge

Kind = Literal["phrases", "first-token", "hf", "llm", "labels"]

USAGE = "phrases | first-token | hf:NAME[@REVISION] | llm:MODEL@URL | labels:FILE"


@dataclass(frozen=True, kw_only=True)
class JudgeSpec:
    """A judge that has been named, not opened.

    Attributes:
        kind: Kind of judge.
        name: Model or file; empty for the kinds without one.
        revision: Revision of a Hugging Face model, or None.
        url: Address of an endpoint; empty otherwise.
    """

    kind: Kind
    name: str = ""
    revision: str | None = None
    url: str = ""

    @classmethod
    def parse(cls, text: str) -> "JudgeSpec":
        """Read a spec.

        Raises:
            ProbeError: It is none; the message says what was expected.
        """
        kind, colon, rest = text.strip().partition(":")
        if kind == "phrases" and not colon:
            return cls(kind="phrases")
        if kind == "first-token" and not colon:
            return cls(kind="first-token")
        if kind == "hf" and rest:
            return _hub(rest, text)
        if kind == "llm" and rest:
            return _llm(rest, text)
        if kind == "labels" and rest:
            return cls(kind="labels", name=rest)
        close = difflib.get_close_matches(kind, ("phrases", "first-token", "hf", "llm", "labels"))
        raise ProbeError(
            "this names no judge",
            expected=USAGE,
            got=repr(text),
            next_step=f"Did you mean {close[0]}?" if close and close[0] != kind else None,
        )

    def __str__(self) -> str:
        """The line of text that names it."""
        if self.kind == "hf":
            return f"hf:{self.name}" + ("" if self.revision is None else f"@{self.revision}")
        if self.kind == "llm":
            return f"llm:{self.name}@{self.url}"
        return f"labels:{self.name}" if self.kind == "labels" else self.kind

    def open(self, *, arm: str = "", options: LoadOptions | None = None) -> AnyJudge:
        """Open the judge: load its weights, read its file.

        Args:
            arm: Arm whose rows it will judge; matters for labels from a file.
            options: Dtype and device of a Hugging Face model.

        Raises:
            ProbeError: The file or the address is no good, or the labels mean nothing here.
            ModelSpecError: The model does not exist or cannot be reached.
            ModelLoadError: The model cannot be loaded.
        """
        if self.kind == "phrases":
            from refusaldir.probes.phrases import PhraseJudge

            return PhraseJudge()
        if self.kind == "first-token":
            from refusaldir.probes.judging.first_token import FirstTokenJudge

            return FirstTokenJudge()
        if self.kind == "labels":
            from refusaldir.probes.judging.labels import LabelsJudge

            return LabelsJudge.open(Path(self.name).expanduser(), arm=arm)
        if self.kind == "llm":
            from refusaldir.probes.endpoint import Endpoint
            from refusaldir.probes.judging.llm import LLMJudge

            return LLMJudge(endpoint=Endpoint(url=self.url, model=self.name))
        from refusaldir.probes.judging.classifier import open_classifier

        return open_classifier(self.name, self.revision, options=options)


def open_judge(text: str, *, arm: str = "", options: LoadOptions | None = None) -> AnyJudge:
    """Open the judge that a line of text names, see `JudgeSpec`."""
    return JudgeSpec.parse(text).open(arm=arm, options=options)


def _hub(rest: str, text: str) -> JudgeSpec:
    if is_local(rest):
        return JudgeSpec(kind="hf", name=rest)
    name, at, revision = rest.partition("@")
    if not name or (at and not revision):
        raise ProbeError("a Hugging Face judge needs a name", expected=USAGE, got=repr(text))
    return JudgeSpec(kind="hf", name=name, revision=revision or None)


def _llm(rest: str, text: str) -> JudgeSpec:
    model, at, url = rest.rpartition("@http")
    if not at or not model:
        raise ProbeError(
            "a language model as judge needs a model and an address",
            expected="llm:MODEL@URL, e.g. llm:Qwen/Qwen3-8B@http://localhost:8000/v1",
            got=repr(text),
        )
    return JudgeSpec(kind="llm", name=model, url=f"http{url}")
