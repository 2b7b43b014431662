"""Directions tried in a model: against plain hooks, against arithmetic by hand, and chance."""

import numpy as np
import pytest
import torch
from plain import PlainHooks
from refusing import FILLERS, REFUSE, Refusing, U, prompts
from tiny import make_model

from refusaldir.directions.effect import effects, random_directions, subspace_effect
from refusaldir.directions.mean_diff import Direction
from refusaldir.errors import DirectionError
from refusaldir.records import Site
from refusaldir.refusal_score import EPSILON


def direction(vector, layer=1):
    site = Site(hook="resid_pre", layer=layer, position=-1)
    return Direction(vector=np.asarray(vector, float), site=site, n_harmful=1, n_harmless=1)


def test_every_score_is_that_of_plain_hooks():
    rng = np.random.default_rng(0)
    harmful, harmless = (
        [[3, 40, *rng.integers(5, 97, rng.integers(3, 12)).tolist()] for _ in range(n)]
        for n in (6, 5)
    )
    tokens = [5, 11]
    tried = {name: direction(rng.normal(size=32), layer) for name, layer in (("a", 1), ("b", 2))}
    found = effects(
        make_model(backend="transformer_lens"),
        tried,
        harmful=harmful,
        harmless=harmless,
        refusal_tokens=tokens,
    )
    hf = make_model().hf

    def score(prompt):
        with torch.no_grad():
            p = hf(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)[tokens].sum()
        return float((p + EPSILON).log() - (1 - p + EPSILON).log())

    np.testing.assert_allclose(found.clean_harmful, [score(p) for p in harmful], atol=1e-4)
    np.testing.assert_allclose(found.clean_harmless, [score(p) for p in harmless], atol=1e-4)
    for name, d in tried.items():
        with PlainHooks(hf, ablate=[torch.tensor(d.unit).float()]):
            np.testing.assert_allclose(found.ablated[name], [score(p) for p in harmful], atol=1e-4)
        with PlainHooks(hf, add=(d.site.layer, torch.tensor(d.vector).float())):
            np.testing.assert_allclose(found.added[name], [score(p) for p in harmless], atol=1e-4)


def test_the_planted_direction_works_and_another_does_not():
    planted = Refusing()
    harmful, harmless = prompts()
    other = planted.embed[FILLERS[0]] - planted.embed[FILLERS[1]]
    r = planted.directions()[1, 1]
    found = effects(
        planted.model(),
        {"planted": direction(r), "other": direction(other)},
        harmful=harmful,
        harmless=harmless,
        refusal_tokens=[REFUSE],
    )
    assert abs(r @ U) / np.linalg.norm(r) > 0.9
    ends = [prompt[-1] for prompt in harmful], [prompt[-1] for prompt in harmless]
    assert found.ablated["planted"].mean() == pytest.approx(
        planted.score(ends[0], ablate=r), abs=1e-3
    )
    assert found.added["planted"].mean() == pytest.approx(
        planted.score(ends[1], add=(1, r)), abs=1e-3
    )
    gone = found.clean_harmful.mean() - found.ablated["planted"].mean()
    assert gone > 2
    assert abs(found.clean_harmful.mean() - found.ablated["other"].mean()) < 1e-3


def test_a_zero_direction_is_refused():
    with pytest.raises(DirectionError, match="cannot be normalised"):
        effects(
            make_model(),
            {"none": direction(np.zeros(32))},
            harmful=[[3, 4]],
            harmless=[[3, 5]],
            refusal_tokens=[5],
        )


def test_random_directions_have_the_covariance_and_the_norm():
    rng = np.random.default_rng(1)
    scale = np.array([5.0, 1.0, 0.2, 0.0])
    labels = np.repeat([0, 1], 300)
    x = rng.normal(size=(600, 4)) * scale + labels[:, None] * np.array([0, 0, 0, 50.0])
    like = direction([0, 0, 3.0, 4.0])
    draws = np.stack([d.vector for d in random_directions(x, labels, like, count=4000, seed=2)])
    np.testing.assert_allclose(np.linalg.norm(draws, axis=1), 5.0)
    # The difference between the classes is not part of it: the fourth axis has no spread within.
    assert np.abs(draws[:, 3]).max() < 1e-9
    raw = rng.normal(size=(4000, 4)) * scale
    expected = (raw / np.linalg.norm(raw, axis=1, keepdims=True) * 5.0).std(axis=0)
    np.testing.assert_allclose(draws.std(axis=0)[:3], expected[:3], rtol=0.08)
    again = random_directions(x, labels, like, count=2, seed=2)
    other = random_directions(x, labels, like, count=2, seed=3)
    assert again[0].site == like.site
    assert not np.allclose(again[0].vector, other[0].vector)


def test_a_subspace_is_ablated_as_a_whole():
    rng = np.random.default_rng(4)
    harmful, harmless = (
        [[3, 40, *rng.integers(5, 97, rng.integers(3, 12)).tolist()] for _ in range(n)]
        for n in (6, 5)
    )
    basis = np.linalg.qr(rng.normal(size=(32, 3)))[0].T
    found = subspace_effect(
        make_model(), basis, harmful=harmful, harmless=harmless, refusal_tokens=[5, 11]
    )
    hf = make_model().hf

    def last(prompts):
        with torch.no_grad():
            rows = [hf(torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
        return torch.stack(rows).double().softmax(-1)

    clean = last(harmless)
    with PlainHooks(hf, ablate=torch.tensor(basis).float()):
        r, changed = last(harmful)[:, [5, 11]].sum(-1), last(harmless)
    expected = ((r + EPSILON).log() - (1 - r + EPSILON).log()).mean()
    kl = (clean * ((clean + 1e-6).log() - (changed + 1e-6).log())).sum(-1).mean()
    assert found.bypass == pytest.approx(float(expected), abs=1e-4)
    assert found.kl == pytest.approx(float(kl), abs=1e-5)
    alone = subspace_effect(
        make_model(), basis[:1], harmful=harmful, harmless=harmless, refusal_tokens=[]
    )
    assert alone.bypass is None and alone.kl != pytest.approx(found.kl, abs=1e-3)
