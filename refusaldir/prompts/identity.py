"""Telling whether two tokenizers turn the same text into the same ids."""

import json
from typing import Any

from refusaldir.records import content_hash


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash what decides the token ids of a rendered prompt.

    Vocabulary, merges, normalisation, pre-tokenisation, added tokens and special tokens count.
    What never reaches the ids of a rendered prompt does not, because fine-tunes change it
    freely: padding and truncation, the choice of padding token, a padding token added at the
    end of the vocabulary, the post-processor that adds BOS to plain text, the chat template.

    Args:
        tokenizer: A Hugging Face tokenizer, fast or slow.

    Returns:
        16 hex digits, equal after ``save_pretrained`` and loading again.
    """
    special = {
        name: token
        for name, token in tokenizer.special_tokens_map.items()
        if name != "pad_token" and isinstance(token, str)
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        flags = [bool(getattr(tokenizer, f"add_{end}_token", False)) for end in ("bos", "eos")]
        return content_hash(type(tokenizer).__name__, tokenizer.get_vocab(), special, flags)
    state = json.loads(backend.to_str())
    for key in ("padding", "truncation", "post_processor", "version"):
        state.pop(key, None)
    added = sorted(state.get("added_tokens") or [], key=lambda token: token["id"])
    last = max((token["id"] for token in added), default=-1)
    if added and last == len(tokenizer) - 1 and "pad" in added[-1]["content"].lower():
        del added[-1]
    state["added_tokens"] = added
    return content_hash(state, special)
