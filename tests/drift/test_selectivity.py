"""Selectivity: planted changes, changes of everything, brute force, and the random subspaces."""

import json

import numpy as np
import pytest

from refusaldir.drift.contrasts import Design
from refusaldir.drift.selectivity.meter import SelectivityMeter
from refusaldir.drift.selectivity.random_subspaces import (
    draw_blocks,
    orthonormal_scores,
    parts_of,
    tilt,
)
from refusaldir.errors import DirectionError
from refusaldir.records import Site
from refusaldir.statistics import Clusters, jackknife

SITE = Site(hook="resid_pre", layer=3, position=-1)
D = 40


def design_of(intents, *, twins=True, folds=8):
    y = np.arange(2 * intents) % 2
    ids = [f"i{i // 2}" if twins else f"i{i}" for i in range(2 * intents)]
    clusters = Clusters.of(ids, y)
    return Design(y, clusters, clusters.folds(folds))


def planted_base(design, *, seed=0, norm=8.0, axis=0, decay=0.7, d=D):
    """Base with a refusal direction along one axis of a covariance that falls off as a power."""
    rng = np.random.default_rng([seed, 7])
    root = np.arange(1, d + 1.0) ** -decay
    x = 3 + rng.standard_normal((len(design.labels), d)) * root
    r = np.zeros(d)
    r[axis] = norm * root[axis]
    x += (design.labels - 0.5)[:, None] * r
    return x, r / np.linalg.norm(r), root, rng


def meter(design, base, tuned, **options):
    made = SelectivityMeter(design, **{"draws": 299} | options)
    made.add(SITE, base, tuned)
    return made.result().layers[0]


def small_rotation(rng, d, size=0.02):
    a = rng.standard_normal((d, d))
    return np.linalg.qr(np.eye(d) + size * (a - a.T) / 2)[0]


class TestKnownAnswers:
    def test_a_change_along_the_direction_is_singled_out(self):
        design = design_of(60)
        x, r, root, rng = planted_base(design, axis=3)
        change = 0.1 * rng.standard_normal(x.shape) * root + rng.standard_normal((120, 1)) * r
        row = meter(design, x, x + change + 0.5 * r)
        for kept in (row.prompts, row.means):
            assert kept.ratio.lower > 3 and kept.p_value < 0.02 and kept.answer == "singled out"
            assert kept.share > 0.9 > kept.expected
        assert "refusal singled out" in row.sentence and str(SITE) in row.sentence

    def test_the_same_energy_at_right_angles_spares_it(self):
        design = design_of(60)
        x, r, _, rng = planted_base(design)
        change = rng.standard_normal(x.shape)
        change -= np.outer(change @ r, r)
        row = meter(design, x, x + change)
        assert row.prompts.ratio.upper < 0.2 and row.prompts.p_value < 0.02
        assert row.prompts.answer == "spared" and "refusal spared" in row.sentence

    def test_a_shift_common_to_all_is_one_vector_and_proves_nothing(self):
        """Known closely on these prompts, and yet no more than a random angle."""
        design = design_of(60)
        x, r, _, rng = planted_base(design)
        across = rng.standard_normal(D)
        across -= across @ r * r
        shift = 0.3 * r * np.linalg.norm(across) + across
        row = meter(design, x, x + shift)
        assert row.prompts.ratio.upper - row.prompts.ratio.lower < 0.5
        assert row.prompts.p_value > 0.1 and row.prompts.answer != "singled out"

    def test_a_change_inside_several_axes(self):
        """With the subspace of the categories' directions, not the mean difference alone."""
        design = design_of(96)
        x, _, _, rng = planted_base(design, norm=6)
        kind = np.arange(192) // 2 % 4
        x[:, 5] += np.where(kind % 2, 3, -3) * (design.labels - 0.5)
        change = 0.02 * rng.standard_normal(x.shape)
        change[:, 5] += 0.5 * rng.standard_normal(192)
        names = [f"c{k}" for k in kind]
        one = meter(design, x, x + change, categories=names)
        two = meter(design, x, x + change, categories=names, k=2)
        assert one.prompts.answer != "singled out" and one.prompts.share < 0.2
        assert two.prompts.answer == "singled out" and two.prompts.share > 0.8
        assert two.variance > one.variance

    @pytest.mark.parametrize("twins", [True, False])
    def test_what_must_not_matter(self, twins):
        design = design_of(40, twins=twins)
        x, r, root, rng = planted_base(design)
        t = x + rng.standard_normal(x.shape) * root + 0.5 * r
        one = meter(design, x, t)
        scaled = meter(design, 256 * x, 256 * t)
        moved = meter(design, x + 5, t + 5)
        for other in (scaled, moved):
            assert other.prompts.ratio.value == pytest.approx(one.prompts.ratio.value, rel=1e-4)
            assert other.means.ratio.upper == pytest.approx(one.means.ratio.upper, rel=1e-3)
        again = meter(design, x, t)
        assert again.to_dict() == one.to_dict()
        assert meter(design, x, t, seed=1).to_dict() != one.to_dict()


class TestNothingSingledOut:
    """Negative controls: whatever moves everything alike is found at the nominal rate."""

    @pytest.mark.parametrize(("axis", "twins"), [(0, True), (5, True), (5, False), (30, True)])
    def test_noise_with_the_covariance_of_base(self, axis, twins):
        """Whether base varies much or little along the refusal direction."""
        design = design_of(40, twins=twins)
        ratios, found = [], 0
        for seed in range(100):
            x, _, root, rng = planted_base(design, seed=seed, axis=axis)
            noise = 0.3 * rng.standard_normal(x.shape) * root
            row = meter(design, x, x + noise, draws=99, seed=seed)
            ratios.append(row.prompts.ratio.value)
            found += row.prompts.answer in ("singled out", "spared")
        reached = row.variance / row.variance_random
        assert np.exp(np.mean(np.log(ratios))) == pytest.approx(reached, rel=0.15)
        assert found <= 10

    def test_a_small_rotation_of_everything(self):
        design = design_of(40)
        logs, found, p = [], {"prompts": 0, "means": 0}, []
        for seed in range(200):
            x, _, _, rng = planted_base(design, seed=seed, axis=seed % 20)
            row = meter(design, x, x @ small_rotation(rng, D), draws=99, seed=seed)
            logs.append(row.prompts.ratio.value)
            p.append(row.prompts.p_value)
            for name in found:
                found[name] += getattr(row, name).answer in ("singled out", "spared")
        assert np.mean(logs) == pytest.approx(1, abs=0.25)
        assert max(found.values()) <= 20, found  # 10 expected at most
        assert 0.35 < np.mean(p) < 0.65

    def test_a_shift_of_all_prompts_at_random(self):
        design = design_of(40)
        p = []
        for seed in range(200):
            x, _, _, rng = planted_base(design, seed=seed, decay=0.0, axis=2)
            row = meter(design, x, x + rng.standard_normal(D), draws=99, seed=seed)
            p.append([row.prompts.p_value, row.means.p_value])
        p = np.array(p)
        assert np.all(np.mean(p <= 0.05, axis=0) <= 0.09)
        assert np.all(np.abs(p.mean(axis=0) - 0.5) < 0.08)

    def test_own_noise_of_few_prompts_in_many_dimensions(self):
        """Where a random direction fitted to the same prompts would hold a share of 1/n."""
        design = design_of(16)
        ratios = []
        for seed in range(30):
            x, _, _, rng = planted_base(design, seed=seed, decay=0.0, d=800)
            fresh = (
                3
                + rng.standard_normal(x.shape)
                + (design.labels - 0.5)[:, None] * 8 * (np.arange(800) == 0)
            )
            row = meter(design, x, fresh, draws=99)
            ratios.append(row.prompts.ratio.value)
            assert row.prompts.expected == pytest.approx(1 / 800, rel=0.1)
        assert np.mean(ratios) == pytest.approx(1, abs=0.15)

    def test_adjusted_over_layers(self):
        """The most extreme of 6 layers with random shifts is found at the nominal rate."""
        design = design_of(30)
        found = single = 0
        for seed in range(100):
            made = SelectivityMeter(design, draws=99, seed=seed)
            for layer in range(6):
                x, _, _, rng = planted_base(design, seed=100 * seed + layer, decay=0.0)
                site = Site(hook="resid_pre", layer=layer, position=-1)
                made.add(site, x, x + rng.standard_normal(D))
            rows = made.result().layers
            assert all(r.prompts.p_adjusted >= r.prompts.p_value for r in rows)
            single += min(r.prompts.p_value for r in rows) <= 0.05
            found += min(r.prompts.p_adjusted for r in rows) <= 0.05
        assert found <= 12 and single > 1.5 * found


class TestAgainstLoops:
    @pytest.mark.parametrize("twins", [True, False])
    def test_energies_and_intervals_prompt_by_prompt(self, twins):
        """Everything again from the definitions, with the same random vectors."""
        design = design_of(12, twins=twins, folds=4)
        x, _, root, rng = planted_base(design)
        t = x + 0.5 * rng.standard_normal(x.shape) * root + 0.3
        row = meter(design, x, t, draws=20, seed=3)
        labels, codes, n = design.labels, design.clusters.codes, design.clusters.n
        part = parts_of(labels, design.clusters, design.fold)
        k = part.max() + 1

        def r_of(p):
            out = part != p
            r = x[out & (labels == 1)].mean(axis=0) - x[out & (labels == 0)].mean(axis=0)
            return r / np.linalg.norm(r)

        refusal = np.array([[r_of(p)] for p in range(k)])
        centred = x - x.mean(axis=0)
        narrow = centred.astype(np.float32)
        mix = tilt(narrow, labels, part, row.variance)
        vectors = np.concatenate(
            list(draw_blocks(narrow, labels, part, mix, 20, group=1, seed=3)), axis=1
        ).astype(np.float64)
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)

        def energies(axes, keep):
            z = np.einsum("pd,pkd->pk", t - x, axes[part])
            means = np.zeros(z.shape[1])
            for y in (0, 1):
                pairs = [
                    (i, j)
                    for i in np.flatnonzero(keep & (labels == y))
                    for j in np.flatnonzero(keep & (labels == y))
                    if codes[i] != codes[j] and part[i] == part[j]
                ]
                i, j = np.array(pairs).T
                means += (z[i] * z[j]).mean(axis=0)
            return (z[keep] ** 2).sum(axis=0), means

        everything = np.ones(len(x), dtype=bool)
        own, random = energies(refusal, everything), energies(vectors, everything)
        for i, kept in enumerate((row.prompts, row.means)):
            left = []
            for c in range(n):
                one, many = (energies(a, codes != c)[i] for a in (refusal, vectors))
                left.append(one[0] / many.mean())
            expected = jackknife(
                float(own[i][0] / random[i].mean()), np.array(left), design.clusters, log=True
            )
            assert kept.ratio.value == pytest.approx(expected.value, rel=1e-4)
            assert kept.ratio.lower == pytest.approx(expected.lower, rel=1e-3)
            above = np.sum(random[i] >= own[i][0])
            below = np.sum(random[i] <= own[i][0])
            assert kept.p_value == pytest.approx(min(1, 2 * (1 + min(above, below)) / 21))
        assert row.prompts.share == pytest.approx(own[0][0] / np.sum((t - x) ** 2))

    def test_scores_along_orthonormal_axes(self):
        rng = np.random.default_rng(0)
        vectors, change = rng.standard_normal((6, 9)), rng.standard_normal((4, 9))
        got = orthonormal_scores(
            vectors.astype(np.float32), change @ vectors.astype(np.float32).T, 3
        )
        for group in range(2):
            axes = np.linalg.qr(vectors[3 * group : 3 * group + 3].T)[0]
            energy = np.sum(got[:, 3 * group : 3 * group + 3] ** 2, axis=1)
            np.testing.assert_allclose(energy, np.sum((change @ axes) ** 2, axis=1), rtol=1e-5)


class TestRandomSubspaces:
    def made(self, seed=0, wanted=0.1, rows=400):
        design = design_of(30)
        x, *_ = planted_base(design, seed=seed)
        x = (x - x.mean(axis=0)).astype(np.float32)
        part = parts_of(design.labels, design.clusters, design.fold)
        mix = tilt(x, design.labels, part, wanted)
        blocks = draw_blocks(x, design.labels, part, mix, rows, group=1, seed=1)
        return design, x, part, mix, np.concatenate(list(blocks), axis=1)

    @pytest.mark.parametrize("wanted", [0.03, 0.1, 0.2])
    def test_they_hold_the_variance_asked_for(self, wanted):
        design, x, part, mix, vectors = self.made(wanted=wanted, rows=3000)
        assert mix.variance == pytest.approx(wanted) and mix.identity > 0 < mix.covariance
        inside = total = 0.0
        for p in range(part.max() + 1):
            for y in (0, 1):
                rows = x[(part == p) & (design.labels == y)]
                rows = rows - rows.mean(axis=0)
                units = vectors[p] / np.linalg.norm(vectors[p], axis=1, keepdims=True)
                inside += np.mean(np.sum((units @ rows.T) ** 2, axis=1))
                total += np.sum(rows**2)
        assert inside / total == pytest.approx(wanted, rel=0.08)

    def test_what_is_out_of_reach_comes_as_near_as_it_can(self):
        *_, high, _ = self.made(wanted=0.9)
        *_, low, _ = self.made(wanted=0.0)
        assert low.covariance == 0 and low.variance == pytest.approx(1 / D, rel=0.1)
        assert 0.2 < high.variance < 0.9

    def test_a_part_makes_no_vector_that_measures_it(self):
        design, x, part, mix, vectors = self.made()
        other = x.copy()
        other[part == 1] = np.random.default_rng(5).standard_normal(other[part == 1].shape)
        blocks = draw_blocks(other, design.labels, part, mix, 400, group=1, seed=1)
        changed = np.concatenate(list(blocks), axis=1)
        np.testing.assert_allclose(changed[1], vectors[1], rtol=1e-3, atol=1e-4)
        assert not np.allclose(changed[0], vectors[0], rtol=1e-2)

    def test_they_ignore_the_class_means(self):
        design, x, part, mix, vectors = self.made()
        shifted = x + 5 * design.labels[:, None].astype(np.float32)
        blocks = draw_blocks(shifted, design.labels, part, mix, 400, group=1, seed=1)
        np.testing.assert_allclose(
            np.concatenate(list(blocks), axis=1), vectors, rtol=1e-3, atol=1e-4
        )

    def test_parts_hold_whole_intents_of_both_classes(self):
        design = design_of(9)
        part = parts_of(design.labels, design.clusters, design.fold)
        for p in range(part.max() + 1):
            assert len(set(design.clusters.codes[part == p])) >= 2
        assert all(len(set(part[design.clusters.codes == c])) == 1 for c in range(9))
        small = design_of(3, folds=3)
        assert parts_of(small.labels, small.clusters, small.fold) is None


class TestNothingToSay:
    def test_reasons(self):
        design = design_of(20)
        x, *_ = planted_base(design)
        made = SelectivityMeter(design, draws=19)
        made.add(SITE, x, x)
        made.add(SITE, np.ones_like(x), x)
        made.add(SITE, x, x + 1e-3 * np.random.default_rng(0).standard_normal(x.shape))
        result = made.result()
        same, silent, noise = result.layers
        assert same.prompts.answer == "unchanged" and "identical" in same.sentence
        assert "no signal" in silent.prompts.ratio.note and silent.prompts.p_value is None
        assert noise.prompts.ratio.value is not None
        assert "not larger than its noise" in noise.means.ratio.note
        json.dumps(result.to_dict(), allow_nan=False)
        assert "over 1 layers" in result.sentence

    def test_few_intents_and_no_spread(self):
        design = design_of(3, folds=3)
        x, *_ = planted_base(design)
        made = SelectivityMeter(design, draws=19)
        made.add(SITE, x, x + 1)
        assert "too few intents" in made.result().layers[0].sentence
        assert "cannot be told at any layer" in made.result().sentence
        design = design_of(20)
        flat = np.outer(design.labels, np.ones(4)) * 1.0
        row = meter(design, flat, flat + 1)
        assert "no spread" in row.prompts.ratio.note

    def test_more_dimensions_than_categories(self):
        design = design_of(20)
        with pytest.raises(DirectionError, match="more dimensions than categories"):
            SelectivityMeter(design, categories=["a", "b"] * 20, k=3)
