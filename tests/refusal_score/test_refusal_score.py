"""Refusal score: closed form, extremes, batched against alone, and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refusaldir.errors import ProbeError
from refusaldir.refusal_score import EPSILON, refusal_scores, score_of_logits


@given(
    st.lists(st.floats(-30, 30), min_size=5, max_size=5),
    st.sets(st.integers(0, 4), min_size=1, max_size=4),
    st.floats(-50, 50),
)
@settings(max_examples=60)
def test_closed_form_and_shift_invariance(values, tokens, shift):
    logits = torch.tensor([values], dtype=torch.float64)
    weights = np.exp(np.array(values) - max(values))
    p = weights[sorted(tokens)].sum() / weights.sum()
    expected = math.log(p + EPSILON) - math.log(1 - min(p, 1) + EPSILON)
    assert score_of_logits(logits, tokens).item() == pytest.approx(expected, abs=1e-6)
    assert score_of_logits(logits + shift, tokens).item() == pytest.approx(expected, abs=1e-6)


def test_extremes_are_finite_and_opposite():
    logits = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
    high, low = score_of_logits(logits, [0]).tolist()
    limit = math.log(1 + EPSILON) - math.log(EPSILON)
    assert high == pytest.approx(limit) and low == pytest.approx(-limit)


def test_even_odds_are_zero_and_tokens_count_once():
    logits = torch.zeros(1, 4)
    assert score_of_logits(logits, [0, 1]).item() == pytest.approx(0)
    assert torch.equal(score_of_logits(logits, [0]), score_of_logits(logits, [0, 0]))
    assert score_of_logits(logits, [0, 1, 2, 3]).item() > 18


def test_float64_whatever_comes_in():
    logits = torch.randn(3, 10)
    assert score_of_logits(logits.bfloat16(), [1]).dtype == torch.float64
    assert score_of_logits(logits, [1]).dtype == torch.float64


@pytest.mark.parametrize(("tokens", "message"), [([], "needs refusal tokens"), ([97], "vocab")])
def test_refuses(tokens, message):
    with pytest.raises(ProbeError, match=message):
        score_of_logits(torch.zeros(1, 97), tokens)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_batched_equals_alone(build, sequences, name):
    model = build(name)
    tokens = (5, 9, 40)
    reference = []
    with torch.inference_mode():
        for sequence in sequences:
            logits = model.hf(torch.tensor([sequence])).logits[0, -1].double()
            p = torch.softmax(logits, -1)[list(tokens)].sum()
            reference.append((torch.log(p + EPSILON) - torch.log(1 - p + EPSILON)).item())
    got = refusal_scores(model, sequences, tokens)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, reference, atol=2e-5)
    # Negative control: the neighbouring position gives something else.
    moved = refusal_scores(model, [s[:-1] for s in sequences], tokens)
    assert np.abs(moved - reference).max() > 0.1


def test_hooks_act(build, sequences):
    model = build()
    plain = refusal_scores(model, sequences, [5])
    with model.hooked({("resid_pre", 1): lambda value: value * 0.0}):
        emptied = refusal_scores(model, sequences, [5])
    assert np.abs(plain - emptied).max() > 0.1


def test_nan_is_an_error(build, sequences):
    model = build()
    with (
        model.hooked({("resid_pre", 1): lambda value: value * float("nan")}),
        pytest.raises(ProbeError, match="not finite"),
    ):
        refusal_scores(model, sequences, [5])
