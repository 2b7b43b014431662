"""A tiny random chat model: words as tokens, a ChatML-like template, every architecture trick."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from refusaldir.models.bridge import HookedModel, hook_model
from refusaldir.models.load import LoadedModel
from refusaldir.records import ModelIdentity

WORDS = (
    "i you we it can't can won't help sorry sure here is the a how do make bake find bomb cake "
    "lock door and with that this to of yes no ok"
).split()
SPECIAL = ["<unk>", "<s>", "</s>", "<|start|>", "<|end|>"]
VOCAB = SPECIAL + WORDS + [f"w{i}" for i in range(97 - len(SPECIAL) - len(WORDS))]
TEMPLATE = (
    "{% for m in messages %}<|start|> {{ m['role'] }} {{ m['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|start|> assistant{% endif %}"
)
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gemma3": Gemma3TextConfig(
        **SMALL,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=12,
        sliding_window_pattern=2,
        tie_word_embeddings=False,
    ),
    "gpt2": GPT2Config(
        vocab_size=97,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=256,
        initializer_range=0.3,
        eos_token_id=2,
        bos_token_id=1,
    ),
    "neox": GPTNeoXConfig(**SMALL),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {word: i for i, word in enumerate(VOCAB)}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|start|>", "<|end|>"],
        chat_template=TEMPLATE,
    )


def make_model(
    name: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    backend: str = "torch_hooks",
) -> HookedModel:
    torch.manual_seed(seed)
    hf = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=dtype).eval()
    hf.requires_grad_(False)
    identity = ModelIdentity(
        spec=name,
        name=f"{name}-{seed}",
        weights_hash=f"{seed:016d}",
        architecture=type(hf).__name__,
        n_layers=3,
        d_model=32,
        vocab_size=97,
        dtype=str(dtype).removeprefix("torch."),
    )
    loaded = LoadedModel(hf=hf, tokenizer=make_tokenizer(), identity=identity)
    return hook_model(loaded, backend)


@pytest.fixture
def build():
    return make_model


@pytest.fixture
def sequences() -> list[list[int]]:
    """Ten prompts that share 5 tokens at the start; lengths 7 to 23, two alike."""
    rng = np.random.default_rng(1)
    lengths = [*(2 * rng.permutation(9)).tolist(), 4]
    return [[3, 40, 41, 42, 43, *rng.integers(5, 97, 2 + n).tolist()] for n in lengths]
