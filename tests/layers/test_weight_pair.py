"""Base and tuned in one model: whatever is set gives what each alone would give."""

import json

import pytest
import torch
from pairs import ARCHITECTURES, Pair, save_lora, save_tuned
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from refusaldir.errors import ModelSpecError
from refusaldir.layers.switches import AdapterSwitch, TensorSwitch
from refusaldir.layers.weight_pair import Change, WeightPair
from refusaldir.models.bridge import open_model
from refusaldir.models.options import LoadOptions

TOKENS = torch.arange(5, 29).reshape(2, 12)


def logits(model):
    with torch.inference_mode():
        return model.logits(TOKENS)


def assert_same(a, b):
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_each_side_is_the_model_opened_alone(make_pair, name, kind):
    pair_of = make_pair(name, kind)
    pair = WeightPair.open(pair_of.base, pair_of.tuned)
    base, tuned = (logits(open_model(spec)) for spec in (pair_of.base, pair_of.tuned))
    assert (base - tuned).abs().max() > 1e-2
    for _ in range(2):
        assert_same(logits(pair.model), base)
        pair.set_tuned()
        assert_same(logits(pair.model), tuned)
        pair.set_base()
    expected = AdapterSwitch if kind == "lora" else TensorSwitch
    assert all(isinstance(switch, expected) for switch in pair.switches)
    assert pair.layers == (0, 1, 2)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_one_block_alone(make_pair, kind):
    """Tuned's block 1 in base is what a checkpoint made that way gives."""
    pair_of = make_pair("llama", kind)
    pair = WeightPair.open(pair_of.base, pair_of.tuned)
    base, tuned = (open_model(spec).hf for spec in (pair_of.base, pair_of.tuned))
    mixed = AutoModelForCausalLM.from_pretrained(pair_of.base)
    with torch.no_grad():
        alone = open_model(pair_of.tuned, backend="torch_hooks").hf
        for key, value in dict(alone.named_parameters()).items():
            if ".layers.1." in key:
                mixed.get_parameter(key).copy_(value)
        expected = mixed(TOKENS).logits[:, -1]
    pair.set([1], outside=False)
    assert_same(logits(pair.model), expected)
    assert pair.tuned_layers == {1} and not pair.tuned_outside
    # Not merely one of the two ends.
    assert all((logits(pair.model) - hf(TOKENS).logits[:, -1]).abs().max() > 1e-3
               for hf in (base, tuned))  # fmt: skip
    with pytest.raises(ModelSpecError, match="no such layer"):
        pair.set([3], outside=False)


def test_changes_are_named_and_equal_tensors_shared(make_pair):
    pair = WeightPair.open(*make_pair("llama", "full", only=("layers.1.mlp", "model.norm")).specs)
    names = [(c.layer, c.component, c.name) for c in pair.changes]
    assert names == [
        (1, "mlp", "gate_proj"),
        (1, "mlp", "up_proj"),
        (1, "mlp", "down_proj"),
        (None, None, "norm"),
    ]
    assert pair.layers == (1,) and pair.outside
    assert str(pair.changes[0]) == "layer 1 mlp.gate_proj"
    assert str(pair.changes[3]) == "norm"


def test_modules_of_other_families_have_their_place(make_pair):
    def of(name):
        return {c for c in WeightPair.open(*make_pair(name, "full").specs).changes if c.layer == 1}

    assert {str(c) for c in of("gpt2")} == {
        *(f"layer 1 {m}" for m in ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj")),
        *(f"layer 1 mlp.{m}" for m in ("c_fc", "c_proj")),
    }
    assert Change(layer=1, component="attn", name="query_key_value") in of("neox")
    moe = {str(c) for c in of("mixtral") if c.component == "mlp"}
    assert moe == {
        f"layer 1 mlp.{m}" for m in ("gate", "experts.gate_up_proj", "experts.down_proj")
    }
    assert Change(layer=1, component="attn", name="q_norm") in of("qwen3")


def test_tied_embeddings_are_one_change(make_pair):
    pair = make_pair("tied", "full")
    opened = WeightPair.open(*pair.specs)
    outside = [c.name for c in opened.changes if c.layer is None]
    assert outside == ["embed_tokens", "norm"]
    assert len(opened.switches[0].modules) == 2


def test_tie_that_the_fine_tune_broke(make_pair, tmp_path):
    """A merged adapter of the head gives it weights of its own."""
    base = make_pair("tied", "full").base
    adapter = save_lora(base, tmp_path / "lora", targets=("lm_head",))
    hf = open_model(f"{base}+{adapter}", backend="torch_hooks").hf
    hf.save_pretrained(tmp_path / "merged")
    Pair.tokenizer(tmp_path / "merged")
    pair = WeightPair.open(base, tmp_path.joinpath("merged").as_posix())
    assert [c.name for c in pair.changes] == ["lm_head"]
    expected = logits(open_model(f"{base}+{adapter}"))
    pair.set_tuned()
    assert_same(logits(pair.model), expected)
    pair.set_base()
    assert_same(logits(pair.model), logits(open_model(base)))


def test_adapters_that_both_have_are_merged_once(make_pair, tmp_path):
    base = make_pair("llama", "full").base
    one, two, three = (
        save_lora(base, tmp_path / f"lora{i}", targets=targets, seed=i)
        for i, targets in enumerate([("q_proj",), ("down_proj",), ("q_proj", "v_proj")])
    )
    specs = f"{base}+{one}+{two}", f"{base}+{one}+{three}"
    pair = WeightPair.open(*specs)
    expected = [logits(open_model(spec)) for spec in specs]
    assert {c.name for c in pair.changes} == {"q_proj", "v_proj", "down_proj"}
    assert_same(logits(pair.model), expected[0])
    pair.set_tuned()
    assert_same(logits(pair.model), expected[1])
    assert pair.base.adapters != pair.tuned.adapters
    assert pair.base.backend == pair.tuned.backend == pair.model.identity.backend


def test_adapters_that_are_no_plain_lora_are_merged(make_pair, tmp_path):
    base = make_pair("llama", "full").base
    adapter = save_lora(base, tmp_path / "dora", targets=("q_proj",), use_dora=True)
    pair = WeightPair.open(base, f"{base}+{adapter}")
    assert all(isinstance(switch, TensorSwitch) for switch in pair.switches)
    pair.set_tuned()
    assert_same(logits(pair.model), logits(open_model(f"{base}+{adapter}")))


def test_identical_models_have_no_changes(make_pair):
    base = make_pair("llama", "full").base
    pair = WeightPair.open(base, base)
    assert pair.changes == () and pair.layers == () and not pair.outside


def test_what_cannot_be_paired_is_said(make_pair, tmp_path):
    base = make_pair("llama", "full").base
    with pytest.raises(ModelSpecError, match="different architectures"):
        WeightPair.open(base, make_pair("qwen3", "full").base)
    hf = AutoModelForCausalLM.from_pretrained(base)
    hf.resize_token_embeddings(101, mean_resizing=False)
    grown = save_tuned(hf, tmp_path / "grown")
    with pytest.raises(ModelSpecError, match=r"vocabulary.*embed_tokens.*97.*101"):
        WeightPair.open(base, grown)
    with pytest.raises(ModelSpecError, match="plain LoRA adapters on the same weights"):
        WeightPair.open(base, make_pair("llama", "full").tuned, LoadOptions(quantize="4bit"))


def test_other_arithmetic_from_the_same_weights_is_noticed(make_pair, tmp_path):
    base = make_pair("llama", "full").base
    other = save_tuned(AutoModelForCausalLM.from_pretrained(base), tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_act": "relu"}))
    with pytest.raises(ModelSpecError, match=r"compute differently.*hidden_act"):
        WeightPair.open(base, other)


def test_rotary_tables_that_differ_are_switched(make_pair, tmp_path):
    base = make_pair("llama", "full").base
    other = save_tuned(AutoModelForCausalLM.from_pretrained(base), tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    settings = json.loads(config.read_text())
    settings["rope_parameters"] = {**settings["rope_parameters"], "rope_theta": 1e6}
    config.write_text(json.dumps(settings))
    pair = WeightPair.open(base, other)
    assert pair.layers == () and pair.outside
    pair.set_tuned()
    assert_same(logits(pair.model), logits(open_model(other)))


def test_quantised_base_keeps_its_weights(make_pair, tmp_path, monkeypatch):
    """Where nothing may be merged, common adapters stay on and the others are switched."""
    pytest.importorskip("bitsandbytes")
    base = make_pair("llama", "full").base
    one, two = (
        save_lora(base, tmp_path / f"lora{i}", targets=("q_proj", "down_proj"), seed=i)
        for i in range(2)
    )
    options = LoadOptions(quantize="8bit")
    specs = f"{base}+{one}", f"{base}+{one}+{two}"
    pair = WeightPair.open(*specs, options)
    alone = [logits(open_model(spec, options)) for spec in specs]
    assert_same(logits(pair.model), alone[0])
    pair.set_tuned()
    assert_same(logits(pair.model), alone[1])


def test_nothing_is_written_to_disk(make_pair):
    pair_of = make_pair("llama", "full")
    before = load_file(f"{pair_of.base}/model.safetensors")
    pair = WeightPair.open(*pair_of.specs)
    pair.set_tuned()
    after = load_file(f"{pair_of.base}/model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
