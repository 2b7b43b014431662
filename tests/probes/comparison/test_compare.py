"""Paired comparison: planted flips, exclusions, multiplicity, and what may not be compared."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from arms import arm, behaviour, escalation
from scipy import stats

from refusaldir.errors import ProbeError
from refusaldir.probes.comparison import compare_runs, minimum_n
from refusaldir.probes.plan import SamplingPlan
from refusaldir.probes.run import ProbeRun
from refusaldir.statistics import sign_flip_p


def with_rows(run, *rows):
    """A run with other rows."""
    return ProbeRun(single=dataclasses.replace(run.single, rows=tuple(rows)))


def test_planted_flips():
    base = arm("F" * 20 + "C" * 10, "C" * 30)
    tuned = arm("F" * 8 + "C" * 12 + "F" * 2 + "C" * 8, "C" * 25 + "P" * 5, name="tuned")
    got = compare_runs(base, tuned)
    assert [axis.axis for axis in got.axes] == ["refusal", "over_refusal"]
    refusal = got.axis("refusal").overall
    assert refusal.base_rate.value == pytest.approx(20 / 30)
    assert refusal.tuned_rate.value == pytest.approx(10 / 30)
    assert refusal.difference.value == pytest.approx(-10 / 30)
    assert refusal.difference.lower < -10 / 30 < refusal.difference.upper < 0
    flips = got.axis("refusal").flips
    assert [f.id for f in flips if f.to == "answer"] == [f"h{i}" for i in range(8, 20)]
    assert [f.id for f in flips if f.to == "refusal"] == ["h20", "h21"]
    assert {(f.base, f.tuned) for f in flips} == {(1.0, 0.0), (0.0, 1.0)}
    assert (refusal.flips_to_answer, refusal.flips_to_refusal) == (12, 2)
    assert (refusal.lost, refusal.gained) == pytest.approx((12 / 30, 2 / 30))
    # 2 of 14 discordant pairs, by hand: mid-p = 2·P(X < 2) + P(X = 2) under Bin(14, ½).
    expected = 2 * stats.binom.cdf(1, 14, 0.5) + stats.binom.pmf(2, 14, 0.5)
    assert refusal.p_value == pytest.approx(expected)
    over = got.axis("over_refusal").overall
    assert over.difference.value == pytest.approx(5 / 30)
    assert over.base_full_rate.value == over.tuned_full_rate.value == 0  # they were partial
    assert over.tuned_labels["partial_refusal"] == 5
    assert refusal.p_holm is None and refusal.equivalent is False


def test_swapping_the_arms_flips_the_sign():
    base, tuned = arm("FFFFFCCC", "CCCCFCCC"), arm("CCCFFFCC", "FFCCCCCC", name="tuned")
    there, back = compare_runs(base, tuned), compare_runs(tuned, base)
    for one, other in zip(there.axes, back.axes, strict=True):
        a, b = one.overall, other.overall
        assert a.difference.value == pytest.approx(-b.difference.value)
        assert a.difference.lower == pytest.approx(-b.difference.upper, abs=1e-6)
        assert a.p_value == pytest.approx(b.p_value)
        assert (a.flips_to_answer, a.gained) == (b.flips_to_refusal, b.lost)
        assert a.worst_case == pytest.approx(tuple(-x for x in reversed(b.worst_case)))


def test_the_same_arm_twice():
    same = arm("FCFC" * 40, "CCCF" * 40, scores=1.0)
    for axis in compare_runs(same, same).axes:
        assert axis.overall.difference.value == 0 and axis.overall.p_value == 1
        assert axis.overall.equivalent is True
        assert axis.overall.score_difference.value == 0
        assert axis.overall.worst_case == (0, 0)


def test_equivalence_needs_prompts():
    """Ten alike prompts do not show that nothing changed."""
    few = arm("F" * 10)
    assert compare_runs(few, few).axis("refusal").overall.equivalent is False


def test_what_cannot_be_judged_is_left_out_counted_and_bounded():
    base = arm("FFFFCC" + "FIJC")
    tuned = arm("FFCCCC" + "EFFI", name="tuned")
    got = compare_runs(base, tuned).axis("refusal").overall
    assert (got.n, got.n_paired) == (10, 6)
    assert got.base_rate.value == pytest.approx(4 / 6)
    assert got.tuned_rate.value == pytest.approx(2 / 6)
    assert got.base_labels["incoherent"] == 1 and got.tuned_labels["empty"] == 1
    # All ways to fill in the four: base ? in two, tuned ? in two.
    differences = [
        (2 + b[0] + 1 + 1 + b[1] - (4 + 1 + a[0] + a[1] + 0)) / 10
        for a in np.ndindex(2, 2)
        for b in np.ndindex(2, 2)
    ]
    assert got.worst_case == pytest.approx((min(differences), max(differences)))


def test_nothing_judged():
    got = compare_runs(arm("IIE"), arm("EFI", name="tuned")).axis("refusal").overall
    assert got.n_paired == 0 and got.difference.value is None and got.p_value is None
    assert got.equivalent is None and "no prompt" in got.note
    assert got.worst_case == pytest.approx((-2 / 3, 1))


def test_one_side_only():
    got = compare_runs(arm("FC"), arm("FC", name="tuned"))
    assert got.axis("over_refusal") is None and len(got.axes) == 1


def test_holm_over_categories():
    base = arm("F" * 40, categories=4)
    # Category 0 loses everything, category 1 four of ten, the others nothing.
    codes = "".join("C" if i % 4 == 0 or (i % 4 == 1 and i < 16) else "F" for i in range(40))
    axis = compare_runs(base, arm(codes, name="tuned", categories=4)).axis("refusal")
    groups = axis.breakdowns["category"].groups
    p = [group.p_value for group in groups]
    assert p == pytest.approx([0.5**10, 0.5**4, 1, 1])
    assert [group.p_holm for group in groups] == pytest.approx([4 * 0.5**10, 3 * 0.5**4, 1, 1])
    assert [group.p_bh for group in groups] == pytest.approx([4 * 0.5**10, 2 * 0.5**4, 1, 1])
    assert sum(group.n for group in groups) == axis.overall.n == 40
    assert [group.name for group in groups] == ["c0", "c1", "c2", "c3"]


@pytest.mark.parametrize("test", ["mid-p", "exact"])
@pytest.mark.parametrize("categories", [1, 12, 44])
def test_minimum_n_is_the_smallest(test, categories):
    """At that n a flip of every prompt passes Bonferroni; with one prompt fewer it does not."""
    n = minimum_n(categories, test)
    p = {"mid-p": 0.5**n, "exact": 2 * 0.5**n}[test]
    assert categories * p <= 0.05 < categories * p * 2


def test_ten_prompts_in_44_categories_are_too_few():
    """The exact test can never reject; mid-p only when all ten flip."""
    assert minimum_n(44, "exact") == 11
    assert minimum_n(44, "mid-p") == 10


def test_small_categories_are_pointed_out():
    base, tuned = arm("F" * 12, categories=4), arm("C" * 12, name="tuned", categories=4)
    found = compare_runs(base, tuned).axis("refusal").breakdowns["category"]
    assert found.minimum_n == 7 and "4 of 4 categories" in found.note
    assert all(group.p_holm > 0.05 for group in found.groups)
    large = arm("F" * 28, categories=4), arm("C" * 28, name="tuned", categories=4)
    found = compare_runs(*large).axis("refusal").breakdowns["category"]
    assert found.note == "" and all(group.p_holm <= 0.05 for group in found.groups)


def test_prompts_of_one_intent_are_one_witness():
    """Forty prompts of five intents that flip together are worth five."""
    base, tuned = arm("F" * 40, intents=5), arm("C" * 40, name="tuned", intents=5)
    clustered = compare_runs(base, tuned).axis("refusal").overall
    assert clustered.p_value == pytest.approx(0.5**5) and clustered.n_intents == 5
    half = "".join("C" if i % 5 < 2 else "F" for i in range(40))
    wide = compare_runs(base, arm(half, name="tuned", intents=5)).axis("refusal").overall
    narrow = compare_runs(arm("F" * 40), arm(half, name="tuned")).axis("refusal").overall
    width = [g.difference.upper - g.difference.lower for g in (wide, narrow)]
    assert wide.difference.value == narrow.difference.value
    assert width[0] > 2 * width[1]


def test_score_difference():
    base, tuned = arm("F" * 30, scores=2.0), arm("F" * 30, name="tuned", scores=-1.0)
    got = compare_runs(base, tuned).axis("refusal").overall.score_difference
    assert got.value == pytest.approx(-3) and got.n == 30
    assert compare_runs(arm("F"), arm("F")).axis("refusal").overall.score_difference is None


def test_order_does_not_matter():
    base, tuned = arm("FFCCF", "CCFCC"), arm("FCCFC", "CFFCC", name="tuned")
    mixed = with_rows(tuned, *tuned.single.rows[::-1])
    assert compare_runs(base, mixed).to_dict() == compare_runs(base, tuned).to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": SamplingPlan(max_new_tokens=128)}, "different token budgets"),
        ({"judges": ("phrases-0",)}, "different judges"),
        ({"template": {"system": "none"}}, "different system prompts"),
        ({"template": {"template_hash": "d"}}, "different chat templates"),
        ({"template": {"tokenizer_hash": "u"}}, "different tokenizers"),
        ({"template": {"thinking": True}}, "different thinking switches"),
        ({"tokens": (6,)}, "different refusal tokens"),
        ({"sampling": SamplingPlan(temperatures=(0.7,), max_new_tokens=64)}, "sampling plans"),
    ],
)
def test_refuses_unlike_arms(changes, message):
    with pytest.raises(ProbeError, match=message):
        compare_runs(arm("FC"), arm("FC", name="tuned", **changes))


@pytest.mark.parametrize(
    ("allow", "changes", "note"),
    [
        ("budget", {"sampling": SamplingPlan(max_new_tokens=128)}, "64 in base, 128 in tuned"),
        ("judge", {"judges": ("phrases-0",)}, "phrases-1 in base, phrases-0 in tuned"),
        ("system", {"template": {"system": "none"}}, "system prompts differ, as was allowed"),
        ("template", {"template": {"template_hash": "d"}}, "chat templates differ"),
        ("refusal-tokens", {"tokens": (6,)}, "refusal tokens differ"),
    ],
)
def test_what_is_allowed_is_compared_with_a_note(allow, changes, note):
    base, tuned = arm("FC", scores=1.0), arm("FC", scores=2.0, name="tuned", **changes)
    got = compare_runs(base, tuned, allow=[allow])
    assert got.allowed == (allow,) and any(note in said for said in got.notes)
    scored = got.axis("refusal").overall.score_difference is not None
    assert scored == (allow != "refusal-tokens")
    # Only what was named is allowed, and what does not differ is not said.
    other = "budget" if allow != "budget" else "judge"
    with pytest.raises(ProbeError, match=f"--allow {allow}"):
        compare_runs(base, tuned, allow=[other])
    assert compare_runs(base, base, allow=[allow]).allowed == ()


def test_other_rendering_may_change_tokens_but_not_text():
    base = arm("FC")
    rows = [dataclasses.replace(r, rendered_hash="other") for r in base.single.rows]
    tuned = arm("FC", name="tuned", template={"template_hash": "d"})
    assert compare_runs(base, with_rows(tuned, *rows), allow=["template"])
    rows[0] = dataclasses.replace(rows[0], prompt="another request")
    with pytest.raises(ProbeError, match="differs in text"):
        compare_runs(base, with_rows(tuned, *rows), allow=["template"])


def test_unknown_allowance():
    with pytest.raises(ProbeError, match="template, thinking, system, budget"):
        compare_runs(arm("F"), arm("F"), allow=["prompts"])


def test_refuses_other_prompts():
    with pytest.raises(ProbeError, match="different prompts"):
        compare_runs(arm("FC"), arm("FCF", name="tuned"))
    tuned = arm("FC", name="tuned")
    moved = dataclasses.replace(tuned.single.rows[1], rendered_hash="other")
    with pytest.raises(ProbeError, match="prompt h1"):
        compare_runs(arm("FC"), with_rows(tuned, tuned.single.rows[0], moved))
    with pytest.raises(ProbeError, match="no responses"):
        compare_runs(arm(), arm())
    with pytest.raises(ProbeError, match="margin"):
        compare_runs(arm("F"), arm("F"), margin=0.0)


def test_notes():
    base = arm("FC", tokens=())
    tuned = arm("FC", name="tuned", tokens=(), dtype="bfloat16")
    cut = dataclasses.replace(tuned.single.rows[0], finished=False)
    tuned = with_rows(tuned, cut, *tuned.single.rows[1:])
    notes = " | ".join(compare_runs(base, tuned).notes)
    assert "dtype differs: float32 in base, bfloat16 in tuned" in notes
    assert "no refusal score" in notes and "not authoritative" in notes
    assert "1 of 2 responses of tuned were cut off at 64 tokens" in notes


def test_to_dict_is_json():
    got = compare_runs(arm("FC", "CC", scores=0.0), arm("CC", "CF", scores=1.0)).to_dict()
    assert json.loads(json.dumps(got, allow_nan=False))["axes"][0]["axis"] == "refusal"


def test_breakdowns_have_families_of_their_own():
    """Framing, severity and domain are compared where prompts differ in them."""
    base = arm("F" * 24)
    rows = [
        dataclasses.replace(
            r,
            framing="plain" if i % 2 else "fictional",
            severity=("high", "low", None)[i % 3],
            domain="medical",
        )
        for i, r in enumerate(base.single.rows)
    ]
    base = with_rows(base, *rows)
    gone = [dataclasses.replace(r, label="compliance") if i < 12 else r for i, r in enumerate(rows)]
    found = compare_runs(base, with_rows(arm(name="tuned"), *gone)).axis("refusal").breakdowns
    assert found["domain"] is None  # one domain says nothing more
    assert [g.name for g in found["framing"].groups] == ["fictional", "plain"]
    assert [g.name for g in found["severity"].groups] == ["low", "high", "not given"]
    assert [g.p_holm for g in found["framing"].groups] == pytest.approx([2 * 0.5**6] * 2)
    assert [g.p_holm for g in found["severity"].groups] == pytest.approx([3 * 0.5**4] * 3)
    assert all(g.n == 12 for g in found["framing"].groups)


def test_detectable_change_is_one_that_the_test_sees_with_that_power():
    """Simulated falls of the size named are seen in 80 % of comparisons, at no fall in 5 %."""
    rng = np.random.default_rng(0)
    n = 96
    was = np.arange(n) < 80
    base = arm("".join("F" if w else "C" for w in was))
    steady = compare_runs(base, base).axis("refusal").overall
    assert steady.gained == steady.lost == 0
    seen = []
    for _ in range(1000):
        lost = was & (rng.random(n) < steady.detectable / was.mean())
        seen.append(sign_flip_p(-lost.astype(float), method="mid-p") <= 0.05)
    assert np.mean(seen) == pytest.approx(0.8, abs=0.06)
    in_ten = arm("F" * 96, categories=8)
    group = compare_runs(in_ten, in_ten).axis("refusal").breakdowns["category"].groups[0]
    assert group.detectable > compare_runs(*[arm("F" * 12)] * 2).axis("refusal").overall.detectable


def test_parts_that_only_one_has_are_named():
    both = ProbeRun(single=arm("F").single, frozen=behaviour(escalation("e", "FC"), mode="frozen"))
    got = compare_runs(both, arm("F", name="tuned"))
    assert got.frozen is None
    assert "frozen escalations were asked of base alone and are not compared" in got.notes
    with pytest.raises(ProbeError, match="nothing in common"):
        compare_runs(ProbeRun(frozen=both.frozen), arm("F"))


def test_needs_no_torch():
    code = (
        "import sys; import refusaldir.probes.comparison, refusaldir.probes.phrases\n"
        "import refusaldir.probes.behaviour\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
