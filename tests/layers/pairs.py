"""Pairs of tiny checkpoints on disk, base and fine-tune, for every architecture."""

import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tiny import CONFIGS, SMALL, make_tokenizer
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3MoeConfig,
)

HEADS = {"num_key_value_heads": 2}
ARCHITECTURES = {
    **CONFIGS,
    "tied": LlamaConfig(**SMALL, **HEADS, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SMALL, **HEADS),
    "phi3": Phi3Config(**SMALL, **HEADS),
    "mixtral": MixtralConfig(**SMALL, **HEADS, num_local_experts=3),
    "qwen3_moe": Qwen3MoeConfig(
        **SMALL, **HEADS, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
}
#: Modules that a LoRA adapter is put on.
TARGETS = {
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "mixtral": ("q_proj", "o_proj"),
    "qwen3_moe": ("q_proj", "o_proj"),
    "llama": ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj", "embed_tokens"),
}
DENSE = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Pair:
    """Specs of a base and of a fine-tune of it."""

    base: str
    tuned: str

    @property
    def specs(self) -> tuple[str, str]:
        return self.base, self.tuned

    @staticmethod
    def tokenizer(folder: Path) -> None:
        make_tokenizer().save_pretrained(folder)


def make_base(name: str = "llama", *, config=None, seed: int = 0, spread: float = 0.1):
    """A random model; ``spread`` is that of biases and gains, which start as constants."""
    torch.manual_seed(seed)
    config = deepcopy(ARCHITECTURES[name] if config is None else config)
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim == 1:
                parameter.add_(spread * torch.randn_like(parameter))
    return hf


def save_tuned(hf, folder: Path) -> str:
    hf.save_pretrained(folder)
    Pair.tokenizer(folder)
    return str(folder)


def changed(hf, *, only=(), change: float = 0.03, seed: int = 1):
    """Change every parameter whose name holds one of ``only`` (all without any)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if not only or any(part in name for part in only):
                parameter.add_(change * torch.randn(parameter.shape, generator=generator))
    return hf


def save_lora(
    base: str, folder: Path, *, targets, seed: int = 1, scale: float = 0.1, layers=None, **config
) -> str:
    """An adapter with random factors of rank 2."""
    hf = AutoModelForCausalLM.from_pretrained(base)
    settings = LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=list(targets),
        layers_to_transform=layers,
        fan_in_fan_out=hf.config.model_type == "gpt2",
        **config,
    )
    with warnings.catch_warnings():  # that embedding and head are tied
        warnings.simplefilter("ignore")
        model = get_peft_model(hf, settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder, save_embedding_layers=False)
    return str(folder)
