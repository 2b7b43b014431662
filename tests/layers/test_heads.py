"""Attention heads of real tiny models: they add up, and equal what the weights say."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import CONFIGS, SMALL, make_tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3MoeConfig,
)

from refusaldir.errors import CaptureError, CaptureMismatchError, ModelSpecError
from refusaldir.geometry import unit
from refusaldir.hooks import Ablation, intervene
from refusaldir.layers.residual.contributions import collect_contributions
from refusaldir.layers.residual.decomposition import decompose
from refusaldir.models.bridge import hook_model
from refusaldir.models.hookpoints import find_blocks
from refusaldir.models.load import LoadedModel
from refusaldir.records import ModelIdentity, Site
from refusaldir.statistics import Clusters

GROUPED = {**SMALL, "num_key_value_heads": 2}
ALL = {
    **CONFIGS,
    "qwen2": Qwen2Config(**GROUPED),
    # Heads that together are wider than the stream.
    "gemma2": Gemma2Config(**GROUPED, head_dim=12),
    "phi3": Phi3Config(**GROUPED),
    "qwen3_moe": Qwen3MoeConfig(
        **GROUPED, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
}
U = unit(np.random.default_rng(7).standard_normal(32))
LABELS = np.arange(10) % 2
CLUSTERS = Clusters.of([i // 2 for i in range(10)], LABELS)
SITE = Site(hook="resid_post", layer=2, position=-1)
PLANTED, HEAD = 1, 2


def model_of(name, *, dtype=torch.float32, backend="torch_hooks", change=None, config=None):
    """A tiny model whose gains and biases, where there are any, are not 1 and 0."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(deepcopy(config or ALL[name])).eval()
    hf.requires_grad_(False)
    for parameter in hf.parameters():
        if parameter.dim() == 1:
            parameter += 0.4 * torch.randn_like(parameter)
    if change is not None:
        hf = change(hf) or hf
    identity = ModelIdentity(
        spec=name, name=name, weights_hash=name, architecture=type(hf).__name__, n_layers=3,
        d_model=32, vocab_size=97, dtype=str(dtype).removeprefix("torch."),
    )  # fmt: skip
    loaded = LoadedModel(hf=hf.to(dtype), tokenizer=make_tokenizer(), identity=identity)
    return hook_model(loaded, backend)


def projection_of(hf, layer):
    """The output projection and its weight as ``[d_model d_heads]``, which may be written to."""
    block = find_blocks(hf)[layer]
    if hasattr(block, "attn"):
        return block.attn.c_proj, block.attn.c_proj.weight.T
    module = block.attention.dense if hasattr(block, "attention") else block.self_attn.o_proj
    return module, module.weight


def columns_of(weight, head):
    width = weight.shape[1] // 4
    return weight[:, head * width : (head + 1) * width]


def everywhere(hf):
    torch.manual_seed(1)
    for parameter in hf.parameters():
        parameter += 0.1 * parameter.std() * torch.randn_like(parameter)


def in_one_head(hf):
    torch.manual_seed(1)
    columns = columns_of(projection_of(hf, PLANTED)[1], HEAD)
    columns += 0.3 * columns.std() * torch.randn_like(columns)


def inputs_of_projections(hf, ids, position):
    """z of each layer at one token, from Hugging Face."""
    inputs, handles = [], []
    for layer in range(3):
        module, _ = projection_of(hf, layer)
        handles.append(
            module.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0, position]))
        )
    with torch.inference_mode():
        hf(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return [z.double() for z in inputs]


def from_weights(name, hf, sequences, position):
    """Heads and biases by the textbook formula, one prompt and head at a time: W_h z_h."""
    heads, biases = np.zeros((len(sequences), 3, 4)), np.zeros((len(sequences), 3))
    u = torch.from_numpy(U)
    for i, ids in enumerate(sequences):
        for layer, z in enumerate(inputs_of_projections(hf, ids, position)):
            module, weight = projection_of(hf, layer)
            bias = torch.zeros(32) if getattr(module, "bias", None) is None else module.bias
            through = torch.ones(32, dtype=torch.float64)
            if name.startswith("gemma"):
                norm = find_blocks(hf)[layer].post_attention_layernorm
                y = weight.double() @ z + bias.double()
                through = (1 + norm.weight.double()) / (y.pow(2).mean() + norm.eps).sqrt()
            biases[i, layer] = u @ (through * bias.double())
            for head in range(4):
                z_h = z.reshape(4, -1)[head]
                heads[i, layer, head] = u @ (through * (columns_of(weight, head).double() @ z_h))
    return heads, biases


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("backend", ["torch_hooks", "transformer_lens"])
def test_add_up_to_attention_and_equal_the_weights(name, backend, sequences):
    site = replace(SITE, position=-2)
    expected, biases = from_weights(name, model_of(name).hf, sequences, -2)
    model = model_of(name, backend=backend)
    got = collect_contributions(model, sequences, U, site, heads=True, batch_size=4)
    scale = np.abs(got.attn).max()
    np.testing.assert_allclose(got.heads.values, expected, atol=1e-5 * scale)
    np.testing.assert_allclose(got.heads.bias, biases, atol=1e-6 * scale)
    assert (np.abs(biases).max() > 0.01) == (name in ("gpt2", "neox"))
    together = got.heads.values.sum(axis=2) + got.heads.bias
    np.testing.assert_allclose(together, got.attn, atol=1e-5 * scale)
    # Negative controls: heads differ, and another order of them is not what was found.
    assert not np.allclose(got.heads.values, expected[:, :, ::-1], atol=1e-2 * scale)

    without = collect_contributions(model, sequences, U, site, batch_size=4)
    assert without.heads is None
    np.testing.assert_array_equal(without.terms, got.terms)


@pytest.mark.parametrize("name", ALL)
def test_a_change_of_one_head_shows_in_this_head_alone(name, sequences):
    base, tuned = (
        collect_contributions(model_of(name, change=c), sequences, U, SITE, heads=True)
        for c in (None, in_one_head)
    )
    result = decompose(base, tuned, LABELS, CLUSTERS)
    assert result.heads.closing.relative < 1e-4
    size = {(t.layer, t.head): abs(t.harmful.pointwise.value) for t in result.heads.terms}
    assert len(size) == 12
    assert all(size[0, head] == 0 for head in range(4))
    assert size[PLANTED, HEAD] > 1e-3
    others = [head for head in range(4) if head != HEAD]
    if name.startswith("gemma"):
        # They write what they wrote; the norm behind them scales it anew, all by one factor.
        factor = tuned.heads.values[:, PLANTED, others] / base.heads.values[:, PLANTED, others]
        np.testing.assert_allclose(factor, factor[:, :1] + np.zeros(3), rtol=1e-4)
        assert np.abs(factor - 1).max() > 1e-3
    else:
        assert max(size[PLANTED, head] for head in others) < 1e-6 * size[PLANTED, HEAD]
    # Negative control: the layer after answers with every head.
    assert min(size[2, head] for head in range(4)) > 0


@pytest.mark.parametrize("name", ALL)
def test_heads_close_to_the_attention_terms(name, sequences):
    base, tuned = (
        collect_contributions(model_of(name, change=c), sequences, U, SITE, heads=True)
        for c in (None, everywhere)
    )
    result = decompose(base, tuned, LABELS, CLUSTERS)
    assert result.heads.closing.relative < 1e-4
    attn = [t for t in result.terms if t.component == "attn"]
    for which in ("harmful", "harmless", "difference"):
        for term in attn:
            parts = sum(
                getattr(t, which).pointwise.value
                for t in (*result.heads.terms, *result.heads.bias)
                if t.layer == term.layer
            )
            assert parts == pytest.approx(getattr(term, which).pointwise.value, abs=1e-5)
    biased = name in ("gpt2", "neox")
    assert [t.layer for t in result.heads.bias] == ([0, 1, 2] if biased else [])
    # A part left out does not go unseen.
    for left_out in (
        replace(tuned.heads, values=tuned.heads.values * (np.arange(4) != 1)),
        *([replace(tuned.heads, bias=base.heads.bias)] if biased else []),
    ):
        with pytest.raises(CaptureError, match="heads do not add up"):
            decompose(base, replace(tuned, heads=left_out), LABELS, CLUSTERS)


@pytest.mark.parametrize("hook", ["resid_pre", "resid_mid"])
def test_reads_the_layers_before_the_site_in_the_passes_there_are(hook, sequences):
    model = model_of("gemma3")
    calls = [0, 0, 0]
    for layer, block in enumerate(find_blocks(model.hf)):
        block.self_attn.o_proj.register_forward_hook(
            lambda *_, layer=layer: calls.__setitem__(layer, calls[layer] + 1)
        )
    site = Site(hook=hook, layer=1, position=-1)
    got = collect_contributions(model, sequences, U, site, heads=True, batch_size=5)
    layers = 1 if hook == "resid_pre" else 2
    assert got.heads.values.shape == (10, layers, 4)
    assert calls == [3] * layers + [0] * (3 - layers)  # the shared prefix and two batches
    hooks = [m for m in model.hf.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert len(hooks) == 3  # those of this test


def test_there_are_no_heads_before_the_first_block(sequences):
    site = Site(hook="resid_pre", layer=0, position=-1)
    got = collect_contributions(model_of("llama"), sequences, U, site, heads=True)
    assert got.heads.values.shape == (10, 0, 4)
    assert decompose(got, got, LABELS, CLUSTERS).heads.terms == ()


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_heads_of_an_erased_projection_write_nothing(name, sequences):
    def erased(hf):
        projection_of(hf, PLANTED)[1].zero_()

    got = collect_contributions(model_of(name, change=erased), sequences, U, SITE, heads=True)
    assert (got.heads.values[:, PLANTED] == 0).all()
    assert (got.heads.values[:, [0, 2]] != 0).all()


@pytest.mark.parametrize("backend", ["torch_hooks", "transformer_lens"])
def test_an_adapter_beside_the_weights_counts_as_if_merged(backend, sequences):
    def adapted(hf, *, merged):
        torch.manual_seed(3)
        config = LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False)
        peft = get_peft_model(hf, config).eval()
        return peft.merge_and_unload() if merged else peft.get_base_model()

    merged, beside = (
        collect_contributions(
            model_of("llama", backend=backend, change=lambda hf, m=m: adapted(hf, merged=m)),
            sequences,
            U,
            SITE,
            heads=True,
        )
        for m in (True, False)
    )
    np.testing.assert_allclose(beside.heads.values, merged.heads.values, atol=1e-4)
    np.testing.assert_allclose(beside.heads.values.sum(axis=2), beside.attn, atol=1e-4)
    base = collect_contributions(model_of("llama"), sequences, U, SITE, heads=True)
    assert np.abs(beside.heads.values - base.heads.values).max() > 0.01


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "neox"])
def test_bfloat16_closes_to_its_own_rounding_only(name, sequences):
    base, tuned = (
        collect_contributions(
            model_of(name, dtype=torch.bfloat16, change=c), sequences, U, SITE, heads=True
        )
        for c in (None, everywhere)
    )
    closing = decompose(base, tuned, LABELS, CLUSTERS).heads.closing
    assert 1e-4 < closing.relative < 0.3
    assert 1e-2 * closing.rounding < closing.absolute <= closing.rounding
    # Rounding excuses no head.
    left_out = replace(tuned.heads, values=tuned.heads.values * (np.arange(4) != 1))
    with pytest.raises(CaptureError, match="heads do not add up"):
        decompose(base, replace(tuned, heads=left_out), LABELS, CLUSTERS)


def test_rounding_between_batches_is_no_failure_to_close(sequences):
    model = model_of("gemma3")
    base, tuned = (
        collect_contributions(model, sequences, U, SITE, heads=True, batch_size=size)
        for size in (1, 10)
    )
    closing = decompose(base, tuned, LABELS, CLUSTERS).heads.closing
    assert 0 < closing.absolute <= closing.rounding < 1e-4


def test_what_changes_attention_behind_the_heads_is_refused(sequences):
    model = model_of("llama")
    base = collect_contributions(model, sequences, U, SITE, heads=True)
    with intervene(model, Ablation.of(torch.from_numpy(U))):
        tuned = collect_contributions(model, sequences, U, SITE, heads=True)
    with pytest.raises(CaptureError, match=r"heads do not add up.*hook on attn_out"):
        decompose(base, tuned, LABELS, CLUSTERS)


def test_refuses_heads_of_one_model_only_and_of_an_unknown_architecture(sequences):
    model = model_of("llama")
    without, with_heads = (
        collect_contributions(model, sequences, U, SITE, heads=heads) for heads in (False, True)
    )
    with pytest.raises(CaptureMismatchError, match="number of heads"):
        decompose(without, with_heads, LABELS, CLUSTERS)
    unknown = model_of("olmo2", config=Olmo2Config(**GROUPED))
    assert collect_contributions(unknown, sequences, U, SITE).heads is None
    with pytest.raises(ModelSpecError, match="not known which matrices"):
        collect_contributions(unknown, sequences, U, SITE, heads=True)
