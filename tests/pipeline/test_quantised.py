"""Commands on quantised bases with LoRA adapters, against plain models of the rounded weights."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import refusaldir as rd
from refusaldir.models.options import LoadOptions
from refusaldir.pipeline.criteria import Criteria
from refusaldir.store import Capture

sys.path.insert(0, str(Path(__file__).parents[1] / "layers"))

pytest.importorskip("bitsandbytes", reason="needs refusaldir[quantize]")

QUANTIZATIONS = ("4bit", "8bit")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFUSALDIR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def adapter(base_model, tmp_path_factory):
    """LoRA on two matrices of block 1."""
    from pairs import save_lora

    folder = tmp_path_factory.mktemp("lora")
    targets = ("q_proj", "down_proj")
    return save_lora(base_model, folder, targets=targets, scale=0.3, layers=[1])


@pytest.fixture(scope="module", params=QUANTIZATIONS)
def rounded(request, base_model, tmp_path_factory):
    """Quantisation, and a plain checkpoint with the weights that bitsandbytes stores."""
    from bitsandbytes.functional import dequantize_4bit
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from refusaldir.models.load import load_model

    stored = load_model(str(base_model), LoadOptions(quantize=request.param)).hf
    plain = AutoModelForCausalLM.from_pretrained(base_model)
    for name, module in stored.named_modules():
        kind = type(module).__name__
        if kind == "Linear4bit":
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
        elif kind == "Linear8bitLt":
            weight = module.weight.CB * module.weight.SCB[:, None] / 127
        else:
            continue
        with torch.no_grad():
            plain.get_submodule(name).weight.copy_(weight)
    folder = tmp_path_factory.mktemp("rounded")
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base_model).save_pretrained(folder)
    return request.param, str(folder)


def values(path):
    with Capture.open(path) as capture:
        hook = capture.provenance.hooks[0]
        return np.stack([capture.read(hook, layer=layer) for layer in capture.provenance.layers])


def test_captures_are_those_of_the_rounded_weights(rounded, base_model, prompt_file):
    quantize, plain = rounded
    options = LoadOptions(quantize=quantize)
    captures = [
        values(rd.extract(spec, prompts=prompt_file, out=f"{name}.h5", options=each).path)
        for name, spec, each in (
            ("q", str(base_model), options),
            ("p", plain, None),
            ("f", str(base_model), None),
        )
    ]
    apart = [np.linalg.norm(each - captures[1]) / np.linalg.norm(captures[1]) for each in captures]
    # In 8 bits the activations are rounded too; the weights alone would be less than in 4 bits.
    assert apart[0] < {"4bit": 1e-5, "8bit": 0.03}[quantize]
    assert apart[2] > {"4bit": 0.02, "8bit": 1e-3}[quantize]


def test_every_lens_on_an_adapter(rounded, base_model, adapter, prompt_file):
    quantize, plain = rounded
    settings = {
        "prompts": prompt_file, "refusal_tokens": ["I"], "site": "resid_pre.2@-1",
        "mode": "full", "heads": True, "repair": True,
    }  # fmt: skip
    specs = str(base_model), f"{base_model}+{adapter}"
    found = rd.which_layers(*specs, out="q", options=LoadOptions(quantize=quantize), **settings)
    same = rd.which_layers(plain, f"{plain}+{adapter}", out="p", **settings)
    got, expected = found.document, same.document
    rtol = {"4bit": 1e-3, "8bit": 0.1}[quantize]
    for key in ("base", "tuned", "change"):
        assert got["change"][key]["value"] == pytest.approx(
            expected["change"][key]["value"], rel=rtol
        )
    assert got["measured"]["changed"] == [1] and got["path"]["gap_relative"] < 1e-3
    np.testing.assert_allclose(
        [m["effect"] for m in got["path"]["matrices"]],
        [m["effect"] for m in expected["path"]["matrices"]],
        atol=rtol * abs(expected["change"]["change"]["value"]),
    )
    fronts = [front["value"] for front in got["transplant"]["fronts"]]
    np.testing.assert_allclose(fronts, [0, 0, 1, 1], atol=rtol)
    assert got["repair"]["layers"] == [1] and got["repair"]["back"]
    # Weights are compared as the files have them, which are not quantised.
    assert {(m["layer"], m["name"]) for m in got["weights"]["matrices"]} == {
        (1, "q_proj"), (1, "down_proj"),
    }  # fmt: skip
    assert got["residual"]["total"]["harmful"]["value"] == pytest.approx(
        expected["residual"]["total"]["harmful"]["value"], rel=rtol
    )
    if quantize == "4bit":
        assert got["residual"]["heads"]["terms"]
    else:
        assert got["residual"]["heads"] is None
        assert any("without heads" in note for note in found.result.notes)


@pytest.mark.slow
def test_comparison_with_what_causes_refusal(rounded, base_model, adapter, prompt_file):
    quantize, plain = rounded
    criteria = Criteria(refusal_tokens=("I",), filter_prompts=False, kl=100.0, induce=-100.0)
    got, expected = (
        rd.diff(
            base, f"{base}+{adapter}", prompts=prompt_file, criteria=criteria, select="on",
            behaviour="off", options=options, out=name, store=name,
        ).document
        for name, base, options in (
            ("q", str(base_model), LoadOptions(quantize=quantize)),
            ("p", plain, LoadOptions()),
        )
    )  # fmt: skip
    for arm in ("base", "tuned"):
        assert got[arm]["model"]["quantization"] == quantize
    if quantize == "4bit":
        assert got["drift"]["site"] == expected["drift"]["site"]
        rows = [
            document["drift"]["layers"][-1]["rotation"]["value"] for document in (got, expected)
        ]
        assert rows[0] == pytest.approx(rows[1], abs=1e-4)
