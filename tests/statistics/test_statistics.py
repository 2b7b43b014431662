import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportion_confint

from refusaldir.errors import ProbeError, RefusaldirError
from refusaldir.statistics import (
    Clusters,
    cluster_bootstrap_mean,
    critical_value,
    holm,
    jackknife,
    mcnemar,
    mean,
    paired_proportion_difference,
    proportion,
    simultaneous_critical,
)


def paired(both, only_a, only_b, neither):
    a = [1] * (both + only_a) + [0] * (only_b + neither)
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return np.array(a), np.array(b)


#: Complete response before and after consolidation therapy (Cavo et al. 2012), the worked
#: example of Fagerland, Lydersen & Laake, Statistical Analysis of Contingency Tables, ch. 8.
CAVO = paired(59, 6, 16, 80)


class TestPairedDifference:
    def test_published_example(self):
        a, b = CAVO
        e = paired_proportion_difference(b, a)
        assert e.value == pytest.approx(-0.0621, abs=5e-5)
        assert e.lower == pytest.approx(-0.1240, abs=5e-5)
        assert e.upper == pytest.approx(-0.0054, abs=5e-5)
        assert e.n == 161

    def test_sign_is_tuned_minus_base(self):
        a, b = CAVO
        forward, back = paired_proportion_difference(a, b), paired_proportion_difference(b, a)
        assert forward.value > 0
        assert (forward.lower, forward.upper) == pytest.approx((-back.upper, -back.lower))

    def test_nothing_discordant_still_has_a_width(self):
        e = paired_proportion_difference([1] * 20, [1] * 20)
        assert e.value == 0
        assert -0.2 < e.lower < -0.05 < 0.05 < e.upper < 0.2

    def test_all_flip(self):
        e = paired_proportion_difference([1] * 20, [0] * 20)
        assert (e.value, e.lower) == (-1, -1)
        assert -0.9 < e.upper < -0.6

    def test_singleton_clusters_only_change_the_critical_value(self):
        a, b = CAVO
        alone = paired_proportion_difference(a, b)
        single = paired_proportion_difference(a, b, clusters=list(range(161)))
        assert single.value == alone.value
        assert single.lower == pytest.approx(alone.lower, abs=2e-3)

    def test_copies_of_a_prompt_add_nothing(self):
        a, b = CAVO
        once = paired_proportion_difference(a, b, clusters=list(range(161)))
        copied = paired_proportion_difference(
            np.repeat(a, 4), np.repeat(b, 4), clusters=np.repeat(np.arange(161), 4).tolist()
        )
        careless = paired_proportion_difference(np.repeat(a, 4), np.repeat(b, 4))
        assert copied.n == 161
        assert copied.lower == pytest.approx(once.lower, abs=1e-3)
        assert careless.upper - careless.lower < 0.6 * (copied.upper - copied.lower)

    def test_copies_without_any_change_add_nothing_either(self):
        ones = np.ones(80)
        copied = paired_proportion_difference(ones, ones, clusters=np.repeat(range(20), 4).tolist())
        assert copied.upper > paired_proportion_difference(ones[:20], ones[:20]).upper

    @settings(max_examples=40)
    @given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
    def test_value_lies_in_its_interval(self, pairs):
        a, b = np.array(pairs).T
        e = paired_proportion_difference(a, b)
        assert -1 <= e.lower <= e.value <= e.upper <= 1

    def test_refuses_other_shapes_and_values(self):
        with pytest.raises(ProbeError, match="same prompts"):
            paired_proportion_difference([1, 0], [1])
        with pytest.raises(ProbeError, match="one boolean"):
            paired_proportion_difference([2, 0], [1, 0])
        with pytest.raises(ProbeError, match="cluster"):
            paired_proportion_difference([1, 0], [1, 0], clusters=["a"])
        with pytest.raises(RefusaldirError, match="level"):
            paired_proportion_difference([1, 0], [1, 0], level=95.0)

    def test_no_pairs_and_one_cluster_say_so(self):
        assert paired_proportion_difference([], []).value is None
        one = paired_proportion_difference([1, 0], [0, 0], clusters=["a", "a"])
        assert (one.lower, one.n) == (None, 1) and "one cluster" in one.note

    @pytest.mark.slow
    @pytest.mark.parametrize("clusters, size", [(40, 1), (40, 4), (150, 2)])
    def test_coverage_with_clusters(self, clusters, size):
        """Intent-level flips: nominal 95 %, at least 93 % seen; without clusters far less."""
        rng = np.random.default_rng(8)
        truth, seen, careless = 0.5 * 0.3 - 0.5 * 0.1, [], []
        ids = np.repeat(np.arange(clusters), size).tolist()
        for _ in range(800):
            a = np.repeat(rng.random(clusters) < 0.5, size)
            draw = np.repeat(rng.random(clusters), size)
            b = np.where(a, draw > 0.1, draw < 0.3)
            e = paired_proportion_difference(a, b, clusters=ids)
            plain = paired_proportion_difference(a, b)
            seen.append(e.lower <= truth <= e.upper)
            careless.append(plain.lower <= truth <= plain.upper)
        assert np.mean(seen) >= 0.93
        if size == 4:
            assert np.mean(careless) < 0.8


class TestMcNemar:
    def test_published_example(self):
        a, b = CAVO
        assert mcnemar(a, b) == pytest.approx(0.052479, abs=5e-7)
        assert mcnemar(a, b, method="mid-p") == pytest.approx(0.034690, abs=5e-7)

    @settings(max_examples=40)
    @given(*[st.integers(0, 12)] * 4)
    def test_exact_equals_statsmodels(self, both, only_a, only_b, neither):
        a, b = paired(both, only_a, only_b, neither)
        table = [[both, only_a], [only_b, neither]]
        expected = 1.0 if only_a + only_b == 0 else statsmodels_mcnemar(table, exact=True).pvalue
        assert mcnemar(a, b) == pytest.approx(expected, abs=1e-12)
        assert mcnemar(a, b, method="mid-p") <= mcnemar(a, b)
        assert mcnemar(a, b) == mcnemar(b, a)

    def test_equal_discordance(self):
        a, b = paired(1, 3, 3, 1)
        assert mcnemar(a, b, method="mid-p") == pytest.approx(1 - stats.binom.pmf(3, 6, 0.5) / 2)


class TestProportion:
    def test_wilson_by_its_definition(self):
        e = proportion(7, 20)
        for end in (e.lower, e.upper):
            assert abs(0.35 - end) / np.sqrt(end * (1 - end) / 20) == pytest.approx(
                1.959964, abs=1e-5
            )

    def test_is_that_of_statsmodels(self):
        for successes, n in ((0, 20), (3, 7), (50, 50), (417, 960)):
            e = proportion(successes, n, level=0.9)
            expected = proportion_confint(successes, n, alpha=0.1, method="wilson")
            assert (e.lower, e.upper) == pytest.approx(expected, abs=1e-12)

    def test_ends_keep_a_width(self):
        assert proportion(0, 20).upper > 0.1
        assert proportion(20, 20).lower < 0.9

    def test_empty_and_impossible(self):
        assert proportion(0, 0).value is None
        with pytest.raises(ProbeError):
            proportion(3, 2)


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])
    assert holm([]).shape == (0,)


def test_holm_is_that_of_statsmodels():
    from statsmodels.stats.multitest import multipletests

    for seed in range(20):
        p = np.random.default_rng(seed).random(13).round(2) ** 3
        np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


class TestBootstrap:
    def test_seeded_and_indifferent_to_order(self):
        rng = np.random.default_rng(0)
        x, c = rng.random(60), np.repeat(np.arange(20), 3)
        order = rng.permutation(60)
        one = cluster_bootstrap_mean(x, c.tolist(), seed=3, n_boot=500)
        again = cluster_bootstrap_mean(x[order], c[order].tolist(), seed=3, n_boot=500)
        assert (one.lower, one.upper) == pytest.approx((again.lower, again.upper))
        other = cluster_bootstrap_mean(x, c.tolist(), seed=4, n_boot=500)
        assert other.lower != one.lower

    def test_width_is_that_of_cluster_means(self):
        rng = np.random.default_rng(1)
        groups = rng.standard_normal(80)
        x, c = np.repeat(groups, 5), np.repeat(np.arange(80), 5).tolist()
        e = cluster_bootstrap_mean(x, c, seed=0, n_boot=4000)
        low, high = stats.t.interval(0.95, 79, groups.mean(), stats.sem(groups))
        assert e.upper - e.lower == pytest.approx(high - low, rel=0.05)
        ignored = cluster_bootstrap_mean(x, list(range(400)), seed=0)
        assert ignored.upper - ignored.lower < 0.6 * (e.upper - e.lower)

    def test_one_cluster_has_no_interval(self):
        assert cluster_bootstrap_mean([1.0, 2.0], ["a", "a"]).lower is None
        with pytest.raises(ProbeError):
            cluster_bootstrap_mean([1.0, np.nan], ["a", "b"])

    @pytest.mark.slow
    def test_coverage_with_few_clusters(self):
        rng = np.random.default_rng(2)
        c = np.repeat(np.arange(12), 4)
        seen = []
        for i in range(600):
            x = rng.standard_normal(12)[c] + rng.standard_normal(48)
            e = cluster_bootstrap_mean(x, c.tolist(), seed=i, n_boot=1000)
            seen.append(e.lower <= 0 <= e.upper)
        assert np.mean(seen) >= 0.92


class TestClusters:
    def test_strata_follow_the_labels_held(self):
        ids = ["a", "a", "b", "b", "c", "d", "e", "f"]
        labels = [0, 1, 0, 1, 0, 0, 1, 1]
        clusters = Clusters.of(ids, labels)
        assert clusters.n == 6
        assert clusters.df == 3
        strata = dict(zip(clusters.names, clusters.strata, strict=True))
        assert strata["a"] == strata["b"] != strata["c"] == strata["d"] != strata["e"]

    def test_a_lone_cluster_pools_the_strata(self):
        assert Clusters.of(["a", "a", "b", "c"], [0, 1, 0, 0]).df == 2

    def test_sums_equal_a_loop(self):
        rng = np.random.default_rng(0)
        ids, x = rng.integers(0, 6, 30), rng.standard_normal((30, 3))
        clusters = Clusters.of(ids.tolist())
        expected = [x[ids == name].sum(axis=0) for name in clusters.names]
        np.testing.assert_allclose(clusters.sums(x), expected)

    @settings(max_examples=25)
    @given(st.integers(0, 1000), st.integers(2, 6))
    def test_folds_keep_intents_whole_and_balanced(self, seed, k):
        ids = np.repeat(np.arange(20), 2)
        labels = np.tile([0, 1], 20)
        clusters = Clusters.of(ids.tolist(), labels)
        fold = clusters.folds(k, seed)
        assert all(len(set(fold[ids == i])) == 1 for i in range(20))
        sizes = np.bincount(fold, minlength=k)
        assert sizes.max() - sizes.min() <= 2
        order = np.random.default_rng(seed).permutation(40)
        shuffled = Clusters.of(ids[order].tolist(), labels[order])
        np.testing.assert_array_equal(shuffled.folds(k, seed), fold[order])

    def test_refuses_nothing_and_mismatch(self):
        with pytest.raises(RefusaldirError, match="at least one"):
            Clusters.of([])
        with pytest.raises(RefusaldirError, match="labels"):
            Clusters.of(["a", "b"], [0])


class TestJackknife:
    def test_mean_of_independent_values_is_students_interval(self):
        x = np.random.default_rng(0).standard_normal(25)
        e = mean(x, Clusters.of(list(range(25))))
        low, high = stats.t.interval(0.95, 24, x.mean(), stats.sem(x))
        assert (e.lower, e.upper) == pytest.approx((low, high))

    def test_difference_of_two_samples_has_neyman_variance(self):
        rng = np.random.default_rng(1)
        y = np.array([0] * 12 + [1] * 20)
        x = rng.standard_normal(32)
        clusters = Clusters.of(list(range(32)), y)
        left = np.array(
            [
                np.delete(x, i)[np.delete(y, i) == 1].mean()
                - np.delete(x, i)[np.delete(y, i) == 0].mean()
                for i in range(32)
            ]
        )
        e = jackknife(x[y == 1].mean() - x[y == 0].mean(), left, clusters)
        se = np.sqrt(x[y == 1].var(ddof=1) / 20 + x[y == 0].var(ddof=1) / 12)
        assert (e.upper - e.lower) / 2 == pytest.approx(critical_value(0.95, 30) * se)

    def test_limits_and_logs_are_named(self):
        clusters = Clusters.of(list(range(10)))
        left = 0.98 + 0.01 * np.arange(10) / 10
        e = jackknife(0.985, left, clusters, bounds=(0.0, 1.0))
        assert e.upper == 1 and "limited" in e.method
        log = jackknife(0.985, left, clusters, log=True)
        assert "logarithm" in log.method
        assert log.upper / log.value == pytest.approx(log.value / log.lower)

    def test_a_value_beyond_the_bounds_is_not_moved(self):
        clusters = Clusters.of(list(range(10)))
        e = jackknife(1.01, 1.01 + 0.001 * np.arange(10), clusters, bounds=(-1.0, 1.0))
        assert e.value == 1.01 and e.upper == 1.01 and e.lower < 1.01

    def test_missing_values_are_said_not_hidden(self):
        clusters = Clusters.of(list(range(4)))
        assert jackknife(float("nan"), np.ones(4), clusters).value is None
        e = jackknife(1.0, np.array([1.0, np.nan, 1.0, 1.0]), clusters)
        assert e.value == 1 and e.lower is None and "single intent" in e.note
        same = jackknife(1.0, np.ones(4), clusters)
        assert same.lower == same.upper == 1 and "no spread" in same.note


class TestSimultaneous:
    def test_between_pointwise_and_bonferroni(self):
        deviations = np.random.default_rng(0).standard_normal((200, 20))
        c = simultaneous_critical(deviations, df=199, n_boot=4000)
        assert critical_value(0.95, 199) < c
        assert c == pytest.approx(critical_value(1 - 0.05 / 20, 199), rel=0.06)

    def test_copies_cost_nothing(self):
        one = np.random.default_rng(0).standard_normal((200, 1))
        c = simultaneous_critical(np.repeat(one, 20, axis=1), df=199, n_boot=4000)
        assert c == pytest.approx(critical_value(0.95, 199), rel=0.05)

    def test_no_spread_gives_the_pointwise_value(self):
        c = simultaneous_critical(np.zeros((10, 3)), df=9)
        assert c == critical_value(0.95, 9)


def test_bands_cover_many_figures_with_few_clusters():
    """The maximum lies deeper in Student's tail than a single figure does."""
    rng = np.random.default_rng(5)
    clusters = Clusters.of(list(range(12)))
    held = []
    for run in range(300):
        x = rng.standard_normal((12, 40))
        left = (x.sum(axis=0) - x) / 11
        deviations = clusters.centre(left)
        critical = simultaneous_critical(deviations, df=clusters.df, seed=run, n_boot=500)
        held.append(np.all(np.abs(x.mean(axis=0)) <= critical * np.sqrt(np.sum(deviations**2, 0))))
    assert 0.89 <= np.mean(held) <= 0.99  # 0.79 with the pointwise ratio of t to normal
