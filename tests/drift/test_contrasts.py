"""Rotation, shrinkage and translation: known answers, brute force, simulation."""

import numpy as np
import pytest

from refusaldir.drift.contrasts import Contrasts, Design
from refusaldir.drift.layer import layer_drift
from refusaldir.drift.rotation import raw_rotation, rotation, shrinkage
from refusaldir.drift.translation import translation
from refusaldir.records import Site
from refusaldir.statistics import Clusters, centred_kernel, critical_value

SITE = Site(hook="resid_pre", layer=1, position=-1)


def design_of(capture, folds=5):
    from refusaldir.directions.reader import clusters_of

    labels = capture.labels
    clusters = clusters_of(capture.prompts, labels)
    return Design(labels, clusters, clusters.folds(folds))


def at(capture, layer=1, position=0):
    return capture.values["resid_pre"][:, layer, position].astype(np.float64)


def fresh(design, keep, base, tuned):
    """Contrasts of the prompts kept, from the start."""
    codes = design.clusters.codes[keep]
    labels = design.labels[keep]
    clusters = Clusters.of(codes.tolist(), labels)
    part = Design(labels, clusters, np.zeros(len(labels), dtype=np.int64))
    return Contrasts.of(part, base[keep], tuned[keep])


class TestClosedForm:
    @pytest.mark.parametrize("twins", [True, False])
    def test_first_order_part_equals_leaving_out_one_intent_at_a_time(self, plant, twins):
        base, tuned = plant(intents=12, degrees=40, ratio=0.7, shared=0.5, topic=1, twins=twins)
        design = design_of(base)
        b, t = at(base), at(tuned)
        contrasts = Contrasts.of(design, b, t)
        cos, deviations = rotation(contrasts)
        raw = raw_rotation(contrasts)
        scale = np.sqrt(contrasts.base.corrected * contrasts.tuned.corrected)
        stretch = np.sqrt(contrasts.tuned.corrected / contrasts.base.corrected)
        errors, raws = [], []
        for c in range(design.clusters.n):
            part = fresh(design, design.clusters.codes != c, b, t)
            norms = stretch * part.base.corrected + part.tuned.corrected / stretch
            errors.append((part.cross.corrected - cos.value * norms / 2) / scale)
            raws.append(raw_rotation(part).value)
        np.testing.assert_allclose(
            deviations.first, design.clusters.centre(np.array(errors)), atol=1e-9
        )

        def half(values):
            total = np.sum(design.clusters.centre(np.asarray(values)) ** 2)
            return critical_value(0.95, design.clusters.df) * np.sqrt(total)

        assert raw.value - raw.lower == pytest.approx(half(raws), rel=1e-8)
        expected = critical_value(0.95, deviations.df) * np.sqrt(deviations.variance)
        own = deviations.interval(cos.value)
        assert cos.value - own.lower == pytest.approx(expected, rel=1e-9)
        assert cos.lower <= own.lower  # wider where a direction is short

    @pytest.mark.parametrize("twins", [True, False])
    def test_second_order_part_is_the_kernel_of_prompt_pairs(self, plant, twins):
        """Pair by pair from the activations, without any Gram matrix of intents."""
        base, tuned = plant(intents=8, degrees=40, norm=30, ratio=0.7, shared=0.5, twins=twins)
        design = design_of(base)
        b, t = at(base), at(tuned)
        contrasts = Contrasts.of(design, b, t)
        _, deviations = rotation(contrasts)
        y, codes, n = design.labels, design.clusters.codes, design.clusters.n
        for x in (b, t):
            for label in (0, 1):
                x[y == label] -= x[y == label].mean(axis=0)
        cos = contrasts.cross.corrected / np.sqrt(
            contrasts.base.corrected * contrasts.tuned.corrected
        )
        kernel = np.zeros((n, n))
        for i in range(len(y)):
            for j in range(len(y)):
                pairs = {k: np.sum(y == k) * (np.sum(y == k) - 1) for k in (0, 1)}
                sign = 1 if y[i] == y[j] else -1
                product = (b[i] @ t[j] + t[i] @ b[j]) / 2 / np.sqrt(
                    contrasts.base.corrected * contrasts.tuned.corrected
                ) - cos / 2 * (
                    b[i] @ b[j] / contrasts.base.corrected + t[i] @ t[j] / contrasts.tuned.corrected
                )
                kernel[codes[i], codes[j]] += sign * product / np.sqrt(pairs[y[i]] * pairs[y[j]])
        expected = centred_kernel(kernel, design.clusters)
        np.testing.assert_allclose(deviations.second, expected, atol=1e-5 * abs(expected).max())

    def test_raw_is_the_plain_cosine(self, plant):
        from refusaldir.directions.mean_diff import mean_diff
        from refusaldir.geometry import cosine

        base, tuned = plant(degrees=25)
        design = design_of(base)
        b, t = at(base), at(tuned)
        raw = raw_rotation(Contrasts.of(design, b, t))
        y = base.labels
        assert raw.value == pytest.approx(cosine(mean_diff(b, y), mean_diff(t, y)), rel=1e-9)
        assert "biased" in raw.note


class TestInvariance:
    """What must not matter does not; what must flip flips."""

    def figures(self, base, tuned):
        design = design_of(base)
        row, _ = layer_drift(SITE, design, at(base), at(tuned))
        shift = row.translation
        estimates = (row.rotation, row.shrinkage, shift.harmful, shift.harmless)
        areas = (row.auroc.base_direction_on_tuned, row.d_prime.tuned_direction_on_base)
        return np.array([[e.value, e.lower, e.upper] for e in (*estimates, *areas, row.cka)])

    def test_orthogonal_map_of_both_models(self, plant):
        base, tuned = plant(degrees=30, shift=(0.5, -1.0), ratio=0.8)
        q = np.linalg.qr(np.random.default_rng(0).standard_normal((24, 24)))[0]
        turned = [c.mapped(lambda v: v @ q) for c in (base, tuned)]
        np.testing.assert_allclose(
            self.figures(*turned), self.figures(base, tuned), rtol=2e-4, atol=1e-5
        )

    def test_scale_of_both_models(self, plant):
        base, tuned = plant(degrees=30, shift=(0.5, -1.0), ratio=0.8)
        scaled = [c.mapped(lambda v: v * 256) for c in (base, tuned)]
        np.testing.assert_allclose(self.figures(*scaled), self.figures(base, tuned), rtol=1e-9)

    def test_order_of_prompts(self, plant):
        base, tuned = plant(degrees=30, shift=(0.5, -1.0), ratio=0.8)
        order = np.random.default_rng(1).permutation(len(base.prompts))
        shuffled = [c.reordered(order) for c in (base, tuned)]
        np.testing.assert_allclose(self.figures(*shuffled), self.figures(base, tuned), rtol=1e-9)

    def test_a_shift_of_both_models(self, plant):
        base, tuned = plant(degrees=30, shift=(0.5, -1.0), ratio=0.8)
        moved = [c.mapped(lambda v: v + 3.0) for c in (base, tuned)]
        np.testing.assert_allclose(
            self.figures(*moved), self.figures(base, tuned), rtol=1e-4, atol=1e-5
        )

    def test_swapped_labels_in_tuned_turn_the_direction_round(self, plant):
        base, tuned = plant(norm=12)
        design = design_of(base)
        flipped = Contrasts.of(design, at(base), 2 * at(tuned).mean(axis=0) - at(tuned))
        assert rotation(flipped)[0].value == pytest.approx(-1, abs=0.02)

    def test_swapped_labels_in_both_change_no_angle_and_turn_the_shift(self, plant):
        base, tuned = plant(degrees=30, shift=(0.5, -1.0))
        design = design_of(base)
        swapped = Design(1 - design.labels, design.clusters, design.fold)
        one, _ = layer_drift(SITE, design, at(base), at(tuned))
        two, _ = layer_drift(SITE, swapped, at(base), at(tuned))
        assert two.rotation.value == pytest.approx(one.rotation.value)
        assert two.translation.harmful.value == pytest.approx(-one.translation.harmless.value)


class TestKnownAnswers:
    @pytest.mark.parametrize("degrees", [0, 20, 60, 90, 150])
    def test_planted_angle_without_noise_to_speak_of(self, plant, degrees):
        base, tuned = plant(degrees=degrees, noise=0.01, intents=20)
        design = design_of(base)
        row, _ = layer_drift(SITE, design, at(base), at(tuned))
        assert row.angle.value == pytest.approx(degrees, abs=0.3)
        assert row.angle.lower <= row.angle.value <= row.angle.upper

    def test_planted_shrinkage_and_translation(self, plant):
        base, tuned = plant(intents=400, d=16, ratio=0.5, shift=(1.0, 1.0), norm=6)
        design = design_of(base)
        row, _ = layer_drift(SITE, design, at(base), at(tuned))
        assert row.shrinkage.lower < 0.5 < row.shrinkage.upper
        assert row.translation.harmful.lower < -1.5 + 1.0 < row.translation.harmful.upper
        assert row.translation.harmless.lower < 1.5 + 1.0 < row.translation.harmless.upper
        assert row.norm_base.lower < 6 < row.norm_base.upper

    def test_identical_activations_are_exact_and_marked(self, plant):
        base, _ = plant()
        design = design_of(base)
        row, left = layer_drift(SITE, design, at(base), at(base))
        assert row.identical
        assert (row.rotation.value, row.rotation.lower, row.rotation.upper) == (1, 1, 1)
        assert "identical" in row.rotation.note
        assert (row.shrinkage.lower, row.shrinkage.upper) == (1, 1)
        assert row.translation.harmful.value == row.translation.harmless.value == 0
        assert row.d_prime_change.own.value == 0
        assert row.relative_change.value == 0 and row.cka.value == pytest.approx(1)
        assert "single point" in row.translation.harmful.note
        assert left.variance == 0

    def test_identical_noise_is_no_drift_either(self, plant):
        base, _ = plant(norm=0.0)
        row, _ = layer_drift(SITE, design_of(base), at(base), at(base))
        assert row.rotation.value == row.shrinkage.value == 1

    def test_no_signal_is_none_with_a_reason(self, plant):
        base, tuned = plant()
        design = design_of(base)
        row, left = layer_drift(SITE, design, at(base, 0), at(tuned, 0))
        assert not row.signal and left is None
        for e in (row.rotation, row.rotation_raw, row.angle, row.shrinkage, row.cka):
            assert e.value is None and "no signal" in e.note
        assert row.auroc.base_direction_on_tuned.value is None
        one_sided, _ = layer_drift(SITE, design, at(base, 1), at(tuned, 0))
        assert one_sided.rotation.note.endswith("the same in tuned")

    def test_noise_is_not_estimable_never_clipped(self, plant):
        """Negative control: without a direction, most draws say so and no raw cosine shows it."""
        said = 0
        for seed in range(20):
            base, tuned = plant(norm=0.0, shared=0.9, seed=seed, intents=20)
            design = design_of(base)
            row, _ = layer_drift(SITE, design, at(base), at(tuned))
            said += row.rotation.value is None
            assert row.rotation.value is not None or "not estimable" in row.rotation.note
            assert row.rotation_raw.value > 0.5  # shared noise alone looks like agreement
        assert said >= 18

    def test_above_one_is_kept_and_explained(self, plant):
        notes = []
        for seed in range(10):
            base, tuned = plant(norm=4, seed=seed, intents=20)
            design = design_of(base)
            cos, _ = rotation(Contrasts.of(design, at(base), at(tuned)))
            if cos.value > 1:
                notes.append(cos.note)
                assert cos.upper >= cos.value
        assert notes and all("above 1 by noise" in note for note in notes)


class TestSimulation:
    def test_corrected_cosine_is_unbiased_where_raw_is_not(self, plant):
        corrected, raw = [], []
        for seed in range(150):
            base, tuned = plant(
                degrees=45, norm=6, d=64, intents=20, seed=seed, layers=2, pos=1, topic=0.7
            )
            design = design_of(base)
            contrasts = Contrasts.of(design, at(base), at(tuned))
            corrected.append(rotation(contrasts)[0].value)
            raw.append(raw_rotation(contrasts).value)
        truth = np.cos(np.pi / 4)
        assert np.mean(corrected) == pytest.approx(truth, abs=0.02)
        assert np.mean(raw) < truth - 0.08

    def test_shared_noise_pushes_raw_towards_one(self, plant):
        corrected, raw = [], []
        for seed in range(80):
            base, tuned = plant(
                degrees=80, norm=4, d=64, intents=20, shared=0.95, seed=seed, layers=2, pos=1
            )
            design = design_of(base)
            contrasts = Contrasts.of(design, at(base), at(tuned))
            corrected.append(rotation(contrasts)[0].value)
            raw.append(raw_rotation(contrasts).value)
        truth = np.cos(np.radians(80))
        assert np.mean(corrected) == pytest.approx(truth, abs=0.04)
        assert np.mean(raw) > truth + 0.1

    @pytest.mark.slow
    @pytest.mark.parametrize("intents", [16, 32, 128])
    @pytest.mark.parametrize("signal", [1, 4, 16])
    @pytest.mark.parametrize("shared", [0.0, 0.9])
    @pytest.mark.parametrize("degrees", [0, 45])
    @pytest.mark.parametrize("twins", [True, False])
    def test_coverage(self, plant, intents, signal, shared, degrees, twins):
        """Nominal 95 %: at least 93 % within simulation error, weak directions included."""
        d, sims = 64, 300
        norm = np.sqrt(signal * 2 * d / intents)
        truth = np.cos(np.radians(degrees))
        turn = norm * 0.8 * np.array([truth, np.sin(np.radians(degrees))])
        seen = {"rotation": [], "shrinkage": [], "harmful": [], "harmless": []}
        sd = np.sqrt(2.0) if twins else 1.0
        for seed in range(sims):
            base, tuned = plant(
                intents=intents, d=d, layers=2, pos=1, norm=norm, degrees=degrees, ratio=0.8,
                shared=shared, topic=1.0 if twins else 0.0, twins=twins, seed=seed,
            )  # fmt: skip
            design = design_of(base)
            contrasts = Contrasts.of(design, at(base), at(tuned))
            shift = translation(design, contrasts, at(base))
            half = (turn[0] - norm) / 2 / sd
            pairs = {
                "rotation": (rotation(contrasts)[0], truth),
                "shrinkage": (shrinkage(contrasts), 0.8),
                "harmful": (shift.harmful, half),
                "harmless": (shift.harmless, -half),
            }
            for name, (e, expected) in pairs.items():
                if e.value is not None and e.lower is not None:
                    # Rounding of float32 captures matters where the interval ends at 1.
                    seen[name].append(e.lower - 1e-6 <= expected <= e.upper + 1e-6)
        slack = 2.5 * np.sqrt(0.93 * 0.07 / sims)
        for name, covered in seen.items():
            # A norm hardly above its noise carries no ratio, and about half of the draws say so;
            # those that pass partly do by chance, and their intervals are wider for it.
            weak = signal == 1 and name in ("rotation", "shrinkage")
            assert len(covered) > (0.4 if weak else 0.9) * sims, name
            least = 0.93 - slack * np.sqrt(sims / len(covered))
            assert np.mean(covered) >= least, (name, np.mean(covered))
