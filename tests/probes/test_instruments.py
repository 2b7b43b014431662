"""Disagreement between judges and scores over categories."""

import json

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from refusaldir.errors import ProbeError
from refusaldir.probes.instruments import disagreement

NAMES = [f"category {i}" for i in range(8)]
PHRASES = [-0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2]


def test_instruments_that_agree():
    found = disagreement({"phrases": PHRASES, "score": [10 * v for v in PHRASES]}, NAMES, draws=50)
    assert found.pairs[0].tau.value == pytest.approx(1)
    assert found.mixed.value == 0 and found.mixed_categories == ()


def test_mixed_signs_are_counted_and_named():
    score = [0.5, -0.4, 0.3, -0.2, -0.1, 0.4, 0.1, -0.2]
    found = disagreement({"phrases": PHRASES, "score": score}, NAMES, draws=50)
    assert found.mixed_categories == ("category 0", "category 2", "category 7")  # 0 has no sign
    lower, upper = proportion_confint(3, 8, method="wilson")
    assert (found.mixed.value, found.mixed.lower, found.mixed.upper) == pytest.approx(
        (3 / 8, lower, upper)
    )
    tau = stats.kendalltau(PHRASES, score).statistic
    assert found.pairs[0].tau.value == pytest.approx(tau)


def test_three_instruments_have_three_pairs():
    opposite = [-v for v in PHRASES]
    found = disagreement({"a": PHRASES, "b": PHRASES, "c": opposite}, NAMES, draws=50)
    taus = {(p.first, p.second): p.tau.value for p in found.pairs}
    assert taus == pytest.approx({("a", "b"): 1, ("a", "c"): -1, ("b", "c"): -1})
    assert found.mixed.value == 7 / 8


def test_what_was_not_measured_is_left_out():
    judge = [None, None, *PHRASES[2:]]
    found = disagreement({"phrases": PHRASES, "judge": judge}, NAMES, draws=50)
    assert found.n_categories == found.mixed.n == found.pairs[0].tau.n == 6
    assert found.notes == ("2 of 8 categories were measured by fewer than two",)
    json.dumps(found.to_dict())


def test_instruments_that_see_nothing_disagree_in_half_the_categories():
    rng = np.random.default_rng(0)
    noise = {name: rng.standard_normal(400).tolist() for name in "ab"}
    found = disagreement(noise, [str(i) for i in range(400)], draws=20)
    assert found.mixed.lower < 0.5 < found.mixed.upper
    assert abs(found.pairs[0].tau.value) < 0.14  # four standard errors of τ at 400


def test_what_cannot_be_compared_is_said():
    with pytest.raises(ProbeError, match="at least two columns of changes, got phrases"):
        disagreement({"phrases": PHRASES}, NAMES)
    with pytest.raises(ProbeError, match=r"\(score\): expected 8 changes, got 1"):
        disagreement({"phrases": PHRASES, "score": [0.1]}, NAMES)
