"""Shares of several replies: flipped signs, paired differences, means, false discovery rate."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from refusaldir.errors import ProbeError
from refusaldir.statistics import (
    benjamini_hochberg,
    design_effect,
    mcnemar,
    mean_share,
    paired_proportion_difference,
    proportion,
    sign_flip_p,
)


class TestSignFlips:
    @settings(max_examples=40)
    @given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 9))
    def test_of_one_size_it_is_mcnemar(self, gained, lost, same):
        net = [1] * gained + [-1] * lost + [0] * same
        table = [[same, lost], [gained, 0]]
        expected = statsmodels_mcnemar(table, exact=True).pvalue if gained + lost else 1.0
        assert sign_flip_p(net) == pytest.approx(expected, abs=1e-12)
        pair = [x < 0 for x in net], [x > 0 for x in net]
        assert sign_flip_p(net, method="mid-p") == pytest.approx(mcnemar(*pair, method="mid-p"))

    @pytest.mark.parametrize(
        "net",
        [
            [3, -1, 2, 2, -5, 1, 0],
            [0.2, 0.4, -0.6, 1.0, 0.2, 0.25],
            [1 / 3, -2 / 7, 0.9, 0.5, -0.1, 1 / 9, 0.3],
        ],
    )
    def test_every_combination_by_hand(self, net):
        x = np.array(net)[np.array(net) != 0]
        sums = np.array([np.dot(signs, x) for signs in product((-1, 1), repeat=len(x))])
        seen = abs(x.sum())
        at_least = np.mean(np.abs(sums) >= seen - 1e-9)
        equal = np.mean(np.abs(np.abs(sums) - seen) < 1e-9)
        assert sign_flip_p(net) == pytest.approx(at_least, abs=1e-12)
        assert sign_flip_p(net, method="mid-p") == pytest.approx(at_least - equal / 2, abs=1e-12)

    def test_is_that_of_scipy_on_any_numbers(self):
        """Numbers without a common denominator are rounded to a fine grid."""
        x = np.random.default_rng(0).standard_normal(14) + 0.3
        expected = stats.permutation_test(
            (x,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
        ).pvalue
        assert sign_flip_p(x) == pytest.approx(expected, rel=1e-3)

    def test_scale_sign_and_silence(self):
        x = np.array([0.4, -0.2, 1.0, 0.6, 0.6])
        assert sign_flip_p(x) == pytest.approx(sign_flip_p(-7 * x))
        assert sign_flip_p([0, 0, 0]) == sign_flip_p([]) == 1
        assert sign_flip_p([0.3]) == 1

    def test_large_sets_are_quick_and_close_to_normal(self):
        x = np.random.default_rng(1).standard_normal(480)
        z = x.sum() / np.sqrt(np.sum(x**2))
        assert sign_flip_p(x) == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.01)


class TestShares:
    def test_booleans_are_shares_of_one_reply(self):
        rng = np.random.default_rng(0)
        a, b = rng.random((2, 60)) < 0.5
        ids = np.repeat(range(20), 3).tolist()
        assert paired_proportion_difference(a, b, ids) == paired_proportion_difference(
            a.astype(float), b.astype(float), ids
        )

    def test_the_mean_is_that_of_the_differences(self):
        rng = np.random.default_rng(1)
        a, b = rng.integers(0, 6, (2, 40)) / 5
        e = paired_proportion_difference(a, b, replies=5)
        assert e.value == pytest.approx(np.mean(b - a))
        assert e.lower < e.value < e.upper and e.n == 40

    def test_more_replies_narrow_it_no_further_than_their_number(self):
        a, b = np.full(40, 0.4), np.full(40, 0.4)
        widths = []
        for replies in (1, 5, 20):
            e = paired_proportion_difference(a, b, list(range(40)), replies=replies)
            widths.append(e.upper - e.lower)
        assert widths[0] / widths[1] == pytest.approx(np.sqrt(5), rel=0.05)
        assert widths[0] / widths[2] == pytest.approx(np.sqrt(20), rel=0.05)

    def test_nothing_seen_is_no_knowledge_of_single_replies(self):
        """Five silent replies of 20 prompts are 20 prompts, not 100."""
        zero = np.zeros(20)
        many = paired_proportion_difference(zero, zero, list(range(20)), replies=5)
        one = paired_proportion_difference(zero, zero, list(range(20)))
        assert (many.lower, many.upper) == (one.lower, one.upper)

    def test_design_effect_by_its_definition(self):
        rng = np.random.default_rng(2)
        a, b = rng.random((2, 400)) < 0.5
        once = design_effect(a, b, list(range(400)))
        assert once == pytest.approx(1, abs=0.01)
        four = design_effect(np.repeat(a, 4), np.repeat(b, 4), np.repeat(range(400), 4).tolist())
        assert four == pytest.approx(4 * once, rel=0.01)

    def test_refuses_what_is_no_share(self):
        with pytest.raises(ProbeError, match="share"):
            paired_proportion_difference([1.2], [0.0])
        with pytest.raises(ProbeError, match="one boolean"):
            mcnemar([0.5], [1.0])

    @pytest.mark.parametrize("replies", [2, 5])
    def test_coverage(self, replies):
        """Prompts of their own chances, two an intent: nominal 95 %, at least 93 % seen."""
        rng = np.random.default_rng(3)
        ids = np.repeat(range(24), 2)
        seen = []
        for _ in range(800):
            z = rng.standard_normal(24)[ids] * 2 + rng.standard_normal(48)
            chances = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
            a, b = (rng.binomial(replies, p) / replies for p in chances)
            e = paired_proportion_difference(a, b, ids.tolist(), replies=replies)
            seen.append(e.lower <= 0 <= e.upper)
        assert np.mean(seen) >= 0.93


class TestMeanShare:
    def test_single_outcomes_are_wilson(self):
        assert mean_share([True] * 7 + [False] * 13) == proportion(7, 20)

    def test_copies_add_nothing(self):
        x = np.random.default_rng(0).random(30) < 0.3
        once = mean_share(x, list(range(30)))
        often = mean_share(np.repeat(x, 5), np.repeat(range(30), 5).tolist())
        assert (often.lower, often.upper) == pytest.approx((once.lower, once.upper))

    def test_ends_keep_a_width(self):
        assert mean_share(np.zeros(40), np.repeat(range(20), 2).tolist()).upper > 0.1
        assert mean_share([]).value is None
        assert mean_share([0.2, 0.4], ["a", "a"]).lower is None


def test_false_discovery_rate_is_that_of_statsmodels():
    for seed in range(20):
        p = np.random.default_rng(seed).random(13).round(2) ** 3
        np.testing.assert_allclose(benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1])
    np.testing.assert_allclose(benjamini_hochberg([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])
