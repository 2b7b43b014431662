"""Rank correlations against scipy, draw by draw."""

import numpy as np
import pytest
from scipy import stats

from refusaldir.statistics import kendall, spearman

PAIRS = [(kendall, stats.kendalltau), (spearman, stats.spearmanr)]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_each_draw_is_scipys(ours, theirs, ties):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 15))
    y = 0.5 * x + rng.standard_normal((6, 15))
    if ties:
        x, y = np.round(x), np.round(y)
    expected = [theirs(a, b).statistic for a, b in zip(x, y, strict=True)]
    assert ours(x, y) == pytest.approx(expected)


@pytest.mark.parametrize("correlation", [kendall, spearman])
def test_only_the_order_counts_and_a_constant_has_none(correlation):
    x = np.array([[1.0, 2, 3, 4], [1, 2, 3, 4], [5, 5, 5, 5]])
    y = np.array([[0.0, 1, 8, 27], [9, 4, 1, 0], [1, 2, 3, 4]])
    found = correlation(x, y)
    assert found[:2] == pytest.approx([1, -1]) and np.isnan(found[2])
