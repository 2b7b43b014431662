"""Adapters against hand-made sums and against PEFT without merging."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from refusaldir.errors import ModelSpecError
from refusaldir.models.adapters import apply_adapters
from refusaldir.models.load import identify, load_model

Tokens = Callable[..., Tensor]


def delta(tensors: dict[str, Tensor], module: str, scale: float) -> Tensor:
    key = f"base_model.model.{module}"
    return scale * tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]


@pytest.fixture
def second(tiny: SimpleNamespace, tmp_path: Path) -> Path:
    tensors = tiny.lora_tensors(tiny.hf(), ("q_proj", "down_proj"), seed=5)
    return Path(tiny.save_adapter(tmp_path / "second", tensors))


def test_weights_are_the_sum(base: Path, lora: Path, second: Path) -> None:
    plain = load_model(str(base)).hf.state_dict()
    merged = load_model(f"{base}+{lora}+{second}").hf.state_dict()
    assert plain.keys() == merged.keys()
    first, other = (load_file(p / "adapter_model.safetensors") for p in (lora, second))
    for name, value in merged.items():
        expected = plain[name]
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            module = name.removesuffix(".weight")
            expected = expected + delta(first, module, 2.0) + delta(other, module, 2.0)
            assert not torch.allclose(value, plain[name], rtol=0.1)
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("extra", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_merged_equals_unmerged_peft(
    tiny: SimpleNamespace, base: Path, tokens: Tokens, tmp_path: Path, extra: dict[str, Any]
) -> None:
    tensors = tiny.lora_tensors(tiny.hf(), ("q_proj", "down_proj"))
    if "use_dora" in extra:
        for name, module in tiny.hf().named_modules():
            if name.endswith(("q_proj", "down_proj")):
                key = f"base_model.model.{name}.lora_magnitude_vector"
                tensors[key] = 1.3 * module.weight.norm(dim=1)
    adapter = tiny.save_adapter(tmp_path / "a", tensors, **extra)
    expected = PeftModel.from_pretrained(tiny.hf(), adapter)(tokens()).logits
    got = load_model(f"{base}+{adapter}").hf(tokens()).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, tiny.hf()(tokens()).logits, rtol=0.1)


def test_side_by_side_equals_merged(
    tiny: SimpleNamespace, lora: Path, second: Path, tokens: Tokens
) -> None:
    """The way adapters are applied to quantised weights."""
    adapters = [(lora, "lora"), (second, "second")]
    merged = apply_adapters(tiny.hf(), adapters, merge=True)
    active = apply_adapters(tiny.hf(), adapters, merge=False)
    torch.testing.assert_close(active(tokens()).logits, merged(tokens()).logits,
                               rtol=1e-4, atol=1e-5)  # fmt: skip
    one = apply_adapters(tiny.hf(), adapters[:1], merge=False)
    alone = apply_adapters(tiny.hf(), adapters[:1], merge=True)
    torch.testing.assert_close(one(tokens()).logits, alone(tokens()).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one(tokens()).logits, active(tokens()).logits, rtol=0.1)


def test_side_by_side_can_be_hooked(tiny: SimpleNamespace, lora: Path, tokens: Tokens) -> None:
    from refusaldir.models.bridge import hook_model

    expected = apply_adapters(tiny.hf(), [(lora, "lora")], merge=False)(
        tokens(), output_hidden_states=True
    ).hidden_states
    for backend in ("torch_hooks", "transformer_lens"):
        hf = apply_adapters(tiny.hf(), [(lora, "lora")], merge=False)
        model = hook_model(tiny.loaded(hf), backend)
        seen: list[Tensor] = []
        with model.hooked({("resid_pre", 2): lambda value, seen=seen: seen.append(value)}):
            model.run(tokens())
        assert torch.equal(seen[0], expected[2])


def test_global_random_state_is_left_alone(base: Path, lora: Path) -> None:
    before = torch.get_rng_state()
    load_model(f"{base}+{lora}")
    assert torch.equal(torch.get_rng_state(), before)


class TestOpenedAlone:
    def test_on_the_base_it_names(self, tiny: SimpleNamespace, base: Path, tmp_path: Path) -> None:
        tensors = tiny.lora_tensors(tiny.hf(), ("q_proj", "down_proj"))
        adapter = tiny.save_adapter(tmp_path / "a", tensors, base=str(base))
        alone = load_model(str(adapter))
        assert alone.identity.weights_hash == identify(f"{base}+{adapter}").weights_hash
        assert alone.identity.adapters == (str(adapter),)
        stacked = load_model(f"{adapter}+{adapter}").identity
        assert stacked.adapters == (str(adapter), str(adapter))

    def test_base_is_gone(self, tiny: SimpleNamespace, tmp_path: Path) -> None:
        tensors = tiny.lora_tensors(tiny.hf(), ("q_proj",))
        adapter = tiny.save_adapter(tmp_path / "a", tensors, base="/training/machine/base")
        with pytest.raises(ModelSpecError, match=r"base of this adapter.*Name the base yourself"):
            identify(str(adapter))

    def test_names_itself(self, tiny: SimpleNamespace, tmp_path: Path) -> None:
        tensors = tiny.lora_tensors(tiny.hf(), ("q_proj",))
        adapter = tiny.save_adapter(tmp_path / "a", tensors, base=str(tmp_path / "a"))
        with pytest.raises(ModelSpecError, match="name each other"):
            identify(str(adapter))

    def test_beside_a_whole_model(self, base: Path, lora: Path, tmp_path: Path) -> None:
        both = tmp_path / "both"
        shutil.copytree(base, both)
        shutil.copytree(lora, both, dirs_exist_ok=True)
        with pytest.raises(ModelSpecError, match="a whole model and an adapter"):
            identify(str(both))


class TestMisfits:
    """Nothing of an adapter is ever silently left out."""

    def check(self, base: Path, adapter: Path, *message: str) -> None:
        with pytest.raises(ModelSpecError) as caught:
            load_model(f"{base}+{adapter}")
        assert "does not fit" in str(caught.value)
        assert str(adapter) in str(caught.value)
        for part in message:
            assert part in str(caught.value)

    def test_other_width(self, tiny: SimpleNamespace, base: Path, tmp_path: Path) -> None:
        wide = tiny.hf(hidden_size=64, head_dim=16)
        adapter = tiny.save_adapter(tmp_path / "a", tiny.lora_tensors(wide, ("down_proj",)),
                                    targets=("down_proj",))  # fmt: skip
        self.check(base, adapter, "layers.0.mlp.down_proj", "output size 32", "got 64")

    @pytest.mark.parametrize("layers", [2, 4])
    def test_other_depth(
        self, tiny: SimpleNamespace, base: Path, tmp_path: Path, layers: int
    ) -> None:
        other = tiny.hf(num_hidden_layers=layers)
        adapter = tiny.save_adapter(
            tmp_path / "a", tiny.lora_tensors(other, ("q_proj", "down_proj"))
        )
        self.check(base, adapter, "layers.3" if layers == 4 else "no weights for model.layers.2")

    def test_other_architecture(self, tiny: SimpleNamespace, base: Path, tmp_path: Path) -> None:
        tensors = tiny.lora_tensors(tiny.hf("gpt2"), ("c_attn",))
        adapter = tiny.save_adapter(tmp_path / "a", tensors, targets=("c_attn",))
        self.check(base, adapter, "module transformer.h.0.attn.c_attn", "no such module")

    def test_left_over(self, tiny: SimpleNamespace, base: Path, tmp_path: Path) -> None:
        tensors = tiny.lora_tensors(tiny.hf(), ("q_proj", "v_proj"))
        adapter = tiny.save_adapter(tmp_path / "a", tensors, targets=("q_proj",))
        self.check(base, adapter, "no place for", "v_proj")

    def test_missing(self, tiny: SimpleNamespace, base: Path, tmp_path: Path) -> None:
        tensors = tiny.lora_tensors(tiny.hf(), ("q_proj",))
        adapter = tiny.save_adapter(tmp_path / "a", tensors, targets=("q_proj", "v_proj"))
        self.check(base, adapter, "no weights for", "v_proj")

    def test_gpt2_adapters_fit_gpt2(
        self, tiny: SimpleNamespace, tokens: Tokens, tmp_path: Path
    ) -> None:
        """Conv1D keeps its weight transposed: no false alarm, and the right sum."""
        base = tiny.save_model(tmp_path / "gpt2", tiny.hf("gpt2"))
        tensors = tiny.lora_tensors(tiny.hf("gpt2"), ("c_attn",))
        adapter = tiny.save_adapter(tmp_path / "a", tensors, targets=("c_attn",),
                                    fan_in_fan_out=True)  # fmt: skip
        expected = PeftModel.from_pretrained(tiny.hf("gpt2"), adapter)(tokens()).logits
        got = load_model(f"{base}+{adapter}").hf(tokens()).logits
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        wide = tiny.lora_tensors(tiny.hf("gpt2", n_embd=64, hidden_size=64), ("c_attn",))
        other = tiny.save_adapter(tmp_path / "b", wide, targets=("c_attn",))
        self.check(base, other, "module transformer.h.0.attn.c_attn", "input size 32, got 64")

    def test_pickled(self, base: Path, lora: Path, tmp_path: Path) -> None:
        adapter = tmp_path / "a"
        shutil.copytree(lora, adapter)
        tensors = load_file(adapter / "adapter_model.safetensors")
        torch.save(tensors, adapter / "adapter_model.bin")
        (adapter / "adapter_model.safetensors").unlink()
        with pytest.raises(ModelSpecError, match=r"only pickled files \(adapter_model.bin\)"):
            load_model(f"{base}+{adapter}")

    def test_learned_prompts(self, base: Path, lora: Path, tmp_path: Path) -> None:
        adapter = tmp_path / "a"
        shutil.copytree(lora, adapter)
        config = json.loads((adapter / "adapter_config.json").read_text())
        config["peft_type"] = "PROMPT_TUNING"
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(ModelSpecError, match="no weights to merge"):
            load_model(f"{base}+{adapter}")

    def test_not_an_adapter(self, base: Path) -> None:
        with pytest.raises(ModelSpecError, match="not a PEFT adapter"):
            load_model(f"{base}+{base}")

    def test_nan(self, tiny: SimpleNamespace, base: Path, tmp_path: Path) -> None:
        tensors = tiny.lora_tensors(tiny.hf(), ("q_proj",))
        next(iter(tensors.values())).fill_(float("nan"))
        adapter = tiny.save_adapter(tmp_path / "a", tensors, targets=("q_proj",))
        with pytest.raises(ModelSpecError, match="cannot be merged"):
            load_model(f"{base}+{adapter}")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
class TestVocabulary:
    """Fine-tunes that add tokens: PEFT saves the resized embeddings with the adapter."""

    def train(self, tiny: SimpleNamespace, directory: Path, **options: Any) -> tuple[Any, Path]:
        """An adapter saved by PEFT itself on a model with four more tokens."""
        hf = tiny.hf(**options.pop("config", {}))
        hf.resize_token_embeddings(tiny.VOCAB + 4, mean_resizing=False)
        model = get_peft_model(hf, LoraConfig(task_type="CAUSAL_LM", r=2, **options))
        generator = torch.Generator().manual_seed(8)
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(directory)
        tiny.tokenizer(tiny.VOCAB + 4).save_pretrained(directory)
        return model.eval(), directory

    @pytest.mark.parametrize("tied", [False, True])
    def test_modules_to_save(
        self, tiny: SimpleNamespace, tokens: Tokens, tmp_path: Path, tied: bool
    ) -> None:
        config = {"tie_word_embeddings": tied}
        base = tiny.save_model(tmp_path / "base", tiny.hf(**config))
        trained, adapter = self.train(
            tiny, tmp_path / "a", config=config, target_modules=["q_proj"],
            modules_to_save=["embed_tokens", "lm_head"],
        )  # fmt: skip
        loaded = load_model(f"{base}+{adapter}")
        ids = tokens().clone()
        ids[0, 3] = tiny.VOCAB + 3
        torch.testing.assert_close(loaded.hf(ids).logits, trained(ids).logits, rtol=1e-4, atol=1e-5)
        assert loaded.identity.vocab_size == tiny.VOCAB + 4
        assert loaded.identity == identify(f"{base}+{adapter}")
        assert len(loaded.tokenizer) == tiny.VOCAB + 4

    @pytest.mark.parametrize(
        ("targets", "options"),
        [
            (("lm_head",), {}),
            (("embed_tokens",), {}),
            (("embed_tokens", "lm_head"), {}),
            (("embed_tokens",), {"ensure_weight_tying": True}),
        ],
    )
    def test_lora_on_tied_embeddings(
        self,
        tiny: SimpleNamespace,
        tokens: Tokens,
        tmp_path: Path,
        targets: tuple[str, ...],
        options: dict[str, Any],
    ) -> None:
        """Merging into the shared matrix would change the other one as well."""
        config = {"tie_word_embeddings": True}
        base = tiny.save_model(tmp_path / "base", tiny.hf(**config))
        model = get_peft_model(
            tiny.hf(**config),
            LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=list(targets), **options),
        )
        generator = torch.Generator().manual_seed(8)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(tmp_path / "a")
        expected = model.eval()(tokens()).logits
        got = load_model(f"{base}+{tmp_path / 'a'}").hf(tokens()).logits
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(got, tiny.hf(**config)(tokens()).logits, rtol=0.1)

    def test_embeddings_left_behind(
        self, tiny: SimpleNamespace, base: Path, lora: Path, tmp_path: Path
    ) -> None:
        adapter = tmp_path / "a"
        shutil.copytree(lora, adapter)
        tiny.tokenizer(tiny.VOCAB + 4).save_pretrained(adapter)
        with pytest.raises(ModelSpecError, match="at most 96 tokens, got 100, among them 'w96'"):
            load_model(f"{base}+{adapter}")

    def test_a_new_padding_token_is_no_matter(
        self, tiny: SimpleNamespace, base: Path, lora: Path, tmp_path: Path
    ) -> None:
        adapter = tmp_path / "a"
        shutil.copytree(lora, adapter)
        tokenizer = tiny.tokenizer()
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        tokenizer.save_pretrained(adapter)
        assert len(load_model(f"{base}+{adapter}").tokenizer) == 97

    def test_tokenizer_of_the_last_adapter(
        self, tiny: SimpleNamespace, base: Path, lora: Path, second: Path
    ) -> None:
        tokenizer = tiny.tokenizer()
        tokenizer.chat_template = "mine"
        tokenizer.save_pretrained(second)
        assert load_model(f"{base}+{lora}+{second}").tokenizer.chat_template == "mine"
        assert load_model(f"{base}+{second}+{lora}").tokenizer.chat_template == "mine"
        assert load_model(f"{base}+{lora}").tokenizer.chat_template != "mine"
