"""Draws against softmax probabilities, scipy, and a counter-based generator's known output."""

import numpy as np
import pytest
import scipy.stats
import torch

from refusaldir.probes.generation import draw as module
from refusaldir.probes.generation.draw import draw


def logits_of(vocab: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * scale


def drawn(logits: torch.Tensor, temperature: float, seeds, step: int = 0) -> np.ndarray:
    seeds = list(seeds)
    rows = logits.expand(len(seeds), -1)
    return draw(rows, [temperature] * len(seeds), seeds, step).numpy()


def fits(tokens: np.ndarray, logits: torch.Tensor, temperature: float) -> float:
    expected = torch.softmax(logits.double() / temperature, -1).numpy() * len(tokens)
    return scipy.stats.chisquare(np.bincount(tokens, minlength=len(logits)), expected).pvalue


def test_generator_is_splitmix64():
    """Published first outputs for seed 1234567, by whole numbers and by tensors."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    states = [1234567 + (i + 1) * module._GAMMA for i in range(3)]
    assert [module._mixed(state) for state in states] == known
    counter = torch.tensor([[module._signed(state) for state in states]])
    module._gumbel(counter, 6)
    assert counter[0].tolist() == [module._signed(value) for value in known]


def test_noise_is_gumbel():
    counter = torch.arange(1, 200_001)[None] * module._signed(module._GAMMA)
    noise = module._gumbel(counter, 399_999)[0].double().numpy()
    assert noise.shape == (399_999,) and np.isfinite(noise).all()
    assert scipy.stats.kstest(noise, "gumbel_r").pvalue > 1e-3
    # The tail decides draws: largest of 1000, shifted, are Gumbel again.
    largest = noise[:399_000].reshape(399, 1000).max(axis=1) - np.log(1000)
    assert scipy.stats.kstest(largest, "gumbel_r").pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_softmax(temperature):
    logits = logits_of(31, scale=1.0)
    over_seeds = drawn(logits, temperature, range(20_000))
    over_steps = np.concatenate([drawn(logits, temperature, range(50), s) for s in range(400)])
    for tokens in (over_seeds, over_steps):
        assert fits(tokens, logits, temperature) > 1e-3
        assert fits(tokens, logits, temperature * 1.2) < 1e-6, "the test must see a difference"


def test_steps_seeds_and_neighbouring_tokens_are_independent():
    """Contingency of draws that an ill-mixed generator would tie together."""
    logits = logits_of(6, scale=0.5)
    now = drawn(logits, 1.0, range(20_000))
    for other in (
        drawn(logits, 1.0, range(20_000), step=1),
        drawn(logits, 1.0, range(1, 20_001)),
        drawn(logits, 1.0, range(2**31 - 20_000, 2**31)),
    ):
        table = np.histogram2d(now, other, bins=(range(7), range(7)))[0]
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-3
    table = np.histogram2d(now, now, bins=(range(7), range(7)))[0]
    assert scipy.stats.chi2_contingency(table).pvalue < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_cold_is_greedy(dtype):
    logits = torch.stack([logits_of(501, seed) for seed in range(50)]).to(dtype)
    logits[:, 7] = logits.amax(dim=-1) + 0.5
    greedy = logits.argmax(dim=-1)
    for temperatures in ([0.0] * 50, [1e-6] * 50, [0.0, 1e-30] * 25):
        assert torch.equal(draw(logits, temperatures, range(50), 0), greedy)
    assert not torch.equal(draw(logits, [2.0] * 50, range(50), 0), greedy)


def test_a_row_does_not_see_the_others(monkeypatch):
    logits = torch.stack([logits_of(1001, seed) for seed in range(12)])
    temperatures, seeds = [0.0, 0.3, 1.0, 2.0] * 3, [None, *range(1, 12)]
    together = draw(logits, temperatures, seeds, 5)
    apart = [
        draw(logits[i : i + 1], temperatures[i : i + 1], seeds[i : i + 1], 5) for i in range(12)
    ]
    assert torch.equal(together, torch.cat(apart))
    monkeypatch.setitem(module.CHUNK, "cpu", 2500)
    assert torch.equal(draw(logits, temperatures, seeds, 5), together)


def test_rounding_hardly_changes_a_draw():
    """Beside the inverse of the cumulative distribution, which is what makes this worth while."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(scale=2.0, size=(200, 20_000))).float()
    rounded = logits + torch.from_numpy(rng.normal(scale=1e-4, size=logits.shape)).float()
    seeds = range(200)

    def inverse(z: torch.Tensor) -> torch.Tensor:
        u = torch.from_numpy(np.random.default_rng(1).random((200, 1)))
        return torch.searchsorted(torch.softmax(z.double(), -1).cumsum(-1), u)[:, 0]

    ours = draw(logits, [1.0] * 200, seeds, 0) != draw(rounded, [1.0] * 200, seeds, 0)
    theirs = inverse(logits) != inverse(rounded)
    assert ours.sum() <= 1
    assert theirs.sum() > 3


def test_two_models_with_like_distributions_draw_alike():
    """Equal seeds: draws differ no more often than twice the distance of the distributions."""
    base, tuned = logits_of(200), logits_of(200) + 0.1 * logits_of(200, seed=9, scale=1.0)
    distance = (torch.softmax(base, -1) - torch.softmax(tuned, -1)).abs().sum().item() / 2
    a, b = drawn(base, 1.0, range(5000)), drawn(tuned, 1.0, range(5000))
    independent = drawn(tuned, 1.0, range(5000, 10_000))
    assert distance * 0.9 < np.mean(a != b) < 2 * distance
    assert np.mean(a != independent) > 5 * np.mean(a != b)


@pytest.mark.gpu
def test_a_gpu_draws_the_same():
    logits = torch.stack([logits_of(50_001, seed) for seed in range(40)])
    temperatures = [0.0, 0.7, 1.0, 1.5] * 10
    here = draw(logits, temperatures, range(40), 3)
    assert torch.equal(draw(logits.cuda(), temperatures, range(40), 3).cpu(), here)
