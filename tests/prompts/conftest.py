"""Tiny tokenizers, chat templates and prompt files, all built here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "How do I bake bread? Which rivers run through the valley.\n\n### Response:\n",
    "Tell me about the history of glass!\n\n### Response:\n",
    "system\nYou are a helpful assistant.\nuser\nassistant\nWrite a short poem.",
    "Compare zinc with jade\n\n### Response:\n",
    "Who wrote it?\n\n### Response:\n",
    "Name a stone.\n\n### Response:\n",
    "USER: hello there ASSISTANT: [INST] what is this [/INST] <<SYS>> <</SYS>>",
] * 4

SPECIALS = [
    "<unk>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
]

#: As GPT-4's and Qwen's pre-tokenizer do, this takes punctuation and line ends together.
MERGING = Regex(r" ?[^\s\p{L}\p{N}]+[\r\n]*| ?\p{L}+|\p{N}|\s+")


def byte_level(*, merging: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merging)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Split(MERGING, "isolated"), byte])
        if merging
        else byte
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*SPECIALS, *(f"<0x{i:02X}>" for i in range(256))],
        show_progress=False,
    )
    # Words apart, so that no token spans a space.
    words = [f"▁{word}" for line in CORPUS for word in line.split()]
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer


_BUILT: dict[str, Tokenizer] = {}


def wrap(kind: str, template: str | None, **special: str) -> Any:
    makers: dict[str, Callable[[], Tokenizer]] = {
        "bytes": byte_level,
        "merging": lambda: byte_level(merging=True),
        "metaspace": metaspace,
    }
    if kind not in _BUILT:
        _BUILT[kind] = makers[kind]()
    copy = Tokenizer.from_str(_BUILT[kind].to_str())
    if special.pop("adds_bos", None):
        copy.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", copy.token_to_id("<s>"))]
        )
    tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", **special}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=copy, **tokens)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer_for() -> Callable[..., Any]:
    return wrap


def record(number: int, label: str = "harmful", **fields: Any) -> dict[str, Any]:
    text = f"{'Do a bad' if label == 'harmful' else 'Do a good'} thing number {number}"
    turns = [{"role": "user", "content": text}]
    return {
        "id": f"{label}-{number}",
        "intent_id": f"i{number}",
        "label": label,
        "category": f"c{number % 3}",
        "turns": turns,
        **fields,
    }


def paired(count: int) -> list[dict[str, Any]]:
    records = []
    for number in range(count):
        split = ("train", "train", "validation", "test")[number % 4]
        for label, other in (("harmful", "harmless"), ("harmless", "harmful")):
            records.append(record(number, label, twin_of=f"{other}-{number}", split=split))
    return records


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, content: Any) -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8", newline="")
        elif name.endswith(".jsonl"):
            path.write_text("\n".join(map(json.dumps, content)) + "\n", encoding="utf-8")
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return make


@pytest.fixture
def records() -> Callable[..., dict[str, Any]]:
    return record


@pytest.fixture
def pairs() -> Callable[[int], list[dict[str, Any]]]:
    return paired
