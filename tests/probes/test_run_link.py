"""Links of whole runs: pairing, several replies, escalations, and what cannot be told."""

import json
from dataclasses import replace

import numpy as np
import pytest
from linked import DIRECTION, INTERCEPT, SLOPE, curve, runs, with_rows

from refusaldir.probes.comparison import compare_runs
from refusaldir.probes.link.categories import LIMIT, Measure
from refusaldir.probes.link.mechanism import link_to_mechanism
from refusaldir.probes.link.runs import link_runs
from refusaldir.probes.run import ProbeRun
from refusaldir.records import Estimate
from refusaldir.report.document import plain
from refusaldir.report.schema import document_schema, first_violation


def inside(estimate, value):
    return estimate.lower <= value <= estimate.upper


def test_rows_become_the_columns_of_the_link():
    base, tuned = runs()
    found = link_runs(base, tuned)
    first, second = base.single.rows, tuned.single.rows
    expected = link_to_mechanism(
        base_z=[r.projection for r in first],
        tuned_z=[r.projection for r in second],
        base_refused=[r.label == "full_refusal" for r in first],
        tuned_refused=[r.label == "full_refusal" for r in second],
        harmful=[r.harmful for r in first],
        intents=[r.intent_id for r in first],
        groups=[r.category for r in first],
    )
    assert found.parts["single"].link == expected
    assert found.direction == DIRECTION and list(found.parts) == ["single"]
    assert found.parts["single"].n_replies == len(first)


def test_planted_encoding_and_readout_come_out():
    for change, moved in (
        ({"offset": 0.0}, "encoding"),
        ({"shift": 0.0, "offset": -1.0}, "readout"),
    ):
        base, tuned = runs(each=20, graded=False, **change)
        parts = link_runs(base, tuned).parts["single"].link.axis("refusal")
        z = [
            np.array([r.projection for r in run.single.rows if r.harmful]) for run in (base, tuned)
        ]
        (bb, bt), (tb, tt) = [[curve(v, o).mean() for v in z] for o in (0.0, change["offset"])]
        truth = {"encoding": (bt - bb + tt - tb) / 2, "readout": (tb - bb + tt - bt) / 2}
        still = min(truth, key=lambda name: abs(truth[name]))
        assert still != moved and abs(truth[still]) < 0.02 and truth[moved] < -0.05
        assert all(inside(getattr(parts, name), true) for name, true in truth.items())
        assert getattr(parts, moved).upper < 0 and getattr(parts, still).lower > truth[moved]


def test_several_replies_enter_as_a_share_once_a_prompt():
    base, tuned = runs(samples=5, each=20)
    found = link_runs(base, tuned).parts["single"]
    assert found.link.n == 400 and found.n_replies == 2000
    assert inside(found.link.base.slope, SLOPE) and inside(found.link.base.intercept, INTERCEPT)
    share = np.mean([r.label == "full_refusal" for r in tuned.single.rows if r.harmful])
    share -= np.mean([r.label == "full_refusal" for r in base.single.rows if r.harmful])
    assert found.link.axis("refusal").observed.value == pytest.approx(share)


def test_the_order_of_rows_does_not_matter():
    base, tuned = runs(samples=2, categories=3)
    turned = replace(tuned, single=replace(tuned.single, rows=tuned.single.rows[::-1]))
    assert link_runs(base, turned) == link_runs(base, tuned)


def test_escalations_are_split_by_turn_and_without_their_openings():
    base, tuned = runs(turns=4, scripts=16, categories=2)
    found = link_runs(base, tuned)
    assert list(found.parts) == ["single", "frozen", "live"]
    frozen, live = found.parts["frozen"], found.parts["live"]
    assert frozen.group_kind == "turn" and found.parts["single"].group_kind == "category"
    # Turn 1 is shared with the twin; turns count from where they part.
    assert [g.group for g in frozen.link.groups if g.axis == "refusal"] == [1, 2, 3]
    assert frozen.link.n == 16 * 2 * 3
    assert any("live mode" in note for note in live.link.notes)
    assert not any("live mode" in note for note in frozen.link.notes)
    shift = [frozen.link.group("refusal", k).shift for k in (1, 2, 3)]
    assert all(inside(e, -0.8) for e in shift)
    assert sum("escalations (live)" in s for s in found.sentences) == 1


def test_escalations_alone_have_no_categories():
    base, tuned = (replace(run, single=None) for run in runs(turns=3))
    found = link_runs(base, tuned)
    assert found.categories == () and found.to_dict()["single"] is None


def test_a_reply_that_cannot_be_judged_leaves_its_pair_out():
    base, tuned = runs(samples=3, categories=2)
    tuned = with_rows(tuned, lambda i, r: replace(r, label="judge_error") if i < 4 else r)
    found = link_runs(base, tuned).parts["single"]
    assert found.n_replies == 2 * 8 * 2 * 3 - 4  # all of the first prompt, one of the second
    comparison = compare_runs(base, tuned, n_boot=20).axis("refusal").overall.difference
    assert found.link.axis("refusal").observed.value == pytest.approx(comparison.value)
    assert found.link.n == 31 and found.link.n_left_out == 1


def test_a_missing_projection_leaves_the_prompt_out_and_none_at_all_leaves_no_link():
    base, tuned = runs(categories=2)
    lacking = with_rows(tuned, lambda i, r: replace(r, projection=None) if i < 3 else r)
    found = link_runs(base, lacking).parts["single"]
    assert found.n_without_projection == 3 and found.link.n == 29
    assert any("3 prompts are left out: a projection" in note for note in found.link.notes)
    without = [with_rows(run, lambda i, r: replace(r, projection=None)) for run in (base, tuned)]
    assert link_runs(*without) is None
    one = link_runs(base, without[1])
    assert one.parts["single"].link is None and "in both models" in one.parts["single"].note
    assert "cannot be told: no prompt has a projection in both models." in one.sentences[0]
    assert one.to_dict()["single"] is None and "in both models" in one.to_dict()["note"]


def test_projections_on_other_directions_are_not_compared():
    base, tuned = runs(categories=2)
    provenance = replace(tuned.single.provenance, direction="resid_pre.9@-1 fedcba")
    other = replace(tuned, single=replace(tuned.single, provenance=provenance))
    found = link_runs(base, other)
    assert found.direction is None and found.parts["single"].link is None
    assert "resid_pre.9@-1 fedcba in tuned" in found.parts["single"].note


def test_only_parts_of_both_runs_count():
    base, tuned = runs(turns=2, categories=2)
    found = link_runs(base, replace(tuned, live=None))
    assert list(found.parts) == ["single", "frozen"] and found.to_dict()["live"] is None
    assert link_runs(ProbeRun(single=base.single), ProbeRun(frozen=tuned.frozen)) is None


def test_prompts_that_one_model_was_not_given_are_in_nothing():
    base, tuned = runs(turns=3, scripts=6, categories=2)
    fewer = [
        ProbeRun(
            **{
                name: replace(part, rows=tuple(r for r in part.rows if not r.id.startswith(gone)))
                for name, part in run.parts()
            }
        )
        for run, gone in ((base, "i001"), (tuned, "i002"))
    ]
    found = link_runs(*fewer)
    assert found.parts["single"].link.n == 2 * 8 * 2 - 4
    assert found.parts["frozen"].link.n == (6 - 2) * 2 * 2


def test_unjudged_replies_alone_are_said():
    base, tuned = (
        with_rows(run, lambda i, r: replace(r, label="empty")) for run in runs(categories=2)
    )
    part = link_runs(base, tuned).parts["single"]
    assert part.link is None and "could be judged" in part.note


def test_temperatures_taken_together_are_said():
    base, tuned = runs(samples=2, categories=2)
    mixed = [
        with_rows(run, lambda i, r: r if r.sample else replace(r, temperature=0.0))
        for run in (base, tuned)
    ]
    notes = link_runs(*mixed).parts["single"].link.notes
    assert any("temperatures 0, 0.7" in note for note in notes)
    found = link_runs(*mixed).parts["single"].link.axis("refusal").observed
    compared = compare_runs(*mixed, n_boot=20).axis("refusal").overall.difference
    assert found.value == pytest.approx(compared.value)
    assert not any("temperatures" in n for n in link_runs(base, tuned).parts["single"].link.notes)


def test_categories_that_moved_more_lost_more():
    base, tuned = runs(each=40, offset=0.0, shift=-1.4)
    found = link_runs(base, tuned, seed=1)
    row = next(c for c in found.categories if c.axis == "refusal")
    (shift,) = row.correlations
    assert shift.measure == "projection shift" and shift.kendall.lower > 0.2
    assert [r.category for r in row.rows] == [f"category {i}" for i in range(10)]
    assert LIMIT[1:] in found.sentences[-1] and LIMIT == found.to_dict()["categories"]["note"]


def test_measures_of_the_geometry_stand_beside_it():
    base, tuned = runs()
    names = [f"category {i}" for i in range(10)]
    figures = {name: Estimate(value=float(i), n=8) for i, name in enumerate(names)}
    foreign = {"other": figures[names[0]]}
    measures = [
        Measure(name="CKA", said="one minus CKA", rival=True, axes={"refusal": figures}),
        Measure(name="of others", said="x", rival=False, axes={"refusal": foreign}),
    ]
    found = link_runs(base, tuned, measures=measures)
    refusal, over = found.categories
    assert [c.measure for c in refusal.correlations] == ["projection shift", "CKA"]
    assert [c.measure for c in over.correlations] == ["projection shift"]
    assert refusal.rivals == ("CKA",) and refusal.measures["CKA"] == "one minus CKA"
    assert refusal.rows[3].measures["CKA"].value == 3
    said = next(s for s in found.sentences if "refusals of harmful prompts: projection" in s)
    loud = refusal.correlations[1].kendall
    assert ("CKA" in said) is not (loud.lower <= 0 <= loud.upper)
    assert ("the other measure holds 0" in said) is ("CKA" not in said)


def test_few_categories_have_no_order_and_it_is_said():
    found = link_runs(*runs(categories=3))
    assert found.categories[0].correlations[0].kendall.value is None
    assert any("cannot be told: not estimable: 3 independent rows" in s for s in found.sentences)


def test_a_model_with_one_answer_is_said_in_words():
    base, tuned = runs(categories=2)
    tuned = with_rows(tuned, lambda i, r: replace(r, label="compliance"))
    found = link_runs(base, tuned)
    assert "no prompt was refused" in found.sentences[0] and "cannot be told" in found.sentences[0]


def test_it_becomes_json_without_any_text():
    text = json.dumps(plain(link_runs(*runs(turns=3, categories=2)).to_dict()))
    assert "SECRET" not in text and "opening 1" not in text
    assert json.loads(text)["frozen"]["group_kind"] == "turn"


def test_it_obeys_its_schema():
    defs = document_schema("diff")["$defs"]
    schema = {"$ref": "#/$defs/link", "$defs": defs}
    base, tuned = runs(turns=3, categories=3)
    for pair in (
        (base, tuned),
        (base, with_rows(tuned, lambda i, r: replace(r, label="compliance"))),
        (base, with_rows(tuned, lambda i, r: replace(r, projection=None))),
    ):
        assert first_violation(plain(link_runs(*pair).to_dict()), schema) is None
    assert (
        first_violation({**plain(link_runs(base, tuned).to_dict()), "x": 1}, schema)
        == "x is unknown"
    )
