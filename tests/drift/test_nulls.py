"""Rulers for drift: brute force over draws, known worlds, what must not be found."""

import json

import numpy as np
import pytest
from planted import design_of, site

from refusaldir.drift.contrasts import R_BASE, R_TUNED, Contrasts, Design
from refusaldir.drift.nulls.draws import exchanged_labels, halves
from refusaldir.drift.nulls.nulls import Nulls
from refusaldir.drift.nulls.rulers import METHODS, QUANTILES
from refusaldir.errors import RefusaldirError
from refusaldir.geometry import cosine
from refusaldir.records import HARMFUL, HARMLESS
from refusaldir.statistics import Clusters

NO_SHIFT = {HARMFUL: 0.0, HARMLESS: 0.0}


def models(design, rng, *, d=10, norm=4.0, shared=0.9, degrees=0.0):
    """Base and tuned with a planted direction; ``shared`` is the correlation of their noise."""
    y = design.labels[:, None]
    axes = np.eye(d)
    both, one, two = rng.standard_normal((3, len(y), d))
    angle = np.radians(degrees)
    base = np.sqrt(shared) * both + np.sqrt(1 - shared) * one + norm * y * axes[0]
    turned = np.cos(angle) * axes[0] + np.sin(angle) * axes[1]
    tuned = np.sqrt(shared) * both + np.sqrt(1 - shared) * two + norm * y * turned
    return base + 5, tuned + 5


def measured(design, layers, *, translation=NO_SHIFT, **options):
    nulls = Nulls(design, **options)
    for layer, (base, tuned) in enumerate(layers):
        nulls.add(site(layer), base, tuned, translation=translation)
    return nulls.result()


def contrast(x, first, second):
    return x[first].mean(axis=0) - x[second].mean(axis=0)


def quantiles(values):
    return pytest.approx(np.quantile(values, QUANTILES), rel=1e-8, abs=1e-10)


def shown(ruler):
    assert [p for p, _ in ruler.quantiles] == list(QUANTILES)
    return [value for _, value in ruler.quantiles]


@pytest.fixture(params=[True, False], ids=["twins", "one class each"])
def design(request):
    return design_of(12, request.param)


class TestBruteForce:
    """Every draw again, from the activations themselves."""

    def test_labels_exchanged(self, design):
        base, tuned = models(design, np.random.default_rng(0))
        rulers = measured(design, [(base, tuned)], draws=40, seed=3).layers[0].rulers
        drawn = exchanged_labels(design.labels, design.clusters, draws=40, seed=3)
        cosines, squares = [], []
        for row in drawn == 1:
            cosines.append(cosine(contrast(base, row, ~row), contrast(tuned, row, ~row)))
            other = Design(row.astype(np.int64), design.clusters, design.fold)
            products = Contrasts.of(other, base, tuned).products
            squares.append([products.inner(r, r).corrected for r in (R_BASE, R_TUNED)])
        assert shown(rulers["exchanged_cosine"]) == quantiles(cosines)
        for name, square in zip(("base", "tuned"), np.array(squares).T, strict=True):
            roots = np.sign(square) * np.sqrt(np.abs(square))
            assert shown(rulers[f"exchanged_norm_{name}"]) == quantiles(roots)

    def test_halves(self, design):
        base, tuned = models(design, np.random.default_rng(0))
        rulers = measured(design, [(base, tuned)], draws=40, seed=3).layers[0].rulers
        raw, corrected = [], []
        y = design.labels == 1
        for row in halves(design.clusters, draws=40, seed=4) == 1:
            r = [contrast(base, half & y, half & ~y) for half in (row, ~row)]
            raw.append(cosine(*r))
            squares = []
            for half in (row, ~row):
                clusters = Clusters.of(design.clusters.codes[half].tolist(), design.labels[half])
                part = Design(design.labels[half], clusters, np.zeros(half.sum(), dtype=np.int64))
                products = Contrasts.of(part, base[half], base[half]).products
                squares.append(products.inner(R_BASE, R_BASE).corrected)
            corrected.append(r[0] @ r[1] / np.sqrt(squares[0] * squares[1]))
        assert shown(rulers["halves_cosine_raw"]) == quantiles(raw)
        assert shown(rulers["halves_cosine"]) == quantiles(corrected)

    def test_shifts_along_random_directions(self, design):
        base, tuned = models(design, np.random.default_rng(0))
        rulers = measured(design, [(base, tuned)], draws=40, seed=3).layers[0].rulers
        within = base.copy()
        for k in (0, 1):
            within[design.labels == k] -= base[design.labels == k].mean(axis=0)
        weights = np.random.default_rng(5).standard_normal((40, len(base)))
        shifts = []
        for g in weights:
            v = g @ within
            sd = np.sqrt(np.sum((within @ v) ** 2) / (len(base) - 2))
            shifts.append(
                [abs((tuned - base)[design.labels == k].mean(axis=0) @ v) / sd for k in (0, 1)]
            )
        shifts = np.array(shifts)
        assert shown(rulers["random_shift_harmless"]) == quantiles(shifts[:, 0])
        assert shown(rulers["random_shift_harmful"]) == quantiles(shifts[:, 1])

    def test_what_was_observed_is_what_the_contrasts_say(self, design):
        base, tuned = models(design, np.random.default_rng(0), degrees=30)
        translation = {HARMFUL: -0.4, HARMLESS: 0.2}
        rulers = (
            measured(design, [(base, tuned)], draws=5, translation=translation).layers[0].rulers
        )
        c = Contrasts.of(design, base, tuned)
        raw = c.cross.raw / np.sqrt(c.base.raw * c.tuned.raw)
        corrected = c.cross.corrected / np.sqrt(c.base.corrected * c.tuned.corrected)
        observed = {name: ruler.observed for name, ruler in rulers.items()}
        assert observed == pytest.approx(
            {
                "exchanged_cosine": raw,
                "halves_cosine_raw": raw,
                "halves_cosine": corrected,
                "exchanged_norm_base": np.sqrt(c.base.corrected),
                "exchanged_norm_tuned": np.sqrt(c.tuned.corrected),
                "random_shift_harmful": 0.4,
                "random_shift_harmless": 0.2,
            }
        )


class TestDraws:
    def test_labels_stay_in_their_intents(self):
        ids = [0, 0, 0, 1, 1, 2, 3, 4, 5]
        y = np.array([0, 1, 1, 0, 1, 0, 1, 0, 1])
        clusters = Clusters.of(ids, y)
        drawn = exchanged_labels(y, clusters, draws=500, seed=0)
        assert np.all(drawn.sum(axis=1) == y.sum())
        assert np.all(drawn[:, :3].sum(axis=1) == 2) and np.all(drawn[:, 3:5].sum(axis=1) == 1)
        np.testing.assert_allclose(drawn.mean(axis=0), [2 / 3] * 3 + [1 / 2] * 6, atol=0.08)

    def test_halves_keep_intents_whole_and_classes_balanced(self):
        for matched in (True, False):
            design = design_of(6, matched)
            first = halves(design.clusters, draws=200, seed=0)
            assert np.all(first @ design.labels == 3) and np.all(first.sum(axis=1) == 6)
            for c in range(design.clusters.n):
                members = first[:, design.clusters.codes == c]
                assert np.all(members == members[:, :1])
            np.testing.assert_allclose(first.mean(axis=0), 0.5, atol=0.15)


class TestWorlds:
    def test_shared_prompts_alone_make_directions_agree(self):
        design = design_of(40, matched=True)
        median = {}
        for shared in (0.0, 0.95):
            layers = [models(design, np.random.default_rng(1), norm=0.0, shared=shared)]
            ruler = measured(design, layers, draws=300).layers[0].rulers["exchanged_cosine"]
            median[shared] = dict(ruler.quantiles)[0.5]
        assert abs(median[0.0]) < 0.15 and median[0.95] > 0.9

    def test_a_direction_is_told_from_none(self):
        design = design_of(24, matched=True)
        layers = [models(design, np.random.default_rng(0), norm=n) for n in (0.0, 2.0)]
        none, some = (row.rulers["exchanged_norm_base"] for row in measured(design, layers).layers)
        assert some.p_value == some.adjusted == 1 / 2001
        assert none.p_value > 0.05 and none.adjusted >= none.p_value

    def test_without_a_direction_the_p_value_holds_its_rate(self, design):
        p = []
        for seed in range(200):
            layers = [models(design, np.random.default_rng(seed), norm=0.0)]
            result = measured(design, layers, draws=59, seed=seed)
            p.append(result.layers[0].rulers["exchanged_norm_base"].p_value)
        assert 0.005 < np.mean(np.array(p) <= 0.05) < 0.106  # 3.6 standard errors

    def test_halves_of_a_strong_direction_agree_once_corrected(self):
        design = design_of(40, matched=False)
        layers = [models(design, np.random.default_rng(0), norm=3.0, d=60)]
        rulers = measured(design, layers, draws=300).layers[0].rulers
        raw, corrected = (
            dict(rulers[n].quantiles)[0.5] for n in ("halves_cosine_raw", "halves_cosine")
        )
        assert raw < 0.8 and corrected == pytest.approx(1, abs=0.08)

    def test_a_shift_along_the_direction_stands_out_of_random_ones(self):
        design = design_of(40, matched=True)
        base, tuned = models(design, np.random.default_rng(0), shared=0.99)
        tuned[design.labels == 1, 0] -= 2.0
        result = measured(
            design, [(base, tuned)], translation={HARMFUL: -2.0, HARMLESS: 0.01}, draws=999
        )
        rulers = result.layers[0].rulers
        assert rulers["random_shift_harmful"].p_value < 0.05
        assert rulers["random_shift_harmless"].p_value > 0.3
        # A random direction has a part along it too, and shows less.
        assert dict(rulers["random_shift_harmful"].quantiles)[0.5] < 1.2

    def test_over_layers_each_draw_takes_its_own_extreme(self):
        design = design_of(16, matched=True)
        rng = np.random.default_rng(0)
        layers = [models(design, rng) for _ in range(6)]
        result = measured(design, layers, draws=400, translation={HARMFUL: 0.1, HARMLESS: 0.1})
        by_layer = [dict(r.rulers["random_shift_harmful"].quantiles)[0.95] for r in result.layers]
        over = result.over_layers["random_shift_harmful"]
        assert dict(over.quantiles)[0.95] > max(by_layer)
        lowest = [dict(r.rulers["halves_cosine_raw"].quantiles)[0.05] for r in result.layers]
        over = result.over_layers["halves_cosine_raw"]
        assert dict(over.quantiles)[0.05] <= min(lowest)
        assert over.observed == min(r.rulers["halves_cosine_raw"].observed for r in result.layers)
        assert all(
            r.rulers[n].adjusted >= r.rulers[n].p_value
            for r in result.layers
            for n in ("exchanged_norm_base", "random_shift_harmful")
        )
        assert not any(name.startswith("exchanged_norm") for name in result.over_layers)


class TestLength:
    def world(self, degrees):
        """Long prompts lie along the fourth axis in base and ``degrees`` off it in tuned."""
        design = design_of(60, matched=True)
        rng = np.random.default_rng(0)
        base, tuned = models(design, rng)
        lengths = rng.integers(10, 60, size=120)
        long = np.zeros(120)
        for k in (0, 1):
            here = design.labels == k
            long[here] = lengths[here] > np.median(lengths[here])
        angle, axes = np.radians(degrees), np.eye(10)
        base += 3 * long[:, None] * axes[3]
        turned = np.cos(angle) * axes[3] + np.sin(angle) * axes[4]
        tuned += 1.5 * long[:, None] * turned
        return measured(design, [(base, tuned)], lengths=lengths, draws=5).layers[0].length

    @pytest.mark.parametrize("degrees", [0, 50])
    def test_planted_drift(self, degrees):
        ruler = self.world(degrees)
        cos = ruler.cosine
        assert cos.value == pytest.approx(np.cos(np.radians(degrees)), abs=0.08)
        assert cos.lower < np.cos(np.radians(degrees)) <= cos.upper + 1e-9
        assert ruler.shrinkage.lower < 0.5 < ruler.shrinkage.upper

    def test_absent_where_lengths_are_not_given_or_alike(self):
        design = design_of(8, matched=True)
        layers = [models(design, np.random.default_rng(0))]
        assert measured(design, layers, draws=5).layers[0].length is None
        alike = measured(design, layers, draws=5, lengths=np.full(16, 9)).layers[0].length
        assert alike is None

    def test_not_estimable_where_long_prompts_are_like_short_ones(self):
        design = design_of(8, matched=True)
        base = np.zeros((16, 4))
        base[design.labels == 1] = 1
        rulers = measured(design, [(base, base)], draws=5, lengths=np.arange(16))
        assert rulers.layers[0].length.cosine.value is None


class TestContract:
    def test_a_layer_without_signal_says_so_and_the_others_stand(self):
        design = design_of(8, matched=True)
        flat = np.ones((16, 10))
        layers = [(flat, flat), models(design, np.random.default_rng(0))]
        result = measured(design, layers, draws=50, lengths=np.arange(16))
        alone = measured(design, layers[1:], draws=50, lengths=np.arange(16))
        empty = result.layers[0].rulers["exchanged_cosine"]
        assert empty.observed is None and empty.draws == 0 and "no signal" in empty.note
        assert result.layers[1].rulers == alone.layers[0].rulers
        assert result.over_layers == alone.over_layers
        data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert set(data["layers"][1]["rulers"]) == set(METHODS)

    def test_nothing_but_layers_without_signal(self):
        design = design_of(8, matched=True)
        flat = np.ones((16, 10))
        result = measured(design, [(flat, flat)], draws=20)
        assert result.over_layers["exchanged_cosine"].observed is None
        json.dumps(result.to_dict(), allow_nan=False)

    def test_a_translation_that_is_not_estimable(self):
        design = design_of(8, matched=True)
        layers = [models(design, np.random.default_rng(0))]
        result = measured(design, layers, draws=20, translation={HARMFUL: None, HARMLESS: 0.1})
        ruler = result.layers[0].rulers["random_shift_harmful"]
        assert ruler.observed is None and ruler.p_value is None and ruler.note

    def test_one_seed_one_answer(self):
        design = design_of(8, matched=True)
        layers = [models(design, np.random.default_rng(0))]
        one, two, other = (measured(design, layers, draws=50, seed=s) for s in (1, 1, 2))
        assert one == two != other

    def test_what_cannot_be_drawn_is_refused(self):
        design = design_of(8, matched=True)
        with pytest.raises(RefusaldirError, match="0 draws"):
            Nulls(design, draws=0)
        with pytest.raises(RefusaldirError, match="3 token counts"):
            Nulls(design, lengths=np.arange(3))
        with pytest.raises(RefusaldirError, match="at least one site"):
            Nulls(design, draws=5).result()
