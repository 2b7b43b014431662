"""Causal selection against an obvious implementation, and what it says when nothing is valid."""

import numpy as np
import pytest
import torch
from plain import PlainHooks

from refusaldir.directions.candidates import Thresholds
from refusaldir.directions.causal import select_causal
from refusaldir.directions.search import EPSILON, kl_divergence
from refusaldir.errors import DirectionError
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


def test_planted_mechanism_is_found(model, prompts):
    """A direction that the model writes at block 1 and that alone decides is the one chosen."""
    harmful, harmless = prompts
    refuse = model.hf.lm_head.weight[TOKENS].double().mean(0)
    vector = (refuse / refuse.norm()).numpy() * 30
    values = np.random.default_rng(9).normal(size=(3, 2, 32))
    values[1, 1] = vector
    choice = select_causal(
        model,
        values,
        layers=LAYERS,
        offsets=OFFSETS,
        harmful=harmful,
        harmless=harmless,
        refusal_tokens=TOKENS,
        thresholds=Thresholds(kl=1e9, induce=choice_floor(model, values, prompts), depth=1.0),
    )
    assert (choice.chosen.site.layer, choice.chosen.site.position) == (1, -1)
    assert choice.chosen.induce > choice.clean_harmless + 1


def choice_floor(model, values, prompts):
    full = run(model, values, prompts, thresholds=WIDE, exhaustive=True)
    return max(c.induce for c in full.candidates) - 1e-6


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
