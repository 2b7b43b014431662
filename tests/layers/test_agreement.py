"""Agreement between lenses."""

import numpy as np
import pytest
from scipy import stats
from simulated import effects

from refusaldir.layers.agreement import Order, agreement, agreements
from refusaldir.statistics import Clusters

TRUE = np.array([0.0, 0.02, 0.3, 0.4, 0.15, 0.1, 0.03, 0.0])


def order(name, values, clusters, layers=None, **fields):
    layers = tuple(range(values.shape[1])) if layers is None else layers
    return Order(lens=name, layers=layers, values=values, clusters=clusters, **fields)


def test_tau_is_scipys_and_equal_lenses_agree_wholly():
    x, clusters = effects(TRUE)
    y, _ = effects(TRUE, seed=5)
    found = agreement(order("a", x, clusters), order("b", y, clusters), top=3)
    assert found.tau.value == pytest.approx(stats.kendalltau(x.mean(0), y.mean(0)).statistic)
    assert found.tau.lower <= found.tau.value <= found.tau.upper
    assert found.alike and found.shared == 3
    same = agreement(order("a", x, clusters), order("b", x, clusters))
    assert (same.tau.value, same.tau.lower, same.shared) == (1.0, 1.0, 3)


def test_lenses_that_have_nothing_in_common_do_not_agree():
    """Negative control: unrelated lenses are called alike in one run of twenty at most."""
    alike = 0
    for seed in range(100):
        x, clusters = effects(np.random.default_rng(seed).permutation(TRUE), seed=seed)
        y, _ = effects(np.random.default_rng(seed + 1000).permutation(TRUE), seed=seed + 1000)
        found = agreement(order("a", x, clusters), order("b", y, clusters), draws=100)
        alike += bool(found.alike)
    assert alike <= 15  # τ over eight layers: by chance above 0 for good in some
    x, clusters = effects(TRUE, noise=0.05)
    assert not agreement(order("a", x, clusters), order("b", -x, clusters)).alike


def test_signs_count_except_against_a_lens_without():
    x, clusters = effects((0.9, -0.5, 0.4, 0.2), noise=0.01)
    sizes = np.abs(x.mean(axis=0, keepdims=True))
    weights = order("weights", sizes, None, signed=False)
    found = agreement(order("a", x, clusters), weights)
    assert found.tau.value == 1.0
    assert found.tau.lower is not None  # from the prompts of the one
    signed = agreement(order("a", x, clusters), order("b", np.abs(x) * -1, clusters))
    assert signed.tau.value < 1


def test_only_common_layers_are_compared_and_too_few_give_no_tau():
    x, clusters = effects(TRUE)
    found = agreement(order("a", x, clusters), order("b", x[:, 2:], clusters, tuple(range(2, 8))))
    assert (found.n_layers, found.tau.value) == (6, 1.0)
    few = agreement(order("a", x[:, :3], clusters), order("b", x[:, :3], clusters))
    assert few.tau.value is None and "fewer than" in few.tau.note and few.alike is None
    assert few.shared == 3


def test_without_prompts_or_spread_there_is_no_interval():
    sizes = order("w", np.array([[1.0, 2.0, 3.0, 4.0]]), None, signed=False)
    assert agreement(sizes, sizes).tau.lower is None
    flat = order("f", np.ones((1, 4)), None)
    assert agreement(sizes, flat).tau.value is None
    one = order("a", np.array([[1.0, 2.0, 3.0, 5.0]]), Clusters.of(["only"]))
    found = agreement(one, sizes)
    assert found.tau.value == 1.0 and found.tau.lower is None and "one intent" in found.tau.note


def test_every_two_lenses_are_compared_once():
    x, clusters = effects(TRUE)
    found = agreements([order(name, x, clusters) for name in "abc"], draws=10)
    assert [(e.first, e.second) for e in found] == [("a", "b"), ("a", "c"), ("b", "c")]
