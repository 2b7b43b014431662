"""Is there drift at all: exact small cases, the rate under no change, planted changes."""

import json

import numpy as np
import pytest
from planted import design_of, site
from scipy import stats

from refusaldir.drift.contrasts import R_BASE, R_TUNED, Contrasts, Design
from refusaldir.drift.nulls.drift_test import SignFlipTest
from refusaldir.errors import RefusaldirError
from refusaldir.geometry import mean_products
from refusaldir.statistics import Clusters

CHANGE = R_TUNED - R_BASE


def models(design, rng, *, d=12, norm=4.0, change=0.0, noise=1.0, common=3.0, loud=1.0):
    """Base and tuned; r gains ``change`` along the second axis, all prompts ``common``."""
    y = design.labels[:, None]
    base = rng.standard_normal((len(y), d)) + norm * y * np.eye(d)[0]
    own = rng.standard_normal((len(y), d)) * np.where(y == 1, loud, 1.0)
    tuned = base + noise * own + common * np.eye(d)[2] + change * y * np.eye(d)[1]
    return base, tuned


def judged(design, layers, **options):
    test = SignFlipTest(design, **options)
    for layer, (base, tuned) in enumerate(layers):
        test.add(site(layer), base, tuned)
    return test.result()


def rate(design, repetitions, *, draws=199, layers=1, limits=None, **world):
    """Share of repetitions with p at most 0.05 at the first site, and over layers."""
    found = []
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        result = judged(
            design,
            [models(design, rng, **world) for _ in range(layers)],
            draws=draws,
            seed=seed,
            **(limits or {}),
        )
        found.append((result.by_layer[0].p_value, result.p_value))
    return np.mean(np.array(found) <= 0.05, axis=0)


class TestExact:
    def test_equals_exchanging_base_and_tuned_within_intents(self):
        design = design_of(7, matched=True)
        base, tuned = models(design, np.random.default_rng(0), change=1.5)
        result = judged(design, [(base, tuned)], draws=300, seed=5)
        signs = 2 * np.random.default_rng(5).integers(0, 2, size=(300, 7)) - 1

        def statistic(b, t):
            return Contrasts.of(design, b, t).products.inner(CHANGE, CHANGE).corrected

        observed = statistic(base, tuned)
        reached = 0
        for sign in signs:
            kept = (sign == 1)[design.clusters.codes][:, None]
            exchanged = np.where(kept, base, tuned), np.where(kept, tuned, base)
            reached += statistic(*exchanged) >= observed - 1e-9
        assert result.by_layer[0].p_value == (1 + reached) / 301

    def test_agrees_with_scipy_in_one_dimension(self):
        design = design_of(9, matched=True)
        base, tuned = (np.random.default_rng(seed).standard_normal((18, 1)) for seed in (3, 4))
        result = judged(design, [(base, tuned)], draws=20_000)
        gain = (tuned - base)[:, 0]
        difference = gain[design.labels == 1] - gain[design.labels == 0]
        both = stats.permutation_test(
            (difference, np.zeros(9)),
            lambda a, b, axis: np.abs(np.mean(a - b, axis=axis)),
            permutation_type="samples",
            alternative="greater",
            n_resamples=np.inf,
            vectorized=True,
        )
        assert result.p_value == pytest.approx(both.pvalue, abs=0.01)
        assert 0.005 < both.pvalue < 0.95

    def test_size_is_that_of_the_corrected_products(self):
        for matched in (True, False):
            design = design_of(10, matched)
            base, tuned = models(design, np.random.default_rng(1), change=3.0)
            products = Contrasts.of(design, base, tuned).products
            moved = products.inner(CHANGE, CHANGE).corrected
            length = products.inner(R_BASE, R_BASE).corrected
            size = judged(design, [(base, tuned)], draws=9).by_layer[0].size
            assert size == pytest.approx(np.sqrt(moved / length), rel=1e-9)

    def test_brute_force_products_of_unmatched_intents(self):
        """Products of s − m, m from all other intents and its square without own products."""
        y = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
        ids = [0, 0, 1, 2, 3, 4, 5, 5, 2]  # unequal sizes, and one intent of both classes
        clusters = Clusters.of(ids, y)
        design = Design(y, clusters, np.zeros(9, dtype=np.int64))
        rng = np.random.default_rng(2)
        base, tuned = models(design, rng, d=5)
        result = SignFlipTest(design, draws=50, seed=1)
        change = tuned - base
        change -= change.mean(axis=0)
        intents = result._intents
        cells = intents.gather(design.sums(change))
        ours = intents.products(cells @ cells.T)
        sums, counts = design.sums(change), design.counts[:2]
        totals = counts.sum(axis=1)
        expected = np.zeros((6, 6))
        for c in range(6):
            for k in range(6):
                if c == k:
                    continue
                others = [j for j in range(6) if j not in (c, k)]
                whole, n = sums.sum(axis=0)[others], counts.sum(axis=0)[others]
                mean = whole.sum(axis=0) / n.sum()
                pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
                square = sum(whole[i] @ whole[j] for i, j in pairs)
                square /= sum(n[i] * n[j] for i, j in pairs)
                for a in (0, 1):
                    for b in (0, 1):
                        weight = totals[a] * totals[b] - counts[a] @ counts[b]
                        product = (
                            sums[a, c] @ sums[b, k]
                            - counts[a, c] * (mean @ sums[b, k])
                            - counts[b, k] * (mean @ sums[a, c])
                            + counts[a, c] * counts[b, k] * square
                        )
                        expected[c, k] += (1 if a == b else -1) * product / weight
        np.testing.assert_allclose(ours, expected, atol=1e-12)
        raw = mean_products(np.concatenate([sums, sums]), np.concatenate([counts, counts]))
        assert intents.total(cells @ cells.T) == pytest.approx(
            raw.inner(R_BASE, R_BASE).corrected, rel=1e-9
        )


class TestNoChange:
    @pytest.mark.parametrize("matched", [True, False])
    @pytest.mark.parametrize("n", [8, 24])
    def test_found_at_the_nominal_rate(self, matched, n):
        alone, over = rate(design_of(n, matched), 250, draws=99, layers=3, loud=2.0)
        assert alone < 0.1 and over < 0.1  # 0.05 and 3.6 standard errors
        assert alone > 0.01

    def test_identical_activations(self):
        design = design_of(8, matched=True)
        base, _ = models(design, np.random.default_rng(0))
        result = judged(design, [(base, base), (base, base)], draws=99)
        assert result.p_value == 1 and result.layer is None and result.size is None
        assert [row.p_value for row in result.by_layer] == [1, 1]
        assert result.by_layer[0].size == 0

    @pytest.mark.parametrize("matched", [True, False])
    def test_one_shift_of_all_prompts_is_no_change(self, matched):
        design = design_of(8, matched)
        base, tuned = models(design, np.random.default_rng(0), noise=0, common=0)
        shift = np.random.default_rng(1).standard_normal(12)
        assert judged(design, [(base, tuned + shift)], draws=99).p_value == 1

    def test_a_layer_without_change_does_not_dilute_the_others(self):
        design = design_of(8, matched=True)
        base, tuned = models(design, np.random.default_rng(0))
        alone = judged(design, [(base, tuned)], draws=199)
        among = judged(design, [(base, base), (base, tuned), (base, base)], draws=199)
        assert among.p_value == alone.p_value == among.at(site(1)).p_value

    def test_many_dimensions_and_few_unmatched_intents_lose_no_sensitivity(self):
        """The null's spread is that of the statistic, not inflated by −tr(Σ)/n in each product."""
        design = design_of(10, matched=False)
        seen, spread = [], []
        for seed in range(300):
            base, tuned = models(design, np.random.default_rng(seed), d=300)
            change = tuned - base - (tuned - base).mean(axis=0)
            intents = SignFlipTest(design, draws=1)._intents
            cells = intents.gather(design.sums(change))
            gram = cells @ cells.T
            seen.append(intents.total(gram))
            spread.append(2 * np.sum(intents.products(gram) ** 2))
        assert np.sqrt(np.mean(spread)) == pytest.approx(np.std(seen), rel=0.15)


class TestChange:
    @pytest.mark.parametrize("matched", [True, False])
    def test_a_planted_change_is_found_where_it_is(self, matched):
        design = design_of(24, matched)
        rng = np.random.default_rng(0)
        layers = [models(design, rng, change=c) for c in (0.0, 0.0, 2.5)]
        result = judged(design, layers, draws=999)
        assert result.layer == 2 and result.p_value <= 0.005
        assert result.size == pytest.approx(2.5 / 4, abs=0.15)
        assert result.at(site(2)).p_value <= result.at(site(2)).adjusted
        assert result.at(site(0)).adjusted > 0.05

    def test_a_large_common_shift_hides_nothing_in_unmatched_intents(self):
        design = design_of(24, matched=False)
        alone, _ = rate(design, 60, change=1.2, common=0.0)
        shifted, _ = rate(design, 60, change=1.2, common=1000.0)
        assert alone > 0.6 and shifted == alone

    def test_it_is_not_found_when_labels_say_nothing(self):
        """A change of the harmful prompts, with labels that are not theirs."""
        design = design_of(24, matched=False)
        base, tuned = models(design, np.random.default_rng(0), change=2.5)
        order = np.random.default_rng(1).permutation(24)
        halves = np.r_[order[:12], 24 + order[:12], order[12:], 24 + order[12:]]
        interleaved = np.argsort(np.argsort(np.r_[np.arange(0, 48, 2), np.arange(1, 48, 2)]))
        by_class = np.r_[np.arange(0, 48, 2), np.arange(1, 48, 2)][halves][interleaved]
        mixed = judged(design, [(base[by_class], tuned[by_class])], draws=999)
        assert judged(design, [(base, tuned)], draws=999).p_value <= 0.002
        assert mixed.p_value > 0.1

    def test_orthogonal_maps_and_the_order_of_prompts_do_not_matter(self):
        design = design_of(12, matched=False)
        base, tuned = models(design, np.random.default_rng(0), change=1.0)
        q = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))[0]
        order = np.random.default_rng(2).permutation(24)
        ids = [design.clusters.names[c] for c in design.clusters.codes[order]]
        other = Design(
            design.labels[order],
            Clusters.of(ids, design.labels[order]),
            np.zeros(24, dtype=np.int64),
        )
        one = judged(design, [(base, tuned)], draws=499)
        two = judged(other, [(base[order] @ q, tuned[order] @ q)], draws=499)
        assert one.p_value == two.p_value
        assert one.size == pytest.approx(two.size)

    def test_one_seed_one_answer(self):
        design = design_of(12, matched=True)
        layers = [models(design, np.random.default_rng(0), change=0.7)]
        assert judged(design, layers, seed=4) == judged(design, layers, seed=4)
        assert judged(design, layers, seed=4) != judged(design, layers, seed=5)


class TestFloor:
    @pytest.mark.parametrize("matched", [True, False])
    def test_a_change_counts_only_beyond_the_floor(self, matched):
        design = design_of(60, matched)
        layers = [models(design, np.random.default_rng(0), change=1.6, noise=0.5)]
        below, above = (judged(design, layers, floor=f).p_value for f in (0.6, 0.2))
        assert below > 0.5 and above < 0.005

    @pytest.mark.parametrize("matched", [True, False])
    def test_at_the_floor_it_is_found_at_most_at_the_nominal_rate(self, matched):
        design = design_of(32, matched)
        at, _ = rate(design, 250, change=2.0, noise=0.5, limits={"floor": 0.5})
        beyond, _ = rate(design, 100, change=3.2, noise=0.5, limits={"floor": 0.5})
        assert at < 0.1
        assert beyond > 0.8

    def test_rounding_is_a_share_of_the_activations(self):
        """A change of 1 is a quarter of r, and a hundredth of the activations."""
        design = design_of(40, matched=True)
        base, tuned = models(design, np.random.default_rng(0), change=1.0, noise=0.1)
        base[:, 5] += 100
        tuned[:, 5] += 100
        p = [judged(design, [(base, tuned)], rounding=x).p_value for x in (0.005, 0.02)]
        assert p[0] < 0.005 and p[1] > 0.5

    def test_without_a_direction_in_base_there_is_no_size(self):
        design = design_of(8, matched=True)
        rng = np.random.default_rng(1)
        tuned = rng.standard_normal((16, 6))
        result = judged(design, [(np.zeros((16, 6)), tuned)], draws=99, floor=0.1)
        assert result.by_layer[0].size is None
        assert 0 < result.p_value <= 1


class TestContract:
    def test_json(self):
        design = design_of(6, matched=True)
        layers = [models(design, np.random.default_rng(0)) for _ in range(2)]
        data = json.loads(json.dumps(judged(design, layers, draws=50).to_dict(), allow_nan=False))
        assert data["n"] == 6 and data["draws"] == 50
        assert {"site", "size", "p_value", "adjusted"} == set(data["by_layer"][0])

    @pytest.mark.parametrize("options", [{"floor": -0.1}, {"rounding": float("nan")}, {"draws": 0}])
    def test_what_cannot_be_tested_is_refused(self, options):
        with pytest.raises(RefusaldirError, match="cannot be made"):
            SignFlipTest(design_of(8, matched=True), **options)

    def test_too_few_intents_no_sites_and_an_unknown_site(self):
        with pytest.raises(RefusaldirError, match="3 intents"):
            SignFlipTest(design_of(3, matched=True))
        design = design_of(8, matched=True)
        with pytest.raises(RefusaldirError, match="at least one site"):
            SignFlipTest(design).result()
        result = judged(design, [models(design, np.random.default_rng(0))], draws=9)
        with pytest.raises(KeyError):
            result.at(site(7))
