"""Outcomes equal Hugging Face prompt by prompt, whatever the batch, and have true gradients."""

import numpy as np
import pytest
import torch
from mixtures import ALL, REFUSAL, Pair, scores_of

from refusaldir.batching import collate, run_batches
from refusaldir.errors import CaptureError, DirectionError, ProbeError
from refusaldir.geometry import unit
from refusaldir.layers.outcomes import Projection, RefusalRate, RefusalScore
from refusaldir.records import Site
from refusaldir.refusal_score import refusal_scores

U = unit(np.random.default_rng(3).standard_normal(32))
SITE = Site(hook="resid_pre", layer=2, position=-2)


def values(outcome, model, sequences, batch_size=None):
    found = np.full(len(sequences), np.nan)
    with torch.no_grad():
        for batch, column in run_batches(
            model,
            sequences,
            lambda batch, prefix: outcome.of(model, batch, prefix),
            tail=outcome.tail,
            batch_size=batch_size,
            stop_after=outcome.stop_after,
        ):
            assert column.dtype == torch.float64
            found[batch.indices] = column.numpy()
    return found


@pytest.mark.parametrize("name", ALL)
def test_refusal_score_of_each_prompt_alone(name, sequences, tmp_path):
    pair = Pair(tmp_path, name)
    model = pair.open().model
    got = values(RefusalScore(REFUSAL), model, sequences, batch_size=4)
    np.testing.assert_allclose(got, scores_of(pair.hf, sequences), atol=5e-5)
    np.testing.assert_allclose(got, refusal_scores(model, sequences, REFUSAL), atol=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_projection_of_each_prompt_alone(name, sequences, tmp_path):
    pair = Pair(tmp_path, name)
    with torch.inference_mode():
        states = [
            pair.hf(torch.tensor([s]), output_hidden_states=True).hidden_states[2][0, -2]
            for s in sequences
        ]
    want = torch.stack(states).double().numpy() @ U
    got = values(Projection(SITE, U), pair.open().model, sequences, batch_size=4)
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert np.ptp(want) > 0.1


@pytest.mark.parametrize("outcome", [RefusalScore(REFUSAL), Projection(SITE, U)])
def test_gradients_are_those_of_finite_differences(outcome, sequences, tmp_path):
    model = Pair(tmp_path).open().model
    model.hf.double()
    weight = model.hf.model.layers[1].mlp.down_proj.weight
    rng = torch.Generator().manual_seed(0)
    step = torch.randn(weight.shape, generator=rng, dtype=torch.float64)

    def mean():
        batch = collate(sequences, range(len(sequences)), 0, model.device)
        return outcome.of(model, batch, None).mean()

    weight.requires_grad_(True)
    (gradient,) = torch.autograd.grad(mean(), weight)
    weight.requires_grad_(False)
    h, ends = 1e-3, []  # norms are computed in float32
    for sign in (1, -1):
        weight += sign * h * step
        ends.append(float(mean()))
        weight -= sign * h * step
    slope = (ends[0] - ends[1]) / (2 * h)
    assert abs(slope) > 1e-3
    assert float((gradient * step).sum()) == pytest.approx(slope, rel=2e-3)


def test_a_rate_is_what_the_judge_said(sequences, tmp_path):
    model = Pair(tmp_path).open().model
    rate = RefusalRate(lambda m, s: [len(ids) % 2 for ids in s])
    assert rate.values(model, sequences).tolist() == [len(ids) % 2 for ids in sequences]
    for wrong in ([1], [2] * 10, [np.nan] * 10):
        with pytest.raises(ProbeError, match="one judgement a prompt"):
            RefusalRate(lambda m, s, wrong=wrong: wrong).values(model, sequences)


def test_refuses_what_is_no_outcome(sequences, tmp_path):
    model = Pair(tmp_path).open().model
    with pytest.raises(CaptureError, match="counted from the end"):
        Projection(Site(hook="resid_pre", layer=1, position=0), U)
    for direction in (2 * U, np.zeros(32), np.full(32, np.nan)):
        with pytest.raises(DirectionError, match="unit vector"):
            Projection(SITE, direction)
    with pytest.raises(DirectionError, match="does not fit"):
        values(Projection(SITE, np.eye(8)[0]), model, sequences)
    with pytest.raises(CaptureError, match="no such hook point"):
        values(Projection(Site(hook="resid_pre", layer=9, position=-1), U), model, sequences)
    with pytest.raises(ProbeError, match="needs refusal tokens"):
        values(RefusalScore([]), model, sequences)
    with pytest.raises(CaptureError, match="fewer tokens"):
        values(Projection(Site(hook="resid_pre", layer=1, position=-8), U), model, sequences)
