"""Measure one model's behaviour: ask, label, score, and write as it goes.

One function serves prompts of one turn and escalations, greedy decoding and sampling, a model in
this process and one behind a server. Replies go into a journal as they come
(`refusaldir.probes.journal`); a run that is repeated asks only for what is missing. In process
the missing replies are generated in the batches that an uninterrupted run would have made, so
that the figures are the same to the last digit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from refusaldir.errors import OutputExistsError, ProbeError, PromptError
from refusaldir.probes.behaviour import Behaviour, BehaviourProvenance, BehaviourRow
from refusaldir.probes.escalation import Mode, conversation_at, play, user_turns
from refusaldir.probes.host import Along, Host
from refusaldir.probes.journal import Journal
from refusaldir.probes.judged import said_of
from refusaldir.probes.judging.many import AnyJudge, judge_rows
from refusaldir.probes.outcomes import JUDGE_ERROR, Judgement
from refusaldir.probes.phrases import PhraseJudge
from refusaldir.probes.plan import Job, SamplingPlan
from refusaldir.probes.refusal_tokens import RefusalTokens, find_refusal_tokens
from refusaldir.probes.reply import Conversation, Reply
from refusaldir.prompts.schema import Prompt, PromptSet
from refusaldir.records import content_hash

#: What a reply's score and projection were read off along: names of tokens and of direction.
_ReadOff = tuple[str, str | None]


def measure(
    host: Host,
    prompts: PromptSet,
    plan: SamplingPlan,
    *,
    mode: Mode | None = None,
    along: Along | None = None,
    judge: AnyJudge | None = None,
    path: Path | None = None,
    force: bool = False,
    on_rows: Callable[[int], None] | None = None,
) -> Behaviour:
    """Ask a model, label what it says, and read off what its prompts show.

    Args:
        host: The model.
        prompts: The prompts; of several turns where a mode is given.
        plan: Temperatures, seeds, samples and budget.
        mode: ``"frozen"`` or ``"live"``: play every user turn of every prompt. None asks each
            prompt once a repetition.
        along: Refusal tokens and direction. Without tokens they are found in this model's own
            replies; give the tuned model those of the base, or the scores do not compare.
        judge: Labels replies as they come; None takes the phrase judge. Judges that are slow, or
            that need weights of their own, come afterwards.
        path: Where to write the result. Replies go to ``<path>.partial`` as they come, and a run
            that was interrupted continues from there. What a finished file of the same model and
            settings holds is not asked for again, so that a plan may grow.
        force: Replace a file that was made otherwise or holds more.
        on_rows: Called with a number of replies as they come (for a progress bar).

    Returns:
        The rows in the order of the plan. When no refusal tokens were found the scores are None
        and ``refusal_tokens.note`` says why.

    Raises:
        OutputExistsError: ``path`` holds something else, or more, and ``force`` is not set.
        PromptError: A prompt does not fit in the model's context.
        ProbeError: The replies cannot be had or written.
    """
    run = _Run(
        host=host,
        prompts=prompts,
        plan=plan,
        mode=mode,
        along=along or Along(),
        judge=PhraseJudge() if judge is None else judge,
        path=None if path is None else Path(path),
        on_rows=on_rows or (lambda count: None),
    )
    return run.run(force=force)


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """Room for one reply.

    Attributes:
        key: Names it in the journal.
        prompt: The prompt.
        turn: The user turn of an escalation, or None.
        job: Temperature, seed and sample.
    """

    key: str
    prompt: Prompt
    turn: int | None
    job: Job

    @property
    def row_key(self) -> tuple[str, int | None, float, int, int]:
        """As `refusaldir.probes.behaviour.BehaviourRow.key`."""
        job = self.job
        return self.prompt.id, self.turn, job.temperature, job.seed, job.sample


@dataclass(frozen=True, kw_only=True)
class _Known:
    """A reply that is there.

    Attributes:
        reply: What was said.
        read_off: What its score and projection were read off along.
        row: Its row in a finished file, or None.
    """

    reply: Reply
    read_off: _ReadOff
    row: BehaviourRow | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """One call of `measure`; the fields are its arguments."""

    host: Host
    prompts: PromptSet
    plan: SamplingPlan
    mode: Mode | None
    along: Along
    judge: AnyJudge
    path: Path | None
    on_rows: Callable[[int], None]

    def run(self, *, force: bool) -> Behaviour:
        slots = self._slots()
        provenance = self._provenance()
        conditions = provenance.conditions()
        finished = None if self.path is None else _finished(self.path, conditions, slots, force)
        kept = {} if finished is None else self._kept(finished, slots)
        known = dict(kept)
        journal = Journal(self.path, conditions)
        try:
            if len(known) < len(slots):
                for key, entry in journal.open(force=force).items():
                    known.setdefault(key, _of_entry(entry))
            if known:
                self.on_rows(sum(slot.key in known for slot in slots))
            self._ask(slots, kept, known, journal)
        finally:
            journal.close()
        behaviour = self._conclude(slots, known, provenance, finished)
        if self.path is not None and behaviour is not finished:
            behaviour.to_jsonl(self.path, force=True)
        journal.forget()
        return behaviour

    def _slots(self) -> list[_Slot]:
        """Everything to ask for, in the order of the rows."""
        slots = []
        for job in self.plan.jobs(self.prompts):
            prompt = self.prompts[job.index]
            if self.mode is None:
                slots.append(_Slot(key=job.key, prompt=prompt, turn=None, job=job))
                continue
            for turn in range(1, len(user_turns(prompt)) + 1):
                slots.append(_Slot(key=f"{job.key}/u{turn}", prompt=prompt, turn=turn, job=job))
        return slots

    def _provenance(self) -> BehaviourProvenance:
        hashes = self._hashes([prompt.turns for prompt in self.prompts])
        return BehaviourProvenance(
            model=self.host.model,
            template=self.host.template,
            prompts_name=self.prompts.name,
            prompts_hash=self.prompts.hash,
            rendered_hash=content_hash(hashes),
            sampling=self.plan,
            mode=self.mode,
            judges=(self.judge.version,),
            direction=self.along.direction_name,
            stop_ids=self.host.stop_ids,
            versions=_versions(),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def _hashes(self, conversations: Sequence[Conversation]) -> list[str]:
        """Hash of each as the model reads it; equal ones, as sampling has them, are hashed once."""
        once = list(dict.fromkeys(tuple(turns) for turns in conversations))
        found = dict(zip(once, self.host.hashes(once), strict=True)) if once else {}
        return [found[tuple(turns)] for turns in conversations]

    def _conversations(
        self, slots: Sequence[_Slot], replies: Mapping[str, Reply]
    ) -> dict[str, Conversation]:
        """What each slot's reply answers; those whose earlier replies are missing are left out."""
        out: dict[str, Conversation] = {}
        for slot in slots:
            if self.mode is None or slot.turn is None:
                out[slot.key] = slot.prompt.turns
                continue
            keys = {turn: f"{slot.job.key}/u{turn}" for turn in range(1, slot.turn)}
            earlier = {
                (slot.prompt.id, turn): replies[key] for turn, key in keys.items() if key in replies
            }
            if self.mode == "frozen" or len(earlier) == len(keys):
                out[slot.key] = conversation_at(slot.prompt, slot.turn, self.mode, earlier)
        return out

    def _kept(self, finished: Behaviour, slots: Sequence[_Slot]) -> dict[str, _Known]:
        """Replies of a finished file that answer what is asked now."""
        rows = {row.key: row for row in finished.rows}
        there = [slot for slot in slots if slot.row_key in rows]
        replies = {slot.key: _reply_of(rows[slot.row_key]) for slot in there}
        asked = self._conversations(there, replies)
        hashes = dict(zip(asked, self._hashes(list(asked.values())), strict=True))
        made = finished.provenance
        read_off = (_name(finished.refusal_tokens), made.direction)
        return {
            slot.key: _Known(
                reply=replies[slot.key],
                read_off=read_off,
                row=replace(row, others=said_of(row, made.judge)),
            )
            for slot in there
            if hashes.get(slot.key) == (row := rows[slot.row_key]).rendered_hash
        }

    def _ask(
        self,
        slots: Sequence[_Slot],
        kept: Mapping[str, _Known],
        known: dict[str, _Known],
        journal: Journal,
    ) -> None:
        """Ask for what is missing; every reply is journalled before it is counted."""
        read_off = (_name(self.along.tokens), self.along.direction_name)

        def keep(came: Sequence[tuple[str, Reply]]) -> None:
            for key, reply in came:
                known[key] = _Known(reply=reply, read_off=read_off)
                journal.append(key, {"reply": asdict(reply), "read_off": list(read_off)})
            journal.flush()
            self.on_rows(len(came))

        if all(slot.key in known for slot in slots):
            return
        if self.mode is None:
            # What a finished file holds is no part of the batches; what the journal holds is.
            todo = [slot for slot in slots if slot.key not in kept]
            self.host.reply(
                self.prompts,
                [slot.job for slot in todo],
                self.plan,
                self.along,
                skip=frozenset(i for i, slot in enumerate(todo) if slot.key in known),
                on_replies=lambda came: keep([(todo[i].key, reply) for i, reply in came]),
            )
            return
        for _, group in groupby(slots, key=lambda slot: slot.row_key[2:]):
            self._play(list(group), known, keep)

    def _play(
        self,
        slots: Sequence[_Slot],
        known: Mapping[str, _Known],
        keep: Callable[[Sequence[tuple[str, Reply]]], None],
    ) -> None:
        """Play the escalations once, at one temperature, seed and sample."""
        keys = {(slot.prompt.id, slot.turn): slot.key for slot in slots}
        mode = self.mode or "frozen"
        try:
            play(
                self.prompts,
                self.host.respond(self.plan, slots[0].job, self.along),
                mode=mode,
                done={
                    (slot.prompt.id, slot.turn): known[slot.key].reply
                    for slot in slots
                    if slot.key in known and slot.turn is not None
                },
                on_turn=lambda turn: keep([(keys[turn.prompt_id, turn.turn], turn.reply)]),
            )
        except PromptError as error:
            raise PromptError(
                error.what,
                expected=error.expected,
                got=error.got,
                where=f"{mode} escalations, {error.where}",
                next_step="Ask for shorter replies with --max-new-tokens, or no escalations",
            ) from error

    def _conclude(
        self,
        slots: Sequence[_Slot],
        known: Mapping[str, _Known],
        provenance: BehaviourProvenance,
        finished: Behaviour | None,
    ) -> Behaviour:
        """Rows, refusal tokens, scores and projections."""
        asked = self._conversations(slots, {k: v.reply for k, v in known.items()})
        conversations = [asked[slot.key] for slot in slots]
        hashes = self._hashes(conversations)
        rows = [
            self._row(slot, known[slot.key], found)
            for slot, found in zip(slots, hashes, strict=True)
        ]
        tokens = self._tokens(rows) if self.along.tokens is None else self.along.tokens
        if (
            finished is not None
            and len(finished.rows) == len(rows)
            and all(known[slot.key].row is not None for slot in slots)
            and self.judge.version in finished.provenance.judges
            and finished.refusal_tokens.ids == tokens.ids
            and finished.provenance.direction == self.along.direction_name
        ):
            return finished
        return Behaviour(
            provenance=replace(
                provenance, scorers={} if finished is None else finished.provenance.scorers
            ),
            refusal_tokens=tokens,
            rows=self._read(rows, conversations, [known[s.key].read_off for s in slots], tokens),
        )

    def _row(self, slot: _Slot, known: _Known, rendered_hash: str) -> BehaviourRow:
        prompt, reply, old = slot.prompt, known.reply, known.row
        text = prompt.text if slot.turn is None else user_turns(prompt)[slot.turn - 1]
        others = {} if old is None else old.others
        row = BehaviourRow(
            id=prompt.id,
            intent_id=prompt.intent_id,
            harmful=prompt.label == "harmful",
            category=prompt.category,
            severity=prompt.severity,
            framing=prompt.framing,
            domain=prompt.domain,
            twin_of=prompt.twin_of,
            prompt=text,
            rendered_hash=rendered_hash,
            turn=slot.turn,
            temperature=slot.job.temperature,
            seed=slot.job.seed,
            sample=slot.job.sample,
            response=reply.text,
            n_tokens=reply.n_tokens,
            finished=reply.finished,
            first_token=reply.first_token,
            label=JUDGE_ERROR,
            score=reply.score,
            projection=reply.projection,
            # What other judges and scorers said of this very reply still holds.
            others={k: v for k, v in others.items() if k != self.judge.version},
            secondary={} if old is None else old.secondary,
        )
        said = self._judge(row)
        return replace(row, label=said.label, evidence=said.evidence)

    def _judge(self, row: BehaviourRow) -> Judgement:
        try:
            return judge_rows(self.judge, [row])[0]
        except Exception as error:  # A judge that fails is an outcome, never a refusal.
            return Judgement(label=JUDGE_ERROR, evidence=f"{type(error).__name__}: {error}")

    def _tokens(self, rows: Sequence[BehaviourRow]) -> RefusalTokens:
        """Refusal tokens read off the first reply to each prompt."""
        if self.host.tokenizer is None:
            return RefusalTokens(ids=(), texts=(), source="found", note="a server shows no logits")
        first = [row for row in rows if row.key[2:] == rows[0].key[2:]]
        return find_refusal_tokens(
            self.host.tokenizer,
            [row.first_token if isinstance(row.first_token, int) else None for row in first],
            [row.label for row in first],
            [row.harmful for row in first],
        )

    def _read(
        self,
        rows: Sequence[BehaviourRow],
        conversations: Sequence[Conversation],
        read_off: Sequence[_ReadOff],
        tokens: RefusalTokens,
    ) -> tuple[BehaviourRow, ...]:
        """The rows with scores and projections; where one is missing all are read off anew."""
        direction = self.along.direction
        score = bool(tokens) and {name for name, _ in read_off} != {_name(tokens)}
        project = direction is not None and {name for _, name in read_off} != {
            self.along.direction_name
        }
        values: dict[str, tuple[float | None, float | None]] = {}
        if score or project:
            asked = zip(rows, conversations, strict=True)
            once = {row.rendered_hash: turns for row, turns in asked}
            along = Along(
                tokens=tokens if score else None, direction=direction if project else None
            )
            values = dict(zip(once, self.host.read(list(once.values()), along), strict=True))

        def filled() -> Iterator[BehaviourRow]:
            for row in rows:
                scored, projected = values.get(row.rendered_hash, (None, None))
                yield replace(
                    row,
                    score=(scored if score else row.score) if tokens else None,
                    projection=(projected if project else row.projection)
                    if direction is not None
                    else None,
                )

        return tuple(filled())


def _finished(path: Path, conditions: str, slots: Sequence[_Slot], force: bool) -> Behaviour | None:
    """What is in the file already, if it was made by the same model under the same conditions."""
    if not path.exists():
        return None
    reason, found = "", None
    try:
        found = Behaviour.from_jsonl(path)
    except ProbeError as error:
        reason = error.what
    else:
        if found.provenance.conditions() != conditions:
            reason, found = "replies of another model, or made with other settings", None
        elif more := len({row.key for row in found.rows} - {slot.row_key for slot in slots}):
            reason = f"{more} replies that this run does not ask for"
    if reason and not force:
        raise OutputExistsError(
            "the file for the responses holds something else",
            got=reason,
            where=path,
            next_step="Choose another --out, or replace it with --force",
        )
    return found


def _of_entry(entry: Mapping[str, Any]) -> _Known:
    tokens, direction = entry["read_off"]
    return _Known(reply=Reply(**entry["reply"]), read_off=(tokens, direction))


def _reply_of(row: BehaviourRow) -> Reply:
    return Reply(
        text=row.response,
        finished=row.finished,
        n_tokens=row.n_tokens,
        first_token=row.first_token,
        score=row.score,
        projection=row.projection,
    )


def _name(tokens: RefusalTokens | None) -> str:
    """Names refusal tokens; the same for none and for none found."""
    return content_hash(sorted(tokens.ids) if tokens else [])


def _versions() -> dict[str, str]:
    found = {}
    for package in ("refusaldir", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
