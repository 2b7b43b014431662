"""Several judges on one set of replies, and the gate that keeps noise from all of them.

Replies that the coherence gate (`refusaldir.probes.coherence`) calls noise are `incoherent`
whatever a judge would make of them, so no judge is asked about them; labels from a file, which
people gave, stand. What a judge said before of the same reply is kept and not asked again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from refusaldir.probes.behaviour import Behaviour, BehaviourRow
from refusaldir.probes.coherence import incoherence
from refusaldir.probes.outcomes import EMPTY, INCOHERENT, Judgement, is_refused
from refusaldir.probes.phrases import PhraseJudge

#: Name of a row's surprise among its further scores: mean nats a token of the reply under base.
SURPRISE = "surprise"

#: How the evidence of a label begins that the gate gave.
GATE = "coherence gate: "


def said_of(row: BehaviourRow, primary: str) -> dict[str, Judgement]:
    """What every judge said of a row by itself, by version; what the gate decided is left out.

    Args:
        row: The row.
        primary: Version of the judge whose label is the row's.
    """
    first = Judgement(label=row.label, evidence=row.evidence)
    said = {primary: first, **row.others}
    return {name: judgement for name, judgement in said.items() if not by_gate(judgement)}


def by_gate(judgement: Judgement) -> bool:
    """Whether the gate decided a label, not a judge."""
    return judgement.label == INCOHERENT and judgement.evidence.startswith(GATE)


def gate(row: BehaviourRow) -> Judgement | None:
    """The gate's label for a row, or None where a judge is to decide.

    A refusal that goes round in circles still refuses, so what loops is only noise where the
    wording is no refusal.
    """
    refused = bool(is_refused(PhraseJudge().judge_row(row).label))
    reason = incoherence(row.response, row.secondary.get(SURPRISE), refused=refused)
    return None if reason is None else Judgement(label=INCOHERENT, evidence=GATE + reason)


def with_surprise(behaviour: Behaviour, values: Sequence[float | None], scorer: str) -> Behaviour:
    """Put the surprise of each reply into the rows.

    Args:
        behaviour: The replies.
        values: Mean nats a token of each; None for an empty one.
        scorer: What they were scored under.
    """
    rows = []
    for row, value in zip(behaviour.rows, values, strict=True):
        rest = {name: score for name, score in row.secondary.items() if name != SURPRISE}
        rows.append(replace(row, secondary=rest if value is None else {**rest, SURPRISE: value}))
    scorers = {**behaviour.provenance.scorers, SURPRISE: scorer}
    return replace(
        behaviour, rows=tuple(rows), provenance=replace(behaviour.provenance, scorers=scorers)
    )


def relabelled(
    behaviour: Behaviour, said: Mapping[str, Sequence[Judgement]], *, stand: Sequence[str] = ()
) -> Behaviour:
    """The rows with the labels of some judges, the first of them primary, behind the gate.

    Args:
        behaviour: The replies.
        said: Judgement of every row, by the judge's version. Where the gate decides it is not
            looked at.
        stand: Versions of judges over whose labels the gate has no say.
    """
    versions = tuple(said)
    rows = []
    for index, row in enumerate(behaviour.rows):
        decided = gate(row)
        labels = {}
        for version in versions:
            own = said[version][index]
            stays = decided is None or version in stand or own.label == EMPTY
            labels[version] = own if stays or decided is None else decided
        first = labels.pop(versions[0])
        rows.append(replace(row, label=first.label, evidence=first.evidence, others=labels))
    return replace(
        behaviour,
        rows=tuple(rows),
        provenance=replace(behaviour.provenance, judges=versions),
    )
