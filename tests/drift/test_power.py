"""Planning: noise from a pilot, power as predicted and as simulated, what would have been seen."""

import json
from dataclasses import replace

import numpy as np
import pytest

from refusaldir.drift.contrasts import Contrasts, Design
from refusaldir.drift.floors import FLOOR_COSINE, FLOOR_NORM, FLOOR_SD
from refusaldir.drift.power.detectable import minimum_detectable
from refusaldir.drift.power.noise import Noise, assume_noise, measure_noise
from refusaldir.drift.power.power import Power, fewest
from refusaldir.drift.power.shift_noise import ShiftNoise, Spread
from refusaldir.drift.rotation import rotation, shrinkage
from refusaldir.drift.translation import translation
from refusaldir.errors import DirectionError, RefusaldirError
from refusaldir.records import HARMFUL, HARMLESS
from refusaldir.statistics import Clusters

D = 40


def design_of(pairs, twins):
    """A harmful and a harmless prompt a pair; one intent with twins, else two."""
    labels = np.tile([HARMFUL, HARMLESS], pairs)
    ids = np.repeat(np.arange(pairs), 2) if twins else np.arange(2 * pairs)
    clusters = Clusters.of(ids.tolist(), labels)
    return Design(labels, clusters, np.zeros(2 * pairs, dtype=np.int64))


class World:
    """Prompts with a direction of known norm and noise of known spectrum."""

    def __init__(self, *, norm=5.0, shared=0.8, topic=0.0, flat=False, seed=0):
        self.norm, self.shared, self.topic = norm, shared, topic
        self.sd = np.ones(D) if flat else 3 / np.sqrt(np.arange(1, D + 1))
        self.sd[0] = 1.0  # along the direction
        self.rng = np.random.default_rng(seed)

    def noise(self, n):
        common, *own = self.rng.standard_normal((3, n, D)) * self.sd
        return [np.sqrt(self.shared) * common + np.sqrt(1 - self.shared) * x for x in own]

    def draw(self, design, *, degrees=0.0, norm=0.0, shift=0.0):
        """Base and tuned: rotated to where noise is, shrunk, harmful prompts shifted.

        Of random sign, the noise along the turn is what `Power` takes it to be.
        """
        turn = self.rng.choice([-1.0, 1.0], D) * self.sd
        turn[0] = 0
        turn /= np.linalg.norm(turn)
        along = np.eye(D)[0]
        angle = np.radians(degrees)
        y = design.labels[:, None]
        b, t = self.noise(len(y))
        topics = self.topic * np.stack(self.noise(design.clusters.n))
        b, t = (x + z[design.clusters.codes] for x, z in zip((b, t), topics, strict=True))
        tuned = (1 - norm) * self.norm * (np.cos(angle) * along + np.sin(angle) * turn)
        base = (y - 0.5) * self.norm * along + b
        return base, (y - 0.5) * tuned + t + shift * y * along

    def contrasts(self, design, **change):
        base, tuned = self.draw(design, **change)
        return Contrasts.of(design, base, tuned), base


class TestNoise:
    @pytest.mark.parametrize("twins", [True, False])
    def test_known_noise_of_two_captures(self, twins):
        world, design = World(topic=1.0 if twins else 0.0), design_of(1000, twins)
        contrasts, base = world.contrasts(design)
        found = measure_noise(contrasts, base)
        # What twins have in common drops out of the direction. With an intent a prompt there
        # are twice as many intents, and as much noise per prompt.
        n_intents = 1 if twins else 2
        variance = 2 * n_intents * world.sd**2 / world.norm**2
        assert found.n == design.clusters.n
        assert found.strata == n_intents
        assert found.prompts == 2 / n_intents
        assert found.ratio == pytest.approx(variance.sum(), rel=0.05)
        dimension = variance.sum() ** 2 / np.sum(variance**2)
        assert found.dimension == pytest.approx(dimension, rel=0.1)
        assert found.dimension_apart == pytest.approx(dimension, rel=0.1)
        assert found.shared == pytest.approx(0.8, abs=0.01)
        assert found.along == pytest.approx(variance[0], rel=0.1)
        assert found.norm.first == pytest.approx(2 * 0.2 * variance[0], rel=0.15)
        # SDs include the topics', and so do shifts: a topic moves the class means of either.
        assert found.shift.harmful.first == pytest.approx(2 * 0.2 * n_intents, rel=0.15)
        assert found.shift.harmless.first == pytest.approx(2 * 0.2 * n_intents, rel=0.15)

    @pytest.mark.parametrize("twins", [True, False])
    def test_one_capture_and_the_true_share_say_what_two_captures_say(self, twins):
        world, design = World(norm=4.0), design_of(800, twins)
        contrasts, base = world.contrasts(design)
        two = measure_noise(contrasts, base)
        one = assume_noise(Contrasts.of(design, base, base), base, shared=0.8)
        assert not one.measured and two.measured
        for name in ("ratio", "dimension", "dimension_apart", "along"):
            assert getattr(one, name) == pytest.approx(getattr(two, name), rel=0.1), name
        for n in (16, 64, 512):
            pairs = [(one.norm, two.norm)] + [
                (one.shift.of(label), two.shift.of(label)) for label in (HARMFUL, HARMLESS)
            ]
            for mine, theirs in pairs:
                assert mine.variance(n) == pytest.approx(theirs.variance(n), rel=0.25)
        assert one.shift.unit == pytest.approx(two.shift.unit, rel=1e-9)

    def test_the_share_matters(self):
        """Negative control: half of the noise in common is not nine tenths."""
        world, design = World(), design_of(60, True)
        base, _ = world.draw(design)
        own = Contrasts.of(design, base, base)
        least = [
            Power(noise=assume_noise(own, base, shared=s)).least_rotation(60)
            for s in (0.9, 0.5, 0.0)
        ]
        assert least[0] < 0.7 * least[1] < 0.7 * least[2] / 1.1

    def test_scale_and_rotation_of_the_space_change_nothing(self):
        world, design = World(), design_of(40, True)
        base, tuned = world.draw(design)
        turn = np.linalg.qr(np.random.default_rng(5).standard_normal((D, D)))[0]
        one = measure_noise(Contrasts.of(design, base, tuned), base)
        x, y = 7 * base @ turn, 7 * tuned @ turn
        other = measure_noise(Contrasts.of(design, x, y), x)
        for name in ("ratio", "dimension", "shared", "dimension_apart", "along"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-3), name

    def test_refusals(self):
        world, design = World(norm=0.0), design_of(20, True)
        contrasts, base = world.contrasts(design)
        with pytest.raises(DirectionError, match="not clearly longer than its noise"):
            measure_noise(contrasts, base)
        world = World()
        base, _ = world.draw(design)
        same = Contrasts.of(design, base, base)
        with pytest.raises(DirectionError, match="the same activations"):
            measure_noise(same, base)
        with pytest.raises(DirectionError, match="between 0 and 1"):
            assume_noise(same, base, shared=1.0)

    def test_to_dict_is_json(self):
        world, design = World(), design_of(20, True)
        contrasts, base = world.contrasts(design)
        found = measure_noise(contrasts, base)
        again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert again["shift"]["harmful"]["first"] == found.shift.harmful.first


NOISE = Noise(
    n=100,
    prompts=2.0,
    strata=1,
    ratio=2.0,
    dimension=20.0,
    shared=0.8,
    dimension_apart=20.0,
    along=0.1,
    norm=Spread(first=0.04, second=0.07),
    shift=ShiftNoise(
        harmful=Spread(first=0.4, second=0.2), harmless=Spread(first=0.6, second=0.2), unit=0.4
    ),
    measured=True,
)


class TestPower:
    p = Power(noise=NOISE)

    def test_no_change_is_seen_no_more_often_than_the_level_says(self):
        for n in (16, 64, 512):
            assert self.p.rotation(0.0, n) < 0.025
            assert self.p.norm(0.0, n) < 0.026
            assert self.p.translation(0.0, n, HARMFUL) < 0.026

    def test_least_is_where_the_power_is(self):
        for n in (16, 64, 512):
            assert self.p.rotation(self.p.least_rotation(n), n) == pytest.approx(0.8, abs=1e-3)
            assert self.p.norm(self.p.least_norm(n), n) == pytest.approx(0.8, abs=1e-3)
            for label in (HARMFUL, HARMLESS):
                least = self.p.least_translation(n, label)
                assert self.p.translation(least, n, label) == pytest.approx(0.8, abs=1e-3)

    def test_needed_is_the_inverse_of_least(self):
        n = self.p.needed(lambda n: self.p.rotation(5.0, n))
        assert self.p.least_rotation(n) <= 5.0 < self.p.least_rotation(n - 1)

    def test_more_prompts_a_lower_level_and_less_noise_help(self):
        sizes = [self.p.least_rotation(n) for n in (16, 32, 64, 128, 256, 512)]
        assert sizes == sorted(sizes, reverse=True)
        at = self.p.least_rotation(64)
        assert Power(noise=NOISE, level=0.9).least_rotation(64) < at
        assert Power(noise=NOISE, power=0.9).least_rotation(64) > at
        assert Power(noise=replace(NOISE, ratio=1.0)).least_rotation(64) < at
        assert Power(noise=replace(NOISE, shared=0.95)).least_rotation(64) < at

    def test_rates(self):
        """All go as 1/√n from their floors, rotations by either part of their variance."""
        for least, floor in (
            (self.p.least_rotation, 0.0),
            (self.p.least_norm, FLOOR_NORM),
            (lambda n: self.p.least_translation(n, HARMFUL), FLOOR_SD),
        ):
            few, many = (least(n) - floor for n in (200, 800))
            assert few / many == pytest.approx(2.0, rel=0.05)

    def test_textbook_power_where_there_is_no_second_order(self):
        """Independent path: statsmodels' power of a one-sample z test, at large n."""
        from statsmodels.stats.power import normal_power

        noise = replace(NOISE, norm=Spread(first=0.04, second=0.0), ratio=1e-6, along=1e-9)
        ours = Power(noise=noise).norm(0.02, 900)
        effect = (-np.log1p(-0.02) - FLOOR_NORM) / np.sqrt(0.04)
        assert ours == pytest.approx(normal_power(effect, 900, 0.05), abs=0.003)

    def test_too_much_noise_sees_nothing(self):
        noisy = Power(noise=replace(NOISE, ratio=500.0, along=10.0))
        assert noisy.least_rotation(16) is None
        assert noisy.needed(lambda n: noisy.rotation(1e-3, n)) is None

    def test_models_that_hardly_differ_meet_the_floor(self):
        calm = Power(noise=replace(NOISE, shared=1 - 1e-12))
        assert calm.least_rotation(512) == pytest.approx(
            np.degrees(np.arccos(1 - FLOOR_COSINE)), rel=0.05
        )

    def test_fewest(self):
        assert fewest(lambda n: float(n >= 37), 0.8, 4) == 37
        assert fewest(lambda n: 1.0, 0.8, 4) == 4
        assert fewest(lambda n: 0.0, 0.8, 4) is None

    @pytest.mark.parametrize("change", [{"power": 1.0}, {"level": 0.0}])
    def test_refusals(self, change):
        with pytest.raises(RefusaldirError, match="between 0 and 1"):
            Power(noise=NOISE, **change)


def rates(world, design, power, shares, repetitions):
    """Predicted and simulated chances at shares of the least changes: rotation, norm, shift."""
    n = design.clusters.n
    least = (power.least_rotation(n), power.least_norm(n), power.least_translation(n, HARMFUL))
    rows = []
    for share in shares:
        turn, shrink, shift = (share * x for x in least)
        seen = np.zeros(3)
        for _ in range(repetitions):
            contrasts, _ = world.contrasts(design, degrees=turn)
            e, _ = rotation(contrasts, level=power.level)
            seen[0] += e.upper is not None and e.upper < 1 - FLOOR_COSINE
            contrasts, _ = world.contrasts(design, norm=shrink)
            e = shrinkage(contrasts, level=power.level)
            seen[1] += e.upper is not None and e.upper < 1 - FLOOR_NORM
            contrasts, base = world.contrasts(design, shift=shift * world.sd[0])
            e = translation(design, contrasts, base, level=power.level).harmful
            seen[2] += e.lower is not None and e.lower > FLOOR_SD
        predicted = (
            power.rotation(turn, n),
            power.norm(shrink, n),
            power.translation(shift, n, HARMFUL),
        )
        rows.append((predicted, seen / repetitions))
    return rows


@pytest.mark.parametrize("twins", [True, False])
def test_predicted_power_is_what_the_intervals_have(twins):
    """Against `rotation`, `shrinkage` and `translation` themselves, at no change and at 80 %."""
    world = World(seed=3)
    pilot, base = world.contrasts(design_of(700, twins))
    power = Power(noise=measure_noise(pilot, base))
    nothing, there = rates(world, design_of(32, twins), power, (0.0, 1.0), 200)
    assert np.all(nothing[1] <= 0.07), nothing
    np.testing.assert_allclose(there[1], there[0], atol=0.12)
    np.testing.assert_allclose(there[0], 0.8, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pairs", "twins", "world"),
    [
        (24, True, {"norm": 6.0, "shared": 0.9}),
        (64, True, {"norm": 5.0, "shared": 0.8}),
        (48, True, {"norm": 6.0, "shared": 0.8, "flat": True}),
        (32, False, {"norm": 8.0, "shared": 0.5}),
        (64, False, {"norm": 6.0, "shared": 0.0, "flat": True}),
        (128, True, {"norm": 3.0, "shared": 0.9}),
    ],
)
def test_predicted_power_over_a_range_of_designs(pairs, twins, world):
    world = World(seed=4, **world)
    pilot, base = world.contrasts(design_of(1500, twins))
    power = Power(noise=measure_noise(pilot, base))
    for predicted, seen in rates(world, design_of(pairs, twins), power, (0.5, 0.75, 1, 1.3), 400):
        np.testing.assert_allclose(seen, predicted, atol=0.12)


class TestMinimumDetectable:
    @pytest.mark.parametrize("twins", [True, False])
    def test_of_a_comparison_is_near_that_of_the_truth(self, twins):
        world, design = World(seed=6), design_of(64, twins)
        pilot, base = world.contrasts(design_of(700, twins))
        truth = Power(noise=measure_noise(pilot, base))
        contrasts, base = world.contrasts(design)
        found = minimum_detectable(contrasts, base)
        n = design.clusters.n
        assert found.n == n
        assert found.rotation == pytest.approx(truth.least_rotation(n), rel=0.2)
        assert found.norm == pytest.approx(truth.least_norm(n), rel=0.3)
        for value, label in (
            (found.translation_harmful, HARMFUL),
            (found.translation_harmless, HARMLESS),
        ):
            assert value == pytest.approx(truth.least_translation(n, label), rel=0.25)
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["n"] == n
        assert "80 % power" in found.sentence and "°" in found.sentence

    def test_does_not_depend_on_what_was_found(self):
        """A rotation that is there does not change what would have been seen."""
        world, design = World(seed=7), design_of(200, True)
        least = []
        for degrees in (0.0, 20.0):
            contrasts, base = world.contrasts(design, degrees=degrees)
            least.append(minimum_detectable(contrasts, base).rotation)
        assert least[0] == pytest.approx(least[1], rel=0.15)

    def test_a_higher_level_asks_for_more(self):
        world, design = World(seed=8), design_of(40, True)
        contrasts, base = world.contrasts(design)
        low, high = (minimum_detectable(contrasts, base, level=x) for x in (0.9, 0.99))
        assert low.rotation < high.rotation
        assert low.translation_harmless < high.translation_harmless

    def test_a_direction_that_is_gone_leaves_the_translations(self):
        world, design = World(seed=9), design_of(40, True)
        contrasts, base = world.contrasts(design, norm=1.0)
        found = minimum_detectable(contrasts, base)
        assert found.rotation is None and found.norm is None
        assert found.translation_harmful > 0
        assert "tuned direction" in found.sentence

    def test_identical_and_without_signal(self):
        world, design = World(seed=10), design_of(20, True)
        base, _ = world.draw(design)
        found = minimum_detectable(Contrasts.of(design, base, base), base)
        assert found.rotation is None
        assert found.sentence == (
            "What would have been detected cannot be told: the activations are identical."
        )
        still = np.ones_like(base)
        found = minimum_detectable(Contrasts.of(design, still, base), still)
        assert found.translation_harmful is None and "no signal" in found.note
