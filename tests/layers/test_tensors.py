"""Matrices of two checkpoints on disk against the models in memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIGS, SMALL
from transformers import AutoModelForCausalLM, Gemma2Config, MixtralConfig, Phi3Config, Qwen2Config

from refusaldir.errors import ModelLoadError, ModelSpecError
from refusaldir.layers.weights.lora import LowRank
from refusaldir.layers.weights.matrix_names import tensor_key
from refusaldir.layers.weights.tensors import changed_elsewhere, matrix_changes
from refusaldir.models.resolve import resolve
from refusaldir.models.spec import ModelSpec

HEADS = {"num_key_value_heads": 2}
ARCHITECTURES = {
    **CONFIGS,
    "qwen2": Qwen2Config(**SMALL, **HEADS),
    "phi3": Phi3Config(**SMALL, **HEADS),
    "gemma2": Gemma2Config(**SMALL, **HEADS, head_dim=8),
    "mixtral": MixtralConfig(**SMALL, **HEADS, num_local_experts=3),
}
#: Matrices of one block: component, name and side.
LLAMA = {
    *(("attn", f"{n}_proj", "reads") for n in "qkv"),
    ("attn", "o_proj", "writes"),
    ("mlp", "gate_proj", "reads"),
    ("mlp", "up_proj", "reads"),
    ("mlp", "down_proj", "writes"),
}
BLOCKS = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "gemma2", "gemma3"), LLAMA),
    "gpt2": {
        ("attn", "c_attn", "reads"),
        ("attn", "c_proj", "writes"),
        ("mlp", "c_fc", "reads"),
        ("mlp", "c_proj", "writes"),
    },
    "neox": {
        ("attn", "query_key_value", "reads"),
        ("attn", "dense", "writes"),
        ("mlp", "dense_h_to_4h", "reads"),
        ("mlp", "dense_4h_to_h", "writes"),
    },
    "phi3": {
        ("attn", "qkv_proj", "reads"),
        ("attn", "o_proj", "writes"),
        ("mlp", "gate_up_proj", "reads"),
        ("mlp", "down_proj", "writes"),
    },
    "mixtral": {
        *(x for x in LLAMA if x[0] == "attn"),
        ("mlp", "gate", "reads"),
        *(("mlp", f"experts.{e}.w{w}", "reads") for e in range(3) for w in (1, 3)),
        *(("mlp", f"experts.{e}.w2", "writes") for e in range(3)),
    },
}


def make(name, *, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(ARCHITECTURES[name], dtype=dtype)


def save(hf, folder, **options):
    hf.save_pretrained(folder, **options)
    return opened(folder)


def opened(*folders):
    return resolve(ModelSpec.parse("+".join(map(str, folders))))


def perturbed(hf, *, seed=1, only=""):
    """The same model with every matrix of its blocks changed, and those changes."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if only in name and weight.dim() > 1 and tensor_key(name).layer is not None:
                weight += 0.01 * torch.randn_like(weight)
    return hf


def peft_folder(hf, folder, *, seed=0, targets, **options):
    """A LoRA adapter with random factors, saved; ``hf`` is wrapped in place."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=options.pop("r", 4), target_modules=targets, **options)
    model = get_peft_model(hf, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


def merged(name, *folders):
    """The model with adapters merged by PEFT, one after the other."""
    from peft import PeftModel

    hf = make(name)
    for folder in folders:
        hf = PeftModel.from_pretrained(hf, folder).merge_and_unload()
        if hasattr(hf, "peft_config"):
            del hf.peft_config
    return hf


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_architecture_gives_its_matrices(name, tmp_path):
    hf = make(name)
    base = save(hf, tmp_path / "base")
    tuned = save(perturbed(hf), tmp_path / "tuned")
    changes = list(matrix_changes(base, tuned))
    assert [c.layer for c in changes] == sorted(c.layer for c in changes)
    for layer in range(3):
        found = [(c.component, c.name, c.side) for c in changes if c.layer == layer]
        assert set(found) == BLOCKS[name]
        assert len(found) == len(BLOCKS[name])
    for change in changes:
        assert change.delta.shape[0 if change.side == "writes" else 1] == 32
        assert np.std(change.delta) == pytest.approx(0.01, rel=0.25)
        behind = name.startswith("gemma") or change.side == "reads"
        assert (change.gain is not None) == behind
        if behind:
            # Gains are 1 at first, which Gemma stores as 0.
            np.testing.assert_allclose(change.gain, 1.0)
        assert change.centred == (name in ("gpt2", "neox") and change.side == "reads")
    assert changed_elsewhere(base, tuned) == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_those_of_the_models(dtype, tmp_path):
    first, second = make("llama", dtype=dtype), make("llama", seed=1, dtype=dtype)
    base, tuned = save(first, tmp_path / "base"), save(second, tmp_path / "tuned")
    for change in matrix_changes(base, tuned):
        module = (
            f"model.layers.{change.layer}.{'self_attn' if change.component == 'attn' else 'mlp'}"
        )
        old, new = (
            m.get_submodule(f"{module}.{change.name}").weight.detach().double()
            for m in (first, second)
        )
        np.testing.assert_array_equal(change.delta, (new - old).numpy())
        assert change.base_norm == pytest.approx(float(old.norm()), rel=1e-12)
    assert changed_elsewhere(base, tuned) == ("embed_tokens.weight", "lm_head.weight")


def test_gpt2_is_turned_to_out_in(tmp_path):
    first, second = make("gpt2"), make("gpt2", seed=1)
    base, tuned = save(first, tmp_path / "base"), save(second, tmp_path / "tuned")
    change = next(c for c in matrix_changes(base, tuned) if c.name == "c_fc")
    old, new = (
        m.transformer.h[0].mlp.c_fc.weight.detach().double().numpy() for m in (first, second)
    )
    np.testing.assert_array_equal(change.delta, (new - old).T)


def test_shards_prefixes_and_dtypes_make_no_difference(tmp_path):
    hf = make("llama", dtype=torch.bfloat16)
    base = save(hf, tmp_path / "base")
    wide = save(hf.float(), tmp_path / "wide", max_shard_size="20KB")
    assert len(list((tmp_path / "wide").glob("*.safetensors"))) > 3
    assert list(matrix_changes(base, wide)) == []
    assert changed_elsewhere(base, wide) == ()
    tuned = save(perturbed(hf, only="layers.1.mlp.up"), tmp_path / "tuned", max_shard_size="20KB")
    assert [(c.layer, c.name) for c in matrix_changes(base, tuned)] == [(1, "up_proj")]
    file = tmp_path / "base" / "model.safetensors"
    tensors = {f"language_model.{name}": value for name, value in load_file(file).items()}
    for layer in (0, 9):
        tensors[f"vision_tower.layers.{layer}.self_attn.q_proj.weight"] = torch.ones(3, 3)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text((tmp_path / "base" / "config.json").read_text())
    save_file(tensors, other / "model.safetensors")
    assert list(matrix_changes(base, opened(other))) == []
    assert changed_elsewhere(base, opened(other)) == tuple(n for n in tensors if "vision" in n)


def test_gains_and_biases_are_named_elsewhere(tmp_path):
    hf = make("gpt2")
    base = save(hf, tmp_path / "base")
    with torch.no_grad():
        hf.transformer.h[2].ln_1.weight += 1
        hf.transformer.h[0].mlp.c_fc.bias += 1
        hf.transformer.wte.weight[3, 3] += 1
    tuned = save(hf, tmp_path / "tuned")
    assert list(matrix_changes(base, tuned)) == []
    assert changed_elsewhere(base, tuned) == (
        "wte.weight", "layer 0 mlp.c_fc.bias", "layer 2 ln_1.weight",
    )  # fmt: skip
    # Gains are those of base.
    both = save(perturbed(hf), tmp_path / "both")
    gains = {c.layer: c.gain for c in matrix_changes(tuned, both) if c.name == "c_attn"}
    np.testing.assert_allclose(gains[2], 2.0)
    np.testing.assert_allclose(gains[1], 1.0)


LORA = [
    ("llama", {"targets": ["q_proj", "down_proj"], "lora_alpha": 16}),
    ("llama", {"targets": "all-linear", "lora_alpha": 3, "use_rslora": True}),
    (
        "qwen3",
        {
            "targets": ["v_proj", "o_proj"],
            "rank_pattern": {"layers.1.self_attn.v_proj": 2},
            "alpha_pattern": {"o_proj": 5},
        },
    ),
    ("gpt2", {"targets": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
]


@pytest.mark.parametrize(("name", "options"), LORA)
def test_factors_are_what_peft_merges(name, options, tmp_path):
    base = save(make(name), tmp_path / "base")
    peft_folder(make(name), tmp_path / "lora", **options)
    tuned = opened(tmp_path / "base", tmp_path / "lora")
    whole = save(merged(name, tmp_path / "lora"), tmp_path / "merged")
    ours, dense = list(matrix_changes(base, tuned)), list(matrix_changes(base, whole))
    assert len(ours) == len(dense) > 3
    for a, b in zip(ours, dense, strict=True):
        assert isinstance(a.delta, LowRank)
        assert (a.layer, a.component, a.name, a.side) == (b.layer, b.component, b.name, b.side)
        assert a.base_norm == b.base_norm
        # The merged weights are rounded to float32.
        np.testing.assert_allclose(a.delta.dense(), b.delta, atol=3e-7)
        assert np.linalg.norm(b.delta) > 0.1


def test_stacked_adapters_concatenate_and_shared_ones_cancel(tmp_path):
    base = save(make("llama"), tmp_path / "base")
    one = peft_folder(make("llama"), tmp_path / "one", seed=1, targets=["q_proj"])
    two = peft_folder(make("llama"), tmp_path / "two", seed=2, targets=["q_proj", "o_proj"], r=3)
    both = opened(tmp_path / "base", one, two)
    whole = save(merged("llama", one, two), tmp_path / "merged")
    stacked = {(c.layer, c.name): c for c in matrix_changes(base, both)}
    assert stacked[0, "q_proj"].delta.b.shape == (32, 7)  # ranks 4 and 3
    for change in matrix_changes(base, whole):
        delta = stacked[change.layer, change.name].delta.dense()
        np.testing.assert_allclose(delta, change.delta, atol=5e-7)
    with_one = opened(tmp_path / "base", one)
    for change in matrix_changes(with_one, both):
        assert change.delta.b.shape[1] == 3
    swapped = {
        (c.layer, c.name): c for c in matrix_changes(opened(tmp_path / "base", two), with_one)
    }
    first = {(c.layer, c.name): c for c in matrix_changes(base, with_one)}
    second = {(c.layer, c.name): c for c in matrix_changes(base, opened(tmp_path / "base", two))}
    expected = first[1, "q_proj"].delta.dense() - second[1, "q_proj"].delta.dense()
    np.testing.assert_allclose(swapped[1, "q_proj"].delta.dense(), expected, atol=1e-14)
    np.testing.assert_allclose(
        swapped[1, "o_proj"].delta.dense(), -second[1, "o_proj"].delta.dense()
    )
    # Norms of base count its adapter.
    dense = merged("llama", one).model.layers[1].self_attn.q_proj.weight.double().norm()
    own = next(c for c in matrix_changes(with_one, both) if (c.layer, c.name) == (1, "q_proj"))
    assert own.base_norm == pytest.approx(float(dense), rel=1e-6)
    assert list(matrix_changes(both, both)) == []


def test_modules_to_save_replace(tmp_path):
    base = save(make("llama"), tmp_path / "base")
    folder = peft_folder(
        make("llama"), tmp_path / "lora", targets=["q_proj"], modules_to_save=["lm_head", "up_proj"]
    )
    weights = load_file(folder / "adapter_model.safetensors")
    for name in weights:
        if name.endswith(("layers.1.mlp.up_proj.weight", "lm_head.weight")):
            weights[name] += 0.5
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    tuned = opened(tmp_path / "base", folder)
    changes = {(c.layer, c.name): c for c in matrix_changes(base, tuned)}
    assert set(changes) == {*((i, "q_proj") for i in range(3)), (1, "up_proj")}
    np.testing.assert_allclose(changes[1, "up_proj"].delta, 0.5, atol=1e-6)
    assert changed_elsewhere(base, tuned) == ("lm_head.weight",)
    # They also replace what an adapter below had added.
    below = peft_folder(make("llama"), tmp_path / "below", targets=["up_proj"])
    stacked = {
        (c.layer, c.name): c for c in matrix_changes(base, opened(base.model, below, folder))
    }
    np.testing.assert_allclose(stacked[1, "up_proj"].delta, 0.5, atol=1e-6)


def test_what_is_not_plain_lora_is_refused(tmp_path):
    base = save(make("llama"), tmp_path / "base")
    dora = peft_folder(make("llama"), tmp_path / "dora", targets=["q_proj"], use_dora=True)
    with pytest.raises(ModelSpecError, match=r"not a sum of plain LoRA.*use_dora"):
        matrix_changes(base, opened(tmp_path / "base", dora))
    lost = peft_folder(make("gpt2"), tmp_path / "lost", targets=["c_fc"], fan_in_fan_out=True)
    with pytest.raises(ModelSpecError, match=r"no layer 0 mlp.c_fc.weight in the model"):
        matrix_changes(base, opened(tmp_path / "base", lost))


def test_unknown_architectures_matrices_and_dtypes_are_named(tmp_path):
    hf = make("llama")
    base, tuned = save(hf, tmp_path / "base"), save(perturbed(hf), tmp_path / "tuned")
    file, config = tmp_path / "tuned" / "model.safetensors", tmp_path / "tuned" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"model_type": "llama"', '"model_type": "falcon"'))
    odd = opened(tmp_path / "tuned")
    with pytest.raises(ModelSpecError, match=r"'falcon' with tensors such as model\.layers\.0\."):
        matrix_changes(odd, base)
    with pytest.raises(ModelSpecError, match="different architectures"):
        matrix_changes(base, odd)
    config.write_text(text)
    weights = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(weights | {"model.layers.1.mlp.extra.weight": torch.ones(2, 2)}, file)
    with pytest.raises(ModelSpecError, match=r"got model\.layers\.1\.mlp\.extra\.weight \[2, 2\]"):
        matrix_changes(base, tuned)
    save_file(weights | {name: weights[name][:5].contiguous()}, file)
    with pytest.raises(ModelSpecError, match=r"expected layer 1 mlp.up_proj.weight \[48, 32\]"):
        matrix_changes(base, tuned)
    save_file(weights | {name: weights[name].to(torch.int8)}, file)
    with pytest.raises(ModelLoadError, match=r"up_proj\.weight in I8"):
        list(matrix_changes(base, tuned))


MEASURE = """
import re, sys
from pathlib import Path
import torch
from refusaldir.layers.weights.tensors import matrix_changes
from refusaldir.models.resolve import resolve
from refusaldir.models.spec import ModelSpec
base, tuned = (resolve(ModelSpec.parse(path)) for path in sys.argv[1:3])

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

changes = matrix_changes(base, tuned)
next(changes)
before = peak()
if sys.argv[3] == "one":
    for change in changes:
        pass
else:
    kept = list(changes)
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_bound_by_one_pair(tmp_path):
    """Two checkpoints of 63 MB with matrices of 1/3 MB, 2/3 MB in float64."""
    for seed, name in enumerate(("base", "tuned")):
        generator = torch.Generator().manual_seed(seed)
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "llama"}')
        tensors = {
            f"model.layers.{layer}.self_attn.{which}_proj.weight": torch.randn(
                288, 288, generator=generator
            )
            for layer in range(48)
            for which in "qkvo"
        } | {f"model.layers.{layer}.input_layernorm.weight": torch.ones(288) for layer in range(48)}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    grown = {}
    for how in ("one", "all"):
        command = [sys.executable, "-c", MEASURE, tmp_path / "base", tmp_path / "tuned", how]
        result = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
        grown[how] = float(result.stdout)
    assert grown["one"] < 12
    assert grown["all"] > 100  # what the measurement shows when all changes are kept
