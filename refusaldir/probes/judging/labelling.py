"""Add the labels of judges to replies that are there already; the model is not asked again.

Each judge's labels go into a journal beside the file as they come, so that what a slow judge has
said is not lost when it is stopped; the file itself is rewritten whole, once all have spoken.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from refusaldir.errors import ProbeError
from refusaldir.probes.behaviour import Behaviour, BehaviourRow
from refusaldir.probes.journal import Journal
from refusaldir.probes.judged import gate, relabelled, said_of
from refusaldir.probes.judging.many import AnyJudge, judge_rows
from refusaldir.probes.outcomes import JUDGE_ERROR, Judgement
from refusaldir.records import content_hash

#: Called with a judge's version and a number of rows it has labelled.
OnLabelled = Callable[[str, int], None]


def add_judges(
    behaviour: Behaviour,
    judges: Sequence[AnyJudge],
    *,
    primary: str | None = None,
    path: Path | None = None,
    on_labelled: OnLabelled | None = None,
) -> Behaviour:
    """Label every reply by some more judges.

    Judges whose labels are there keep them and their places; others follow in the order given. A
    judge is asked about the replies that it has not labelled yet, or could not (``judge_error``),
    and that the coherence gate lets through; labels from a file are looked up for all of them.

    Args:
        behaviour: The replies.
        judges: The judges.
        primary: Version of the judge whose labels become the rows' own; None leaves the first.
        path: The file that holds ``behaviour``: labels are journalled beside it, and in the end it
            is rewritten.
        on_labelled: Called as labels come.

    Returns:
        The replies with all labels.

    Raises:
        ProbeError: A judge cannot be used at all. With a path, what was labelled is kept: the same
            call goes on from there. Or ``primary`` is not among the judges.
    """
    rows, made = behaviour.rows, behaviour.provenance
    before = [said_of(row, made.judge) for row in rows]
    nothing = Judgement(label=JUDGE_ERROR)
    said = {version: [one.get(version, nothing) for one in before] for version in made.judges}
    journal = Journal(None if path is None else path.with_name(f"{path.name}.judges"), "judges-1")
    noted = journal.open(force=True)
    try:
        for judge in judges:
            # Rows of an earlier, smaller plan may hold labels of one that is not the file's.
            known = said.get(judge.version) or [b.get(judge.version, nothing) for b in before]
            said[judge.version] = _ask(judge, rows, known, noted, journal, on_labelled)
        labelled = relabelled(behaviour, _first(primary, said), stand=_standing(said))
        if path is not None and labelled != behaviour:
            labelled.to_jsonl(path, force=True)
    except BaseException:
        journal.close()
        raise
    # Labels of a judge that was stopped earlier, and is not among these, wait for it.
    journal.close(remove={note["judge"] for note in noted.values()} <= said.keys())
    return labelled


def _ask(
    judge: AnyJudge,
    rows: Sequence[BehaviourRow],
    known: Sequence[Judgement],
    noted: dict[str, dict[str, Any]],
    journal: Journal,
    on_labelled: OnLabelled | None,
) -> list[Judgement]:
    """The judge's label of every row, from the file, the journal, or the judge."""
    report = on_labelled or (lambda version, count: None)
    out, todo, keys = list(known), [], {}
    for index, row in enumerate(rows):
        keys[index] = content_hash(judge.version, row.key, row.prompt, row.response, row.score)
        if out[index].label == JUDGE_ERROR and keys[index] in noted:
            out[index] = Judgement(**noted[keys[index]]["said"])
        if out[index].label == JUDGE_ERROR and (stands(judge.version) or gate(row) is None):
            todo.append(index)
    report(judge.version, len(rows) - len(todo))

    def keep(place: int, judgement: Judgement) -> None:
        out[todo[place]] = judgement
        journal.append(keys[todo[place]], {"judge": judge.version, "said": asdict(judgement)})
        journal.flush()
        report(judge.version, 1)

    judge_rows(judge, [rows[index] for index in todo], on_judged=keep)
    return out


def stands(version: str) -> bool:
    """Whether the coherence gate has no say over a judge's labels: those that people gave."""
    return version.startswith("labels:")


def _standing(said: Mapping[str, object]) -> list[str]:
    return [version for version in said if stands(version)]


def _first(primary: str | None, said: dict[str, list[Judgement]]) -> dict[str, list[Judgement]]:
    """The judges, the primary one first."""
    if primary is None:
        return said
    if primary not in said:
        raise ProbeError(
            "the judge that is to be the first has labelled nothing here",
            expected=" or ".join(said),
            got=primary,
        )
    return {primary: said[primary], **said}
