"""Second-order variance: unbiased where the jackknife counts twice, and the guards around it."""

import numpy as np
import pytest

from refusaldir.statistics import Clusters, Deviations, centred_kernel, critical_value


def one_stratum(n):
    return Clusters.of(list(range(n)))


def two_strata(n, m):
    return Clusters.of(list(range(n + m)), [0] * n + [1] * m)


def jackknife_first(gram, clusters):
    """Deviations of the mean product over ordered pairs, one cluster left out at a time."""
    n = len(gram)
    rows = gram.sum(axis=1) - np.diag(gram)
    left = (rows.sum() - 2 * rows) / ((n - 1) * (n - 2))
    return clusters.centre(left)


def pair_mean(x, n):
    """Squared norm of the mean of the rows, products of a row with itself left out."""
    gram = x @ x.T
    return gram, (gram.sum() - np.trace(gram)) / (n * (n - 1))


def unguarded(deviations):
    _, excess = deviations.second_order
    return float(np.sum(deviations.first**2)) - excess


@pytest.mark.parametrize("signal", [0.0, 1.0])
def test_variance_of_a_squared_norm_where_the_jackknife_doubles_it(signal):
    """‖x̄‖²* of n = 12 vectors: with no mean its variance is second-order alone."""
    rng = np.random.default_rng(0)
    n, d, clusters = 12, 20, one_stratum(12)
    sd = 1 / np.sqrt(np.arange(1, d + 1))
    values, ours, jackknifed = [], [], []
    for _ in range(4000):
        x = rng.standard_normal((n, d)) * sd + signal * np.eye(d)[3]
        gram, value = pair_mean(x, n)
        kernel = centred_kernel(gram / (n * (n - 1)) * 1.0, clusters)
        deviations = Deviations(
            first=jackknife_first(gram, clusters), second=kernel, clusters=clusters
        )
        values.append(value)
        ours.append(unguarded(deviations))
        jackknifed.append(np.sum(deviations.first**2))
    truth = np.var(values)
    assert np.mean(ours) == pytest.approx(truth, rel=0.06)
    assert np.mean(jackknifed) > (2.0 if signal == 0 else 1.15) * truth


def test_known_covariance_of_the_kernel():
    """Mean square of the centred kernel is tr(Σ²), within strata and between them."""
    rng = np.random.default_rng(1)
    n, m, d = 7, 5, 9
    clusters = two_strata(n, m)
    sd = np.linspace(0.2, 1.5, d)
    within, between = [], []
    for _ in range(4000):
        x = rng.standard_normal((n + m, d)) * sd
        x += np.where(np.arange(n + m) < n, 3.0, -2.0)[:, None]  # means do not matter
        kernel = centred_kernel(x @ x.T, clusters)
        within.append(np.sum(kernel[:n, :n] ** 2) / (n * (n - 3)))
        between.append(np.sum(kernel[:n, n:] ** 2) / ((n - 1) * (m - 1)))
    assert np.mean(within) == pytest.approx(np.sum(sd**4), rel=0.05)
    assert np.mean(between) == pytest.approx(np.sum(sd**4), rel=0.05)


def test_too_few_clusters_leave_the_jackknife_as_it_is():
    clusters = one_stratum(3)
    rng = np.random.default_rng(2)
    gram, _ = pair_mean(rng.standard_normal((3, 5)), 3)
    kernel = centred_kernel(gram, clusters)
    assert not kernel.any()
    deviations = Deviations(first=np.array([1.0, 0.0, -1.0]), second=kernel, clusters=clusters)
    assert deviations.variance == pytest.approx(2.0)
    assert deviations.df == 2


def test_guards():
    clusters = one_stratum(40)
    rng = np.random.default_rng(3)
    gram, _ = pair_mean(rng.standard_normal((40, 6)), 40)
    kernel = centred_kernel(gram, clusters)
    nothing = Deviations(first=np.zeros(40), second=kernel, clusters=clusters)
    second, _ = nothing.second_order
    assert 0 < nothing.variance < second  # a floor, although the jackknife saw nothing
    lone = np.zeros(40)
    lone[0] = 1.0  # one intent decides: few degrees of freedom, not 39
    assert Deviations(first=lone, second=0 * kernel, clusters=clusters).df == 8
    even = np.ones(40)
    assert Deviations(first=even, second=0 * kernel, clusters=clusters).df == 39


def test_interval_and_its_ends():
    clusters = one_stratum(20)
    first = np.full(20, 0.1)
    deviations = Deviations(first=first, second=np.zeros((20, 20)), clusters=clusters)
    e = deviations.interval(0.5, bounds=(-1, 1))
    half = critical_value(0.95, 19) * np.sqrt(20 * 0.01)
    assert (e.lower, e.upper) == pytest.approx((0.5 - half, 1.0))
    beyond = deviations.interval(9.0, bounds=(-1, 1))
    assert beyond.value == 9.0 and beyond.lower == 1.0 and beyond.upper == 9.0
    broken = Deviations(
        first=np.full(20, np.nan), second=np.zeros((20, 20)), clusters=clusters
    ).interval(0.5)
    assert broken.lower is None and "no interval" in broken.note


def test_difference_of_two_figures():
    clusters = one_stratum(6)
    rng = np.random.default_rng(4)
    kernels = [centred_kernel(rng.standard_normal((6, 6)), clusters) for _ in range(2)]
    firsts = [rng.standard_normal(6) for _ in range(2)]
    a, b = (
        Deviations(first=f, second=k, clusters=clusters)
        for f, k in zip(firsts, kernels, strict=True)
    )
    assert (a - a).variance == 0
    np.testing.assert_allclose((a - b).first, firsts[0] - firsts[1])
