"""Shares, their intervals, the order of layers and what holds most of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from simulated import Change, effects

from refusaldir.errors import RefusaldirError
from refusaldir.layers.effects import Effects, outcome_change, shares
from refusaldir.layers.lenses import combine, component_effects, path_effects
from refusaldir.layers.ranking import (
    participation_ratio,
    rank_layers,
    smallest_band,
    smallest_set,
)
from refusaldir.statistics import Clusters

TRUE = (0.0, 0.05, 0.5, 0.35, 0.0, 0.1)


def ranked(values, clusters, **options):
    lens = Effects(lens="path", layers=tuple(range(values.shape[1])), values=values)
    return rank_layers(lens, values.sum(axis=1), clusters, lenses=("path",), **options)


def test_shares_are_ratios_of_means_and_sum_to_one():
    values, clusters = effects(TRUE)
    found = shares(values, values.sum(axis=1), clusters, over="over 6 layers")
    assert sum(each.share.value for each in found) == pytest.approx(1)
    for column, each in zip(values.T, found, strict=True):
        assert each.share.value == pytest.approx(column.mean() / values.sum(axis=1).mean())
        assert each.effect.value == pytest.approx(column.mean())
        assert each.band.lower <= each.share.lower < each.share.upper <= each.band.upper


def test_the_interval_of_a_share_is_that_of_fieller():
    """An independent path: Fieller's interval of a ratio of paired means, one prompt a cluster."""
    rng = np.random.default_rng(3)
    change = rng.normal(-3, 1, 60)
    effect = 0.4 * change + rng.normal(0, 0.3, 60)
    clusters = Clusters.of(range(60))
    (found,) = shares(effect[:, None], change, clusters, over="")
    cov = np.cov(effect, change) / 60
    t2 = stats.t.ppf(0.975, 59) ** 2
    a = change.mean() ** 2 - t2 * cov[1, 1]
    b = -2 * (effect.mean() * change.mean() - t2 * cov[0, 1])
    c = effect.mean() ** 2 - t2 * cov[0, 0]
    lower, upper = sorted(np.roots([a, b, c]))
    assert found.share.lower == pytest.approx(lower, abs=0.005)
    assert found.share.upper == pytest.approx(upper, abs=0.005)


def test_a_single_changed_layer_has_the_whole_change():
    values, clusters = effects((1.0,))
    (row,) = ranked(values, clusters).layers
    assert row.share.value == pytest.approx(1)
    assert (row.band.lower, row.band.upper) == pytest.approx((1, 1))
    assert row.disturbs and row.held == 1


@pytest.mark.parametrize("n", [12, 32])
def test_coverage_of_intervals_and_bands(n):
    true = np.array(TRUE)
    hits, bands, runs = np.zeros(len(true)), 0, 400
    for seed in range(runs):
        values, clusters = effects(true, n=n, noise=0.7, seed=seed)
        found = shares(values, values.sum(axis=1), clusters, over="", seed=seed)
        inside = [e.share.lower <= t <= e.share.upper for e, t in zip(found, true, strict=True)]
        hits += inside
        bands += all(e.band.lower <= t <= e.band.upper for e, t in zip(found, true, strict=True))
    assert hits.min() / runs >= 0.92  # 0.95 less three standard errors
    assert bands / runs >= 0.92


def test_layers_that_do_nothing_seldom_disturb():
    """Negative control of the band: one false layer in twenty runs at most, over all layers."""
    true, false, runs = (0.0,) * 10 + (1.0,), 0, 200
    for seed in range(runs):
        values, clusters = effects(true, seed=seed)
        false += any(row.disturbs for row in ranked(values, clusters, draws=2).layers[1:])
    assert false / runs <= 0.07


def test_planted_layers_are_found_and_the_order_is_theirs():
    values, clusters = effects(TRUE, noise=0.2)
    found = ranked(values, clusters)
    assert [row.layer for row in found.layers[:3]] == [2, 3, 5]
    assert {row.layer for row in found.disturbing} >= {2, 3}
    assert found.smallest_set == (2, 3)
    assert found.band == (2, 3) and found.band_mass > 0.8
    assert found.first_held > 0.95 and found.layers[0].held == 1
    assert 0 < found.unseen < 0.2


def test_a_layer_against_the_change_has_a_negative_share():
    values, clusters = effects((1.4, -0.4, 0.0), noise=0.1)
    rows = {row.layer: row for row in ranked(values, clusters).layers}
    assert rows[1].share.value < -0.3 and rows[1].disturbs
    assert ranked(values, clusters).smallest_set == (0,)


def test_turning_the_outcome_round_leaves_shares_alone():
    values, clusters = effects(TRUE)
    a, b = ranked(values, clusters), ranked(-values, clusters)
    for x, y in zip(a.layers, b.layers, strict=True):
        assert (x.layer, x.share.value) == (y.layer, pytest.approx(y.share.value))
        assert x.effect.value == pytest.approx(-y.effect.value)


def test_no_change_is_not_attributed():
    """Negative control: over data without a change the answer is none in 95 % or more."""
    attributed = 0
    for seed in range(300):
        values, clusters = effects((0.5, 0.5), whole=0.0, seed=seed)
        base = np.random.default_rng(seed).normal(2, 1.5, len(values))
        attributed += outcome_change(base, base + values.sum(axis=1), clusters).attributable
    assert attributed / 300 <= 0.07
    values, clusters = effects((0.5, 0.5), whole=-3.0)
    base = np.random.default_rng(0).normal(2, 1.5, len(values))
    assert outcome_change(base, base + values.sum(axis=1), clusters).attributable


def test_a_tiny_sure_change_is_not_attributed_either():
    base = np.linspace(-3, 3, 24)
    clusters = Clusters.of(range(24))
    found = outcome_change(base, base - 0.05 + 1e-4 * np.cos(np.arange(24)), clusters)
    assert found.change.upper < 0 and not found.attributable
    assert not outcome_change(base, base, clusters).attributable
    assert not outcome_change(np.ones(24), np.ones(24), clusters).attributable


@given(arrays(float, st.integers(1, 12), elements=st.floats(-5, 5, allow_subnormal=False)))
def test_smallest_set_and_band_against_brute_force(values):
    mass = np.maximum(values, 0)
    total = mass.sum()
    chosen, band = smallest_set(values), smallest_band(values)
    if total == 0:
        assert chosen == [] and band is None
        return
    assert mass[chosen].sum() >= 0.8 * total * (1 - 1e-9)
    assert np.sort(mass)[::-1][: len(chosen) - 1].sum() < 0.8 * total
    first, last = band
    assert mass[first : last + 1].sum() >= 0.8 * total * (1 - 1e-9)
    width = last - first
    narrower = [mass[i : i + width].sum() for i in range(len(mass) - width + 1)]
    assert max(narrower, default=0) < 0.8 * total


def test_participation_ratio_counts_equal_layers():
    assert participation_ratio(np.array([0.5, -0.5, 0.5, 0.0])) == pytest.approx(3)
    assert participation_ratio(np.zeros(3)) == 0


def test_what_lies_outside_the_blocks_is_ranked_but_in_no_band():
    values, clusters = effects((0.05, 0.05, 0.9), noise=0.02)
    lens = Effects(lens="path", layers=(0, 1, None), values=values)
    found = rank_layers(lens, values.sum(axis=1), clusters, lenses=("path",))
    assert found.layers[0].layer is None
    assert found.band is None and found.smallest_set[0] is None
    blocks = rank_layers(
        Effects(lens="path", layers=(4, 7, None), values=values[:, [2, 0, 1]]),
        values.sum(axis=1),
        clusters,
        lenses=("path",),
    )
    assert blocks.band == (4, 4)


def test_unchanged_blocks_between_count_to_the_width_of_a_band():
    values, clusters = effects((0.5, 0.5), noise=0.05)
    lens = Effects(lens="path", layers=(2, 9), values=values)
    found = rank_layers(lens, values.sum(axis=1), clusters, lenses=("path",))
    assert found.band == (2, 9)


def test_combining_averages_path_and_the_mean_of_both_transplants():
    def lens(name, layers, row):
        return Effects(lens=name, layers=layers, values=np.array([row, row]))

    path = lens("path", (1, 2, None), [4.0, 0.0, 2.0])
    restored, injected = lens("restore", (1, 2), [0.0, 2.0]), lens("inject", (1, 2), [4.0, 0.0])
    both, names = combine(path, restored, injected)
    assert both.layers == (1, 2, None) and names == ("path", "restore", "inject")
    np.testing.assert_allclose(both.values[0], [3.0, 0.5, 1.0])
    alone, names = combine(path, None, None)
    np.testing.assert_array_equal(alone.values, path.values)
    assert names == ("path",)
    causal, _ = combine(None, restored, injected)
    np.testing.assert_allclose(causal.values[0], [2.0, 1.0])


def test_attributions_are_summed_by_layer_and_component():
    changes = [
        Change(1, "mlp", "up_proj"),
        Change(None, None, "lm_head"),
        Change(1, "attn", "q_proj"),
        Change(0, None, "input_layernorm"),
        Change(1, "attn", "v_proj"),
    ]
    values = np.array([[1.0, 10.0, 2.0, 5.0, 3.0]])
    found = path_effects(changes, values)
    assert found.layers == (0, 1, None)
    np.testing.assert_array_equal(found.values, [[5.0, 6.0, 10.0]])
    places, summed = component_effects(changes, values)
    assert places == ((0, None), (1, "attn"), (1, "mlp"), (None, None))
    np.testing.assert_array_equal(summed, [[5.0, 5.0, 1.0, 10.0]])
    assert path_effects([], np.zeros((3, 0))).values.shape == (3, 0)


def test_effects_that_are_not_finite_or_of_another_shape_are_refused():
    with pytest.raises(RefusaldirError, match="not finite"):
        Effects(lens="path", layers=(0,), values=np.array([[np.nan]]))
    with pytest.raises(RefusaldirError, match="one effect a prompt and layer"):
        Effects(lens="path", layers=(0, 1), values=np.zeros((3, 1)))
