"""Measure one model's behaviour: generate, judge, score, and write as it goes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from refusaldir.errors import OutputExistsError, ProbeError
from refusaldir.models.bridge import HookedModel
from refusaldir.probes.behaviour import Behaviour, BehaviourProvenance, BehaviourRow
from refusaldir.probes.generate import Response, generate, stop_ids
from refusaldir.probes.journal import Journal
from refusaldir.probes.outcomes import JUDGE_ERROR, Judge, Judgement
from refusaldir.probes.phrases import PhraseJudge
from refusaldir.probes.plan import SamplingPlan
from refusaldir.probes.refusal_tokens import RefusalTokens, find_refusal_tokens
from refusaldir.prompts.render import RenderedSet
from refusaldir.records import content_hash
from refusaldir.refusal_score import refusal_scores, score_of_logits


def measure(
    model: HookedModel,
    rendered: RenderedSet,
    *,
    refusal_tokens: RefusalTokens | None = None,
    max_new_tokens: int = 64,
    judge: Judge | None = None,
    batch_size: int | None = None,
    path: Path | None = None,
    force: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> Behaviour:
    """Generate, judge and score one model's responses.

    Args:
        model: The model; hooks that are active now act.
        rendered: Prompts rendered for this model's tokenizer.
        refusal_tokens: Tokens behind the scores; None finds them in this model's own responses.
            Give the tuned model those of the base, or the scores do not compare.
        max_new_tokens: Budget for each response.
        judge: Labels responses; None takes the phrase judge.
        batch_size: Rows a batch; None finds one by itself.
        path: Where to write the result. Rows go to ``<path>.partial`` as they come, and a run
            that was interrupted continues from there. A finished file with the same provenance
            is read instead of measured again.
        force: Overwrite a file that was made otherwise.
        on_batch: Called with the number of prompts after each batch (for a progress bar).

    Returns:
        The rows in the order of the prompts. When no refusal tokens were found the scores are
        None and ``refusal_tokens.note`` says why.

    Raises:
        OutputExistsError: ``path`` holds something else and ``force`` is not set.
        ProbeError: See `refusaldir.probes.generate.generate`.
    """
    judge = PhraseJudge() if judge is None else judge
    path = None if path is None else Path(path)
    provenance = BehaviourProvenance(
        model=model.identity,
        template=rendered.identity,
        prompts_name=rendered.prompts.name,
        prompts_hash=rendered.prompts.hash,
        rendered_hash=rendered.hash,
        sampling=SamplingPlan(max_new_tokens=max_new_tokens),
        judges=(judge.version,),
        stop_ids=stop_ids(model),
        versions=_versions(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    finished = None if path is None else _finished(path, provenance.fingerprint(), force)
    journal = Journal(path, provenance.fingerprint())
    if finished is None:
        done = {index: BehaviourRow.from_dict(row) for index, row in journal.resume().items()}
        journal.start({index: row.to_dict() for index, row in done.items()})
    else:
        done = dict(enumerate(finished.rows))
    if on_batch is not None and done:
        on_batch(len(done))
    scores: dict[int, float] = {}

    def score(indices: Int[np.ndarray, " batch"], logits: Float[Tensor, "batch vocab"]) -> None:
        if refusal_tokens:
            values = score_of_logits(logits, refusal_tokens.ids).tolist()
            scores.update(zip(indices.tolist(), values, strict=True))

    def keep(responses: Sequence[Response]) -> None:
        for response in responses:
            done[response.index] = _row(rendered, response, judge)
            journal.append(response.index, done[response.index].to_dict())
        journal.flush()
        if on_batch is not None:
            on_batch(len(responses))

    try:
        generate(
            model,
            rendered.ids,
            max_new_tokens=max_new_tokens,
            stop=provenance.stop_ids,
            skip=frozenset(done),
            batch_size=batch_size,
            on_batch=keep,
            on_prefill=score,
        )
    finally:
        journal.close()
    rows = [done[index] for index in range(len(rendered.ids))]
    if refusal_tokens is None:
        refusal_tokens = _tokens_of(model.tokenizer, rows)
    if finished is not None and finished.refusal_tokens.ids == refusal_tokens.ids:
        return finished
    behaviour = Behaviour(
        provenance=provenance,
        refusal_tokens=refusal_tokens,
        rows=_scored(model, rendered, rows, refusal_tokens, scores, batch_size),
    )
    if path is not None:
        behaviour.to_jsonl(path, force=True)
    journal.close(remove=True)
    return behaviour


def _finished(path: Path, fingerprint: str, force: bool) -> Behaviour | None:
    """A finished measurement of the same thing, if the file holds one."""
    if not path.exists():
        return None
    try:
        found = Behaviour.from_jsonl(path)
        if found.provenance.fingerprint() == fingerprint:
            return found
        reason = "made with another model, other prompts or other settings"
    except ProbeError as error:
        reason = error.what
    if force:
        return None
    raise OutputExistsError(
        "the file for the responses holds something else",
        got=reason,
        where=path,
        next_step="Choose another name or overwrite it explicitly",
    )


def _tokens_of(tokenizer: Any, rows: Sequence[BehaviourRow]) -> RefusalTokens:
    return find_refusal_tokens(
        tokenizer,
        [row.first_token if isinstance(row.first_token, int) else None for row in rows],
        [row.label for row in rows],
        [row.harmful for row in rows],
    )


def _scored(
    model: HookedModel,
    rendered: RenderedSet,
    rows: Sequence[BehaviourRow],
    tokens: RefusalTokens,
    scores: Mapping[int, float],
    batch_size: int | None,
) -> tuple[BehaviourRow, ...]:
    """The rows with their scores; those not seen while generating are computed now."""
    if not tokens:
        return tuple(replace(row, score=None) for row in rows)
    known = dict(scores)
    missing = [index for index in range(len(rows)) if index not in known]
    if missing:
        values = refusal_scores(
            model, [rendered.ids[i] for i in missing], tokens.ids, batch_size=batch_size
        )
        known.update(zip(missing, values.tolist(), strict=True))
    return tuple(replace(row, score=known[index]) for index, row in enumerate(rows))


def _row(rendered: RenderedSet, response: Response, judge: Judge) -> BehaviourRow:
    prompt = rendered.prompts[response.index]
    try:
        judgement = judge(prompt.text, response.text)
    except Exception as error:  # A judge that fails is an outcome, never a refusal.
        judgement = Judgement(label=JUDGE_ERROR, evidence=f"{type(error).__name__}: {error}")
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
        rendered_hash=content_hash(list(rendered.ids[response.index])),
        response=response.text,
        n_tokens=len(response.ids),
        finished=response.finished,
        first_token=response.ids[0] if response.ids else None,
        label=judgement.label,
        evidence=judgement.evidence,
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in ("refusaldir", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
