"""What an Inspect log says about one model, as responses that can be compared.

Logs of our own tasks (`refusaldir.probes.inspect.tasks`) are read as they are. Of another task it
must be said which side its prompts are on (``label``), and which keys of its samples' metadata
hold category, label and the rest (``column_map``); its replies are judged by their wording,
whatever its own scorer says.

Epochs become samples; a greedy model's later epochs are left out, for they repeat the first. A
sample that failed or was invalidated is a judge error, never a refusal. What the log does not
state is the provider's default, and `ServedModel.where` says what it was taken for.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.errors import MissingExtraError, ProbeError
from refusaldir.probes.behaviour import (
    Behaviour,
    BehaviourProvenance,
    BehaviourRow,
    ServedModel,
)
from refusaldir.probes.inspect.asked import (
    Asked,
    foreign_prompts,
    own_prompt,
    sent,
    turns_of,
)
from refusaldir.probes.outcomes import JUDGE_ERROR, Judgement
from refusaldir.probes.phrases import PhraseJudge
from refusaldir.probes.plan import SamplingPlan
from refusaldir.probes.refusal_tokens import RefusalTokens
from refusaldir.probes.run import ProbeRun
from refusaldir.prompts.rows import Reading
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import content_hash

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample

#: What unset options of a provider are taken for: the temperature that servers sample at by
#: default, and Inspect's own default for the budget.
DEFAULT_TEMPERATURE, DEFAULT_MAX_TOKENS = 1.0, 2048

_CUT_OFF = ("max_tokens", "model_length")
_HEAD = 4096


def is_inspect_log(path: str | Path) -> bool:
    """Whether a file is an Inspect log, by its suffix and first bytes."""
    path = Path(path)
    if path.suffix not in (".eval", ".json") or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if path.suffix == ".eval":
        return head.startswith(b"PK")
    return b'"eval"' in head and b'"status"' in head


def read_inspect_log(
    path: str | Path, *, label: str | None = None, column_map: Mapping[str, str] | None = None
) -> Behaviour:
    """Read the log of one model on prompts by themselves, or on frozen escalations.

    Args:
        path: A log, ``.eval`` or ``.json``.
        label: ``harmful`` or ``harmless`` for the prompts of another task that do not say.
        column_map: For the prompts of another task: prompt field → key of the samples' metadata,
            or ``target``; see `refusaldir.prompts.load.load_prompts`.

    Raises:
        ProbeError: The log cannot be read, is not finished, holds no samples, or holds prompts of
            both kinds (read it with `read_inspect_run`).
        PromptError: Another task's samples cannot be read as prompts.
        MissingExtraError: Inspect is not installed.
    """
    found = [part for _, part in read_inspect_run(path, label=label, column_map=column_map).parts()]
    if len(found) > 1:
        raise ProbeError(
            "the log holds prompts by themselves and escalations",
            where=path,
            next_step="Read it with read_inspect_run",
        )
    return found[0]


def read_inspect_run(
    *paths: str | Path, label: str | None = None, column_map: Mapping[str, str] | None = None
) -> ProbeRun:
    """Read the logs of one model: one a set of prompts.

    Args:
        paths: Logs.
        label: As for `read_inspect_log`.
        column_map: As for `read_inspect_log`.

    Raises:
        ProbeError: As `read_inspect_log` says; also when two logs hold the same part, or are of
            different models.
        PromptError: As `read_inspect_log` says.
        MissingExtraError: Inspect is not installed.
    """
    parts: dict[str, Behaviour] = {}
    for path in map(Path, paths):
        opened = _Opened.of(path)
        for name, part in opened.parts(label, column_map):
            if name in parts:
                raise ProbeError("two logs hold the same part of a run", got=name, where=path)
            parts[name] = part
    names = sorted({part.provenance.model.name for part in parts.values()})
    if len(names) > 1:
        raise ProbeError("the logs are of different models", got=", ".join(names))
    return ProbeRun(**parts)


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A finished log."""

    path: Path
    log: "EvalLog"
    samples: tuple["EvalSample", ...]
    plan: SamplingPlan
    assumed: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> "_Opened":
        log = _read(path)
        samples = log.samples or []
        order = {id_: at for at, id_ in enumerate(log.eval.dataset.sample_ids or [])}
        samples = sorted(samples, key=lambda sample: (sample.epoch, order.get(sample.id, 0)))
        plan, assumed = _plan(log)
        if plan.temperatures == (0.0,):
            samples = [sample for sample in samples if sample.epoch == 1]
        return cls(path=path, log=log, samples=tuple(samples), plan=plan, assumed=assumed)

    def parts(
        self, label: str | None, column_map: Mapping[str, str] | None
    ) -> Iterable[tuple[str, Behaviour]]:
        """The prompts by themselves, and the escalations, where there are any."""
        first = {sample.id: sample for sample in self.samples}
        own = all("prompt_id" in sample.metadata for sample in first.values())
        asked = (
            {id_: own_prompt(sample) for id_, sample in first.items()}
            if own and label is None and column_map is None
            else foreign_prompts(
                self.log.eval.task, first.values(), Reading(label=label, columns=column_map)
            )
        )
        for name, mode in (("single", None), ("frozen", "frozen")):
            chosen = [
                sample
                for sample in self.samples
                if (asked[sample.id].turn is None) == (mode is None)
            ]
            if chosen:
                yield name, self._behaviour(chosen, asked, mode)

    def _behaviour(
        self, samples: Sequence["EvalSample"], asked: Mapping[Any, Asked], mode: str | None
    ) -> Behaviour:
        judge, judgements = _judged(samples)
        rows = tuple(
            self._row(sample, asked[sample.id], said)
            for sample, said in zip(samples, judgements, strict=True)
        )
        # Of an escalation its longest conversation is the prompt.
        prompts = {asked[sample.id].prompt.id: asked[sample.id].prompt for sample in samples}
        name = (self.log.eval.metadata or {}).get("prompts") or self.log.eval.dataset.name
        found = PromptSet(str(name or self.log.eval.task), tuple(prompts.values()))
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]
        provenance = BehaviourProvenance(
            model=ServedModel(
                name=self.log.eval.model,
                where="; ".join((f"{self.path.name}, sha256 {digest}", *self.assumed)),
                system=_system(samples),
            ),
            template=None,
            prompts_name=found.name,
            prompts_hash=found.hash,
            rendered_hash=content_hash([row.rendered_hash for row in rows]),
            sampling=self.plan,
            mode=mode,
            judges=(judge,),
            stop_ids=(),
            versions=dict(self.log.eval.packages),
            created=str(self.log.eval.created),
        )
        tokens = RefusalTokens(
            ids=(),
            texts=(),
            source="found",
            note="an Inspect log holds no logits",
        )
        return Behaviour(provenance=provenance, refusal_tokens=tokens, rows=rows)

    def _row(self, sample: "EvalSample", asked: Asked, said: Judgement) -> BehaviourRow:
        prompt, output = asked.prompt, sample.output
        n_tokens = None if output.usage is None else output.usage.output_tokens
        stopped = output.stop_reason if output.choices else "unknown"
        finished = stopped not in _CUT_OFF and sample.limit is None and sample.error is None
        if stopped == "unknown" and n_tokens is not None:  # Some providers do not say.
            finished = finished and n_tokens < self.plan.max_new_tokens
        return BehaviourRow(
            id=prompt.id,
            intent_id=prompt.intent_id,
            harmful=prompt.label == "harmful",
            category=prompt.category,
            severity=prompt.severity,
            framing=prompt.framing,
            domain=prompt.domain,
            twin_of=prompt.twin_of,
            prompt=prompt.text,
            rendered_hash=content_hash(sent(sample)),
            turn=asked.turn,
            temperature=self.plan.temperatures[0],
            seed=self.plan.seeds[0] if self.plan.temperatures[0] > 0 else 0,
            sample=sample.epoch - 1,
            response=output.completion,
            n_tokens=n_tokens,
            finished=finished,
            first_token=_first_token(sample),
            label=said.label,
            evidence=said.evidence,
        )


def _read(path: Path) -> "EvalLog":
    """Read a log that is whole.

    Raises:
        ProbeError: It is not.
        MissingExtraError: Inspect is not installed.
    """
    try:
        from inspect_ai.log import read_eval_log
    except ModuleNotFoundError as error:
        raise MissingExtraError("Reading an Inspect log", "inspect") from error
    if not is_inspect_log(path):
        raise ProbeError(
            "this is no Inspect log",
            expected="a file .eval or .json that Inspect wrote",
            got="no such file" if not path.is_file() else "another file",
            where=path,
        )
    try:
        # Long texts are kept aside and put back; of events nothing is used.
        log = read_eval_log(path, resolve_attachments=True, exclude_fields={"events", "store"})
    except Exception as error:  # Whatever zip, JSON and pydantic raise on a damaged file.
        raise ProbeError(
            "the Inspect log cannot be read", got=f"{type(error).__name__}: {error}", where=path
        ) from error
    there = len(log.samples or [])
    wanted = len(log.eval.dataset.sample_ids or []) * (log.eval.config.epochs or 1)
    if log.status != "success" or there < wanted:
        raise ProbeError(
            "the Inspect log is not finished",
            expected=f"status success and {wanted} samples",
            got=f"status {log.status} and {there} samples",
            where=path,
            next_step=f"Finish it with: inspect eval-retry {path.name}",
        )
    if not there:
        raise ProbeError(
            "the Inspect log holds no samples",
            where=path,
            next_step="Run it again without --no-log-samples",
        )
    return log


def _plan(log: "EvalLog") -> tuple[SamplingPlan, tuple[str, ...]]:
    """How replies were sampled, and what had to be assumed."""
    config = log.plan.config.merge(log.eval.model_generate_config)
    assumed = []
    temperature = config.temperature
    if log.eval.model_args.get("do_sample") is False:  # Inspect's Hugging Face provider.
        temperature = 0.0
    if temperature is None:
        temperature = DEFAULT_TEMPERATURE
        assumed.append(f"temperature not set, taken as {temperature:g}")
    budget = config.max_tokens
    if budget is None:
        budget = DEFAULT_MAX_TOKENS
        assumed.append(f"max_tokens not set, taken as {budget}")
    greedy = temperature == 0
    plan = SamplingPlan(
        temperatures=(float(temperature),),
        seeds=(0 if greedy or config.seed is None else config.seed,),
        samples=1 if greedy else log.eval.config.epochs or 1,
        max_new_tokens=budget,
    )
    return plan, tuple(assumed)


def _system(samples: Sequence["EvalSample"]) -> str:
    """The system message that a solver put before every prompt, or ``"default"``."""
    found = set()
    for sample in samples:
        first = sent(sample)[:1]
        given = isinstance(sample.input, list) and sample.input[0].role == "system"
        added = bool(first) and first[0]["role"] == "system" and not given
        found.add(first[0]["content"] if added else "default")
    return found.pop() if len(found) == 1 else "default"


def _first_token(sample: "EvalSample") -> str | None:
    choices = sample.output.choices
    said = choices[0].logprobs if choices else None
    return said.content[0].token if said is not None and said.content else None


def _judged(samples: Sequence["EvalSample"]) -> tuple[str, list[Judgement]]:
    """The judge and its label of every sample: those in the log, or made now where it has none."""
    from refusaldir.probes.inspect.scoring import judgement_of

    failed = {at: reason for at, sample in enumerate(samples) if (reason := _failure(sample))}
    known = {
        at: said
        for at, sample in enumerate(samples)
        for score in (sample.scores or {}).values()
        if (said := judgement_of(score)) is not None
    }
    versions = {version for version, _ in known.values()}
    judge = PhraseJudge()
    if len(versions) == 1 and known.keys() | failed.keys() == set(range(len(samples))):
        version = versions.pop()
        labels = {at: said for at, (_, said) in known.items()}
    else:
        version = judge.version
        labels = {
            at: judge(turns_of(sample)[-1].content, sample.output.completion)
            for at, sample in enumerate(samples)
        }
    labels |= {at: Judgement(label=JUDGE_ERROR, evidence=why) for at, why in failed.items()}
    return version, [labels[at] for at in range(len(samples))]


def _failure(sample: "EvalSample") -> str:
    """Why a sample has no reply; empty where it has one."""
    if sample.error is not None:
        lines = sample.error.message.splitlines() or ["no reason given"]
        return f"the sample failed: {lines[0][:200]}"
    if sample.invalidation is not None:
        return "the sample was invalidated"
    return ""
