"""Quantised weights: what they are, what they give, and adapters beside them.

The quantisers are written out here in numpy, so that what bitsandbytes stores and computes is held
against another implementation: a plain model whose weights were rounded by them.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from refusaldir.errors import ModelSpecError
from refusaldir.models.bridge import hook_model
from refusaldir.models.load import identify, load_model
from refusaldir.models.options import LoadOptions
from refusaldir.models.quantization import quantization_of

pytest.importorskip("bitsandbytes", reason="needs refusaldir[quantize]")

Tokens = Callable[..., torch.Tensor]

#: Levels of NF4: Dettmers et al. 2023, arXiv 2305.14314, appendix E.
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0], dtype=np.float32,
)  # fmt: skip
SIZES = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32}


def four_bits(weight: torch.Tensor) -> torch.Tensor:
    """Nearest level of each weight, by blocks of 64."""
    blocks = weight.reshape(-1, 64).numpy()
    largest = np.abs(blocks).max(1, keepdims=True)
    at = np.abs((blocks / largest)[..., None] - NF4).argmin(-1)
    return torch.from_numpy(NF4[at] * largest).reshape(weight.shape)


def eight_bits(weight: torch.Tensor) -> torch.Tensor:
    """127 steps to the largest magnitude of each row, of weights in float16."""
    rows = weight.half().float()
    step = rows.abs().amax(1, keepdim=True) / 127
    return (rows / step).round() * step


QUANTISERS = {"4bit": four_bits, "8bit": eight_bits}


@pytest.fixture(scope="module")
def checkpoint(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("quantised") / "base", tiny.hf(**SIZES))


def rounded(tiny: SimpleNamespace, quantize: str) -> Any:
    """A plain model with the weights of every block rounded."""
    hf = tiny.hf(**SIZES)
    for name, parameter in hf.named_parameters():
        if parameter.ndim == 2 and ".layers." in name:
            parameter.copy_(QUANTISERS[quantize](parameter))
    return hf


def states(hf: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(hf(tokens, output_hidden_states=True).hidden_states)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest relative distance of a layer."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    return float(((a - b).norm(dim=1) / b.norm(dim=1)).max())


def test_four_bits_are_the_rounded_weights_computed_exactly(
    tiny: SimpleNamespace, checkpoint: Path, tokens: Tokens
) -> None:
    got = states(load_model(str(checkpoint), LoadOptions(quantize="4bit")).hf, tokens())
    assert apart(got, states(rounded(tiny, "4bit"), tokens())) < 1e-5
    # Rounding weights to four bits itself is three orders of magnitude more.
    assert apart(got, states(tiny.hf(**SIZES), tokens())) > 0.02


def test_eight_bits_round_activations_too(
    tiny: SimpleNamespace, checkpoint: Path, tokens: Tokens
) -> None:
    hf = load_model(str(checkpoint), LoadOptions(quantize="8bit")).hf
    got, exact = states(hf, tokens()), states(rounded(tiny, "8bit"), tokens())
    assert 1e-3 < apart(got, exact) < 0.1
    # Trained, bitsandbytes multiplies by the stored weights and rounds nothing else on the CPU.
    for module in hf.modules():
        if type(module).__name__ == "Linear8bitLt":
            module.train()
    assert apart(states(hf, tokens()), exact) < 5e-3
    assert apart(states(rounded(tiny, "4bit"), tokens()), exact) > 0.02


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_the_gradient_is_there_after_a_pass_without(
    quantize: str, tiny: SimpleNamespace, checkpoint: Path, tokens: Tokens
) -> None:
    def slope(hf: Any) -> torch.Tensor:
        embedded = hf.get_input_embeddings()(tokens()).detach().requires_grad_(True)
        hf(inputs_embeds=embedded).logits[:, -1, 7].sum().backward()
        return embedded.grad[None]

    hf = load_model(str(checkpoint), LoadOptions(quantize=quantize)).hf
    states(hf, tokens())
    # Rounding of activations has no gradient; it is passed over.
    limit = {"4bit": 1e-4, "8bit": 0.3}[quantize]
    assert apart(slope(hf), slope(rounded(tiny, quantize))) < limit


def test_a_prompt_of_a_batch_is_that_prompt_alone(checkpoint: Path, tokens: Tokens) -> None:
    """In 4 bits; in 8 bits outliers are those of the batch, so that its rounding differs."""
    batch, found = tokens(batch=6), {}
    for quantize in QUANTISERS:
        hf = load_model(str(checkpoint), LoadOptions(quantize=quantize)).hf
        found[quantize] = apart(states(hf, batch)[:, 2], states(hf, batch[2:3])[:, 0])
    assert found["4bit"] < 1e-5 and 1e-3 < found["8bit"] < 0.05


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_adapters_stay_beside_and_both_backends_read_the_stream(
    quantize: str, tiny: SimpleNamespace, checkpoint: Path, tokens: Tokens, tmp_path: Path
) -> None:
    adapters = [
        tiny.save_adapter(
            tmp_path / f"a{seed}",
            tiny.lora_tensors(tiny.hf(**SIZES), ("q_proj", "down_proj"), seed=seed),
        )
        for seed in (1, 2)
    ]
    spec = "+".join(map(str, [checkpoint, *adapters]))
    options = LoadOptions(quantize=quantize)
    loaded = load_model(spec, options)
    assert loaded.identity == identify(spec, options)
    assert loaded.identity.quantization == quantize
    plain = rounded(tiny, quantize)
    for adapter in adapters:
        added = tiny.lora_tensors(plain, ("q_proj", "down_proj"), seed=int(adapter.name[1:]))
        with torch.no_grad():
            for name, module in plain.named_modules():
                if name.endswith(("q_proj", "down_proj")):
                    key = f"base_model.model.{name}.lora_"
                    b, a = added[f"{key}B.weight"], added[f"{key}A.weight"]
                    module.weight += 2 * b @ a
    expected = states(loaded.hf, tokens())
    assert apart(expected, states(plain, tokens())) < {"4bit": 1e-5, "8bit": 0.05}[quantize]
    assert apart(expected, states(rounded(tiny, quantize), tokens())) > 0.2
    for backend in ("torch_hooks", "transformer_lens"):
        model = hook_model(loaded, backend)
        seen: list[torch.Tensor] = []
        with model.hooked({("resid_pre", 2): lambda value, seen=seen: seen.append(value)}):
            model.run(tokens())
        assert torch.equal(seen[0], expected[2])


class TestStored:
    """Checkpoints that are quantised on disk."""

    @pytest.fixture(scope="class", params=["4bit", "8bit"])
    def stored(
        self,
        request: pytest.FixtureRequest,
        checkpoint: Path,
        tiny: SimpleNamespace,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> SimpleNamespace:
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        settings = (
            BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
            if request.param == "4bit"
            else BitsAndBytesConfig(load_in_8bit=True)
        )
        hf = AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=settings)
        path = tmp_path_factory.mktemp("stored") / "base"
        return SimpleNamespace(path=tiny.save_model(path, hf), quantize=request.param)

    def test_it_says_so_and_computes_in_our_dtype(
        self, stored: SimpleNamespace, tiny: SimpleNamespace, tokens: Tokens
    ) -> None:
        loaded = load_model(str(stored.path))
        assert loaded.identity == identify(str(stored.path))
        assert loaded.identity.quantization == stored.quantize
        assert loaded.identity.dtype == "float32"
        got = states(loaded.hf, tokens())
        # The blocks' largest magnitudes are rounded to eight bits once more.
        assert apart(got, states(rounded(tiny, stored.quantize), tokens())) < 0.05
        again = load_model(str(stored.path), LoadOptions(quantize=stored.quantize))
        assert again.identity == loaded.identity

    def test_nothing_is_merged_into_it(
        self, stored: SimpleNamespace, tiny: SimpleNamespace, tokens: Tokens, tmp_path: Path
    ) -> None:
        lora = tiny.lora_tensors(tiny.hf(**SIZES), ("q_proj",), scale=1e-3)
        adapter = tiny.save_adapter(tmp_path / "faint", lora, targets=("q_proj",))
        alone = load_model(str(stored.path)).hf
        both = load_model(f"{stored.path}+{adapter}").hf
        # A change far below a quantisation step would be lost, or others made, by merging.
        change = apart(states(both, tokens()), states(alone, tokens()))
        assert 0 < change < (1e-3 if stored.quantize == "4bit" else 0.03)
        assert any("lora_A" in name for name, _ in both.named_modules())

    def test_another_quantisation_is_refused(self, stored: SimpleNamespace) -> None:
        other = {"4bit": "8bit", "8bit": "4bit"}[stored.quantize]
        for function in (identify, load_model):
            with pytest.raises(ModelSpecError, match=f"already.*{stored.quantize}.*{other}"):
                function(str(stored.path), LoadOptions(quantize=other))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (None, None),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "4bit"),
        ({"load_in_8bit": True, "load_in_4bit": False}, "8bit"),
    ],
)
def test_what_a_configuration_says(entries: Any, expected: str | None) -> None:
    config = SimpleNamespace() if entries is None else SimpleNamespace(quantization_config=entries)
    assert quantization_of(config, LoadOptions()) == expected
    if expected == "gptq":
        with pytest.raises(ModelSpecError, match="gptq"):
            quantization_of(config, LoadOptions(quantize="4bit"))
    elif expected is None:
        assert quantization_of(config, LoadOptions(quantize="4bit")) == "4bit"
