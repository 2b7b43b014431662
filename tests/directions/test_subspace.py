"""Directions by category: unbiased products, effective rank, and the axes that are not noise."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusaldir.directions.categories import category_directions
from refusaldir.directions.category_sample import category_sample
from refusaldir.directions.effective_rank import _from_quarters, effective_rank, within_range
from refusaldir.directions.mean_diff import mean_diff
from refusaldir.directions.subspace import held_out_strength, subspace
from refusaldir.errors import DirectionError
from refusaldir.geometry import overlap
from refusaldir.records import Estimate

NORMS = np.array([6.0, 3.0, 3.0])


def planted(
    rank, *, seed=0, n_categories=12, intents=16, d=64, noise=1.0, topic=1.5, decay=0.3, twins=True
):
    """Categories that share ``rank`` axes: what `subspace` takes, and the truth ``[category d]``.

    The first axis is in all categories alike, the others with random signs. The noise's standard
    deviation falls off as a power, so that noise has few dimensions where ``decay`` is large.
    """
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((d, 3)))[0].T[:rank]
    load = rng.choice([-1.0, 1.0], size=(n_categories, 3))
    load[:, 0] = 1.0
    truth = (load * NORMS)[:, :rank] @ axes
    sd = np.arange(1, d + 1.0) ** -decay
    root = np.linalg.qr(rng.standard_normal((d, d)))[0] * (sd * np.sqrt(d / np.sum(sd**2)))
    n = n_categories * intents * 2
    labels, codes = np.arange(n) % 2, np.arange(n) // 2
    category = codes // intents
    x = 5 + noise * rng.standard_normal((n, d)) @ root.T + labels[:, None] * truth[category]
    own = rng.standard_normal((n, d))
    x += topic * (own[::2][codes] if twins else own)
    ids = [f"i{c}" if twins else f"i{c}-{y}" for c, y in zip(codes, labels, strict=True)]
    return (x, labels, [f"c{c:02d}" for c in category], ids), truth


def participation(gram):
    return np.trace(gram) ** 2 / np.sum(gram**2)


class TestCategoryDirections:
    def test_vectors_are_the_mean_differences(self):
        (x, y, categories, intents), _ = planted(1)
        got = category_directions(x.astype(np.float32), y, categories, intents)
        here = np.array(categories) == "c03"
        np.testing.assert_allclose(got.vectors[3], mean_diff(x[here], y[here]), rtol=1e-4)
        assert got.categories[3] == "c03" and got.n_harmful[3] == got.n_harmless[3] == 16
        assert got.vectors.dtype == np.float64
        json.dumps(got.to_dict(), allow_nan=False)

    @pytest.mark.parametrize("d", [6, 100])
    def test_products_equal_the_loop_over_pairs_of_different_intents(self, d):
        """With unequal counts, and intents that span categories."""
        rng = np.random.default_rng(1)
        n = 60
        x, y = rng.standard_normal((n, d)), rng.integers(0, 2, n)
        category, codes = rng.integers(0, 2, n), rng.integers(0, 20, n)
        x -= x.mean(axis=0)  # the origin matters a little where intents are unequal
        got = category_directions(x, y, [f"c{c}" for c in category], [f"i{c}" for c in codes])
        expected = np.zeros((2, 2))
        for c, e, a, b in np.ndindex(2, 2, 2, 2):
            products = [
                x[i] @ x[j]
                for i in np.flatnonzero((category == c) & (y == a))
                for j in np.flatnonzero((category == e) & (y == b))
                if codes[i] != codes[j]
            ]
            expected[c, e] += (1 if a == b else -1) * np.mean(products)
        np.testing.assert_allclose(got.gram, expected, rtol=1e-9)

    def test_cosines_are_unbiased_where_raw_ones_are_not(self):
        corrected, raw = [], []
        for seed in range(40):
            arguments, truth = planted(3, seed=seed, n_categories=2, intents=12, noise=2.0)
            got = category_directions(*arguments)
            a, b = truth
            true = a @ b / np.sqrt((a @ a) * (b @ b))
            corrected.append(got.cosines[0, 1] - true)
            v = got.vectors / np.linalg.norm(got.vectors, axis=1)[:, None]
            raw.append(abs(v[0] @ v[1]) - abs(true))
        assert abs(np.mean(corrected)) < 0.04
        assert np.mean(raw) < -0.08

    def test_a_norm_lost_in_noise_has_no_cosine(self):
        (x, y, categories, intents), _ = planted(0, intents=4, n_categories=6)
        got = category_directions(x, y, categories, intents)
        lost = np.diag(got.gram) <= 0
        assert lost.any() and np.isnan(got.cosines[lost]).all()
        assert np.isfinite(got.gram).all()
        assert None in got.to_dict()["cosines"][int(np.flatnonzero(lost)[0])]

    def test_small_categories_are_left_out_by_name(self):
        (x, y, categories, intents), _ = planted(1)
        categories = ["rare" if i < 6 else c for i, c in enumerate(categories)]
        got = category_directions(x, y, categories, intents)
        assert got.left_out == ("rare",) and "rare" not in got.categories
        assert got.n_harmful[0] == 13

    def test_what_cannot_be_used_is_refused(self):
        (x, y, categories, intents), _ = planted(1)
        with pytest.raises(DirectionError, match="at least two categories"):
            category_directions(x, y, ["all"] * len(x), intents)
        with pytest.raises(DirectionError, match="3 categories and 384 intents"):
            category_directions(x, y, categories[:3], intents)
        with pytest.raises(DirectionError, match="no harmful prompt"):
            category_directions(x, np.zeros_like(y), categories, intents)
        x[0, 0] = np.nan
        with pytest.raises(DirectionError, match="not finite"):
            category_directions(x, y, categories, intents)


class TestEffectiveRank:
    @pytest.mark.parametrize(
        "directions, rank",
        [(np.tile([2.0, 0, 0, 0], (4, 1)), 1), (3 * np.eye(4), 4), (np.diag([2.0, 1, 1, 0]), 2)],
    )
    def test_without_noise_it_is_the_participation_ratio(self, directions, rank):
        n = 4 * 8 * 2
        y, category = np.arange(n) % 2, np.arange(n) // 16
        x = y[:, None] * directions[category] + 7
        got = category_directions(x, y, [f"{c}" for c in category], [f"{i // 2}" for i in range(n)])
        assert got.effective_rank.value == pytest.approx(rank)
        squares = np.sum(directions**2, axis=1)
        largest = np.linalg.norm(directions, 2) ** 2
        assert got.first_share.value == pytest.approx(largest / squares.sum())

    @pytest.mark.parametrize("twins", [True, False])
    @pytest.mark.parametrize("rank", [1, 3])
    def test_unbiased_where_the_naive_one_is_not(self, rank, twins, monkeypatch):
        # Any number of deals is unbiased.
        monkeypatch.setattr("refusaldir.directions.effective_rank.DEALS", 8)
        values, truths, naive = [], [], []
        for seed in range(200):
            arguments, truth = planted(
                rank, seed=seed, intents=8, d=24, n_categories=6, noise=1.2, topic=0.5, twins=twins
            )
            sample = category_sample(*arguments)
            values.append(effective_rank(sample).value)
            truths.append(participation(truth @ truth.T))
            vectors = sample.weights() @ sample.x
            naive.append(participation(vectors @ vectors.T))
        assert np.mean(values) == pytest.approx(np.mean(truths), rel=0.03)
        assert np.mean(naive) > 1.15 * np.mean(truths)

    def test_intervals_cover(self):
        covered, widths = [], []
        for seed in range(60):
            arguments, truth = planted(
                3, seed=seed, intents=12, d=24, n_categories=6, noise=1.5, topic=0.5
            )
            got = effective_rank(category_sample(*arguments))
            covered.append(got.lower <= participation(truth @ truth.T) <= got.upper)
            widths.append(got.upper - got.lower)
        assert np.mean(covered) >= 0.93
        assert np.median(widths) < 1.5  # of a range from 1 to 6

    def test_parts_are_unbiased_and_change_as_a_fresh_start_does(self):
        """The jackknife's inner products against taking each intent's prompts out."""
        (x, y, categories, intents), _ = planted(
            3, n_categories=3, intents=16, d=10, noise=1.0, twins=True
        )
        intents[5], intents[0] = intents[80], intents[2]  # one spans categories, one holds four
        sample = category_sample(x, y, categories, intents)
        quarter = sample.dealt.folds(4, 3)

        def parts(kept):
            w = np.stack([sample.weights((quarter == q) & kept) for q in range(4)])
            r = w @ sample.x
            out = np.zeros(2)
            for a, b, c, e in ((0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2)):
                one, two = r[a] @ r[b].T, r[c] @ r[e].T
                out[0] += np.trace(one) * np.trace(two) / 3
                out[1] += np.sum(one * (two + two.T)) / 6
            return out

        everything = np.ones(len(quarter), dtype=bool)
        weights = np.stack([sample.weights(quarter == q) for q in range(4)])
        value, change = _from_quarters(sample, quarter, weights)
        np.testing.assert_allclose(value, parts(everything), rtol=1e-9)
        for g in range(sample.clusters.n):
            fresh = parts(sample.clusters.codes != g)
            np.testing.assert_allclose(value + change[g], fresh, rtol=1e-9)

    def test_pure_noise_or_few_intents_give_no_made_up_figure(self):
        seen = [
            category_directions(*planted(0, seed=s, intents=5, n_categories=3)[0]) for s in range(8)
        ]
        assert any(got.effective_rank.value is None for got in seen)
        few = category_directions(*planted(1, intents=5)[0]).effective_rank
        assert few.value is not None and few.lower is None and "no interval" in few.note

    def test_an_interval_outside_the_range_reaches_its_end(self):
        low = Estimate(value=0.9, lower=0.85, upper=0.95, n=9, method="cluster jackknife")
        moved = within_range(low, 1.0, 12.0)
        assert (moved.value, moved.lower, moved.upper) == (0.9, 1.0, 1.0)
        inside = Estimate(value=2.0, lower=1.5, upper=2.5, n=9)
        assert within_range(inside, 1.0, 12.0) is inside

    def test_rotation_scale_and_order_do_not_matter(self):
        (x, y, categories, intents), _ = planted(3, d=24)
        q = np.linalg.qr(np.random.default_rng(0).standard_normal((24, 24)))[0]
        order = np.random.default_rng(1).permutation(len(y))
        one = category_directions(x, y, categories, intents)
        turned = category_directions(3 * x @ q, y, categories, intents)
        mixed = category_directions(
            x[order], y[order], [categories[i] for i in order], [intents[i] for i in order]
        )
        for other in (turned, mixed):
            assert other.effective_rank.value == pytest.approx(one.effective_rank.value)
            assert other.effective_rank.upper == pytest.approx(one.effective_rank.upper)
            np.testing.assert_allclose(other.cosines, one.cosines, rtol=1e-8)
        np.testing.assert_allclose(turned.gram, 9 * one.gram, rtol=1e-8)


class TestHeldOutStrength:
    def test_without_noise_it_is_the_singular_values(self):
        r = np.random.default_rng(0).standard_normal((5, 9))
        np.testing.assert_allclose(held_out_strength(r, r), np.linalg.svd(r)[1], rtol=1e-9)
        np.testing.assert_allclose(held_out_strength(r, -r), -np.linalg.svd(r)[1], rtol=1e-9)

    def test_by_the_definition(self):
        a, b = np.random.default_rng(1).standard_normal((2, 4, 9))
        (u, _, v), (w, _, z) = (np.linalg.svd(m, full_matrices=False) for m in (a, b))
        expected = [(u[:, k] @ b @ v[k] + w[:, k] @ a @ z[k]) / 2 for k in range(4)]
        np.testing.assert_allclose(held_out_strength(a, b), expected, rtol=1e-9)
        batch = held_out_strength(np.stack([a, b]), np.stack([b, a]))
        np.testing.assert_allclose(batch, [expected, expected], rtol=1e-9)

    def test_noise_of_few_dimensions_has_none_though_its_axes_overlap(self):
        rng = np.random.default_rng(2)
        pairs = rng.standard_normal((600, 2, 6, 30)) * np.array([20, 5, *[1] * 28])
        strengths = held_out_strength(pairs[:, 0], pairs[:, 1])
        error = strengths.std(axis=0) / np.sqrt(600)
        assert np.all(np.abs(strengths.mean(axis=0)) < 4 * error)
        axes = np.linalg.svd(pairs[0], full_matrices=False)[2]
        assert overlap(axes[0][:1], axes[1][:1]) > 0.9


class TestSubspace:
    @pytest.mark.parametrize("rank", [1, 3])
    @pytest.mark.parametrize("options", [{}, {"intents": 8}, {"noise": 1.8}, {"twins": False}])
    def test_a_planted_rank_is_recovered(self, rank, options):
        found = []
        for seed in range(10):
            arguments, truth = planted(rank, seed=seed, **options)
            got = subspace(*arguments, seed=seed)
            found.append(got.k)
            if got.k == rank:
                axes = np.linalg.svd(truth)[2][:rank]
                assert overlap(got.basis, axes) > 0.75
        assert np.sum(np.array(found) == rank) >= 9, found

    def test_noise_of_few_dimensions_is_no_axis(self):
        """Noise whose main axis is stable from half to half, and nearly as long as the signal."""
        found = [subspace(*planted(1, seed=s, d=200, decay=1.0)[0]).k for s in range(10)]
        assert np.sum(np.array(found) == 1) >= 8, found

    @pytest.mark.parametrize("decay", [0.3, 1.0])
    def test_pure_noise_gives_nothing(self, decay):
        found = []
        for seed in range(20):
            try:
                found.append(subspace(*planted(0, seed=seed, decay=decay)[0], seed=seed).k)
            except DirectionError as error:
                assert "no axis that unseen intents confirm" in str(error)
                found.append(0)
        assert max(found) <= 1 and np.sum(found) <= 3, found

    def test_permuted_labels_find_nothing(self):
        """Negative control: the same activations, labels swapped in half of the intents."""
        found = []
        for seed in range(10):
            (x, y, categories, intents), _ = planted(3, seed=seed)
            swap = np.random.default_rng(seed).integers(0, 2, len(y) // 2)[np.arange(len(y)) // 2]
            try:
                found.append(subspace(x, y ^ swap, categories, intents).k)
            except DirectionError:
                found.append(0)
        assert np.sum(np.array(found) == 0) >= 8, found

    def test_basis_and_figures(self):
        (x, y, categories, intents), truth = planted(3)
        got = subspace(x, y, categories, intents)
        assert got.basis.shape == (got.k, 64) and got.basis.dtype == np.float64
        np.testing.assert_allclose(got.basis @ got.basis.T, np.eye(got.k), atol=1e-12)
        vectors = category_directions(x, y, categories, intents).vectors
        np.testing.assert_allclose(got.singular_values, np.linalg.svd(vectors)[1])
        assert np.all(got.basis @ vectors.mean(axis=0) > 0)
        # What unseen intents confirm is less than the noisy whole, and near the truth.
        true = np.linalg.svd(truth)[1]
        assert np.all(got.strength[:3] < got.singular_values[:3])
        np.testing.assert_allclose(got.strength[:2], true[:2], rtol=0.1)
        assert np.all(got.strength[:3] > got.null[:3]) and got.strength[3] < got.null[3]
        assert np.all(got.p_value[:3] <= 0.02) and got.p_value[3] > 0.02
        assert np.isnan(got.p_value[4:]).all() and np.isnan(got.null[4:]).all()
        assert got.overlap[0] > 0.9 > got.overlap[5]
        assert len(got.strength) == len(got.overlap) == 12 and got.n == 192
        json.dumps(got.to_dict(), allow_nan=False)

    def test_the_same_seed_gives_the_same_result(self):
        arguments, _ = planted(3)
        assert subspace(*arguments, seed=4).to_dict() == subspace(*arguments, seed=4).to_dict()

    def test_k_given_is_taken(self):
        arguments, _ = planted(0)
        got = subspace(*arguments, k=2)
        assert got.k == 2 and got.method == "given" and np.isnan(got.p_value).all()
        limited = subspace(*planted(3)[0], max_k=2)
        assert limited.k == 2 and len(limited.strength) == 2
        for wrong in ({"k": 0}, {"k": 13}, {"max_k": 99}):
            with pytest.raises(DirectionError, match="out of range: expected 1 to 12"):
                subspace(*arguments, **wrong)

    @pytest.mark.parametrize("scale", [1e-3, 1e3])
    def test_rotation_scale_and_labels(self, scale):
        (x, y, categories, intents), _ = planted(3)
        q = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0]
        one = subspace(x, y, categories, intents)
        turned = subspace(scale * x @ q, y, categories, intents)
        np.testing.assert_allclose(turned.basis, one.basis @ q, atol=1e-8)
        np.testing.assert_allclose(turned.strength, scale * one.strength, rtol=1e-6)
        swapped = subspace(x, 1 - y, categories, intents, k=3)
        np.testing.assert_allclose(swapped.basis, -one.basis, atol=1e-8)

    def test_more_features_than_prompts_changes_nothing(self):
        """The span's coordinates against the features themselves."""
        (x, y, categories, intents), _ = planted(3, intents=8)
        wide = np.hstack([x, np.zeros((len(x), 300))])
        one, other = (subspace(v, y, categories, intents) for v in (x, wide))
        np.testing.assert_allclose(other.basis[:, :64], one.basis, atol=1e-8)
        np.testing.assert_allclose(other.strength, one.strength, rtol=1e-8)
        np.testing.assert_allclose(other.p_value, one.p_value)

    def test_without_noise_rounding_is_no_axis(self):
        n = 4 * 8 * 2
        y, category = np.arange(n) % 2, np.arange(n) // 16
        x = y[:, None] * np.array([[1.0, 0, 0], [1, 1, 0], [1, -1, 0], [1, 2, 0]])[category]
        got = subspace(x, y, [f"{c}" for c in category], [f"{i // 2}" for i in range(n)])
        assert got.k == 2


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(4, 7))
def test_halves_and_quarters_keep_every_class(seed, n_categories, intents):
    arguments, _ = planted(1, seed=seed, n_categories=n_categories, intents=intents, d=5)
    sample = category_sample(*arguments)
    for parts in (2, 4):
        fold = sample.dealt.folds(parts, seed)
        for part in range(parts):
            assert np.isfinite(sample.weights(fold == part)).all()
