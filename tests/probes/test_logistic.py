"""The refusal curve's fit against two libraries, and where it must decline."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from refusaldir.probes.link.logistic import RIDGE, fit_logistic, separable


def data(n=400, seed=0, intercept=0.7, slope=1.8):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal(n)
    return z, (rng.random(n) < expit(intercept + slope * z)).astype(float)


def test_the_fit_is_scikit_learns_with_the_same_ridge():
    z, y = data()
    ours = fit_logistic(z, y, np.ones((1, len(z))))[0]
    theirs = LogisticRegression(C=1 / RIDGE, tol=1e-12, max_iter=10_000).fit(z[:, None], y)
    assert ours == pytest.approx([theirs.intercept_[0], theirs.coef_[0, 0]], abs=1e-6)


def test_the_ridge_hardly_shows_where_the_outcomes_overlap():
    z, y = data()
    ours = fit_logistic(z, y, np.ones((1, len(z))))[0]
    theirs = sm.Logit(y, sm.add_constant(z)).fit(disp=0)
    assert ours == pytest.approx(theirs.params, abs=1e-3)
    assert np.all(np.abs(ours - theirs.params) < 0.01 * theirs.bse)


def test_each_row_of_weights_is_a_fit_of_its_own():
    z, y = data(120)
    rng = np.random.default_rng(1)
    weights = rng.multinomial(len(z), np.full(len(z), 1 / len(z)), size=5).astype(float)
    together = fit_logistic(z, y, weights)
    for row, w in zip(together, weights, strict=True):
        copies = np.repeat(np.arange(len(z)), w.astype(int))
        alone = fit_logistic(z[copies], y[copies], np.ones((1, len(copies))))[0]
        assert row == pytest.approx(alone, abs=1e-8)


def test_fitted_and_observed_rates_agree():
    z, y = data(60, seed=3)
    a, b = fit_logistic(z, y, np.ones((1, len(z))))[0]
    assert expit(a + b * z).mean() == pytest.approx(y.mean(), abs=1e-10)


@pytest.mark.parametrize("n_refused", [1, 30, 59])
def test_separable_outcomes_give_a_finite_and_optimal_slope(n_refused):
    z = np.sort(np.random.default_rng(4).standard_normal(60))
    y = (np.arange(60) >= 60 - n_refused).astype(float)
    assert separable(z, y)
    a, b = fit_logistic(z, y, np.ones((1, 60)))[0]
    error = y - expit(a + b * z)
    assert 1 < b < 1000
    assert error.sum() == pytest.approx(0, abs=1e-6)
    assert error @ z == pytest.approx(RIDGE * b, abs=1e-6)


def test_overlapping_outcomes_are_not_separable():
    z, y = data()
    assert not separable(z, y)
    assert separable(-np.abs(z) * np.where(y > 0, 1, -1), y)


@pytest.mark.parametrize("kind", ["no refusal", "only refusals", "constant"])
def test_what_cannot_be_fitted_is_nan(kind):
    z, y = data(20)
    if kind == "constant":
        z = np.ones(20)
    else:
        y = np.full(20, float(kind == "only refusals"))
    assert np.isnan(fit_logistic(z, y, np.ones((2, 20)))).all()


def test_a_start_changes_nothing_but_the_time():
    z, y = data(80)
    weights = np.ones((1, 80))
    plain = fit_logistic(z, y, weights)
    for start in (plain[0], np.array([5.0, -7.0]), np.array([np.nan, np.nan])):
        assert fit_logistic(z, y, weights, start=start) == pytest.approx(plain, abs=1e-8)


def test_shares_are_fitted_as_by_statsmodels_and_one_threshold_must_tell_all_replies():
    rng = np.random.default_rng(5)
    z = rng.standard_normal(200)
    share = rng.binomial(5, expit(0.3 + 1.5 * z)) / 5
    ours = fit_logistic(z, share, np.ones((1, 200)))[0]
    theirs = sm.GLM(share, sm.add_constant(z), family=sm.families.Binomial()).fit()
    assert ours == pytest.approx(theirs.params, abs=2e-3)
    assert not separable(z, share)
    assert not separable(np.array([0.0, 1, 2]), np.array([0.0, 0.5, 0]))
    assert separable(np.array([0.0, 1, 2]), np.array([0.0, 0.5, 1]))
