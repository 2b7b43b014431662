"""Drift by category: one category that moved, all that moved alike, and independent paths."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from refusaldir.drift.categories.category_drift import category_drift
from refusaldir.drift.categories.groups import GroupFigure, alike_p_value, versus_others
from refusaldir.drift.contrasts import Contrasts, Design
from refusaldir.drift.rotation import rotation, shrinkage
from refusaldir.drift.translation import translation, within_sd
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters

D = 24


def planted(
    *, seed=0, n=12, intents=24, norm=6.0, shift=0.0, degrees=0.0, ratio=1.0, moved=(), shared=0.6,
    twins=True, all_shift=0.0,
):  # fmt: skip
    """Categories with directions of their own around one; some of them changed in tuned."""
    rng = np.random.default_rng([seed, 5])
    axes = np.linalg.qr(rng.standard_normal((D, D)))[0].T
    count = 2 * n * intents
    labels, codes = np.arange(count) % 2, np.arange(count) // 2
    category = codes // intents
    r = norm * (axes[0] + 0.4 * rng.standard_normal((n, D)) / np.sqrt(D))
    turned = r.copy()
    a = np.radians(degrees)
    for c in moved:
        size = np.linalg.norm(r[c])
        across = axes[1] - axes[1] @ r[c] * r[c] / size**2
        across *= size / np.linalg.norm(across)
        turned[c] = ratio * (np.cos(a) * r[c] + np.sin(a) * across)
    common = rng.standard_normal((count, D))
    both = []
    for side, direction in enumerate((r, turned)):
        own = rng.standard_normal((count, D))
        x = 5 + np.sqrt(shared) * common + np.sqrt(1 - shared) * own
        x += (labels - 0.5)[:, None] * direction[category]
        if side:
            x += (labels * np.isin(category, moved) * shift + labels * all_shift)[:, None] * axes[0]
        both.append(x)
    ids = [f"i{c}" if twins else f"i{c}-{y}" for c, y in zip(codes, labels, strict=True)]
    clusters = Clusters.of(ids, labels)
    design = Design(labels, clusters, clusters.folds(8))
    return design, *both, [f"c{c:02d}" for c in category]


def figure(result, name):
    return next(row for row in result.figures if row.figure == name)


class TestKnownAnswers:
    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"degrees": 40}, "rotation"),
            ({"ratio": 0.5}, "shrinkage"),
            ({"shift": 2}, "translation"),
        ],
    )
    def test_one_category_of_twelve(self, change, name):
        result = category_drift(*planted(moved=(3,), **change))
        assert ("c03", name) in result.singled_out and result.alike is False
        assert {category for category, _ in result.singled_out} == {"c03"}
        assert "c03" in result.sentence and "c04" not in result.sentence
        row = figure(result, name)
        assert np.argmin(row.p_adjusted) == 3 and row.p_adjusted[3] < 0.001
        json.dumps(result.to_dict(), allow_nan=False)

    def test_the_sizes(self):
        result = category_drift(*planted(moved=(3,), degrees=40, ratio=0.6))
        e = figure(result, "rotation").estimates[3]
        assert e.lower < np.cos(np.radians(40)) < e.upper and e.n == 24
        against = figure(result, "shrinkage").versus_others[3]
        assert against.lower < 0.6 < against.upper
        result = category_drift(*planted(moved=(5,), shift=2.0, all_shift=-1.0))
        row = figure(result, "translation")
        # One SD of base, within its categories and between their directions.
        assert row.estimates[5].value == pytest.approx(1.0, abs=0.35)
        assert row.versus_others[5].value == pytest.approx(2.0, abs=0.4)
        assert result.n_intents == (24,) * 12

    def test_bands_are_wider_than_intervals(self):
        result = category_drift(*planted())
        for row in result.figures:
            for one, band in zip(row.estimates, row.bands, strict=True):
                assert band.upper - band.lower > one.upper - one.lower
                assert band.value == pytest.approx(one.value)

    def test_identical_activations(self):
        design, base, _, names = planted(n=3, intents=8)
        result = category_drift(design, base, base, names)
        assert result.singled_out == () and result.alike is True
        assert all(e.value == 1 for e in figure(result, "rotation").estimates)
        assert "No category" in result.sentence
        json.dumps(result.to_dict(), allow_nan=False)


class TestNothingSingledOut:
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param({}, marks=pytest.mark.slow),
            {"degrees": 30, "ratio": 0.7},
            pytest.param({"all_shift": 2.0}, marks=pytest.mark.slow),
            pytest.param({"shared": 0.0, "twins": False}, marks=pytest.mark.slow),
        ],
    )
    def test_the_same_change_in_all(self, change):
        """Negative control: nothing is named beyond the nominal rate over all comparisons."""
        named = unlike = 0
        for seed in range(200):
            data = planted(seed=seed, n=6, intents=16, moved=range(6), **change)
            result = category_drift(*data)
            named += bool(result.singled_out)
            unlike += result.alike is False
        slack = 2.5 * np.sqrt(0.05 * 0.95 / 200)
        assert named / 200 <= 0.05 + slack
        assert unlike / 200 <= 0.05 + slack


class TestIndependentPaths:
    def test_figures_are_those_of_the_category_alone(self):
        design, base, tuned, names = planted(n=3, intents=10)
        result = category_drift(design, base, tuned, names)
        here = np.array(names) == "c01"
        clusters = Clusters.of(design.clusters.codes[here].tolist(), design.labels[here])
        part = Design(design.labels[here], clusters, design.fold[here])
        contrasts = Contrasts.of(part, base[here], tuned[here])
        assert figure(result, "rotation").estimates[1] == rotation(contrasts)[0]
        assert figure(result, "shrinkage").estimates[1] == shrinkage(contrasts)

    def test_translation_of_all_prompts_together_is_the_layers(self):
        """With every harmful prompt in one of two categories, and one of them nearly all."""
        design, base, tuned, names = planted(n=2, intents=40, all_shift=1.0)
        contrasts = Contrasts.of(design, base, tuned)
        whole = translation(design, contrasts, base).harmful.value
        rows = figure(category_drift(design, base, tuned, names), "translation").estimates
        assert np.mean([e.value for e in rows]) == pytest.approx(whole, rel=1e-3)

    def test_translation_leaving_out_one_intent_at_a_time(self):
        """Values by loops over pairs of intents."""
        design, base, tuned, names = planted(n=2, intents=6, all_shift=1.0)
        e = figure(category_drift(design, base, tuned, names), "translation").estimates[0]
        y, codes = design.labels, design.clusters.codes
        contrasts = Contrasts.of(design, base, tuned)
        sd = within_sd(design, contrasts, base)[0]
        x, change = base - contrasts.origin, tuned - base
        member = (np.array(names) == "c00") & (y == 1)
        product = 0.0
        for label, sign in ((1, 1), (0, -1)):
            pairs = [
                x[i] @ change[j]
                for i in np.flatnonzero(y == label)
                for j in np.flatnonzero(member)
                if codes[i] != codes[j]
            ]
            product += sign * np.mean(pairs)
        assert e.value == pytest.approx(product / np.sqrt(contrasts.base.corrected) / sd)

    def made(self, values, sizes, seed=0):
        """Figures of independent categories: means of normal samples on disjoint intents."""
        rng = np.random.default_rng(seed)
        samples = [
            rng.normal(v, 1 + i, size=s) for i, (v, s) in enumerate(zip(values, sizes, strict=True))
        ]
        figures, at = [], 0
        for x in samples:
            first = np.zeros(sum(sizes))
            variance = x.var(ddof=1) / len(x)
            first[at : at + len(x)] = np.sqrt(variance / len(x))
            at += len(x)
            e = Estimate(value=x.mean(), n=len(x))
            figures.append(
                GroupFigure(
                    estimate=e, value=x.mean(), first=first, variance=variance, df=len(x) - 1.0
                )
            )
        return samples, figures

    def test_two_categories_are_welchs_t_test(self):
        (a, b), figures = self.made([0, 1], [9, 14])
        expected = stats.ttest_ind(a, b, equal_var=False)
        got = versus_others(figures, 23, 0.95, tests=3, log=False)
        interval = expected.confidence_interval()
        assert got[0][1] == pytest.approx(expected.pvalue)
        assert (got[0][0].lower, got[0][0].upper) == pytest.approx(tuple(interval))
        assert alike_p_value(figures) == pytest.approx(expected.pvalue)

    def test_several_are_welchs_anova(self):
        from statsmodels.stats.oneway import anova_oneway

        samples, figures = self.made([0, 1, 0.5, -1], [9, 14, 20, 6])
        expected = anova_oneway(samples, use_var="unequal", welch_correction=True)
        assert alike_p_value(figures) == pytest.approx(expected.pvalue)

    def test_an_error_common_to_all_is_no_difference(self):
        _, figures = self.made([0, 1, 0.5, -1], [9, 14, 20, 6])
        alone = alike_p_value(figures)
        extra = np.array([0.5])
        common = [
            replace(f, first=np.concatenate([f.first, extra]), variance=f.variance + 0.25)
            for f in figures
        ]
        assert alike_p_value(common) == pytest.approx(alone)
        one, other = (versus_others(f, 50, 0.95, tests=3, log=False) for f in (figures, common))
        for (e, p, _), (f, q, _) in zip(one, other, strict=True):
            assert e.value == f.value and q == pytest.approx(p, abs=0.15)


class TestNothingToSay:
    def test_too_few(self):
        design, base, tuned, names = planted(n=1)
        result = category_drift(design, base, tuned, names)
        assert result.figures == () and result.alike is None
        assert "cannot be told: 1 of 1 categories" in result.sentence
        json.dumps(result.to_dict(), allow_nan=False)

    def test_small_categories_are_left_out(self):
        design, base, tuned, names = planted(n=3, intents=10)
        names = ["rare" if i < 6 else name for i, name in enumerate(names)]
        result = category_drift(design, base, tuned, names)
        assert result.left_out == ("rare",) and result.categories == ("c00", "c01", "c02")

    def test_harmless_prompts_without_categories(self):
        """A user's own set: only the shift of the harmful prompts can be told by category."""
        design, base, tuned, names = planted(n=4, twins=False, moved=(1,), shift=2.0)
        names = [n if y else "none" for n, y in zip(names, design.labels, strict=True)]
        result = category_drift(design, base, tuned, names)
        assert result.singled_out == (("c01", "translation"),)
        row = figure(result, "rotation")
        assert row.alike_p is None and "harmless intents" in row.estimates[0].note
        assert row.bands == row.versus_others == (None,) * 4

    def test_no_signal(self):
        design, base, _, names = planted(n=3, intents=8)
        flat = np.ones_like(base)
        result = category_drift(design, flat, flat + 1, names)
        assert result.alike is None and "too few categories have an interval" in result.sentence
