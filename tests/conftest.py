"""Whole tiny chat models on disk, for tests that go through several rooms."""

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No example may fail for being slow: a shared machine's clock is no part of any property.
settings.register_profile("refusaldir", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("refusaldir")

# Fixtures that several rooms share; tests are not a package, so the folder goes on the path.
sys.path.insert(0, str(Path(__file__).parent))
pytest_plugins = ["planted", "tiny"]


@pytest.fixture(scope="module", autouse=True)
def _imports_are_not_garbage():
    """Spare the collector what is there for good: it runs whenever a model is let go of.

    The libraries alone are a million objects, gone through in a fifth of a second each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _small_pictures(request, monkeypatch):
    """Draw figures coarsely, except where they are what is tested."""
    if "report" not in request.path.parts:
        from refusaldir.report.canvas import STYLE

        monkeypatch.setitem(STYLE, "savefig.dpi", 40)


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = "alpha bravo carrot delta echo fig garden hotel island juniper kettle lemon".split()


@pytest.fixture(scope="session")
def make_model(tmp_path_factory) -> Callable[..., Path]:
    """Return a maker of tiny llama chat models in directories of their own."""

    def make(
        *, seed: int = 0, like: Path | None = None, change: float = 0.0, template: str = TEMPLATE
    ) -> Path:
        import torch
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import (
            AutoModelForCausalLM,
            LlamaConfig,
            LlamaForCausalLM,
            PreTrainedTokenizerFast,
        )

        folder = tmp_path_factory.mktemp("model")
        torch.manual_seed(seed)
        if like is None:
            config = LlamaConfig(
                vocab_size=264,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=192,
                eos_token_id=257,
                initializer_range=0.3,
            )
            model = LlamaForCausalLM(config)
        else:
            model = AutoModelForCausalLM.from_pretrained(like)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if change and "layers.1." in name and weight.dim() == 2:
                    weight += change * weight.std() * torch.randn_like(weight)
        model.save_pretrained(folder)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
        fast.chat_template = template
        fast.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def base_model(make_model) -> Path:
    return make_model()


@pytest.fixture(scope="session")
def tuned_model(make_model, base_model) -> Path:
    """The base with every matrix of layer 1 changed."""
    return make_model(seed=1, like=base_model, change=0.5)


@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory) -> Path:
    """Twenty matched pairs in three categories, with splits."""
    path = tmp_path_factory.mktemp("prompts") / "pairs.jsonl"
    lines = []
    for i in range(20):
        a, b = WORDS[i % 12], WORDS[(5 * i + i // 12) % 12]
        for label, verb in (("harmful", "wreck"), ("harmless", "paint")):
            lines.append(
                {
                    "id": f"p{i}-{label}",
                    "intent_id": f"p{i}",
                    "label": label,
                    "category": ("one", "two", "three")[i % 3],
                    "split": ("train", "train", "validation", "test", "test")[i % 5],
                    "turns": [{"role": "user", "content": f"How to {verb} the {a} {b} {i}?"}],
                }
            )
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def other_template() -> str:
    """A chat template that ends in other tokens."""
    return TEMPLATE.replace("assistant\n{% endif", "assistant:\n{% endif")
