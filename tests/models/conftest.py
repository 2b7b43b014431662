"""Tiny random models, tokenizers and adapters, built once a session on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from refusaldir.models.load import LoadedModel
from refusaldir.records import ModelIdentity

VOCAB = 96
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
GEMMA = {**GROUPED, "query_pre_attn_scalar": 8}
#: Configurations of the architectures that both backends are tested on.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "gemma2": GEMMA,
    "gemma3_text": {**GEMMA, "sliding_window": 4, "layer_types": [
        "sliding_attention", "full_attention", "sliding_attention"]},
    "phi3": {"num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "gpt_neox": {},
    "olmo2": GROUPED,
    "granite": {**GROUPED, "residual_multiplier": 0.3, "logits_scaling": 2.0},
    "qwen3_moe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2,
                  "moe_intermediate_size": 24},
}  # fmt: skip


def make_hf(architecture: str = "llama", *, seed: int = 0, **changes: Any) -> Any:
    """A tiny random model with weights large enough that every branch matters."""
    config = AutoConfig.for_model(
        architecture, **{**SIZES, **ARCHITECTURES.get(architecture, {}), **changes}
    )
    hf = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in hf.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(0.15 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
    return hf


def make_tokenizer(size: int = VOCAB) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a chat template."""
    words = ["<pad>", "<s>", "</s>", "<user>", "<bot>"]
    words += [f"w{index}" for index in range(len(words), size)]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<pad>",
        chat_template="{% for m in messages %}<user> {{ m.content }} {% endfor %}<bot>",
        model_max_length=64,
    )


def save_model(directory: Path, hf: Any | None = None, *, tokenizer: bool = True) -> Path:
    (make_hf() if hf is None else hf).save_pretrained(directory)
    if tokenizer:
        make_tokenizer().save_pretrained(directory)
    return directory


def lora_tensors(
    hf: Any, targets: tuple[str, ...], *, rank: int = 2, seed: int = 1, scale: float = 0.2
) -> dict[str, torch.Tensor]:
    """Random LoRA matrices, under PEFT's names, for every module whose name ends so."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in hf.named_modules():
        if name.endswith(targets):
            n_out, n_in = module.weight.shape
            if type(module).__name__ == "Conv1D":
                n_out, n_in = n_in, n_out
            key = f"base_model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = scale * torch.randn(rank, n_in, generator=generator)
            tensors[f"{key}.lora_B.weight"] = scale * torch.randn(n_out, rank, generator=generator)
    return tensors


def save_adapter(
    directory: Path,
    tensors: dict[str, torch.Tensor],
    *,
    base: str = "some/base",
    targets: tuple[str, ...] = ("q_proj", "down_proj"),
    **config: Any,
) -> Path:
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "target_modules": list(targets),
        "r": 2,
        "lora_alpha": 4,
        **config,
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory


def loaded(hf: Any, tokenizer: Any = None) -> LoadedModel:
    """A model in memory as `load_model` would return it."""
    text = hf.config.get_text_config()
    identity = ModelIdentity(
        spec="tiny",
        name="tiny",
        weights_hash="0" * 64,
        architecture=type(hf).__name__,
        n_layers=text.num_hidden_layers,
        d_model=text.hidden_size,
        vocab_size=text.vocab_size,
        dtype=str(hf.dtype).removeprefix("torch."),
    )
    return LoadedModel(hf=hf, tokenizer=tokenizer or make_tokenizer(), identity=identity)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache and a working directory of the test's own, and no network."""
    monkeypatch.setenv("REFUSALDIR_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The helpers above."""
    return SimpleNamespace(
        VOCAB=VOCAB,
        hf=make_hf,
        tokenizer=make_tokenizer,
        save_model=save_model,
        lora_tensors=lora_tensors,
        save_adapter=save_adapter,
        loaded=loaded,
    )


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with tokenizer, on disk. Not to be written to."""
    return save_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter for `base`, on disk. Not to be written to."""
    tensors = lora_tensors(make_hf(), ("q_proj", "down_proj"))
    return save_adapter(tmp_path_factory.mktemp("adapters") / "extra", tensors)


@pytest.fixture(scope="session")
def tokens() -> Callable[..., torch.Tensor]:
    """Random token ids ``[batch, seq]``."""

    def make(batch: int = 2, seq: int = 9, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(3, VOCAB, (batch, seq), generator=generator)

    return make
