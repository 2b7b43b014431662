import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from refusaldir.directions.separability import (
    auroc,
    auroc_change,
    auroc_value,
    d_prime,
    d_prime_left,
    fold_means,
    held_out_scores,
)
from refusaldir.statistics import Clusters


def binormal(n, gap, seed=0, twins=0.0):
    """Scores of n intents with one prompt of each class; true AUROC is Φ(gap/√2)."""
    rng = np.random.default_rng(seed)
    y, intent = np.arange(2 * n) % 2, np.arange(2 * n) // 2
    scores = y * gap + np.sqrt(twins) * rng.standard_normal(n)[intent]
    scores += np.sqrt(1 - twins) * rng.standard_normal(2 * n)
    return scores, y, Clusters.of(intent.tolist(), y)


class TestAuroc:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 1000), st.booleans())
    def test_equals_scikit_learn(self, seed, ties):
        scores, y, clusters = binormal(20, 0.8, seed)
        scores = np.round(scores) if ties else scores
        expected = roc_auc_score(y, scores)
        assert auroc_value(scores, y) == pytest.approx(expected, abs=1e-12)
        a = auroc(scores, y, clusters)
        assert a.value == pytest.approx(expected, abs=1e-12)
        assert 0 <= a.lower <= a.value <= a.upper <= 1
        assert np.sum(a.influence) == pytest.approx(0, abs=1e-12)

    def test_variance_is_delongs_for_independent_prompts(self):
        scores, y, _ = binormal(30, 1.0)
        clusters = Clusters.of(list(range(60)), y)
        a = auroc(scores, y, clusters)
        harmful, harmless = scores[y == 1], scores[y == 0]
        wins = (harmful[:, None] > harmless) + 0.5 * (harmful[:, None] == harmless)
        delong = wins.mean(1).var(ddof=1) / 30 + wins.mean(0).var(ddof=1) / 30
        assert np.sum(a.influence**2) == pytest.approx(delong, rel=0.03)

    def test_perfect_order_keeps_a_width_that_shrinks_with_n(self):
        lower = []
        for n in (10, 40, 160):
            a = auroc(*binormal(n, 30.0))
            assert a.value == a.upper == 1
            assert "correctly" in a.estimate.note
            lower.append(a.lower)
        assert 0.7 < lower[0] < lower[1] < lower[2] < 0.999

    def test_swapping_labels_mirrors(self):
        scores, y, clusters = binormal(25, 1.0)
        a, b = auroc(scores, y, clusters), auroc(scores, 1 - y, clusters)
        assert b.value == pytest.approx(1 - a.value)
        assert b.lower == pytest.approx(1 - a.upper, abs=1e-9)

    def test_copies_of_prompts_add_nothing(self):
        scores, y, clusters = binormal(30, 1.0)
        once = auroc(scores, y, clusters)
        copied = auroc(
            np.repeat(scores, 3),
            np.repeat(y, 3),
            Clusters.of(np.repeat(clusters.codes, 3).tolist(), np.repeat(y, 3)),
        )
        assert copied.upper - copied.lower == pytest.approx(once.upper - once.lower, rel=0.02)

    @pytest.mark.slow
    @pytest.mark.parametrize("n", [16, 50, 200])
    @pytest.mark.parametrize("truth", [0.5, 0.8, 0.95, 0.99])
    @pytest.mark.parametrize("twins", [0.0, 0.6])
    def test_coverage(self, n, truth, twins):
        gap = norm.ppf(truth) * np.sqrt(2)
        seen = []
        for seed in range(600):
            a = auroc(*binormal(n, gap, seed, twins))
            seen.append(a.lower <= truth <= a.upper)
        assert np.mean(seen) >= 0.925


class TestChange:
    def test_same_scores_change_nothing_and_say_so_when_saturated(self):
        scores, y, clusters = binormal(30, 1.0)
        a = auroc(scores, y, clusters)
        e = auroc_change(a, a)
        assert (e.value, e.lower, e.upper) == (0, 0, 0) and "alike" in e.note
        top = auroc(*binormal(30, 30.0))
        e = auroc_change(top, top)
        assert "d′" in e.note and e.lower < 0 < e.upper

    def test_pairing_narrows_it(self):
        scores, y, clusters = binormal(60, 1.0)
        other = scores + 0.2 * np.random.default_rng(1).standard_normal(120)
        a, b = auroc(scores, y, clusters), auroc(other, y, clusters)
        unpaired = auroc(*binormal(60, 1.0, seed=9))
        paired, loose = auroc_change(a, b), auroc_change(a, unpaired)
        assert paired.upper - paired.lower < 0.6 * (loose.upper - loose.lower)

    def test_a_loss_is_negative_and_seen(self):
        strong, y, clusters = binormal(100, 2.5)
        weak = binormal(100, 0.3, seed=1)[0]
        e = auroc_change(auroc(strong, y, clusters), auroc(weak, y, clusters))
        assert e.value < 0 and e.upper < 0


class TestDPrime:
    def test_by_definition(self):
        scores, y, clusters = binormal(20, 1.5)
        one, zero = scores[y == 1], scores[y == 0]
        expected = (one.mean() - zero.mean()) / np.sqrt((one.var(ddof=1) + zero.var(ddof=1)) / 2)
        assert d_prime(scores, y, clusters).value == pytest.approx(expected)

    def test_left_out_values_equal_a_fresh_start(self):
        rng = np.random.default_rng(3)
        y, intent = rng.integers(0, 2, 40), rng.integers(0, 10, 40)
        scores = rng.standard_normal(40) + y + 1e4
        clusters = Clusters.of(intent.tolist(), y)
        _, left = d_prime_left(scores, y, clusters)
        for c, name in enumerate(clusters.names):
            keep = intent != name
            fresh, _ = d_prime_left(scores[keep], y[keep], Clusters.of(intent[keep].tolist()))
            assert left[c] == pytest.approx(fresh, rel=1e-8)

    def test_no_spread(self):
        y = np.array([0, 1] * 4)
        clusters = Clusters.of(np.repeat(range(4), 2).tolist(), y)
        assert d_prime_left(np.ones(8), y, clusters)[0] == 0
        assert d_prime(y.astype(float), y, clusters).value is None


class TestCrossFitting:
    def test_fold_means_leave_the_fold_out(self):
        rng = np.random.default_rng(0)
        x, y, fold = rng.standard_normal((30, 4)), np.arange(30) % 2, np.arange(30) // 2 % 3
        means = fold_means(x, y, fold)
        for f in range(3):
            for label in (0, 1):
                expected = x[(fold != f) & (y == label)].mean(axis=0)
                np.testing.assert_allclose(means[f, label], expected)

    def test_scores_use_the_prompts_own_fold(self):
        rng = np.random.default_rng(1)
        x, fold = rng.standard_normal((12, 4)), np.arange(12) % 3
        directions, middles = rng.standard_normal((2, 3, 4))
        scores = held_out_scores(x, fold, directions, middles)
        for i in range(12):
            expected = (x[i] - middles[fold[i]]) @ directions[fold[i]]
            assert scores[i] == pytest.approx(expected)

    def test_noise_scores_one_half_on_average_where_in_sample_scores_do_not(self):
        """Negative control: many dimensions, no signal, a far origin."""
        held, inside = [], []
        y, intent = np.arange(40) % 2, np.arange(40) // 2
        clusters = Clusters.of(intent.tolist(), y)
        fold = clusters.folds(10)
        for seed in range(60):
            x = np.random.default_rng(seed).standard_normal((40, 100)) + 30
            means = fold_means(x, y, fold)
            r = means[:, 1] - means[:, 0]
            scores = held_out_scores(x, fold, r, means.mean(axis=1))
            held.append(auroc_value(scores, y))
            inside.append(auroc_value(x @ (x[y == 1].mean(0) - x[y == 0].mean(0)), y))
        assert abs(np.mean(held) - 0.5) < 4 * np.std(held) / np.sqrt(60)
        assert np.mean(inside) > 0.95
