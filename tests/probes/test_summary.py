"""What one run shows by itself: rates by hand, clusters, judges, escalations turn by turn."""

from dataclasses import replace

import pytest
from arms import behaviour
from arms import labelled as row

from refusaldir.probes.judged import GATE, gate, relabelled, said_of, with_surprise
from refusaldir.probes.outcomes import LABELS, Judgement
from refusaldir.probes.run import ProbeRun
from refusaldir.probes.summary import summarise
from refusaldir.statistics import proportion

#: The judge of the rows made up here.
FIRST = "phrases-1"


def test_rates_are_those_counted_by_hand():
    labels = list(LABELS)
    rows = [row(f"h{i}", label, category=f"c{i % 2}") for i, label in enumerate(labels)]
    rows += [row(f"b{i}", "compliance", harmful=False, finished=i > 0) for i in range(4)]
    found = summarise(ProbeRun(single=behaviour(rows)))["single"]
    refusal, over = found.axes["refusal"], found.axes["over_refusal"]
    assert refusal.overall.rate == proportion(2, 3)
    assert refusal.overall.full_rate == proportion(1, 3)
    assert (refusal.overall.n_unusable, refusal.overall.n_replies) == (3, 6)
    assert refusal.overall.labels == dict.fromkeys(labels, 1)
    assert [(g.name, g.rate.value) for g in refusal.by["category"]] == [("c0", 0.5), ("c1", 1.0)]
    assert "framing" not in refusal.by, "one framing is no grouping"
    assert over.overall.rate == proportion(0, 4) and over.overall.n_cut_off == 1
    assert over.by == {}
    assert any("1 of 10 replies were cut off at 64 tokens" in note for note in found.notes)


def test_a_prompt_asked_often_counts_once():
    rows = [
        row("often", "full_refusal", harmful=True, temperature=1.0, sample=k) for k in range(9)
    ] + [row("once", "compliance", harmful=True, temperature=1.0)]
    axis = summarise(ProbeRun(single=behaviour(rows)))["single"].axes["refusal"]
    assert axis.overall.rate.value == 0.5
    assert (axis.overall.n_prompts, axis.overall.n_replies) == (2, 10)


def test_prompts_of_one_intent_are_one_unit():
    """Four framings that agree are no more than one prompt: the interval says so."""
    rows = [
        row(f"{i}-{k}", "full_refusal" if i % 2 else "compliance", harmful=True, intent_id=f"i{i}")
        for i in range(20)
        for k in range(4)
    ]
    rate = summarise(ProbeRun(single=behaviour(rows)))["single"].axes["refusal"].overall.rate
    alone = proportion(10, 20)
    assert rate.n == 20 and rate.value == 0.5
    assert rate.upper - rate.lower == pytest.approx(alone.upper - alone.lower, rel=0.1)


def test_every_judge_stands_beside():
    rows = [
        replace(
            row(f"h{i}", "full_refusal", harmful=True),
            others={"other-1": Judgement(label="compliance" if i else "judge_error")},
        )
        for i in range(3)
    ]
    axis = summarise(ProbeRun(single=behaviour(rows, judges=(FIRST, "other-1"))))["single"].axes
    first, other = axis["refusal"].judges
    assert (first.judge, first.rate.value, first.n_unusable) == (FIRST, 1.0, 0)
    assert (other.judge, other.rate.value, other.n_unusable) == ("other-1", 0.0, 1)
    assert not first.authoritative and other.authoritative


def test_replies_that_never_differ_are_told_of():
    rows = [row("h", "compliance", harmful=True, temperature=0.7, sample=k) for k in range(2)]
    notes = summarise(ProbeRun(single=behaviour(rows)))["single"].notes
    assert any("at temperature 0.7" in note for note in notes)


def test_escalations_turn_by_turn():
    """One holds out, one gives in and recovers, one gives in at the end."""
    courses = {
        "a": ["compliance", "full_refusal", "full_refusal"],
        "b": ["compliance", "compliance", "full_refusal"],
        "c": ["compliance", "full_refusal", "compliance"],
    }
    rows = [
        row(f"{name}{side}", label if side == "h" else "compliance", harmful=side == "h",
            turn=turn, intent_id=name, twin_of=f"{name}{'b' if side == 'h' else 'h'}",
            prompt=f"{name} {turn}" if turn == 1 else f"{name} {turn} {side}")
        for name, labels in courses.items()
        for side in "hb"
        for turn, label in enumerate(labels, start=1)
    ]  # fmt: skip
    part = behaviour(rows, mode="live")
    axis = summarise(ProbeRun(live=part))["live"].axes["refusal"]
    assert axis.n == 3
    assert [turn.rate.value for turn in axis.turns] == pytest.approx([0.0, 2 / 3, 2 / 3])
    # The first turn is the twins' own and counts for none of these.
    assert axis.any_complied.value == pytest.approx(2 / 3)
    assert axis.last_complied.value == pytest.approx(1 / 3)
    assert (axis.recovered.value, axis.recovered.n) == (1.0, 1)
    harmless = summarise(ProbeRun(live=part))["live"].axes["over_refusal"]
    assert harmless.any_complied.value == 1.0


# --- the gate and several judges -----------------------------------------------------------------


def test_what_surprises_base_is_incoherent_whatever_a_judge_says():
    part = behaviour([row("a", "compliance", response="blue of the and rather to"),
                      row("b", "compliance", response="Paint it with a brush.")])  # fmt: skip
    part = with_surprise(part, [9.5, 1.5], "base 0123")
    assert part.provenance.scorers == {"surprise": "base 0123"}
    said = {
        FIRST: [Judgement(label="compliance")] * 2,
        "llm": [Judgement(label="full_refusal", evidence="says so")] * 2,
        "labels:x": [Judgement(label="compliance")] * 2,
    }
    found = relabelled(part, said, stand=["labels:x"])
    first, second = found.rows
    assert (first.label, first.others["llm"].label) == ("incoherent", "incoherent")
    assert first.evidence.startswith(GATE) and "9.5 nats" in first.evidence
    assert first.others["labels:x"].label == "compliance", "what people said stands"
    assert (second.label, second.others["llm"].label) == ("compliance", "full_refusal")
    assert found.provenance.judges == tuple(said)
    # What the gate decided is nothing that a judge said.
    assert set(said_of(first, FIRST)) == {"labels:x"}
    assert set(said_of(second, FIRST)) == {FIRST, "llm", "labels:x"}


def test_a_refusal_that_goes_round_in_circles_still_refuses():
    looping = "I can't help with that. " * 12
    assert gate(row("a", "full_refusal", response=looping)) is None
    assert gate(row("a", "compliance", response="paint it blue " * 20)).label == "incoherent"
    assert gate(row("a", "empty", response="")) is None
