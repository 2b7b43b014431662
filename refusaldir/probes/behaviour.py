"""What one model does with a set of prompts: response, label and refusal score of each.

`refusaldir.probes.measure.measure` makes a `Behaviour`. On disk it is one JSON object a line: a
header with everything that decides the rows, then a row per prompt. Nothing here needs torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from refusaldir.errors import OutputExistsError, ProbeError
from refusaldir.probes.journal import read_lines, write_lines
from refusaldir.probes.outcomes import LABELS
from refusaldir.probes.refusal_tokens import RefusalTokens
from refusaldir.records import ModelIdentity, TemplateIdentity, content_hash


@dataclass(frozen=True, kw_only=True)
class BehaviourProvenance:
    """Everything that decides responses and labels.

    Attributes:
        model: The model's identity.
        template: How prompts were rendered.
        prompts_name: Name of the prompt set.
        prompts_hash: Hash of the prompts' ids, labels and turns.
        rendered_hash: Hash of the token ids after rendering.
        max_new_tokens: Budget for each response.
        judge: Name and version of the judge.
        stop_ids: Token ids that end a response.
        versions: Versions of refusaldir, torch and transformers.
        created: UTC time in ISO 8601.
    """

    model: ModelIdentity
    template: TemplateIdentity
    prompts_name: str
    prompts_hash: str
    rendered_hash: str
    max_new_tokens: int
    judge: str
    stop_ids: tuple[int, ...]
    versions: Mapping[str, str]
    created: str

    def fingerprint(self) -> str:
        """Hash of what decides the rows: not names, spelling of the spec, versions or time."""
        model = self.model.to_dict()
        for key in ("spec", "name", "revision", "adapters", "backend"):
            del model[key]
        return content_hash(
            model,
            self.template.to_dict(),
            self.prompts_hash,
            self.rendered_hash,
            self.max_new_tokens,
            self.judge,
            self.stop_ids,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "model": self.model.to_dict(),
            "template": self.template.to_dict(),
            "stop_ids": list(self.stop_ids),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "BehaviourProvenance":
        """Rebuild from `to_dict`."""
        return cls(
            **{
                **data,
                "model": ModelIdentity.from_dict(data["model"]),
                "template": TemplateIdentity.from_dict(data["template"]),
                "stop_ids": tuple(data["stop_ids"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class BehaviourRow:
    """One prompt, one response.

    Attributes:
        id: The prompt's id.
        intent_id: What it asks for; prompts of one intent are not independent.
        harmful: Whether the prompt is harmful.
        category: Hazard category.
        severity: Severity of the intent, or None.
        framing: How the request is dressed.
        domain: Field it comes from.
        twin_of: Id of the matched prompt, or None.
        prompt: The last user turn.
        rendered_hash: Hash of the prompt's token ids.
        response: What the model said.
        n_tokens: Tokens it took, the stop token left out.
        finished: Whether it ended within the budget.
        first_token: Id of its first token; None when it is empty.
        label: One of `refusaldir.probes.outcomes.LABELS`.
        evidence: What the label rests on.
        score: Refusal score in nats; None without refusal tokens.
    """

    id: str
    intent_id: str
    harmful: bool
    category: str
    severity: str | None
    framing: str
    domain: str
    twin_of: str | None
    prompt: str
    rendered_hash: str
    response: str
    n_tokens: int
    finished: bool
    first_token: int | None
    label: str
    evidence: str = ""
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What one model did with a set of prompts.

    Attributes:
        provenance: Everything that decides the rows.
        refusal_tokens: The tokens behind the scores, or why there are none.
        rows: One row a prompt, in the order of the prompts.
    """

    provenance: BehaviourProvenance
    refusal_tokens: RefusalTokens
    rows: tuple[BehaviourRow, ...]

    def counts(self, *, harmful: bool) -> dict[str, int]:
        """How often each label was given on one side, all labels present."""
        out = dict.fromkeys(LABELS, 0)
        for row in self.rows:
            if row.harmful == harmful:
                out[row.label] += 1
        return out

    def to_jsonl(self, path: Path, *, force: bool = False) -> Path:
        """Write header and rows; the file appears whole or not at all.

        Raises:
            OutputExistsError: The file exists and ``force`` is not set.
        """
        path = Path(path)
        if path.exists() and not force:
            raise OutputExistsError(
                "a file of responses exists already",
                where=path,
                next_step="Choose another name or overwrite it explicitly",
            )
        header = {
            "provenance": self.provenance.to_dict(),
            "refusal_tokens": self.refusal_tokens.to_dict(),
            "n": len(self.rows),
        }
        write_lines(path, header, (asdict(row) for row in self.rows))
        return path

    @classmethod
    def from_jsonl(cls, path: Path) -> "Behaviour":
        """Read what `to_jsonl` wrote.

        Raises:
            ProbeError: The file is missing, foreign, newer, damaged or incomplete.
        """
        path = Path(path)
        header, rows = read_lines(path)
        if header.get("n") != len(rows):
            raise ProbeError(
                "a file of responses is incomplete",
                expected=f"{header.get('n')} rows",
                got=len(rows),
                where=path,
                next_step="Measure again",
            )
        try:
            return cls(
                provenance=BehaviourProvenance.from_dict(header["provenance"]),
                refusal_tokens=RefusalTokens.from_dict(header["refusal_tokens"]),
                rows=tuple(BehaviourRow(**row) for row in rows),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ProbeError(
                "a file of responses lacks fields or has unknown ones",
                got=error,
                where=path,
                next_step="Measure again",
            ) from error
