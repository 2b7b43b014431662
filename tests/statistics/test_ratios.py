"""Fieller's interval: the textbook formula, its limits, and that it covers."""

import numpy as np
import pytest

from refusaldir.statistics import Clusters, Deviations, critical_value, fieller_ends

EVERYWHERE = (-5.0, 5.0)


def deviations(x):
    """Of the mean of one number a cluster."""
    n = len(x)
    clusters = Clusters.of(range(n))
    first = clusters.centre((x.sum() - x) / (n - 1))
    return Deviations(first=first, second=np.zeros((n, n)), clusters=clusters)


def ends(a, b, *, bounds=EVERYWHERE):
    scale = b.mean()
    return fieller_ends(
        a.mean() / scale, deviations(a / scale), deviations(b / scale), level=0.95, bounds=bounds
    )


def pairs(seed, *, n=30, strength=6.0, ratio=0.5):
    rng = np.random.default_rng(seed)
    both = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=n)
    return (both + strength / np.sqrt(n) * np.array([ratio, 1])).T


def textbook(a, b, t):
    """Roots of (ā − c b̄)² = t² (s_aa − 2c s_ab + c² s_bb)/n."""
    n = len(a)
    (aa, ab), (_, bb) = np.cov(a, b) / n
    polynomial = [
        b.mean() ** 2 - t**2 * bb,
        -2 * (a.mean() * b.mean() - t**2 * ab),
        a.mean() ** 2 - t**2 * aa,
    ]
    return sorted(np.roots(polynomial).real)


@pytest.mark.parametrize("seed", range(4))
def test_the_textbook_formula(seed, monkeypatch):
    a, b = pairs(seed)
    # Satterthwaite's degrees of freedom differ from n − 1 along the way: hold them.
    monkeypatch.setattr("refusaldir.statistics.ratios.guarded_df", lambda *_: 29.0)
    expected = textbook(a, b, critical_value(0.95, 29))
    assert ends(a, b) == pytest.approx(expected, abs=2e-4)


def test_a_denominator_within_its_noise_bounds_nothing():
    rng = np.random.default_rng(0)
    a = rng.standard_normal(20) + 3
    b = rng.standard_normal(20)
    b += 0.1 - b.mean()
    lower, upper = ends(a, b, bounds=(0.0, 100.0))
    assert upper == 100.0 and lower > 0


def test_a_value_beyond_a_bound_keeps_the_bound():
    a, b = pairs(1, ratio=1.5, strength=20)
    lower, upper = ends(a, b, bounds=(-1.0, 1.0))
    assert upper == 1.0 and lower <= 1.5


def test_coverage_where_the_denominator_is_weak():
    """The linearised interval misses one side; Fieller's does not."""
    seen = []
    for seed in range(600):
        a, b = pairs(seed, strength=3.0)
        if b.mean() <= 0:
            continue
        lower, upper = ends(a, b)
        seen.append(lower <= 0.5 <= upper)
    assert np.mean(seen) > 0.93
