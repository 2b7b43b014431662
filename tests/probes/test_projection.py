"""Projections without generating, against those read off while generating and by hand."""

import numpy as np
import pytest
import torch

from refusaldir.directions.mean_diff import Direction
from refusaldir.errors import CaptureError
from refusaldir.probes.generation.generate import generate
from refusaldir.probes.generation.projection import projections
from refusaldir.records import Site


def direction_at(position: int, layer: int = 2) -> Direction:
    return Direction(
        vector=np.random.default_rng(3).normal(size=32),
        site=Site(hook="resid_pre", layer=layer, position=position),
        n_harmful=1,
        n_harmless=1,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("position", [-1, -6])
def test_projections(build, sequences, position, dtype):
    model, direction = build(dtype=dtype), direction_at(position)
    got = projections(model, sequences, direction, batch_size=3)
    by_hand = []
    for sequence in sequences:
        with torch.inference_mode():
            states = model.hf(torch.tensor([sequence]), output_hidden_states=True).hidden_states
        x = states[2][0, position].double().numpy()
        by_hand.append(x @ direction.vector / np.linalg.norm(direction.vector))
    read = generate(model, sequences, max_new_tokens=1, direction=direction)
    tolerance = 1e-5 if dtype == torch.float32 else 0.15  # bfloat16 rounds otherwise in a batch
    np.testing.assert_allclose(got, by_hand, rtol=1e-4, atol=tolerance)
    np.testing.assert_allclose([r.projection for r in read], got, rtol=1e-4, atol=tolerance)
    assert np.ptp(by_hand) > 1


def test_refuses(build, sequences):
    with pytest.raises(CaptureError, match="no such layer"):
        projections(build(), sequences, direction_at(-1, layer=3))
    with pytest.raises(CaptureError, match="fewer tokens"):
        projections(build(), sequences, direction_at(-8))
