"""What several judges and the score say of the same replies."""

import dataclasses

import pytest
from arms import arm

from refusaldir.probes.comparison import compare_runs
from refusaldir.probes.comparison.axis_instruments import SCORE
from refusaldir.probes.run import ProbeRun

FALL = "F" * 24, "".join("C" if i % 6 < 3 else "F" for i in range(24))


def test_judges_and_score_side_by_side():
    base = arm(FALL[0], categories=6, scores=0.0, others={"hf:guard-1": "F" * 24})
    # The guard sees falls where phrases see none, and a rise nowhere.
    guard = "".join("C" if i % 6 == 5 else "F" for i in range(24))
    tuned = arm(FALL[1], categories=6, scores=-1.0, name="tuned", others={"hf:guard-1": guard})
    found = compare_runs(base, tuned).axis("refusal").instruments
    names = [one.name for one in found.instruments]
    assert names == ["phrases-1", "hf:guard-1", SCORE]
    phrases, other, score = found.instruments
    assert (phrases.primary, phrases.authoritative) == (True, False)
    assert (other.primary, other.authoritative) == (False, True)
    assert phrases.overall.value == -0.5 and other.overall.value == pytest.approx(-1 / 6)
    assert score.unit == "nats" and score.overall.value == pytest.approx(-1)
    assert [g.change.value for g in phrases.categories] == [-1, -1, -1, 0, 0, 0]
    assert [g.change.value for g in other.categories] == [0, 0, 0, 0, 0, -1]
    tau = {(p.first, p.second): p.tau.value for p in found.disagreement.pairs}
    assert tau["phrases-1", "hf:guard-1"] < 0
    assert found.disagreement.mixed.value == 0


def test_mixed_signs_are_named():
    base = arm("FC" * 6, categories=2, others={"b-1": "FC" * 6})
    tuned = arm("CC" * 6, categories=2, name="tuned", others={"b-1": "FC" * 6})
    up = arm("CC" * 6, categories=2, name="tuned", others={"b-1": "FF" * 6})
    calm = compare_runs(base, tuned).axis("refusal").instruments.disagreement
    assert calm.mixed.value == 0
    base = arm("F" * 12, categories=2, others={"b-1": "C" * 12})
    up = arm("C" * 12, categories=2, name="tuned", others={"b-1": "F" * 12})
    wild = compare_runs(base, up).axis("refusal").instruments.disagreement
    assert wild.mixed.value == 1 and wild.mixed_categories == ("c0", "c1")


def test_a_judge_that_labelled_one_arm_alone_is_left_out():
    base = arm("FC", others={"b-1": "FC"})
    tuned = arm("FC", name="tuned", judges=("phrases-1",))
    got = compare_runs(base, tuned)
    found = got.axis("refusal").instruments
    assert "b-1 labelled 2 of 4 responses and is left out" in got.notes
    assert [one.name for one in found.instruments] == ["phrases-1"]
    assert found.disagreement is None


def scored(run, values, version="toxic-1"):
    """A run whose replies have a toxicity; None leaves one out."""
    rows = [
        dataclasses.replace(r, secondary={} if v is None else {"toxicity": v})
        for r, v in zip(run.single.rows, values, strict=True)
    ]
    provenance = dataclasses.replace(run.single.provenance, scorers={"toxicity": version})
    return ProbeRun(single=dataclasses.replace(run.single, rows=tuple(rows), provenance=provenance))


def test_further_scores_are_paired():
    base = scored(arm("CCCC"), [0.1, 0.2, 0.3, None])
    tuned = scored(arm("CCCC", name="tuned"), [0.2, 0.3, 0.4, 0.9])
    (toxicity,) = compare_runs(base, tuned).axis("refusal").secondary
    assert (toxicity.name, toxicity.scorer, toxicity.n) == ("toxicity", "toxic-1", 3)
    assert toxicity.difference.value == pytest.approx(0.1)
    assert toxicity.difference.upper - toxicity.difference.lower == pytest.approx(0, abs=1e-9)
    assert toxicity.base.upper > toxicity.base.value == pytest.approx(0.2)
    # Nothing of one model alone, nor of two scorers.
    assert compare_runs(base, arm("CCCC", name="tuned")).axis("refusal").secondary == ()
    other = compare_runs(base, scored(arm("CCCC", name="t"), [0.1] * 4, "toxic-2"))
    assert other.axis("refusal").secondary == ()
    assert "toxicity is not compared: by toxic-1 in base, by toxic-2 in tuned" in other.notes
