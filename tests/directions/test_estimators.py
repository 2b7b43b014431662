"""Estimators against planted directions, scikit-learn, and what must leave them alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats.mstats import mquantiles
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from refusaldir.directions.estimators import (
    ESTIMATORS,
    WINSOR_QUANTILES,
    estimate,
)
from refusaldir.directions.mean_diff import mean_diff
from refusaldir.directions.shrinkage import ledoit_wolf, solve_low_rank
from refusaldir.errors import DirectionError
from refusaldir.geometry import cosine

NAMES = ("mean_diff", "lda", "logistic", "pca", "winsorised")
SCALED = ("mean_diff", "lda", "logistic", "pca")


def data(*, n=80, d=24, norm=8.0, noise=None, topic=0.0, seed=0, origin=5.0):
    """Matched pairs: activations, labels, intents and the true difference.

    ``noise`` is a root of the noise's covariance ``[d d]``; the identity by default.
    """
    rng = np.random.default_rng(seed)
    labels, codes = np.arange(n) % 2, np.arange(n) // 2
    r = rng.standard_normal(d)
    r *= norm / np.linalg.norm(r)
    root = np.eye(d) if noise is None else noise
    x = origin + rng.standard_normal((n, d)) @ root + labels[:, None] * r
    x += topic * rng.standard_normal((n // 2, d))[codes]
    return x, labels, [f"i{c}" for c in codes], r


def anisotropic(d, seed=0, decay=1.0):
    """A root of a covariance with a decaying spectrum in a random basis, and its inverse."""
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]
    sd = 3 * np.arange(1, d + 1.0) ** -decay
    return q * sd @ q.T, q / sd**2 @ q.T


def test_the_names():
    assert tuple(ESTIMATORS) == NAMES


@pytest.mark.parametrize("name", NAMES)
class TestEvery:
    @pytest.mark.parametrize("n, d", [(400, 24), (400, 600)])
    def test_finds_a_planted_direction(self, name, n, d):
        x, y, intents, r = data(n=n, d=d, norm=60.0)
        v = estimate(x.astype(np.float32), y, estimator=name, intents=intents)
        assert v.dtype == np.float64
        assert cosine(v, r) > 0.99
        assert np.linalg.norm(v) == pytest.approx(60, rel=0.03)

    def test_swapped_pairs_leave_nothing_along_it(self, name):
        """Negative control of the test above: half of the labels are wrong."""
        x, y, intents, r = data(n=400, norm=60.0)
        y = np.concatenate([1 - y[:200], y[200:]])
        v = estimate(x, y, estimator=name, intents=intents)
        assert abs(v @ r) / 60 < 0.6

    def test_swapping_labels_flips_the_sign(self, name):
        x, y, intents, _ = data(norm=3.0)
        v = estimate(x, y, estimator=name, intents=intents)
        swapped = estimate(x, 1 - y, estimator=name, intents=intents)
        np.testing.assert_allclose(swapped, -v, rtol=1e-6, atol=1e-8)

    @settings(max_examples=15)
    @given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(-20, 20))
    def test_follows_the_scale_and_ignores_the_origin(self, name, seed, scale, shift):
        x, y, intents, _ = data(n=40, d=12, norm=4.0, seed=seed)
        v = estimate(x, y, estimator=name, intents=intents)
        moved = estimate(x * scale + shift, y, estimator=name, intents=intents)
        np.testing.assert_allclose(moved / scale, v, rtol=1e-5, atol=1e-6)

    def test_the_order_of_prompts_does_not_matter(self, name):
        x, y, intents, _ = data(norm=3.0)
        order = np.random.default_rng(1).permutation(len(y))
        v = estimate(x, y, estimator=name, intents=intents)
        other = estimate(x[order], y[order], estimator=name, intents=[intents[i] for i in order])
        np.testing.assert_allclose(other, v, rtol=1e-6, atol=1e-8)

    def test_a_constant_feature_gets_no_weight(self, name):
        x, y, intents, _ = data(norm=3.0, n=46, d=60)
        v = estimate(x, y, estimator=name, intents=intents)
        constants = np.tile([0.1, 1 / 3, 1e3 + 0.1], (len(x), 1))  # their means are rounded
        wide = estimate(np.hstack([x, constants]), y, estimator=name, intents=intents)
        np.testing.assert_allclose(wide[-3:], 0, atol=1e-10)
        # More features change the shrinkage and the penalty a little.
        assert cosine(wide[:-3], v) > 0.999

    def test_what_cannot_be_estimated_is_refused(self, name):
        x, y, intents, _ = data()
        for bad, message in ((np.nan, "not finite"), (np.inf, "not finite")):
            spoilt = x.copy()
            spoilt[3, 4] = bad
            with pytest.raises(DirectionError, match=message):
                estimate(spoilt, y, estimator=name, intents=intents)
        with pytest.raises(DirectionError, match="no harmful prompt"):
            estimate(x, np.zeros_like(y), estimator=name, intents=intents)
        with pytest.raises(DirectionError, match="same mean"):
            estimate(np.full_like(x, 0.1), y, estimator=name, intents=intents)


@pytest.mark.parametrize("name", SCALED)
def test_the_scale_is_that_of_the_mean_difference_along_the_axis(name):
    x, y, intents, _ = data(norm=2.0)
    v, r = estimate(x, y, estimator=name, intents=intents), mean_diff(x, y)
    axis = v / np.linalg.norm(v)
    assert np.linalg.norm(v) == pytest.approx(axis @ r)  # positive: harmless to harmful
    moved = (x[y == 0] + v).mean(axis=0)
    assert moved @ axis == pytest.approx(x[y == 1].mean(axis=0) @ axis)


@settings(max_examples=15)
@given(st.sampled_from(["mean_diff", "pca"]), st.integers(0, 10_000))
def test_rotations_of_the_stream_are_followed(name, seed):
    x, y, intents, _ = data(n=40, d=12, norm=4.0, seed=seed)
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((12, 12)))[0]
    v = estimate(x, y, estimator=name, intents=intents)
    turned = estimate(x @ q, y, estimator=name, intents=intents)
    np.testing.assert_allclose(turned, v @ q, atol=1e-8)


def test_an_unknown_name_is_refused():
    x, y, _, _ = data()
    with pytest.raises(DirectionError, match=r"mean_diff or lda .* got 'svm'"):
        estimate(x, y, estimator="svm")


class TestLda:
    @pytest.mark.parametrize("n, d", [(60, 20), (60, 60), (60, 150), (300, 40)])
    def test_equals_scikit_learn(self, n, d):
        root, _ = anisotropic(d)
        x, y, _, _ = data(n=n, d=d, noise=root, norm=2.0)
        x[:, 0] *= 300  # a massive feature
        x, y = x[:-7], np.where(np.arange(n - 7) % 5 == 0, 0, y[:-7])  # unequal classes
        fit = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", tol=0).fit(x, y)
        v = estimate(x, y, estimator="lda")
        assert cosine(v, fit.coef_[0]) == pytest.approx(1, abs=1e-9)
        # Negative control: a fixed shrinkage is another direction.
        other = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.9).fit(x, y)
        assert cosine(v, other.coef_[0]) < 0.999

    @pytest.mark.parametrize("n, d", [(30, 7), (30, 100), (3, 40)])
    def test_shrinkage_equals_scikit_learn(self, n, d):
        x = np.random.default_rng(n + d).standard_normal((n, d)) @ anisotropic(d)[0]
        x -= x.mean(axis=0)
        assert ledoit_wolf(x) == pytest.approx(ledoit_wolf_shrinkage(x), rel=1e-9)

    @pytest.mark.parametrize("n, d", [(12, 30), (30, 12)])
    def test_dual_and_primal_solve_the_same_system(self, n, d):
        rng = np.random.default_rng(2)
        f, t, b = rng.standard_normal((n, d)), rng.uniform(0.01, 5, d), rng.standard_normal(d)
        expected = np.linalg.solve(np.diag(t) + f.T @ f, b)
        np.testing.assert_allclose(solve_low_rank(f, t, b), expected, rtol=1e-9)
        padded = np.concatenate([f, np.zeros((d, d))])  # more rows: always the primal path
        np.testing.assert_allclose(solve_low_rank(padded, t, b), expected, rtol=1e-9)

    @pytest.mark.parametrize("seed", range(5))
    def test_nearer_to_the_bayes_direction_where_noise_is_correlated(self, seed):
        root, inverse = anisotropic(24, seed)
        x, y, _, r = data(n=800, noise=root, norm=2.0, seed=seed)
        bayes = inverse @ r
        by_lda, by_mean = (
            cosine(estimate(x, y, estimator=name), bayes) for name in ("lda", "mean_diff")
        )
        assert by_lda > 0.93 and by_lda > by_mean + 0.08

    def test_no_gain_where_noise_is_white(self):
        """Negative control: without correlation there is nothing to whiten."""
        x, y, _, r = data(n=400, norm=2.0)
        gain = cosine(estimate(x, y, estimator="lda"), r) - cosine(mean_diff(x, y), r)
        assert abs(gain) < 0.02

    @pytest.mark.parametrize("few", [[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    def test_too_few_prompts_are_refused(self, few):
        x = np.random.default_rng(0).standard_normal((6, 10))
        with pytest.raises(DirectionError, match="at least 3 different harm"):
            estimate(x, np.array(few), estimator="lda")

    def test_equal_prompts_are_refused(self):
        x = np.repeat([[0.1, 0.3, 0.7], [1.1, 0.2, 0.6]], 5, axis=0)
        with pytest.raises(DirectionError, match="different harmless prompts, got 1"):
            estimate(x, np.repeat([0, 1], 5), estimator="lda")


class TestLogistic:
    @pytest.mark.parametrize("n, d", [(60, 20), (60, 60), (60, 150)])
    def test_equals_scikit_learn_in_the_features_themselves(self, n, d):
        x, y, _, _ = data(n=n, d=d, noise=anisotropic(d)[0], norm=1.0)
        within = [StandardScaler().fit(x[y == c]).var_ for c in (0, 1)]
        scale = np.sqrt(np.mean(within, axis=0))
        fit = LogisticRegression(C=1 / d, solver="lbfgs", tol=1e-10, max_iter=10_000)
        weights = fit.fit((x - x.mean(axis=0)) / scale, y).coef_[0] / scale
        v = estimate(x, y, estimator="logistic")
        assert cosine(v, weights) == pytest.approx(1, abs=1e-8)
        assert cosine(v, mean_diff(x, y)) < 0.99  # negative control

    def test_is_deterministic(self):
        x, y, _, _ = data(norm=1.0, d=200)
        np.testing.assert_array_equal(
            estimate(x, y, estimator="logistic"), estimate(x, y, estimator="logistic")
        )


class TestPca:
    @pytest.mark.parametrize("d", [12, 90])
    def test_equals_the_singular_vector_of_the_pairs(self, d):
        x, y, intents, _ = data(d=d, norm=2.0, topic=3.0)
        pairs = x[1::2] - x[::2]
        axis = np.linalg.svd(pairs)[2][0]
        r = pairs.mean(axis=0)
        v = estimate(x, y, estimator="pca", intents=intents)
        np.testing.assert_allclose(v, axis * (axis @ r), atol=1e-8)

    def test_several_prompts_of_an_intent_are_averaged(self):
        x, y, intents, _ = data(n=40, norm=2.0)
        v = estimate(x, y, estimator="pca", intents=intents)
        jitter = np.random.default_rng(1).standard_normal(x.shape)
        double = np.concatenate([x + jitter, x - jitter])
        again = estimate(double, np.tile(y, 2), estimator="pca", intents=intents * 2)
        np.testing.assert_allclose(again, v, atol=1e-8)

    @pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
    def test_what_twins_share_does_not_matter(self, size):
        x, y, intents, r = data(norm=8.0)
        offset = np.repeat(np.random.default_rng(3).standard_normal((40, 24)), 2, axis=0) * size
        v = estimate(x, y, estimator="pca", intents=intents)
        moved = estimate(x + offset, y, estimator="pca", intents=intents)
        np.testing.assert_allclose(moved, v, atol=1e-14 * size + 1e-8)
        assert cosine(v, r) > 0.95

    def test_it_matters_when_the_intents_are_shuffled(self):
        """Negative control: pairs that are no twins do not cancel."""
        x, y, intents, r = data(norm=8.0, topic=100.0)
        order = np.random.default_rng(4).permutation(40)
        wrong = [intents[2 * order[i // 2]] if y[i] else intents[i] for i in range(80)]
        assert cosine(estimate(x, y, estimator="pca", intents=intents), r) > 0.95
        assert cosine(estimate(x, y, estimator="pca", intents=wrong), r) < 0.7

    def test_unpaired_intents_take_no_part_in_the_axis(self):
        x, y, intents, _ = data(norm=2.0)
        rng = np.random.default_rng(5)
        more = np.concatenate([x, rng.standard_normal((10, 24)) * 50])
        labels = np.concatenate([y, np.arange(10) % 2])
        lone = [*intents, *(f"lone{i}" for i in range(10))]
        v = estimate(x, y, estimator="pca", intents=intents)
        assert cosine(estimate(more, labels, estimator="pca", intents=lone), v) == pytest.approx(1)

    @pytest.mark.parametrize(
        "intents, message",
        [
            (None, "80 intents, got none"),
            (["a"] * 3, "80 intents, got 3"),
            ([f"{i}" for i in range(80)], "at least 4, got 0 of 80 intents"),
            ([f"{i // 2 if i < 6 else i}" for i in range(80)], "got 3 of"),
        ],
    )
    def test_missing_pairs_are_named(self, intents, message):
        x, y, _, _ = data()
        with pytest.raises(DirectionError, match=message):
            estimate(x, y, estimator="pca", intents=intents)

    def test_an_orthogonal_axis_is_refused(self):
        """Pairs that differ along feature 0 by +9 and −9 in turn, and by +1 along feature 1."""
        pairs = np.tile([[9.0, 1.0], [-9.0, 1.0]], (4, 1))
        x = np.stack([np.zeros_like(pairs), pairs], axis=1).reshape(-1, 2)
        intents = [f"{i // 2}" for i in range(16)]
        with pytest.raises(DirectionError, match="orthogonal to the mean difference"):
            estimate(x, np.arange(16) % 2, estimator="pca", intents=intents)


class TestWinsorised:
    def test_equals_scipy_quantiles(self):
        x, y, _, _ = data(norm=1.0)
        limits = [mquantiles(column, WINSOR_QUANTILES, alphap=1, betap=1) for column in x.T]
        clipped = np.stack([np.clip(c, *q) for c, q in zip(x.T, limits, strict=True)], axis=1)
        v = estimate(x, y, estimator="winsorised")
        np.testing.assert_allclose(v, mean_diff(clipped, y), rtol=1e-9)
        assert not np.allclose(v, mean_diff(x, y))

    def test_survives_a_massive_activation_in_a_few_prompts(self):
        x, y, _, r = data(n=600, norm=4.0)
        x[[1, 3], 7] += 5000
        assert cosine(estimate(x, y, estimator="winsorised"), r) > 0.95
        assert cosine(mean_diff(x, y), r) < 0.5

    def test_more_outliers_than_it_clips_are_not_mended(self):
        """Negative control: one prompt in twenty is no tail of half a per cent."""
        x, y, _, r = data(n=600, norm=4.0)
        x[1:60:2, 7] += 5000
        assert cosine(estimate(x, y, estimator="winsorised"), r) < 0.5
