import numpy as np
import pytest

from refusaldir.drift.disturbance import linear_cka, relative_change
from refusaldir.statistics import Clusters, critical_value


def textbook_cka(x, y):
    """Unbiased HSIC (Song et al. 2012, eq. 5), written as in the paper."""

    def hsic(k, other):
        n = len(k)
        k, other = k - np.diag(np.diag(k)), other - np.diag(np.diag(other))
        one = np.ones(n)
        total = np.trace(k @ other)
        total += (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
        total -= 2 / (n - 2) * (one @ k @ other @ one)
        return total / (n * (n - 3))

    k, other = x @ x.T, y @ y.T
    return hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))


def data(n=30, d=6, mix=0.5, seed=0):
    rng = np.random.default_rng(seed)
    x, e = rng.standard_normal((2, n, d))
    return x + 2, mix * x + (1 - mix) * e - 1


def test_equals_the_textbook_and_its_brute_force_jackknife():
    x, y = data()
    ids = np.random.default_rng(1).integers(0, 8, 30)
    clusters = Clusters.of(ids.tolist())
    e = linear_cka(x, y, clusters)
    assert e.value == pytest.approx(textbook_cka(x, y), rel=1e-9)
    left = np.array([textbook_cka(x[ids != c], y[ids != c]) for c in clusters.names])
    se = np.sqrt((len(left) - 1) / len(left) * np.sum((left - left.mean()) ** 2))
    assert e.value - e.lower == pytest.approx(critical_value(0.95, clusters.df) * se, rel=1e-8)


def test_rotation_shift_and_scale_leave_it_at_one():
    x, _ = data()
    q = np.linalg.qr(np.random.default_rng(2).standard_normal((6, 6)))[0]
    clusters = Clusters.of(list(range(30)))
    assert linear_cka(x, 5 * x @ q + 3, clusters).value == pytest.approx(1)


def test_unrelated_activations_are_near_zero_not_near_one():
    rng = np.random.default_rng(3)
    clusters = Clusters.of(list(range(60)))
    values = [linear_cka(*rng.standard_normal((2, 60, 200)), clusters).value for _ in range(20)]
    assert abs(np.mean(values)) < 0.02


def test_constant_activations_have_none():
    clusters = Clusters.of(list(range(10)))
    e = linear_cka(np.full((10, 4), 0.1), np.full((10, 4), 0.1), clusters)
    assert e.value is None and "no signal" in e.note
    assert linear_cka(np.eye(4), np.eye(4), Clusters.of(list(range(4)))).value is None


def test_relative_change_by_hand():
    clusters = Clusters.of(["a", "b"])
    base, tuned = np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([[3.0, 3.0], [1.0, 2.0]])
    assert relative_change(base, tuned, clusters).value == pytest.approx((1 / 5 + 1 / 2) / 2)
    assert relative_change(np.zeros((2, 2)), tuned, clusters).value is None
