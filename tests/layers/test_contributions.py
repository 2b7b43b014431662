"""Contributions of real tiny models: they close, equal Hugging Face, and start where planted."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from tiny import CONFIGS, SMALL, make_tokenizer
from transformers import AutoModelForCausalLM, Gemma2Config, Qwen2Config

from refusaldir.errors import CaptureError, DirectionError
from refusaldir.geometry import unit
from refusaldir.layers.residual.contributions import collect_contributions
from refusaldir.layers.residual.decomposition import decompose
from refusaldir.models.bridge import hook_model
from refusaldir.models.hookpoints import find_blocks
from refusaldir.models.load import LoadedModel
from refusaldir.records import ModelIdentity, Site
from refusaldir.statistics import Clusters

ALL = {
    **CONFIGS,
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
    "gemma2": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8),
}
U = unit(np.random.default_rng(7).standard_normal(32))
LABELS = np.arange(10) % 2
CLUSTERS = Clusters.of([i // 2 for i in range(10)], LABELS)
MLP_OUTPUT = {"gpt2": "c_proj", "neox": "dense_4h_to_h"}
READOUT = Site(hook="resid_pre", layer=2, position=-1)


def model_of(name, *, dtype=torch.float32, backend="torch_hooks", change=None):
    """A tiny model whose gains and biases, where there are any, are not 1 and 0."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(deepcopy(ALL[name])).eval().requires_grad_(False)
    for parameter in hf.parameters():
        if parameter.dim() == 1:
            parameter += 0.4 * torch.randn_like(parameter)
    if change is not None:
        change(hf)
    identity = ModelIdentity(
        spec=name, name=name, weights_hash=name, architecture=type(hf).__name__, n_layers=3,
        d_model=32, vocab_size=97, dtype=str(dtype).removeprefix("torch."),
    )  # fmt: skip
    loaded = LoadedModel(hf=hf.to(dtype), tokenizer=make_tokenizer(), identity=identity)
    return hook_model(loaded, backend)


def everywhere(hf):
    torch.manual_seed(1)
    for parameter in hf.parameters():
        parameter += 0.1 * parameter.std() * torch.randn_like(parameter)


def in_mlp_1(name):
    def change(hf):
        torch.manual_seed(1)
        weight = getattr(find_blocks(hf)[1].mlp, MLP_OUTPUT.get(name, "down_proj")).weight
        weight += 0.3 * weight.std() * torch.randn_like(weight)

    return change


def hidden_states(model, sequences, layer, position):
    """[prompt d_model] from Hugging Face, one prompt at a time."""
    with torch.inference_mode():
        return np.stack(
            [
                model.hf(torch.tensor([s]), output_hidden_states=True)
                .hidden_states[layer][0, position]
                .float()
                .numpy()
                for s in sequences
            ]
        ).astype(np.float64)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("backend", ["torch_hooks", "transformer_lens"])
def test_closes_and_equals_hidden_states(name, backend, sequences):
    site = Site(hook="resid_pre", layer=2, position=-2)
    plain = [model_of(name), model_of(name, change=everywhere)]
    expected = np.stack([hidden_states(m, sequences, 2, -2) @ U for m in plain])
    hooked = [model_of(name, backend=backend, change=c) for c in (None, everywhere)]
    base, tuned = (collect_contributions(m, sequences, U, site, batch_size=4) for m in hooked)

    assert base.attn.shape == base.mlp.shape == (10, 2)
    scale = np.abs(expected).max()
    for got, want in zip((base, tuned), expected, strict=True):
        np.testing.assert_allclose(got.resid, want, atol=1e-5 * scale)
        np.testing.assert_allclose(got.terms.sum(axis=1), want, atol=1e-5 * scale)
    result = decompose(base, tuned, LABELS, CLUSTERS)
    assert result.closing.relative < 1e-4
    change = expected[1] - expected[0]
    assert np.abs(change).min() > 1e-3 * scale  # something to be taken apart
    parts = sum(term.difference.pointwise.value for term in result.terms)
    gap = change[LABELS == 1].mean() - change[LABELS == 0].mean()
    assert parts == pytest.approx(gap, abs=1e-4 * scale)
    assert result.cumulative[-1].difference.pointwise.value == pytest.approx(parts)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize(("hook", "layers"), [("resid_mid", (2, 1)), ("resid_post", (2, 2))])
def test_reads_out_within_a_block_as_well(name, hook, layers, sequences):
    site = Site(hook=hook, layer=1, position=-1)
    got = collect_contributions(model_of(name), sequences, U, site)
    assert (got.attn.shape[1], got.mlp.shape[1]) == layers
    np.testing.assert_allclose(got.terms.sum(axis=1), got.resid, rtol=1e-4, atol=1e-5)
    if hook == "resid_post":
        after = collect_contributions(model_of(name), sequences, U, READOUT)
        np.testing.assert_allclose(after.terms, got.terms, atol=1e-6)
        np.testing.assert_allclose(after.resid, got.resid, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_a_planted_change_comes_first_where_it_was_planted(name, sequences):
    # After the last block, so that a layer that only passes the change on is seen as well.
    site = Site(hook="resid_post", layer=2, position=-1)
    models = [model_of(name), model_of(name, change=in_mlp_1(name))]
    base, tuned = (collect_contributions(m, sequences, U, site, batch_size=5) for m in models)
    terms = {
        (term.component, term.layer): abs(term.harmful.pointwise.value)
        for term in decompose(base, tuned, LABELS, CLUSTERS).terms
    }
    before = [("embed", None), ("attn", 0), ("mlp", 0), ("attn", 1)]
    assert [terms[key] for key in before] == [0, 0, 0, 0]
    assert terms["mlp", 1] > 1e-3
    assert terms["attn", 2] > 0 and terms["mlp", 2] > 0


def test_identical_models_have_changed_nowhere(sequences):
    base, tuned = (
        collect_contributions(model_of("llama"), sequences, U, READOUT, batch_size=3) for _ in "bt"
    )
    result = decompose(base, tuned, LABELS, CLUSTERS)
    for term in (*result.terms, *result.cumulative):
        for figure in (term.harmful, term.harmless, term.difference):
            for e in (figure.pointwise, figure.simultaneous):
                assert (e.value, e.lower, e.upper) == (0, 0, 0)
    assert (result.closing.absolute, result.closing.relative) == (0, 0)


def test_rounding_between_batches_is_no_failure_to_close(sequences):
    """A model against itself in other batches differs by rounding, which does not add up."""
    model = model_of("llama")
    base, tuned = (
        collect_contributions(model, sequences, U, READOUT, batch_size=size) for size in (1, 10)
    )
    result = decompose(base, tuned, LABELS, CLUSTERS)
    assert result.closing.absolute <= result.closing.rounding < 1e-4
    assert max(abs(t.harmful.pointwise.value) for t in result.terms) < 1e-4


def test_bfloat16_closes_to_its_own_rounding_only(sequences):
    site = Site(hook="resid_post", layer=2, position=-1)
    models = [model_of("qwen3", dtype=torch.bfloat16, change=c) for c in (None, everywhere)]
    base, tuned = (collect_contributions(m, sequences, U, site) for m in models)
    closing = decompose(base, tuned, LABELS, CLUSTERS).closing
    assert 1e-4 < closing.relative < 0.1
    assert 1e-2 * closing.rounding < closing.absolute <= closing.rounding


def test_runs_no_layer_past_the_readout_and_each_once(sequences):
    model = model_of("llama")
    calls = [0, 0, 0]
    for layer, block in enumerate(find_blocks(model.hf)):
        block.mlp.register_forward_hook(
            lambda *_, layer=layer: calls.__setitem__(layer, calls[layer] + 1)
        )
    seen = []
    collect_contributions(model, sequences, U, READOUT, batch_size=5, on_batch=seen.append)
    assert calls == [3, 3, 0]  # the shared prefix and two batches
    assert seen == [5, 5]


def test_hooks_are_gone_afterwards_and_the_order_is_that_of_the_prompts(sequences):
    model = model_of("neox")
    together = collect_contributions(model, sequences, U, READOUT, batch_size=4)
    alone = [collect_contributions(model, [s], U, READOUT).terms[0] for s in sequences]
    np.testing.assert_allclose(together.terms, np.stack(alone), atol=1e-5)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


def test_the_readout_is_the_embedding_alone_before_the_first_block(sequences):
    site = Site(hook="resid_pre", layer=0, position=-1)
    got = collect_contributions(model_of("gpt2"), sequences, U, site)
    assert got.names == (("embed", None),)
    np.testing.assert_array_equal(got.embed, got.resid)


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (Site(hook="attn_out", layer=1, position=-1), "Only the residual stream is a sum"),
        (Site(hook="resid_pre", layer=3, position=-1), "no such layer"),
        (Site(hook="resid_pre", layer=1, position=0), "counted from the end"),
        (Site(hook="resid_pre", layer=1, position=-8), "fewer tokens"),
    ],
)
def test_refuses_a_site_that_is_none(site, said, sequences):
    with pytest.raises(CaptureError, match=said):
        collect_contributions(model_of("llama"), sequences, U, site)


def test_refuses_what_is_no_unit_vector_and_what_is_not_finite(sequences):
    model = model_of("llama")
    for direction in (2 * U, U[:5], np.full(32, np.nan)):
        with pytest.raises(DirectionError):
            collect_contributions(model, sequences, direction, READOUT)
    with pytest.raises(CaptureError, match="at least one prompt"):
        collect_contributions(model, [], U, READOUT)
    find_blocks(model.hf)[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(CaptureError, match="not finite"):
        collect_contributions(model, sequences, U, READOUT)
