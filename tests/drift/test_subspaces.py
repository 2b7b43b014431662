"""Drift of the refusal subspace: planted turns, and no change with shared noise."""

import json

import numpy as np
import pytest
from scipy.linalg import subspace_angles

from refusaldir.drift.categories.subspaces import (
    _corrected,
    _cosines,
    _Pair,
    _unchanged,
    subspace_drift,
)
from refusaldir.geometry import overlap

D = 40


def planted(
    *, seed=0, rank=2, degrees=0.0, shared=0.5, n_categories=8, intents=12, norm=5.0, noise=1.0,
    decay=0.3, twins=True, scale=1.0, d=D,
):  # fmt: skip
    """What `subspace_drift` takes: categories on ``rank`` axes, the last turned by an angle."""
    rng = np.random.default_rng([seed, 3])
    axes = np.linalg.qr(rng.standard_normal((d, d))[:, : rank + 1])[0].T
    load = rng.choice([-1.0, 1.0], size=(n_categories, rank)) * np.array([1, 0.7, 0.7])[:rank]
    load[:, 0] = 1.0
    truth = norm * load
    n = n_categories * intents * 2
    labels, codes = np.arange(n) % 2, np.arange(n) // 2
    category = codes // intents
    # Noise that is even needs no turning.
    root = np.linalg.qr(rng.standard_normal((d, d)))[0] if decay else np.eye(d)
    root = root * np.arange(1, d + 1.0) ** -decay
    turned = axes[:rank].copy()
    a = np.radians(degrees)
    turned[-1] = np.cos(a) * axes[rank - 1] + np.sin(a) * axes[rank]
    topic = codes if twins else np.arange(n)

    def fresh():
        return rng.standard_normal((n, d)) + rng.standard_normal((n, d))[topic]

    common = fresh()
    both = []
    for basis, size in ((axes[:rank], 1.0), (turned, scale)):
        x = noise * (np.sqrt(shared) * common + np.sqrt(1 - shared) * fresh()) @ root.T
        both.append(5 + size * (x + labels[:, None] * (truth @ basis)[category]))
    ids = [f"i{c}" if twins else f"i{c}-{y}" for c, y in zip(codes, labels, strict=True)]
    return (*both, labels, [f"c{c}" for c in category], ids)


class TestKnownAnswers:
    @pytest.mark.parametrize("degrees", [30, 60, 90])
    def test_a_turned_axis(self, degrees):
        got = subspace_drift(*planted(degrees=degrees, intents=24), draws=299)
        assert got.k == 2 and got.k_tuned == 2 and got.changed
        truth = (1 + np.cos(np.radians(degrees)) ** 2) / 2
        assert got.corrected.value == pytest.approx(truth, abs=0.05)
        assert got.angles[-1] == pytest.approx(degrees, abs=8)
        assert got.angles[-1] > 1.5 * got.angles_unchanged[-1]
        assert got.overlap < got.unchanged[0] < got.unchanged[1] < got.unchanged[2]
        assert "turned: overlap" in got.sentence and "(2 axes)" in got.sentence
        json.dumps(got.to_dict(), allow_nan=False)

    def test_nothing_changed(self):
        base, _, *rest = planted()
        got = subspace_drift(base, base.copy(), *rest, draws=99)
        assert got.overlap == pytest.approx(1) and got.p_value == 1 and got.changed is False
        assert got.angles[-1] < 1e-3
        assert got.corrected.value == pytest.approx(1, abs=0.02)
        assert 0 < got.halves < 1 and "No turn" in got.sentence

    def test_norms_do_not_matter(self):
        one = subspace_drift(*planted(), draws=99)
        other = subspace_drift(*planted(scale=4.0), draws=99)
        np.testing.assert_allclose(other.angles, one.angles)
        assert other.p_value == one.p_value

    def test_directions_inside_the_subspace_may_move(self):
        """Half the categories turn round along the second axis: another geometry, one subspace."""
        base, tuned, labels, names, ids = planted(noise=0.3, shared=0.9)
        r = np.array([c in ("c1", "c4") for c in names]) * labels
        axis = np.linalg.svd(
            np.array(
                [
                    (base[(labels == 1) & (np.array(names) == c)].mean(axis=0))
                    - (base[(labels == 0) & (np.array(names) == c)].mean(axis=0))
                    for c in sorted(set(names))
                ]
            )
        )[2][1]
        got = subspace_drift(base, tuned + 4 * np.outer(r, axis), labels, names, ids, draws=199)
        assert got.overlap > 0.97


class TestNoChange:
    @pytest.mark.parametrize("shared", [0.0, 0.9])
    @pytest.mark.parametrize("twins", [True, False])
    def test_the_nominal_rate(self, shared, twins):
        """A noisy subspace is not called drift, whether the models share their noise or not."""
        p = []
        for seed in range(200):
            pair = _Pair.of(*planted(seed=seed, shared=shared, twins=twins, norm=4.0))
            r = [(pair.sample.weights() @ x)[None] for x in pair.x]
            seen = np.mean(_cosines(*r, 2) ** 2)
            null, _ = _unchanged(pair, 2, 99, seed)
            p.append((1 + np.sum(null <= seen)) / 100)
        assert np.mean(np.array(p) <= 0.05) <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 200)
        assert 0.4 < np.mean(p) < 0.65

    @pytest.mark.parametrize("shared", [0.0, 0.9])
    def test_many_dimensions(self, shared):
        """Where overlaps scatter so little that any bias of the null shows."""
        p = []
        for seed in range(60):
            pair = _Pair.of(*planted(seed=seed, shared=shared, d=500, decay=0.0, norm=25.0))
            r = [(pair.sample.weights() @ x)[None] for x in pair.x]
            seen = np.mean(_cosines(*r, 2) ** 2)
            null, _ = _unchanged(pair, 2, 99, seed)
            p.append((1 + np.sum(null <= seen)) / 100)
        assert np.mean(np.array(p) <= 0.05) <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 60)

    def test_the_corrected_interval_holds_one(self):
        covered = []
        for seed in range(40):
            pair = _Pair.of(*planted(seed=seed, norm=4.0, shared=0.5))
            e, _ = _corrected(pair, 2, 0.95, seed)
            covered.append(e.lower <= 1 <= e.upper)
        assert np.mean(covered) >= 0.9

    def test_independent_noise_lowers_the_raw_overlap_alone(self):
        raw, corrected = [], []
        for seed in range(20):
            pair = _Pair.of(*planted(seed=seed, shared=0.0, norm=3.0))
            r = [(pair.sample.weights() @ x)[None] for x in pair.x]
            raw.append(np.mean(_cosines(*r, 2) ** 2))
            corrected.append(_corrected(pair, 2, 0.95, seed)[0].value)
        assert np.mean(raw) < 0.95
        assert np.mean(corrected) == pytest.approx(1, abs=0.04)

    def test_shared_noise_makes_no_change_look_closer(self):
        """Negative control: a null without it would call any tuned model turned, or none."""
        low, high = (
            subspace_drift(*planted(shared=s, norm=3.0), k=2, draws=199).unchanged[1]
            for s in (0.0, 0.95)
        )
        assert high > low + 0.1


class TestAgainstLoops:
    def test_cosines_are_those_of_principal_angles(self):
        rng = np.random.default_rng(0)
        first, second = rng.standard_normal((2, 5, 6, 20))
        got = _cosines(first, second, 3)
        for i in range(5):
            axes = [np.linalg.svd(r[i])[2][:3] for r in (first, second)]
            expected = np.cos(subspace_angles(axes[0].T, axes[1].T))[::-1]
            np.testing.assert_allclose(got[i], expected, atol=1e-9)
            assert np.mean(got[i] ** 2) == pytest.approx(overlap(*axes))

    def test_the_null_keeps_the_noise_of_the_means(self):
        """Draw by draw: the category directions scatter as fresh data's do."""
        base, tuned, *rest = planted(rank=1, norm=0.0, shared=0.8)
        pair = _Pair.of(base, tuned, *rest)
        residuals = pair.residuals()
        weights = pair.sample.weights()
        draws = []
        for seed in range(300):
            rng = np.random.default_rng(seed)
            signs = rng.choice([-1.0, 1.0], size=pair.sample.clusters.n)
            noise = [weights @ (signs[pair.sample.clusters.codes, None] * e) for e in residuals]
            draws.append([[np.sum(a * b) for a in noise] for b in noise])
        truth = []
        for seed in range(100):
            other = _Pair.of(*planted(rank=1, norm=0.0, shared=0.8, seed=seed))
            r = [weights @ x for x in other.x]
            truth.append([[np.sum(a * b) for a in r] for b in r])
        expected = np.mean(truth, axis=0)
        np.testing.assert_allclose(np.mean(draws, axis=0), expected, rtol=0.1)

    def test_the_same_seed_gives_the_same_draws(self):
        pair = _Pair.of(*planted())
        np.testing.assert_array_equal(_unchanged(pair, 2, 20, 5)[0], _unchanged(pair, 2, 20, 5)[0])
        assert not np.array_equal(_unchanged(pair, 2, 20, 5)[0], _unchanged(pair, 2, 20, 6)[0])


class TestNothingToSay:
    def test_no_stable_axis_in_base(self):
        got = subspace_drift(*planted(norm=0.0), draws=19)
        assert got.k == 0 and got.p_value is None and got.changed is None
        assert "cannot be compared" in got.sentence and "no axis" in got.sentence
        json.dumps(got.to_dict(), allow_nan=False)

    def test_no_stable_axis_in_tuned(self):
        base, _, *rest = planted()
        noise = planted(norm=0.0, seed=10)[1]
        got = subspace_drift(base, noise, *rest, draws=99)
        assert got.k == 2 and got.k_tuned == 0 and got.changed
        assert "no axis is stable" in got.sentence

    def test_too_few_categories(self):
        got = subspace_drift(*planted(n_categories=1), draws=19)
        assert got.p_value is None and "at least two categories" in got.sentence
        few = subspace_drift(*planted(intents=2), draws=19)
        assert few.n == 16 and few.p_value is None
