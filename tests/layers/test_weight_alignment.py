"""Weight alignment on changes with a known answer, and on real files."""

import json

import numpy as np
import pytest
import torch
from tiny import CONFIGS
from transformers import AutoModelForCausalLM

from refusaldir.errors import DirectionError, ModelLoadError
from refusaldir.geometry import unit
from refusaldir.layers.weights.alignment import align, component_totals, weight_alignment
from refusaldir.layers.weights.lora import LowRank
from refusaldir.layers.weights.tensors import MatrixChange
from refusaldir.models.resolve import resolve
from refusaldir.models.spec import ModelSpec

D = 48


def change(delta, *, side="writes", gain=None, centred=False, base_norm=2.0, layer=0, name="m"):
    return MatrixChange(
        layer=layer,
        component="mlp",
        name=name,
        side=side,
        delta=delta,
        base_norm=base_norm,
        gain=gain,
        centred=centred,
    )


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def u(rng):
    return unit(rng.standard_normal(D))


def test_a_rank_one_change_along_the_direction_gives_d(rng, u):
    other = rng.standard_normal(20)
    written = align(change(np.outer(u, other)), u)
    read = align(change(np.outer(other, u), side="reads"), u)
    for result in (written, read):
        assert result.alignment == pytest.approx(D, rel=1e-12)
        assert result.participation_ratio == pytest.approx(1.0, rel=1e-12)
        assert result.relative_change == pytest.approx(np.linalg.norm(other) / 2, rel=1e-12)
    # One that leaves the direction alone.
    across = unit(rng.standard_normal(D))
    across = unit(across - (across @ u) * u)
    assert align(change(np.outer(across, other)), u).alignment == pytest.approx(0.0, abs=1e-20)


def test_gain_and_mean_are_folded_in(rng, u):
    """A change that reads what the norm makes of u is found, and only with the norm folded in."""
    u = unit(u + 0.1)
    gain, other = rng.uniform(0.1, 3.0, D), rng.standard_normal(20)
    seen = (u - u.mean()) * gain
    delta = np.outer(other, seen)
    full = align(change(delta, side="reads", gain=gain, centred=True), u).alignment
    assert full == pytest.approx(D, rel=1e-12)
    for parts in ({"gain": gain}, {"centred": True}, {}):
        assert align(change(delta, side="reads", **parts), u).alignment < 0.99 * D
    # A gain of 0 hides the direction's coordinates from the matrix altogether.
    hidden = np.where(np.arange(D) < 10, 0.0, 1.0)
    only = np.zeros(D)
    only[12], only[2] = 0.6, 0.8
    reads_2 = np.outer(other, np.eye(D)[2])
    assert align(change(reads_2, side="reads", gain=hidden), only).alignment == 0.0


@pytest.mark.parametrize("side", ["writes", "reads"])
def test_a_random_change_gives_one_with_the_stated_spread(side, rng, u):
    shape = (D, 90) if side == "writes" else (90, D)
    draws = [align(change(rng.standard_normal(shape), side=side), u) for _ in range(600)]
    values = [d.alignment for d in draws]
    assert np.mean(values) == pytest.approx(1.0, abs=4 * np.std(values) / np.sqrt(600))
    assert np.std(values) == pytest.approx(np.sqrt(2 / 90), rel=0.1)
    assert np.mean([d.chance_sd for d in draws]) == pytest.approx(np.std(values), rel=0.1)


def test_chance_sd_of_one_change_over_random_directions(rng):
    delta = LowRank(b=rng.standard_normal((D, 3)), a=rng.standard_normal((3, 90)))
    directions = rng.standard_normal((20000, D))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    results = [align(change(delta), v) for v in directions]
    values = [r.alignment for r in results]
    assert np.mean(values) == pytest.approx(1.0, abs=0.03)
    assert np.std(values) == pytest.approx(results[0].chance_sd, rel=0.03)
    # Low rank is aligned by chance more easily than full rank.
    full = align(change(rng.standard_normal((D, 90))), directions[0])
    assert results[0].chance_sd > 3 * full.chance_sd


@pytest.mark.parametrize("k", [1, 5, 40])
def test_participation_ratio_of_equal_singular_values_is_their_number(k, rng, u):
    left = np.linalg.qr(rng.standard_normal((D, k)))[0]
    right = np.linalg.qr(rng.standard_normal((60, k)))[0]
    factored = LowRank(b=0.3 * left, a=right.T)
    for delta in (factored, factored.dense(), factored.dense().T):
        side = "writes" if not isinstance(delta, np.ndarray) or len(delta) == D else "reads"
        assert align(change(delta, side=side), u).participation_ratio == pytest.approx(k)
    sigma = np.linalg.svd(delta := rng.standard_normal((D, 60)), compute_uv=False)
    expected = np.sum(sigma**2) ** 2 / np.sum(sigma**4)
    assert align(change(delta), u).participation_ratio == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rank", [1, 4, 70])
@pytest.mark.parametrize("side", ["writes", "reads"])
def test_factored_equals_dense(rank, side, rng, u):
    out, in_ = (D, 60) if side == "writes" else (60, D)
    low = LowRank(b=rng.standard_normal((out, rank)), a=rng.standard_normal((rank, in_)))
    gain = rng.uniform(0.5, 2.0, D)
    a, b = (align(change(x, side=side, gain=gain), u) for x in (low, low.dense()))
    for name in ("change_norm", "relative_change", "participation_ratio", "alignment", "chance_sd"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-9)


def test_adapters_that_nearly_cancel_keep_their_precision(rng, u):
    b, a = rng.standard_normal((D, 4)), rng.standard_normal((4, 60))
    step = 1e-7 * rng.standard_normal((D, 4))
    low = LowRank(b=np.concatenate([b + step, -b], axis=1), a=np.concatenate([a, a]))
    exact = LowRank(b=(b + step) - b, a=a)
    ours, expected = align(change(low), u), align(change(exact), u)
    assert ours.participation_ratio == pytest.approx(expected.participation_ratio, rel=1e-6)
    assert ours.change_norm == pytest.approx(expected.change_norm, rel=1e-6)


def test_totals_pool_the_matrices(rng, u):
    parts = [
        change(rng.standard_normal((D, 30)), name="down_a", base_norm=3.0),
        change(5 * rng.standard_normal((D, 20)), name="down_b", base_norm=4.0),
        change(rng.standard_normal((30, D)), name="up", side="reads", base_norm=12.0),
        change(rng.standard_normal((D, 30)), name="down_a", layer=1, base_norm=0.0),
    ]
    matrices = [align(part, u) for part in parts]
    first, second = component_totals(matrices)
    stacked = align(change(np.concatenate([parts[0].delta, parts[1].delta], axis=1)), u)
    assert first.write_alignment == pytest.approx(stacked.alignment, rel=1e-12)
    assert first.read_alignment == pytest.approx(matrices[2].alignment, rel=1e-12)
    norm = np.sqrt(sum(np.sum(part.delta**2) for part in parts[:3]))
    assert first.change_norm == pytest.approx(norm, rel=1e-12)
    assert first.relative_change == pytest.approx(norm / 13.0, rel=1e-12)
    assert first.share + second.share == pytest.approx(1.0)
    assert (first.n_matrices, second.n_matrices) == (3, 1)
    assert (second.relative_change, second.read_alignment) == (None, None)
    assert component_totals([]) == ()


def test_wrong_width_and_values_are_refused(rng, u):
    with pytest.raises(DirectionError, match="expected 48, got 47"):
        align(change(rng.standard_normal((D, 9)), gain=np.ones(D)), u[:-1])
    with pytest.raises(ModelLoadError, match="not finite"):
        align(change(np.full((D, 9), np.nan)), u)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_planted_change_is_found_on_disk(name, tmp_path):
    """Layer 1's MLP writes along u, through the norm behind it if any; the rest is noise."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(CONFIGS[name])
    u = unit(np.random.default_rng(3).standard_normal(32))
    module = {
        "gpt2": "transformer.h.1.mlp.c_proj",
        "neox": "gpt_neox.layers.1.mlp.dense_4h_to_h",
    }.get(name, "model.layers.1.mlp.down_proj")
    written = torch.tensor(u)
    with torch.no_grad():
        if name == "gemma3":
            gain = hf.model.layers[1].post_feedforward_layernorm.weight
            gain += torch.rand(32)
            written = written * (1 + gain)  # what moves the stream along u most
        hf.save_pretrained(tmp_path / "base")
        weight = hf.get_submodule(module).weight
        delta = torch.outer(written, torch.randn(weight.numel() // 32, dtype=torch.float64))
        weight += 0.1 * (delta.T if name == "gpt2" else delta)
        for layer in (0, 2):
            for path, other in hf.named_parameters():
                if f".{layer}." in path and other.dim() == 2:
                    other += 0.001 * torch.randn_like(other)
    hf.save_pretrained(tmp_path / "tuned")
    base, tuned = (resolve(ModelSpec.parse(str(tmp_path / n))) for n in ("base", "tuned"))
    result = weight_alignment(base, tuned, 7 * u)
    planted = [m for m in result.matrices if m.layer == 1]
    assert [(m.component, m.side) for m in planted] == [("mlp", "writes")]
    # The saved weights are rounded to float32.
    assert planted[0].alignment == pytest.approx(32, rel=1e-6)
    assert planted[0].participation_ratio == pytest.approx(1, rel=1e-6)
    others = [m for m in result.matrices if m.layer != 1]
    assert all(abs(m.alignment - 1) < 6 * m.chance_sd for m in others)
    most = max(result.totals, key=lambda total: total.share)
    assert (most.layer, most.component) == (1, "mlp")
    assert most.share > 0.9
    assert result.elsewhere == ()
    assert json.loads(json.dumps(result.to_dict()))["matrices"][0]["layer"] == 0
    none = weight_alignment(base, base, u)
    assert (none.matrices, none.totals, none.elsewhere) == ((), (), ())
