"""Batched greedy generation against Hugging Face `generate`, one prompt at a time."""

import types

import pytest
import torch

from refusaldir.errors import ProbeError
from refusaldir.probes import generate as module
from refusaldir.probes.generate import generate, stop_ids

BUDGET = 16
ARCHITECTURES = ("llama", "qwen3", "gemma3", "gpt2", "neox")


def alone(hf, sequences, budget: int, stops) -> list[tuple[int, ...]]:
    """Tokens of each prompt by itself from `generate`, the stop token cut off."""
    out = []
    for sequence in sequences:
        ids = torch.tensor([list(sequence)])
        full = hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=budget,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=list(stops),
            pad_token_id=0,
        )
        new = full[0, ids.shape[1] :].tolist()
        stop = next((i for i, token in enumerate(new) if token in stops), len(new))
        out.append(tuple(new[:stop]))
    return out


REFERENCES: dict[str, tuple[tuple[int, ...], list[tuple[int, ...]]]] = {}


def reference_of(name: str, model, sequences) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Stop tokens that the model does say, so that rows stop at different steps, and its tokens."""
    if name not in REFERENCES:
        free = alone(model.hf, sequences, BUDGET, (2,))
        said = [token for new in free for token in new[2:]]
        stops = (2, *sorted(set(said), key=said.count, reverse=True)[:2])
        ends = [next((i for i, t in enumerate(new) if t in stops), len(new)) for new in free]
        REFERENCES[name] = stops, [new[:end] for new, end in zip(free, ends, strict=True)]
    return REFERENCES[name]


@pytest.mark.parametrize("batch_size", [1, 4, None])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_generate_of_each_prompt_alone(build, sequences, name, batch_size):
    model = build(name)
    stops, reference = reference_of(name, model, sequences)
    got = generate(model, sequences, max_new_tokens=BUDGET, stop=stops, batch_size=batch_size)
    assert [r.index for r in got] == list(range(len(sequences)))
    assert [r.ids for r in got] == reference
    assert len({len(ids) for ids in reference}) > 2, "rows must stop at different steps"
    assert all(r.finished == (len(r.ids) < BUDGET) for r in got)


def test_no_shared_prefix(build):
    """Padding then stands at the very start of the row."""
    model = build()
    sequences = [[7, 8, 9, 10, 11, 12, 13, 14], [20, 21], [30, 31, 32, 33, 34, 35]]
    got = generate(model, sequences, max_new_tokens=12, stop=(2,))
    assert [r.ids for r in got] == alone(model.hf, sequences, 12, (2,))


def test_ignoring_the_padding_does_not_pass(build, sequences, monkeypatch):
    """Negative control: without mask and positions the tokens differ."""
    model = build()
    reference = alone(model.hf, sequences, 8, (2,))
    forward = module._Decoding._forward

    def careless(self):
        self.mask = None
        return forward(self)

    monkeypatch.setattr(module._Decoding, "_forward", careless)
    got = generate(model, sequences, max_new_tokens=8, stop=(2,), batch_size=10)
    assert [r.ids for r in got] != reference


def test_a_sliding_window_is_not_padded(build, sequences):
    """Gemma's window counts tokens, padding too: rows of one length go together."""
    assert not module._may_pad(build("gemma3").hf, 40)
    assert module._may_pad(build("gemma3").hf, 11)
    assert module._may_pad(build("llama").hf, 40)


@pytest.mark.parametrize(
    ("lengths", "most", "rows"),
    [
        ([9, 9, 9, 8], 0, 3),  # no padding at all
        ([9, 9, 9, 8], 1, 4),
        ([900, 20, 20, 20], 100, 1),  # a long prompt goes alone
        ([900, 20, 20, 20], 10_000, 4),
        ([5], 0, 1),
    ],
)
def test_rows_of_a_batch(lengths, most, rows):
    assert module._rows(lengths, most) == rows


def test_hooks_act_at_every_step(build, sequences):
    model = build()
    shapes = []

    def push(value):
        shapes.append(tuple(value.shape))
        return value + 5.0

    plain = generate(model, sequences[:4], max_new_tokens=6, stop=())
    with model.hooked({("resid_pre", 1): push}):
        pushed = generate(model, sequences[:4], max_new_tokens=6, stop=(96,))
        reference = alone(model.hf, sequences[:4], 6, (96,))
    assert [r.ids for r in plain] != [r.ids for r in pushed]
    assert [r.ids for r in pushed] == reference
    assert {shape[1] for shape in shapes} >= {1, 5}  # single steps and the shared prefix


def test_generation_config_does_not_steer(build, sequences):
    model = build()
    before = [r.ids for r in generate(model, sequences, max_new_tokens=12)]
    model.hf.generation_config.repetition_penalty = 3.0
    model.hf.generation_config.do_sample = True
    assert [r.ids for r in generate(model, sequences, max_new_tokens=12)] == before


@pytest.mark.parametrize(
    ("configured", "expected"), [(7, (2, 4, 7)), ([7, 8], (2, 4, 7, 8)), (None, (2, 4))]
)
def test_stop_ids(build, configured, expected):
    """Generation config (one or several), tokenizer, and the template's end of turn (4)."""
    model = build()
    model.hf.generation_config.eos_token_id = configured
    assert stop_ids(model) == expected


def test_stop_ids_without_a_template(build):
    model = build()
    model.tokenizer.chat_template = None
    assert stop_ids(model) == (2,)


def test_callbacks_and_skip(build, sequences):
    model = build()
    seen, prefilled = [], {}

    def on_prefill(indices, logits):
        assert logits.shape == (len(indices), 97)
        prefilled.update(zip(indices.tolist(), logits.argmax(-1).tolist(), strict=True))

    whole = generate(model, sequences, max_new_tokens=8, stop=())
    part = generate(
        model,
        sequences,
        max_new_tokens=8,
        stop=(),
        skip={0, 3},
        batch_size=4,
        on_batch=lambda batch: seen.append([r.index for r in batch]),
        on_prefill=on_prefill,
    )
    assert [r.index for r in part] == [i for i in range(10) if i not in (0, 3)]
    assert sorted(i for batch in seen for i in batch) == [r.index for r in part]
    assert max(map(len, seen)) == 4
    lengths = [len(sequences[i]) for batch in seen for i in batch]
    assert lengths == sorted(lengths, reverse=True)
    by_index = {r.index: r for r in whole}
    assert all(by_index[r.index] == r for r in part)
    assert all(by_index[i].ids[0] == token for i, token in prefilled.items())


def test_halves_when_memory_runs_out(build, sequences, monkeypatch):
    model = build()
    reference = generate(model, sequences, max_new_tokens=8, stop=())
    run = module._Decoding.run
    tried = []

    def scarce(self, budget, on_prefill):
        tried.append(len(self.indices))
        if len(self.indices) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return run(self, budget, on_prefill)

    monkeypatch.setattr(module._Decoding, "run", scarce)
    assert generate(model, sequences, max_new_tokens=8, stop=()) == reference
    assert tried[0] > 3 and max(tried[3:]) <= 3


def test_one_prompt_too_large_says_so(build, sequences, monkeypatch):
    def never(self, budget, on_prefill):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(module._Decoding, "run", never)
    with pytest.raises(ProbeError, match="does not fit in memory"):
        generate(build(), sequences)


def test_other_errors_pass_through(build, sequences, monkeypatch):
    def broken(self, budget, on_prefill):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(module._Decoding, "run", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        generate(build(), sequences)


@pytest.mark.parametrize(
    ("sequences", "arguments", "message"),
    [
        ([[1, 2]], {"max_new_tokens": 0}, "at least one token"),
        ([[1, 2], []], {}, "prompt is empty"),
        ([[1] * 250], {"max_new_tokens": 10}, "do not fit in the model's context"),
        ([[1, 2]], {"batch_size": 0}, "at least one row"),
    ],
)
def test_refuses(build, sequences, arguments, message):
    with pytest.raises(ProbeError, match=message):
        generate(build(), sequences, **arguments)


def test_nothing_to_do(build):
    assert generate(build(), []) == []
    assert generate(build(), [[5, 6]], skip={0}) == []


def test_a_model_without_position_ids_is_not_padded():
    hf = types.SimpleNamespace(forward=lambda input_ids: None, config=None)
    assert not module._may_pad(hf, 10)
