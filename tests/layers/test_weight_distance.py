"""Weight distance against the difference of the loaded models' matrices."""

from copy import deepcopy

import pytest
import torch
from pairs import changed, make_base, save_lora, save_tuned
from peft import PeftModel
from transformers import AutoModelForCausalLM

from refusaldir.layers.weights.distance import weight_distance
from refusaldir.models.resolve import resolve
from refusaldir.models.spec import ModelSpec


def distance(base, tuned):
    return weight_distance(*(resolve(ModelSpec.parse(spec)) for spec in (base, tuned)))


def by_hand(base, tuned):
    """Over the matrices of the blocks, read off the models themselves."""
    own = dict(tuned.named_parameters())
    squares = [
        torch.sum((own[name] - weight).detach().double() ** 2)
        for name, weight in base.named_parameters()
        if "layers." in name and weight.ndim == 2
    ]
    return float(torch.stack(squares).sum().sqrt())


def test_a_full_fine_tune_and_a_smaller_one(tmp_path):
    base = make_base("llama")
    first = save_tuned(base, tmp_path / "base")
    tuned = changed(deepcopy(base), change=0.03)
    small = changed(deepcopy(base), change=0.01, only=("mlp",))
    found = [
        distance(first, save_tuned(hf, tmp_path / name))
        for name, hf in (("tuned", tuned), ("small", small))
    ]
    assert found == pytest.approx([by_hand(base, tuned), by_hand(base, small)], rel=1e-6)
    assert found[1] < found[0]
    assert distance(first, first) == 0.0


def test_an_adapter_is_what_peft_merges(tmp_path):
    base = make_base("llama")
    first = save_tuned(base, tmp_path / "base")
    adapter = save_lora(first, tmp_path / "lora", targets=("q_proj", "down_proj"))
    hf = AutoModelForCausalLM.from_pretrained(first)
    merged = PeftModel.from_pretrained(hf, adapter).merge_and_unload()
    assert distance(first, f"{first}+{adapter}") == pytest.approx(by_hand(base, merged), rel=1e-5)
