import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizer

from refusaldir.prompts.identity import tokenizer_hash

CHATML = "{{ messages[0]['content'] }}<|im_end|>"


def test_same_after_saving_and_loading(tokenizer_for, tmp_path):
    for kind in ("bytes", "merging", "metaspace"):
        tokenizer = tokenizer_for(kind, CHATML, adds_bos="yes")
        tokenizer.save_pretrained(tmp_path / kind)
        loaded = [AutoTokenizer.from_pretrained(tmp_path / kind) for _ in range(2)]
        loaded[0].save_pretrained(tmp_path / f"{kind}-again")
        loaded.append(AutoTokenizer.from_pretrained(tmp_path / f"{kind}-again"))
        assert {tokenizer_hash(t) for t in loaded} == {tokenizer_hash(tokenizer)}


def test_what_never_reaches_the_ids_does_not_count(tokenizer_for):
    base = tokenizer_hash(tokenizer_for("bytes", CHATML))
    assert tokenizer_hash(tokenizer_for("bytes", "other template")) == base
    assert tokenizer_hash(tokenizer_for("bytes", CHATML, adds_bos="yes")) == base
    assert tokenizer_hash(tokenizer_for("bytes", CHATML, pad_token="</s>")) == base
    used = tokenizer_for("bytes", CHATML, pad_token="</s>")
    used(["a", "b c d"], padding=True, truncation=True, max_length=2)
    used.padding_side, used.model_max_length = "left", 7
    assert tokenizer_hash(used) == base
    # Fine-tuning scripts like to add a padding token.
    padded = tokenizer_for("bytes", CHATML)
    padded.add_special_tokens({"pad_token": "[PAD]"})
    assert len(padded) == len(used) + 1 and tokenizer_hash(padded) == base


@pytest.mark.parametrize("kind", ["merging", "metaspace"])
def test_other_vocabulary_or_splitting_counts(tokenizer_for, kind):
    assert tokenizer_hash(tokenizer_for(kind, CHATML)) != tokenizer_hash(
        tokenizer_for("bytes", CHATML)
    )


def test_added_and_special_tokens_count(tokenizer_for):
    base = tokenizer_hash(tokenizer_for("bytes", CHATML))
    added = tokenizer_for("bytes", CHATML)
    added.add_tokens([AddedToken("bread", special=False)])
    assert tokenizer_hash(added) != base
    # A padding-like token that is not the last one is a token like any other.
    between = tokenizer_for("bytes", CHATML)
    between.add_tokens(["[PAD]", "bread"])
    assert tokenizer_hash(between) not in (base, tokenizer_hash(added))
    assert tokenizer_hash(tokenizer_for("bytes", CHATML, eos_token="<|im_end|>")) != base


class Slow(PreTrainedTokenizer):
    """A tokenizer without the Rust backend: one token a character."""

    def __init__(self, alphabet: str = "abc", **kwargs):
        self.alphabet = alphabet
        super().__init__(unk_token="?", **kwargs)

    @property
    def vocab_size(self):
        return len(self.alphabet)

    def get_vocab(self):
        return {c: i for i, c in enumerate(self.alphabet)} | dict(self.added_tokens_encoder)

    def _tokenize(self, text, **kwargs):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.alphabet.find(token)

    def _convert_id_to_token(self, index):
        return self.alphabet[index]


def test_slow_tokenizers_are_hashed_by_vocabulary_and_special_tokens():
    assert tokenizer_hash(Slow()) == tokenizer_hash(Slow())
    assert tokenizer_hash(Slow("abd")) != tokenizer_hash(Slow())
    assert tokenizer_hash(Slow(eos_token="c")) != tokenizer_hash(Slow())
