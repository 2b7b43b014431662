"""What one model does with a set of prompts: replies, labels and refusal scores.

`refusaldir.probes.measure.measure` makes a `Behaviour`. On disk it is one JSON object a line: a
header with everything that decides the rows, then a row per reply: one a prompt when decoding is
greedy, several when it samples, one a user turn for escalations. Nothing here needs torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from refusaldir.errors import OutputExistsError, ProbeError
from refusaldir.probes.journal import read_lines, write_lines
from refusaldir.probes.outcomes import LABELS, Judgement
from refusaldir.probes.plan import SamplingPlan
from refusaldir.probes.refusal_tokens import RefusalTokens
from refusaldir.records import ModelIdentity, TemplateIdentity, content_hash


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model known by name alone: behind a server, or in another tool's log.

    Attributes:
        name: The name it was asked by.
        where: Address of the server, or name and hash of the log.
        system: As in `refusaldir.records.TemplateIdentity`; the server renders the rest.
        extra: Further fields of every request, such as a switch of the template.
    """

    name: str
    where: str
    system: str = "default"
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class BehaviourProvenance:
    """Everything that decides replies and labels.

    Attributes:
        model: The model's identity, or its name where it runs elsewhere.
        template: How prompts were rendered; None where a server did it.
        prompts_name: Name of the prompt set.
        prompts_hash: Hash of the prompts' ids, labels and turns.
        rendered_hash: Hash of the token ids after rendering, or of the messages sent to a server.
        sampling: Temperatures, seeds, samples and budget of each reply.
        mode: ``"frozen"`` or ``"live"`` for escalations, else None.
        judges: Names and versions of the judges; the first one's labels are the rows'.
        direction: Site and hash of the direction behind the rows' projections; None without.
        scorers: What made the rows' further scores, by the scores' names.
        stop_ids: Token ids that end a reply; empty where a server decides.
        versions: Versions of refusaldir, torch and transformers.
        created: UTC time in ISO 8601.
    """

    model: ModelIdentity | ServedModel
    template: TemplateIdentity | None
    prompts_name: str
    prompts_hash: str
    rendered_hash: str
    sampling: SamplingPlan
    mode: str | None = None
    judges: tuple[str, ...]
    direction: str | None = None
    scorers: Mapping[str, str] = field(default_factory=dict, hash=False)
    stop_ids: tuple[int, ...]
    versions: Mapping[str, str]
    created: str

    @property
    def max_new_tokens(self) -> int:
        """Budget of each reply."""
        return self.sampling.max_new_tokens

    @property
    def judge(self) -> str:
        """The judge whose labels are the rows'."""
        return self.judges[0]

    @property
    def system(self) -> str:
        """How the system message was chosen."""
        if self.template is not None:
            return self.template.system
        return self.model.system if isinstance(self.model, ServedModel) else "default"

    def conditions(self) -> str:
        """Hash of what decides the reply to a given conversation, temperature and seed.

        Not names, spelling of the spec, versions or time; and neither judges nor direction, which
        can be changed without asking the model again.
        """
        model = self.model.to_dict()
        for key in ("spec", "revision", "adapters", "backend"):
            model.pop(key, None)
        if isinstance(self.model, ModelIdentity):
            del model["name"]
        return content_hash(
            model,
            None if self.template is None else self.template.to_dict(),
            self.max_new_tokens,
            self.mode,
            self.stop_ids,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "model": self.model.to_dict(),
            "template": None if self.template is None else self.template.to_dict(),
            "sampling": self.sampling.to_dict(),
            "judges": list(self.judges),
            "scorers": dict(self.scorers),
            "stop_ids": list(self.stop_ids),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "BehaviourProvenance":
        """Rebuild from `to_dict`."""
        model, template = data["model"], data["template"]
        return cls(
            **{
                **data,
                "model": (
                    ServedModel(**model) if "where" in model else ModelIdentity.from_dict(model)
                ),
                "template": None if template is None else TemplateIdentity.from_dict(template),
                "sampling": SamplingPlan.from_dict(data["sampling"]),
                "judges": tuple(data["judges"]),
                "stop_ids": tuple(data["stop_ids"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class BehaviourRow:
    """One reply to one prompt, or to one user turn of an escalation.

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
        rendered_hash: Hash of the prompt's token ids, or of the messages sent to a server.
        turn: Number of the user turn in an escalation, from 1; None for a prompt by itself.
        temperature: Temperature; 0 is greedy.
        seed: Seed of the repetition of the run; 0 at temperature 0.
        sample: Number of the repetition within it, from 0.
        response: What the model said.
        n_tokens: Tokens it took, the stop token left out; None where that is not known.
        finished: Whether it ended within the budget.
        first_token: Its first token, by id in process and by text from a server; None when it is
            empty or not known.
        label: One of `refusaldir.probes.outcomes.LABELS`, by the first judge.
        evidence: What the label rests on.
        others: What the other judges said, by name and version.
        score: Refusal score in nats; None without refusal tokens.
        projection: Projection on the direction of the prompt's last token or of the direction's
            own position, in units of the residual stream; None without a direction.
        secondary: Further scores of the reply by name, such as toxicity, 0 to 1.
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
    turn: int | None = None
    temperature: float = 0.0
    seed: int = 0
    sample: int = 0
    response: str
    n_tokens: int | None
    finished: bool
    first_token: int | str | None
    label: str
    evidence: str = ""
    others: Mapping[str, Judgement] = field(default_factory=dict)
    score: float | None = None
    projection: float | None = None
    secondary: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int | None, float, int, int]:
        """What pairs a reply with the other model's: prompt, turn, temperature, seed, sample."""
        return self.id, self.turn, self.temperature, self.seed, self.sample

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "BehaviourRow":
        """Rebuild from `to_dict`."""
        others = {name: Judgement(**said) for name, said in data["others"].items()}
        return cls(**{**data, "others": others})


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What one model did with a set of prompts.

    Attributes:
        provenance: Everything that decides the rows.
        refusal_tokens: The tokens behind the scores, or why there are none.
        rows: One row a reply, in the order of the plan: by temperature, seed, sample, prompt; for
            escalations by prompt, then turn.
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
        write_lines(path, header, (row.to_dict() for row in self.rows))
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
                rows=tuple(BehaviourRow.from_dict(row) for row in rows),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ProbeError(
                "a file of responses lacks fields or has unknown ones",
                got=error,
                where=path,
                next_step="Measure again",
            ) from error
