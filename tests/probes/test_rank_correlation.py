"""Rank correlations against scipy, and their intervals."""

import json

import numpy as np
import pytest
from scipy import stats

from refusaldir.errors import ProbeError
from refusaldir.probes.rank_correlation import drift_against_behaviour, rank_correlation

ROWS = [f"category {i}" for i in range(10)]


def columns(n=10, seed=0, rho=0.8):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    return x.tolist(), (rho * x + (1 - rho**2) ** 0.5 * rng.standard_normal(n)).tolist()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", ["kendall", "spearman"])
def test_the_figure_is_scipys(method, ties):
    x, y = columns(20)
    if ties:
        x, y = np.round(x).tolist(), np.round(y, 1).tolist()
    theirs = {"kendall": stats.kendalltau, "spearman": stats.spearmanr}[method](x, y).statistic
    assert rank_correlation(x, y, method=method, draws=50).value == pytest.approx(theirs)


def test_a_perfect_order_is_one_and_its_reverse_minus_one():
    x = [1.0, 2, 3, 4, 5, 6]
    for method in ("kendall", "spearman"):
        up = rank_correlation(x, [v**3 for v in x], method=method)
        down = rank_correlation(x, [-v for v in x], method=method)
        assert (up.value, up.lower, up.upper) == pytest.approx((1, 1, 1))
        assert (down.value, down.lower, down.upper) == pytest.approx((-1, -1, -1))


def test_intervals_cover():
    """Nominal 95 % at ten categories: 53 or more of 60 intervals hold the true τ."""
    for rho in (0.0, 0.6):
        true = 2 / np.pi * np.arcsin(rho)
        held = 0
        for seed in range(60):
            found = rank_correlation(*columns(10, seed, rho), draws=300, seed=seed)
            held += found.lower <= true <= found.upper
        assert held >= 53, (rho, held)


def test_rows_of_one_cluster_are_drawn_together():
    """Negative control: rows repeated in their cluster narrow nothing; as their own, they do."""
    x, y = columns(12)
    once = rank_correlation(x, y, draws=600)
    names = [str(i) for i in range(12)] * 3
    thrice = rank_correlation(x * 3, y * 3, clusters=names, draws=600)
    wrong = rank_correlation(x * 3, y * 3, draws=600)
    assert thrice.n == once.n == 12 and wrong.n == 36
    width = [found.upper - found.lower for found in (once, thrice, wrong)]
    assert width[1] == pytest.approx(width[0], rel=0.2)
    assert width[2] < 0.75 * width[0]


def test_rivals_meet_the_same_draws():
    x, y = columns()
    found = drift_against_behaviour(
        {"projection shift": x, "the same": x, "weight distance": y}, y, ROWS, seed=3, draws=200
    )
    assert [f.measure for f in found] == ["projection shift", "the same", "weight distance"]
    assert found[0].kendall == found[1].kendall and found[0].spearman == found[1].spearman
    assert found[2].kendall.value == pytest.approx(1)
    assert json.loads(json.dumps(found[0].to_dict()))["rows"] == ROWS


def test_rows_without_a_figure_are_left_out():
    x, y = columns()
    x[2] = y[7] = None
    found = drift_against_behaviour({"shift": x}, y, ROWS, draws=50)[0]
    assert found.kendall.n == 8 and ROWS[2] not in found.rows and ROWS[7] not in found.rows
    assert found.kendall.value == pytest.approx(
        stats.kendalltau(
            [v for i, v in enumerate(x) if i not in (2, 7)],
            [v for i, v in enumerate(y) if i not in (2, 7)],
        ).statistic
    )


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ([1.0, 2, 3, 4], [1.0, 2, 3, 4], "4 independent rows, 5 are the fewest"),
        ([None] * 6, [1.0] * 6, "0 independent rows"),
        ([1.0] * 6, [1.0, 2, 3, 4, 5, 6], "the same value in every row"),
    ],
)
def test_what_has_no_order_has_no_figure(x, y, said):
    found = rank_correlation(x, y)
    assert found.value is None and said in found.note


def test_columns_must_fit():
    with pytest.raises(ProbeError, match="expected 3 rows"):
        rank_correlation([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ProbeError, match="not finite"):
        rank_correlation([1.0, np.nan], [1.0, 2.0])
