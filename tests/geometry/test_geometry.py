import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from refusaldir.errors import DirectionError
from refusaldir.geometry import (
    angle_degrees,
    cosine,
    mean_products,
    overlap,
    principal_angles,
    project,
    unit,
)

R = np.array([-1.0, 1.0])


def vectors(seed, n=1, d=7):
    return np.random.default_rng(seed).standard_normal((n, d))


def arms(x, labels, codes, n_clusters):
    """Sums and counts ``[2, cluster, …]`` by an explicit loop."""
    sums, counts = np.zeros((2, n_clusters, x.shape[1])), np.zeros((2, n_clusters))
    for row, y, c in zip(x, labels, codes, strict=True):
        sums[y, c] += row
        counts[y, c] += 1
    return sums, counts


def brute_corrected(x, labels, codes, first, second):
    """Mean of all products of prompts from different clusters, contrast by contrast."""
    total = 0.0
    for a, wa in enumerate(first):
        for b, wb in enumerate(second):
            products = [
                x[i] @ x[j]
                for i in np.flatnonzero(labels == a)
                for j in np.flatnonzero(labels == b)
                if codes[i] != codes[j]
            ]
            total += wa * wb * np.mean(products)
    return total


class TestUnit:
    def test_norm_is_one(self):
        assert np.linalg.norm(unit(np.array([3.0, -4.0]))) == pytest.approx(1, abs=1e-15)
        np.testing.assert_allclose(unit(np.array([3.0, -4.0])), [0.6, -0.8])

    @pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
    def test_scale_does_not_matter(self, scale):
        v = vectors(0)[0]
        np.testing.assert_allclose(unit(v * scale), unit(v), rtol=1e-12)

    @pytest.mark.parametrize("bad", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], []])
    def test_no_direction_no_unit(self, bad):
        with pytest.raises(DirectionError, match="cannot be normalised"):
            unit(np.array(bad))

    def test_float32_gives_float64(self):
        assert unit(np.array([1, 2], dtype=np.float32)).dtype == np.float64


class TestCosine:
    def test_known_angles(self):
        a, b = np.array([1.0, 0.0]), np.array([1.0, 1.0])
        assert cosine(a, b) == pytest.approx(np.sqrt(0.5))
        assert cosine(a, -a) == -1
        assert angle_degrees(cosine(a, b)) == pytest.approx(45)
        assert angle_degrees(1.2) == 0

    @settings(max_examples=30)
    @given(st.integers(0, 10_000), st.floats(0.01, 100))
    def test_rotation_and_scale_leave_it_alone(self, seed, scale):
        a, b = vectors(seed, 2)
        q = np.linalg.qr(vectors(seed + 1, 7))[0]
        assert cosine(q @ a * scale, q @ b) == pytest.approx(cosine(a, b), abs=1e-12)

    def test_project_is_a_scalar_projection(self):
        x = np.array([[2.0, 5.0], [-1.0, 0.0]])
        np.testing.assert_allclose(project(x, np.array([10.0, 0.0])), [2, -1])


def bases_at(angles, d=12, seed=0):
    """Two orthonormal bases with given principal angles."""
    k = len(angles)
    q = np.linalg.qr(vectors(seed, d, d))[0].T
    return q[:k], np.cos(angles)[:, None] * q[:k] + np.sin(angles)[:, None] * q[k : 2 * k]


class TestSubspaces:
    @pytest.mark.parametrize("seed", range(3))
    def test_planted_angles_are_found_at_both_ends(self, seed):
        """Including 1e-10, which the arc cosine of a singular value cannot tell from 0."""
        angles = np.array([1e-10, 1e-5, 0.4, np.pi / 2 - 1e-9])
        a, b = bases_at(angles, seed=seed)
        mixed = vectors(seed, 4, 4) @ b  # any basis of the same span
        np.testing.assert_allclose(principal_angles(a, mixed), angles, rtol=1e-4)
        assert np.arccos(np.clip(np.linalg.svd(a @ b.T)[1], -1, 1))[0] != pytest.approx(
            1e-10, rel=1e-4
        )

    @pytest.mark.parametrize("j, k, d", [(3, 5, 12), (5, 3, 12), (2, 2, 40), (1, 1, 3)])
    def test_equal_scipy_away_from_the_ends(self, j, k, d):
        a, b = vectors(1, j, d), vectors(2, k, d)
        angles = principal_angles(a, b)
        assert angles.shape == (min(j, k),) and np.all(np.diff(angles) >= 0)
        np.testing.assert_allclose(angles, subspace_angles(a.T, b.T)[::-1], rtol=1e-9)

    @settings(max_examples=20)
    @given(st.integers(0, 10_000), st.integers(1, 5))
    def test_overlap_is_the_mean_squared_cosine(self, seed, k):
        a, b = (np.linalg.qr(vectors(seed + i, 12, k))[0].T for i in (0, 1))
        assert overlap(a, b) == pytest.approx(np.mean(np.cos(principal_angles(a, b)) ** 2))
        q = np.linalg.qr(vectors(seed + 2, 12, 12))[0]
        assert overlap(a @ q, b @ q) == pytest.approx(overlap(a, b))

    def test_overlap_of_nested_equal_and_orthogonal_subspaces(self):
        q = np.linalg.qr(vectors(3, 12, 12))[0].T
        assert overlap(q[:2], q[:5]) == pytest.approx(1)
        assert overlap(q[:2], q[[1, 0]]) == pytest.approx(1)
        assert overlap(q[:2], q[2:4]) == pytest.approx(0)
        assert overlap(q[:2], q[1:3]) == pytest.approx(0.5)

    def test_random_subspaces_overlap_by_the_larger_share(self):
        pairs = [
            [np.linalg.qr(vectors(10 * s + i, 20, k))[0].T for i, k in enumerate((2, 5))]
            for s in range(300)
        ]
        assert np.mean([overlap(a, b) for a, b in pairs]) == pytest.approx(5 / 20, rel=0.05)

    def test_what_is_no_basis_is_refused(self):
        a = np.linalg.qr(vectors(0, 12, 2))[0].T
        with pytest.raises(DirectionError, match="orthonormal"):
            overlap(2 * a, a)
        with pytest.raises(DirectionError, match=r"linearly dependent: expected 3 .* got rank 2"):
            principal_angles(a, np.vstack([a, a[0]]))
        for bad in (np.full((1, 12), np.nan), np.zeros((0, 12))):
            with pytest.raises(DirectionError, match="finite rows"):
                principal_angles(a, bad)


class TestMeanProducts:
    def test_one_prompt_per_cluster_is_the_textbook_correction(self):
        x = vectors(1, 30) + 3
        labels = np.arange(30) % 3 == 0
        y = labels.astype(int)
        sums, counts = arms(x, y, np.arange(30), 30)
        inner = mean_products(sums, counts).inner(R, R)
        one, zero = x[y == 1], x[y == 0]
        r = one.mean(axis=0) - zero.mean(axis=0)
        noise = sum(np.trace(np.cov(g.T, ddof=1)) / len(g) for g in (one, zero))
        assert inner.raw == pytest.approx(r @ r)
        assert inner.corrected == pytest.approx(r @ r - noise)

    @pytest.mark.parametrize("seed", range(3))
    def test_equals_the_double_loop_on_unequal_clusters(self, seed):
        rng = np.random.default_rng(seed)
        x, y, codes = vectors(seed, 24), rng.integers(0, 2, 24), rng.integers(0, 7, 24)
        sums, counts = arms(x, y, codes, 7)
        inner = mean_products(sums, counts).inner(R, R)
        assert inner.corrected == pytest.approx(brute_corrected(x, y, codes, R, R))

    def test_left_out_values_equal_a_fresh_start(self):
        rng = np.random.default_rng(4)
        x, y, codes = vectors(4, 40), rng.integers(0, 2, 40), rng.integers(0, 9, 40)
        sums, counts = arms(x, y, codes, 9)
        whole = mean_products(sums, counts)
        for c in range(9):
            keep = np.arange(9) != c
            fresh = mean_products(sums[:, keep], counts[:, keep])
            np.testing.assert_allclose(whole.raw_left[c], fresh.raw, rtol=1e-9)
            np.testing.assert_allclose(whole.corrected_left[c], fresh.corrected, rtol=1e-9)

    def test_origin_does_not_matter_for_twins(self):
        x, y, codes = vectors(5, 40), np.arange(40) % 2, np.arange(40) // 2
        near = mean_products(*arms(x, y, codes, 20)).inner(R, R)
        far = mean_products(*arms(x + 50, y, codes, 20)).inner(R, R)
        assert far.corrected == pytest.approx(near.corrected, rel=1e-9)

    def test_a_single_cluster_is_nan_not_a_number_made_up(self):
        sums, counts = arms(vectors(6, 4), np.array([0, 0, 1, 1]), np.zeros(4, dtype=int), 1)
        assert np.isnan(mean_products(sums, counts).corrected).all()

    def test_unbiased_where_raw_and_prompt_by_prompt_correction_are_not(self):
        """Twins share topic noise: only leaving out whole intents is right."""
        rng = np.random.default_rng(7)
        d, intents, truth = 20, 12, 4.0
        r = np.zeros(d)
        r[0] = 2.0
        y, codes = np.arange(2 * intents) % 2, np.arange(2 * intents) // 2
        raw, by_intent, by_prompt = [], [], []
        for _ in range(800):
            x = rng.standard_normal((2 * intents, d)) + rng.standard_normal((intents, d))[codes]
            x += y[:, None] * r
            inner = mean_products(*arms(x, y, codes, intents)).inner(R, R)
            raw.append(inner.raw)
            by_intent.append(inner.corrected)
            alone = mean_products(*arms(x, y, np.arange(2 * intents), 2 * intents))
            by_prompt.append(alone.inner(R, R).corrected)
        error = np.std(by_intent) / np.sqrt(len(by_intent))
        assert abs(np.mean(by_intent) - truth) < 4 * error
        assert np.mean(raw) - truth > 20 * error
        assert truth - np.mean(by_prompt) > 20 * error
