"""Causal selection against an obvious implementation, and what it says when nothing is valid."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from plain import PlainHooks
from refusing import HARMFUL, HARMLESS, REFUSE, Refusing, U
from refusing import prompts as planted_prompts

from refusaldir.directions.candidates import Candidate, Thresholds, choose, why_dropped
from refusaldir.directions.causal import select_causal
from refusaldir.directions.divergence import EPSILON, kl_divergence
from refusaldir.errors import DirectionError
from refusaldir.geometry import cosine
from refusaldir.records import Site
from refusaldir.refusal_score import EPSILON as SCORE_EPSILON

TOKENS = [5, 11, 40]
LAYERS, OFFSETS = (0, 1, 2), (-2, -1)
WIDE = Thresholds(kl=1e9, induce=-1e9, depth=1.0)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(3)

    def some(n):
        return [[3, 40, 41, *rng.integers(5, 97, rng.integers(3, 12)).tolist()] for _ in range(n)]

    return some(9), some(7)


@pytest.fixture
def directions():
    values = np.random.default_rng(4).normal(size=(3, 2, 32))
    values[0, 0] = 0
    return values * np.array([0.02, 1.0, 4.0])[:, None, None]


def obvious(hf, directions, harmful, harmless):
    """Three full sweeps a candidate, one prompt at a time, in the plainest words."""

    def last(prompt):
        with torch.no_grad():
            return hf(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)

    def score(p):
        r = p[TOKENS].sum()
        return float((r + SCORE_EPSILON).log() - (1 - r + SCORE_EPSILON).log())

    clean = [last(p) for p in harmless]
    table = {}
    for i, layer in enumerate(LAYERS):
        for j, offset in enumerate(OFFSETS):
            v = torch.tensor(directions[i, j]).float()
            if not v.norm():
                continue
            with PlainHooks(hf, ablate=[v / v.norm()]):
                bypass = np.mean([score(last(p)) for p in harmful])
                kl = np.mean(
                    [
                        float((c * ((c + EPSILON).log() - (last(p) + EPSILON).log())).sum())
                        for c, p in zip(clean, harmless, strict=True)
                    ]
                )
            with PlainHooks(hf, add=(layer, v)):
                induce = np.mean([score(last(p)) for p in harmless])
            table[layer, offset] = (bypass, induce, kl)
    return table


def run(model, directions, prompts, **options):
    harmful, harmless = prompts
    return select_causal(
        model,
        directions,
        layers=LAYERS,
        offsets=OFFSETS,
        harmful=harmful,
        harmless=harmless,
        refusal_tokens=TOKENS,
        **options,
    )


@pytest.fixture(scope="module")
def model():
    from tiny import make_model

    return make_model(backend="transformer_lens")


@pytest.fixture
def truth(directions, prompts):
    from tiny import make_model

    return obvious(make_model().hf, directions, *prompts)


class TestAgainstTheObviousWay:
    def test_every_score(self, model, directions, prompts, truth):
        choice = run(model, directions, prompts, thresholds=WIDE, exhaustive=True)
        seen = {(c.site.layer, c.site.position): c for c in choice.candidates if c.valid}
        assert seen.keys() == truth.keys()
        for key, (bypass, induce, kl) in truth.items():
            c = seen[key]
            assert c.kl_exact
            np.testing.assert_allclose([c.bypass, c.induce, c.kl], [bypass, induce, kl], atol=1e-4)
        best = min(truth, key=lambda key: truth[key][0])
        assert (choice.chosen.site.layer, choice.chosen.site.position) == best

    @pytest.mark.parametrize("rank", [0, 2, 4])
    def test_giving_up_early_changes_nothing(self, model, directions, prompts, truth, rank):
        """With thresholds that drop some by KL and some by induce."""
        kl = sorted(v[2] for v in truth.values())[rank] + 1e-6
        # Between two candidates, so that rounding decides nothing.
        induce = float(np.mean(sorted(v[1] for v in truth.values())[1:3]))
        limits = Thresholds(kl=kl, induce=induce, depth=1.0)
        quick = run(model, directions, prompts, thresholds=limits)
        full = run(model, directions, prompts, thresholds=limits, exhaustive=True)
        assert [c.dropped for c in quick.candidates] == [c.dropped for c in full.candidates]
        valid = {k: v for k, v in truth.items() if v[2] <= kl and v[1] >= induce}
        if valid:
            site = quick.chosen.site
            assert (site.layer, site.position) == min(valid, key=lambda k: valid[k][0])
            assert quick.nearest is None
        else:
            assert quick.chosen is None and quick.nearest is not None
        for a, b in zip(quick.candidates, full.candidates, strict=True):
            if a.kl_exact and b.kl_exact:
                assert a.kl == pytest.approx(b.kl, abs=1e-5)
            elif b.kl is not None:
                assert kl < a.kl <= b.kl + 1e-9
            if a.bypass is not None:
                assert a.bypass == pytest.approx(b.bypass, abs=1e-4)

    def test_what_is_far_off_is_given_up_before_the_end(self, model, directions, prompts, truth):
        """And the nearest is still the one with the least KL over all prompts."""
        many = (prompts[0], prompts[1] * 12)
        directions[2] *= 50
        choice = run(model, directions, many, thresholds=Thresholds(kl=1e-3, depth=1.0))
        full = run(
            model, directions, many, thresholds=Thresholds(kl=1e-3, depth=1.0), exhaustive=True
        )
        assert not all(c.kl_exact for c in choice.candidates if c.dropped == "KL")
        assert all(c.kl_exact for c in full.candidates if c.dropped == "KL")
        assert choice.nearest.site == full.nearest.site
        assert choice.nearest.kl == pytest.approx(full.nearest.kl, abs=1e-6)


class TestNothingValid:
    def test_nearest_has_the_least_kl_and_all_scores(self, model, directions, prompts, truth):
        choice = run(model, directions, prompts, thresholds=Thresholds(kl=1e-9, depth=1.0))
        assert choice.chosen is None
        near = choice.nearest
        least = min(truth, key=lambda key: truth[key][2])
        assert (near.site.layer, near.site.position) == least
        assert near.dropped == "KL" and near.kl_exact
        np.testing.assert_allclose([near.bypass, near.induce, near.kl], truth[least], atol=1e-4)
        assert near in choice.candidates

    def test_induce_alone(self, model, directions, prompts, truth):
        choice = run(model, directions, prompts, thresholds=Thresholds(kl=1e9, induce=1e9, depth=1))
        best = max(truth, key=lambda key: truth[key][1])
        near = choice.nearest
        assert near.dropped == "induce" and (near.site.layer, near.site.position) == best
        assert near.bypass is not None

    def test_nothing_to_try(self, model, prompts):
        choice = run(model, np.zeros((3, 2, 32)), prompts)
        assert choice.chosen is None and choice.nearest is None
        assert {c.dropped for c in choice.candidates} == {"no signal"}


def test_depth_is_pruned_and_not_run(model, directions, prompts):
    choice = run(model, directions, prompts, thresholds=Thresholds(kl=1e9, induce=-1e9, depth=0.8))
    deep = [c for c in choice.candidates if c.site.layer >= 2]
    assert {c.dropped for c in deep} == {"too deep"}
    assert all(c.kl is None and c.bypass is None for c in deep)
    assert choice.chosen.site.layer < 2


class TestPlantedRefusal:
    """A model that refuses by one feature, written by block 0: the answers are known."""

    @pytest.fixture(scope="class")
    def refusing(self):
        return Refusing()

    def choice(self, refusing, directions, **options):
        harmful, harmless = planted_prompts()
        return select_causal(
            refusing.model(),
            directions,
            layers=LAYERS,
            offsets=OFFSETS,
            harmful=harmful,
            harmless=harmless,
            refusal_tokens=[REFUSE],
            **options,
        )

    def test_its_layer_and_direction(self, refusing):
        table = refusing.directions()
        choice = self.choice(refusing, table)
        site = choice.chosen.site
        assert (site.layer, site.position) == (1, -1)
        assert cosine(table[1, 1], U) > 0.99
        assert choice.nearest is None

    def test_every_score_by_plain_numpy(self, refusing):
        table = refusing.directions()
        choice = self.choice(refusing, table, thresholds=WIDE, exhaustive=True)
        assert choice.clean_harmful == pytest.approx(refusing.score(HARMFUL), abs=1e-3)
        assert choice.clean_harmless == pytest.approx(refusing.score(HARMLESS), abs=1e-3)
        assert choice.clean_harmful > 5 and choice.clean_harmless < -5
        for c in choice.candidates:
            vector = table[c.site.layer, c.site.position]
            expected = (
                refusing.score(HARMFUL, ablate=vector),
                refusing.score(HARMLESS, add=(c.site.layer, vector)),
                refusing.kl(HARMLESS, vector),
            )
            np.testing.assert_allclose([c.bypass, c.induce, c.kl], expected, atol=1e-3)

    def test_an_unrelated_direction_does_nothing(self, refusing):
        choice = self.choice(refusing, refusing.directions(), thresholds=WIDE, exhaustive=True)
        [planted] = [c for c in choice.candidates if (c.site.layer, c.site.position) == (1, -1)]
        [other] = [c for c in choice.candidates if (c.site.layer, c.site.position) == (1, -2)]
        assert planted.bypass < choice.clean_harmful - 10
        assert planted.induce > choice.clean_harmless + 10
        assert abs(other.bypass - choice.clean_harmful) < 0.5
        assert abs(other.induce - choice.clean_harmless) < 2

    def test_a_model_without_the_feature(self):
        plain = Refusing(feature=False)
        choice = self.choice(plain, plain.directions())
        assert choice.chosen is None
        assert {c.dropped for c in choice.candidates} == {"induce", "too deep"}
        assert choice.nearest.dropped == "induce" and choice.nearest.bypass is not None


class TestChoose:
    """The choice is a function of the table of scores alone."""

    def table(self, *rows):
        names = ("kl", "induce", "bypass", "cosmic")
        return [
            Candidate(
                site=Site(hook="resid_pre", layer=layer, position=position),
                norm=1.0,
                kl_exact=True,
                **dict(zip(names, scores, strict=True)),
            )
            for layer, position, *scores in rows
        ]

    def test_least_bypass_of_the_valid(self):
        rows = self.table(
            (1, -1, 0.2, 1.0, -9.0, 1.9),  # KL
            (2, -1, 0.1, -0.1, -8.0, 1.8),  # induce
            (3, -1, 0.1, 0.0, -3.0, 1.2),
            (4, -1, 0.05, 2.0, -2.0, 1.5),
        )
        assert choose(rows, Thresholds()) is rows[2]
        assert choose(rows, Thresholds(kl=1, induce=-1)) is rows[0]
        assert choose(rows, Thresholds(), "cosmic") is rows[1]

    @pytest.mark.parametrize("criterion", ["refusal_score", "cosmic"])
    def test_a_tie_goes_to_the_lowest_site(self, criterion):
        rows = self.table(
            (3, -1, 0, 1, -2, 1.5),
            (2, -1, 0, 1, -2, 1.5),
            (2, -3, 0, 1, -2, 1.5),
            (9, -9, 0, 1, 0, 1),
        )
        for order in itertools.permutations(rows):
            assert choose(order, Thresholds(), criterion) is rows[2]

    @pytest.mark.parametrize("field", ["kl", "induce", "bypass", "cosmic"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_a_score_that_is_not_finite_is_never_chosen(self, field, value):
        criterion = "cosmic" if field == "cosmic" else "refusal_score"
        good, bad = self.table((1, -1, 0.05, 1, -2, 1.5), (2, -1, 0.05, 1, -9, 1.9))
        assert choose([good, bad], Thresholds(), criterion) is bad
        bad = replace(bad, **{field: value})
        assert choose([bad, good], Thresholds(), criterion) is good
        assert choose([bad], Thresholds(), criterion) is None
        assert why_dropped(bad, Thresholds(), criterion) == "not finite"

    def test_what_was_not_measured_is_not_chosen(self):
        [row] = self.table((1, -1, 0.05, 1, -2, 1.5))
        for change in ({"kl": None}, {"kl_exact": False}, {"induce": None}, {"bypass": None}):
            assert choose([replace(row, **change)], Thresholds()) is None

    def test_nothing_left(self):
        rows = self.table((1, -1, 0.2, 1, -2, 1), (2, -1, 0, -1, -2, 1))
        assert choose(rows, Thresholds()) is None
        assert choose([], Thresholds()) is None
        assert choose([replace(rows[0], dropped="too deep", kl=0.0)], Thresholds()) is None

    def test_an_unknown_criterion(self):
        with pytest.raises(DirectionError, match="criterion"):
            choose([], Thresholds(), "vibes")


def test_scores_that_are_not_finite_are_named(model, directions, prompts):
    """A vector too large for float32."""
    directions[1, 1] *= 1e39
    choice = run(model, directions, prompts, thresholds=WIDE)
    [bad] = [c for c in choice.candidates if (c.site.layer, c.site.position) == (1, -1)]
    assert bad.dropped == "not finite" and bad.bypass is None
    assert choice.chosen is not None and choice.chosen.site != bad.site


def test_progress_reaches_the_end(model, directions, prompts):
    seen = []
    run(model, directions, prompts, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (seen[-1][1],) * 2 and seen[-1][1] == 3


def test_kl_by_hand():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    expected = 0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75)
    assert float(kl_divergence(p, q)) == pytest.approx(expected, abs=1e-5)
    assert float(kl_divergence(p, p)) == 0


@pytest.mark.parametrize("empty", [0, 1])
def test_a_class_without_prompts(model, directions, prompts, empty):
    some = [*prompts]
    some[empty] = []
    with pytest.raises(DirectionError, match="both classes"):
        run(model, directions, some)


def test_shapes_that_do_not_agree(model, prompts):
    with pytest.raises(DirectionError, match="do not agree"):
        run(model, np.ones((2, 2, 32)), prompts)
