"""Escalations: by step from where twins part, whole conversations, and what they cannot be."""

import dataclasses

import numpy as np
import pytest
from arms import arm, behaviour, escalation

from refusaldir.errors import ProbeError
from refusaldir.probes.comparison import compare_runs
from refusaldir.probes.run import ProbeRun


def run(courses, *, mode="frozen", shared=1, name="base", **changes):
    """Twins of one intent each, one letter a turn: harmful as given, harmless all answered."""
    rows = []
    for i, turns in enumerate(courses):
        bad, good = f"e{i}-harmful", f"e{i}-harmless"
        twins = {"shared": shared, "intent": f"e{i}"}
        rows += escalation(bad, turns, twin=good, **twins)
        rows += escalation(good, "C" * len(turns), harmful=False, twin=bad, **twins)
    return ProbeRun(**{mode: behaviour(rows, mode=mode, name=name, **changes)})


def test_by_hand():
    base = run(["CFFF", "CFFC", "CFCF", "CFFF"])
    tuned = run(["CFFF", "CCCC", "CCFF", "CFCF"], name="tuned")
    got = compare_runs(base, tuned)
    assert got.axes == () and got.live is None
    axis = got.frozen.axis("refusal")
    assert (axis.n, axis.n_intents, axis.opening) == (4, 4, (1, 1))
    steps = [s.comparison for s in axis.steps]
    assert [s.base_rate.value for s in steps] == [1.0, 0.75, 0.75]
    assert [s.tuned_rate.value for s in steps] == [0.5, 0.5, 0.75]
    assert [s.difference.value for s in steps] == pytest.approx([-0.5, -0.25, 0.0])
    hazards = [s.hazard for s in axis.steps]
    assert [h.base.hazard.value for h in hazards] == pytest.approx([0, 1 / 4, 1 / 3])
    assert [h.tuned.hazard.value for h in hazards] == pytest.approx([1 / 2, 1 / 2, 0])
    assert hazards[2].complied_by.value == pytest.approx(3 / 4 - 1 / 2)
    assert axis.any_complied.base.value == 0.5 and axis.any_complied.tuned.value == 0.75
    assert axis.any_complied.difference.value == pytest.approx(0.25)
    assert axis.last_complied.difference.value == 0
    # Conversations that complied in both and went on: the third alone.
    assert axis.recovered.n == 1 and axis.recovered.base.value == axis.recovered.tuned.value == 1
    assert axis.turns_held.base.value == pytest.approx((3 + 2 + 1 + 3) / 4)
    assert axis.turns_held.difference.value == pytest.approx((3 + 0 + 0 + 1) / 4 - 9 / 4)
    assert axis.note == ""


def test_openings_are_left_out_and_twins_are_the_other_axis():
    """Answering the harmless opening is no compliance with the escalation."""
    got = compare_runs(run(["CCFF"] * 6, shared=2), run(["CCFF"] * 6, shared=2))
    axis = got.frozen.axis("refusal")
    assert axis.opening == (2, 2) and len(axis.steps) == 2
    assert axis.any_complied.base.value == 0
    assert got.frozen.axis("over_refusal").steps[0].comparison.base_rate.value == 0


def test_without_a_twin_all_turns_count_and_a_note_says_so():
    base = ProbeRun(frozen=behaviour(escalation("e", "CFF"), mode="frozen"))
    axis = compare_runs(base, base).frozen.axis("refusal")
    assert axis.opening == (0, 0) and axis.any_complied.base.value == 1
    assert "1 of 1 conversations have no twin" in axis.note


def test_unknown_turns_end_the_time_at_risk():
    base, tuned = run(["CFIF", "CFFF"]), run(["CFFF", "CCFF"], name="tuned")
    axis = compare_runs(base, tuned).frozen.axis("refusal")
    assert axis.steps[1].comparison.n_paired == 1
    assert axis.steps[1].hazard.base.unknown == 1
    assert axis.any_complied.n == 1  # of the first, base's is not known
    assert axis.turns_held.n == 1 and axis.turns_held.difference.value == -3


def test_steps_are_adjusted_over_the_steps():
    base, tuned = run(["CFFF"] * 8), run(["CFCC"] * 8, name="tuned")
    steps = [s.comparison for s in compare_runs(base, tuned).frozen.axis("refusal").steps]
    assert [s.p_value for s in steps] == pytest.approx([1, 0.5**8, 0.5**8])
    assert [s.p_holm for s in steps] == pytest.approx([1, 3 * 0.5**8, 3 * 0.5**8])


def test_modes_are_apart_and_both_are_kept():
    frozen, live = run(["CFF", "CFC"]), run(["CFF", "CCC"], mode="live")
    both = ProbeRun(frozen=frozen.frozen, live=live.live)
    got = compare_runs(both, both)
    assert (got.frozen.mode, got.live.mode) == ("frozen", "live")
    mixed = ProbeRun(frozen=dataclasses.replace(live.live))
    with pytest.raises(ProbeError, match="two modes"):
        compare_runs(frozen, mixed)


@pytest.mark.parametrize(("mode", "turn", "same"), [("live", 2, True), ("live", 1, False),
                                                    ("frozen", 2, False)])  # fmt: skip
def test_only_live_models_read_their_own_replies(mode, turn, same):
    """Later turns of live escalations are other tokens in the two models; nothing else may be."""
    base = run(["CFF"], mode=mode)
    part = getattr(base, mode)
    rows = [dataclasses.replace(r, rendered_hash="own") if r.turn == turn else r for r in part.rows]
    tuned = ProbeRun(**{mode: dataclasses.replace(part, rows=tuple(rows))})
    if same:
        assert compare_runs(base, tuned).live is not None
        return
    with pytest.raises(ProbeError, match="different prompts"):
        compare_runs(base, tuned)


def test_single_prompts_and_escalations_together():
    escalations = run(["CFF"] * 3).frozen
    base = ProbeRun(single=arm("FFC", "CC").single, frozen=escalations)
    got = compare_runs(base, base).to_dict()
    assert len(set(got["notes"])) == len(got["notes"])
    assert len(got["axes"]) == 2 and got["escalations"]["frozen"]["axes"]["refusal"]["n"] == 3
    assert got["escalations"]["live"] is None


def test_a_missing_turn_is_refused():
    whole = run(["CFF"]).frozen
    rows = tuple(r for r in whole.rows if r.turn != 2)
    broken = ProbeRun(frozen=dataclasses.replace(whole, rows=rows))
    with pytest.raises(ProbeError, match="lacks a turn"):
        compare_runs(broken, broken)


@pytest.mark.slow
def test_size_of_the_whole_conversation_test():
    """Two models that give way alike: at most 5 % are told apart."""
    rng = np.random.default_rng(0)
    rejected = []
    for _ in range(120):
        arms = []
        for _ in range(2):
            gives = rng.random((24, 4)) < 0.2
            arms.append(run(["C" + "".join("C" if g else "F" for g in row) for row in gives]))
        axis = compare_runs(*arms, n_boot=2).frozen.axis("refusal")
        rejected.append((axis.any_complied.p_value <= 0.05, axis.turns_held.p_value <= 0.05))
    assert np.mean(rejected, axis=0).max() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 120)
