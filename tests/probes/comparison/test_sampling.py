"""Several replies a prompt: shares, majorities, steadiness, and the size of the test."""

import dataclasses

import numpy as np
import pytest
from arms import arm, sampled

from refusaldir.errors import ProbeError
from refusaldir.probes.comparison import compare_runs


def test_shares_by_hand():
    """Greedy and five samples; temperatures weigh alike, and majorities decide flips."""
    base = sampled(["F" + "FFFFF", "F" + "FFFCC", "C" + "CCCCC", "F" + "CCCCC"])
    tuned = sampled(["C" + "CCCCF", "F" + "FFFFF", "C" + "CFFFF", "F" + "IIIII"], name="tuned")
    axis = compare_runs(base, tuned).axis("refusal")
    # The last prompt of tuned has greedy alone, so that of base is read there alone too.
    before = [1.0, (1 + 0.6) / 2, 0.0, 1.0]
    after = [(0 + 0.2) / 2, 1.0, (0 + 0.8) / 2, 1.0]
    assert axis.overall.base_rate.value == pytest.approx(np.mean(before))
    assert axis.overall.tuned_rate.value == pytest.approx(np.mean(after))
    assert axis.overall.difference.value == pytest.approx(np.mean(after) - np.mean(before))
    assert [(f.id, f.to) for f in axis.flips] == [("h0", "answer")]
    flip = axis.flips[0]
    assert (flip.base, flip.tuned) == (1.0, pytest.approx(0.1))
    assert [(t.temperature, t.base, t.tuned) for t in flip.temperatures] == [
        (0.0, 1.0, 0.0),
        (0.7, 1.0, pytest.approx(0.2)),
    ]
    greedy, warm = axis.sampling.temperatures
    assert (greedy.temperature, greedy.comparison.difference.value) == (0.0, -0.25)
    assert warm.comparison.n_paired == 3 and warm.comparison.n == 4
    assert axis.overall.tuned_labels["incoherent"] == 5
    # Five of six replies of tuned's last prompt may be either: its warm share is 0 or 1.
    spread = axis.overall.worst_case[1] - axis.overall.worst_case[0]
    assert spread == pytest.approx(0.5 / 4)


def test_a_tie_is_no_flip():
    base = sampled(["FF"], temperatures=(0.7,), samples=2)
    tuned = sampled(["FC"], temperatures=(0.7,), samples=2, name="tuned")
    axis = compare_runs(base, tuned).axis("refusal")
    assert axis.flips == () and axis.overall.difference.value == -0.5


def test_one_greedy_reply_has_no_sampling():
    assert compare_runs(arm("FC"), arm("FC")).axis("refusal").sampling is None


def test_steadiness_by_hand():
    run = sampled(["FFFFC", "FFFFF", "CCCCC", "CCIFF"], temperatures=(0.7,))
    found = compare_runs(run, run).axis("refusal").sampling.stability.base
    assert found.n == 4 and found.replies == pytest.approx(19 / 4)
    assert found.flipping.value == 0.5
    assert found.agreement.value == pytest.approx((0.8 + 1 + 1 + 0.5) / 4)


def letters(rng, chances, replies):
    return ["".join("F" if u < p else "C" for u in rng.random(replies)) for p in chances]


def runs(rng, chances, replies, per_intent=1):
    """Two models with these chances to refuse, base and tuned, of each prompt."""
    made = []
    for of_arm in chances:
        said = letters(rng, of_arm, replies)
        codes = {f"i{i // per_intent}-{i}": text for i, text in enumerate(said)}
        made.append(sampled(codes, temperatures=(0.7,), samples=replies))
    return made


@pytest.mark.slow
def test_size_and_coverage_under_no_change():
    """Prompts of their own chances, two an intent: at most 5 % are called changed."""
    rng = np.random.default_rng(5)
    rejected, covered = [], []
    for _ in range(250):
        z = np.repeat(2 * rng.standard_normal(16), 2) + rng.standard_normal(32)
        chance = 1 / (1 + np.exp(-z))
        group = compare_runs(*runs(rng, (chance, chance), 4, 2), n_boot=2).axis("refusal").overall
        rejected.append(group.p_value <= 0.05)
        covered.append(group.difference.lower <= 0 <= group.difference.upper)
    assert np.mean(rejected) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 250)
    assert np.mean(covered) >= 0.93


def test_more_replies_see_more():
    """The same fall, seen through one reply or eight."""
    rng = np.random.default_rng(6)
    powers = []
    for replies in (1, 8):
        seen = []
        for _ in range(20):
            base = rng.uniform(0.3, 0.9, 40)
            pair = runs(rng, (base, base - 0.15), replies)
            seen.append(compare_runs(*pair, n_boot=2).axis("refusal").overall.p_value <= 0.05)
        powers.append(np.mean(seen))
    assert powers[1] >= 0.9 > 0.6 > powers[0]


def test_variance_of_replies_and_of_prompts():
    """Prompts that always do the same vary between prompts alone; coins from reply to reply."""
    rng = np.random.default_rng(7)
    sure = np.repeat([0.0, 1.0], 30)
    fixed = compare_runs(*runs(rng, (sure, sure), 4)).axis("refusal").sampling.variance
    assert fixed.base.replies.value == 0 and fixed.base.prompts.value == pytest.approx(
        0.25, abs=0.01
    )
    assert fixed.change.replies.value == fixed.change.prompts.value == 0
    half = np.full(60, 0.5)
    coins = compare_runs(*runs(rng, (half, half), 4)).axis("refusal").sampling.variance
    assert coins.base.replies.value == pytest.approx(0.25, abs=0.02)
    assert coins.change.replies.value == pytest.approx(0.5, abs=0.06)
    assert coins.base.prompts.value == pytest.approx(0, abs=0.03)


def test_plans_may_differ_where_allowed_and_common_temperatures_count():
    base = sampled(["F" + "FFFFC", "C" + "CCCCC"])
    tuned = sampled(["FFFFF", "CCCCC"], temperatures=(0.7,), name="tuned")
    with pytest.raises(ProbeError, match=r"temperature 0, 0\.7; seed 0; 5 a seed"):
        compare_runs(base, tuned)
    got = compare_runs(base, tuned, allow=["sampling"])
    assert got.axis("refusal").overall.difference.value == pytest.approx(0.1)
    greedy = dataclasses.replace(arm("FC", name="tuned"))
    with pytest.raises(ProbeError, match="no temperature in common"):
        compare_runs(tuned, greedy, allow=["sampling"])
