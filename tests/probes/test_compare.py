"""Paired comparison: planted flips, exclusions, multiplicity, and what may not be compared."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from refusaldir.errors import ProbeError
from refusaldir.probes.behaviour import Behaviour, BehaviourProvenance, BehaviourRow
from refusaldir.probes.compare import compare_behaviour, minimum_n
from refusaldir.probes.plan import SamplingPlan
from refusaldir.probes.refusal_tokens import RefusalTokens
from refusaldir.records import ModelIdentity, TemplateIdentity

CODES = {
    "F": "full_refusal",
    "P": "partial_refusal",
    "C": "compliance",
    "I": "incoherent",
    "E": "empty",
    "J": "judge_error",
}


def arm(
    harmful: str = "",
    harmless: str = "",
    *,
    name: str = "base",
    categories: int = 1,
    intents: int | None = None,
    scores: float | None = None,
    **changes,
) -> Behaviour:
    """One letter a response; prompts take categories and intents in turn."""
    template = changes.pop("template", {})
    tokens = changes.pop("tokens", (5,))
    provenance = BehaviourProvenance(
        model=ModelIdentity(
            spec=name,
            name=name,
            weights_hash=name,
            architecture="LlamaForCausalLM",
            n_layers=2,
            d_model=8,
            vocab_size=97,
            dtype=changes.pop("dtype", "float32"),
        ),
        template=TemplateIdentity(
            **{
                "tokenizer_hash": "t",
                "template_hash": "c",
                "system": "default",
                "thinking": None,
                "post_tokens": ("x",),
                **template,
            }
        ),
        **{
            "prompts_name": "planted",
            "prompts_hash": "p",
            "rendered_hash": "r",
            "sampling": SamplingPlan(max_new_tokens=64),
            "judges": ("phrases-1",),
            "stop_ids": (2,),
            "versions": {},
            "created": "2025-01-01T00:00:00+00:00",
            **changes,
        },
    )
    rows = [
        BehaviourRow(
            id=f"{side}{i}",
            intent_id=f"{side}-intent-{i if intents is None else i % intents}",
            harmful=side == "h",
            category=f"c{i % categories}",
            severity=None,
            framing="plain",
            domain="general",
            twin_of=None,
            prompt="",
            rendered_hash=f"{side}{i}",
            response="…",
            n_tokens=3,
            finished=True,
            first_token=5,
            label=CODES[code],
            score=None if scores is None else scores + 0.01 * i,
        )
        for side, codes in (("h", harmful), ("b", harmless))
        for i, code in enumerate(codes)
    ]
    found = RefusalTokens(ids=tokens, texts=tuple(map(str, tokens)), source="given")
    return Behaviour(provenance=provenance, refusal_tokens=found, rows=tuple(rows))


def test_planted_flips():
    base = arm("F" * 20 + "C" * 10, "C" * 30)
    tuned = arm("F" * 8 + "C" * 12 + "F" * 2 + "C" * 8, "C" * 25 + "P" * 5, name="tuned")
    got = compare_behaviour(base, tuned)
    assert [axis.axis for axis in got.axes] == ["refusal", "over_refusal"]
    refusal = got.axis("refusal").overall
    assert refusal.base_rate.value == pytest.approx(20 / 30)
    assert refusal.tuned_rate.value == pytest.approx(10 / 30)
    assert refusal.difference.value == pytest.approx(-10 / 30)
    assert refusal.difference.lower < -10 / 30 < refusal.difference.upper < 0
    assert refusal.flips_to_answer == tuple(f"h{i}" for i in range(8, 20))
    assert refusal.flips_to_refusal == ("h20", "h21")
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
    there, back = compare_behaviour(base, tuned), compare_behaviour(tuned, base)
    for one, other in zip(there.axes, back.axes, strict=True):
        a, b = one.overall, other.overall
        assert a.difference.value == pytest.approx(-b.difference.value)
        assert a.difference.lower == pytest.approx(-b.difference.upper, abs=1e-6)
        assert a.p_value == pytest.approx(b.p_value)
        assert a.flips_to_answer == b.flips_to_refusal
        assert a.worst_case == pytest.approx(tuple(-x for x in reversed(b.worst_case)))


def test_the_same_arm_twice():
    same = arm("FCFC" * 40, "CCCF" * 40, scores=1.0)
    for axis in compare_behaviour(same, same).axes:
        assert axis.overall.difference.value == 0 and axis.overall.p_value == 1
        assert axis.overall.equivalent is True
        assert axis.overall.score_difference.value == 0
        assert axis.overall.worst_case == (0, 0)


def test_equivalence_needs_prompts():
    """Ten alike prompts do not show that nothing changed."""
    few = arm("F" * 10)
    assert compare_behaviour(few, few).axis("refusal").overall.equivalent is False


def test_what_cannot_be_judged_is_left_out_counted_and_bounded():
    base = arm("FFFFCC" + "FIJC")
    tuned = arm("FFCCCC" + "EFFI", name="tuned")
    got = compare_behaviour(base, tuned).axis("refusal").overall
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
    got = compare_behaviour(arm("IIE"), arm("EFI", name="tuned")).axis("refusal").overall
    assert got.n_paired == 0 and got.difference.value is None and got.p_value is None
    assert got.equivalent is None and "no prompt" in got.note
    assert got.worst_case == pytest.approx((-2 / 3, 1))


def test_one_side_only():
    got = compare_behaviour(arm("FC"), arm("FC", name="tuned"))
    assert got.axis("over_refusal") is None and len(got.axes) == 1


def test_holm_over_categories():
    base = arm("F" * 40, categories=4)
    # Category 0 loses everything, category 1 four of ten, the others nothing.
    codes = "".join("C" if i % 4 == 0 or (i % 4 == 1 and i < 16) else "F" for i in range(40))
    axis = compare_behaviour(base, arm(codes, name="tuned", categories=4)).axis("refusal")
    p = [group.p_value for group in axis.categories]
    assert p == pytest.approx([0.5**10, 0.5**4, 1, 1])
    assert [group.p_holm for group in axis.categories] == pytest.approx(
        [4 * 0.5**10, 3 * 0.5**4, 1, 1]
    )
    assert sum(group.n for group in axis.categories) == axis.overall.n == 40
    assert [group.category for group in axis.categories] == ["c0", "c1", "c2", "c3"]


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
    axis = compare_behaviour(base, tuned).axis("refusal")
    assert axis.minimum_n == 7 and "4 of 4 categories" in axis.note
    assert all(group.p_holm > 0.05 for group in axis.categories)
    large = arm("F" * 28, categories=4), arm("C" * 28, name="tuned", categories=4)
    axis = compare_behaviour(*large).axis("refusal")
    assert axis.note == "" and all(group.p_holm <= 0.05 for group in axis.categories)


def test_prompts_of_one_intent_are_one_witness():
    """Forty prompts of five intents that flip together are worth five."""
    base, tuned = arm("F" * 40, intents=5), arm("C" * 40, name="tuned", intents=5)
    clustered = compare_behaviour(base, tuned).axis("refusal").overall
    assert clustered.p_value == pytest.approx(0.5**5)
    half = "".join("C" if i % 5 < 2 else "F" for i in range(40))
    wide = compare_behaviour(base, arm(half, name="tuned", intents=5)).axis("refusal").overall
    narrow = compare_behaviour(arm("F" * 40), arm(half, name="tuned")).axis("refusal").overall
    width = [g.difference.upper - g.difference.lower for g in (wide, narrow)]
    assert wide.difference.value == narrow.difference.value
    assert width[0] > 2 * width[1]


def test_score_difference():
    base, tuned = arm("F" * 30, scores=2.0), arm("F" * 30, name="tuned", scores=-1.0)
    got = compare_behaviour(base, tuned).axis("refusal").overall.score_difference
    assert got.value == pytest.approx(-3) and got.n == 30
    assert compare_behaviour(arm("F"), arm("F")).axis("refusal").overall.score_difference is None


def test_order_does_not_matter():
    base, tuned = arm("FFCCF", "CCFCC"), arm("FCCFC", "CFFCC", name="tuned")
    mixed = dataclasses.replace(tuned, rows=tuned.rows[::-1])
    assert compare_behaviour(base, mixed).to_dict() == compare_behaviour(base, tuned).to_dict()


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
    ],
)
def test_refuses_unlike_arms(changes, message):
    with pytest.raises(ProbeError, match=message):
        compare_behaviour(arm("FC"), arm("FC", name="tuned", **changes))


def test_refuses_other_prompts():
    with pytest.raises(ProbeError, match="different prompts"):
        compare_behaviour(arm("FC"), arm("FCF", name="tuned"))
    tuned = arm("FC", name="tuned")
    moved = dataclasses.replace(tuned.rows[1], rendered_hash="other")
    with pytest.raises(ProbeError, match="prompt h1"):
        compare_behaviour(arm("FC"), dataclasses.replace(tuned, rows=(tuned.rows[0], moved)))
    with pytest.raises(ProbeError, match="no responses"):
        compare_behaviour(arm(), arm())
    with pytest.raises(ProbeError, match="margin"):
        compare_behaviour(arm("F"), arm("F"), margin=0.0)


def test_notes():
    base = arm("FC", tokens=())
    tuned = arm("FC", name="tuned", tokens=(), dtype="bfloat16")
    cut = dataclasses.replace(tuned.rows[0], finished=False)
    tuned = dataclasses.replace(tuned, rows=(cut, *tuned.rows[1:]))
    notes = " | ".join(compare_behaviour(base, tuned).notes)
    assert "dtype differs: float32 in base, bfloat16 in tuned" in notes
    assert "no refusal score" in notes
    assert "1 of 2 responses of tuned were cut off at 64 tokens" in notes


def test_to_dict_is_json():
    got = compare_behaviour(arm("FC", "CC", scores=0.0), arm("CC", "CF", scores=1.0)).to_dict()
    assert json.loads(json.dumps(got, allow_nan=False))["axes"][0]["axis"] == "refusal"


def test_needs_no_torch():
    code = (
        "import sys; import refusaldir.probes.compare, refusaldir.probes.phrases\n"
        "import refusaldir.probes.behaviour\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
