"""How prompts are laid out before and while they decode."""

import types

import pytest
import torch
from transformers.cache_utils import DynamicCache

from refusaldir.probes.generation import decoding as module
from refusaldir.probes.generation.decoding import SPARE, chunk_rows, may_pad, side_by_side
from refusaldir.probes.generation.generate import generate


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([9, 9, 9, 8], 4),
        ([900, 20, 20, 20], 1),  # no padding to speak of
        ([20, 12, 12, 11], 3),  # 16 tokens of padding, and no more
        ([1500, 1500], 1),  # no more tokens at a time than are worth while
        ([9000], 1),
    ],
)
def test_prompts_run_at_a_time(lengths, rows):
    assert chunk_rows(lengths, "cpu") == rows


def test_a_sliding_window_is_not_padded(build):
    """Gemma's window counts tokens, padding too: rows of one length go together."""
    assert not may_pad(build("gemma3").hf, 40)
    assert may_pad(build("gemma3").hf, 11)
    assert may_pad(build("llama").hf, 40)


def test_a_model_without_position_ids_is_not_padded():
    hf = types.SimpleNamespace(forward=lambda input_ids: None, config=None)
    assert not may_pad(hf, 10)


def test_a_sliding_window_that_is_not_reached_pads(build):
    """Layers with and without a window, side by side, shorter than the window."""
    model = build("gemma3")
    prompts = [[3, 40, 41, 50], [3, 40], [3, 40, 60, 61, 62]]
    assert may_pad(model.hf, 5 + 6)
    together = generate(model, prompts, max_new_tokens=6, stop=())
    assert together == [
        type(r)(**{**vars(r), "index": i})
        for i, prompt in enumerate(prompts)
        for r in generate(model, [prompt], max_new_tokens=6, stop=())
    ]


def cache_of(*rows: torch.Tensor) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(2):
        states = torch.stack(rows) + layer
        cache.update(states, states + 100, layer)
    return cache


def test_caches_side_by_side():
    """Rows by prompt, over chunks, with empty slots at the end of shorter ones."""
    a, b, c = (torch.randn(2, n, 4) for n in (5, 5, 3))
    cache = side_by_side([cache_of(a, b), cache_of(c)], [1, 1, 0, 2])
    assert cache.get_seq_length() == 5
    for layer in range(2):
        keys, values = cache.layers[layer].keys, cache.layers[layer].values
        for row, expected in enumerate((b, b, a)):
            assert torch.equal(keys[row], expected + layer)
            assert torch.equal(values[row], expected + layer + 100)
        assert torch.equal(keys[3, :, :3], c + layer)
        assert not keys[3, :, 3:].any() and not values[3, :, 3:].any()


def test_spare_slots_hold_what_concatenation_would():
    """Past one allotment, and after rows have left."""
    first = torch.randn(3, 2, 7, 4)
    plain, roomy = DynamicCache(), DynamicCache()
    plain.update(first, -first, 0)
    chunk = DynamicCache()
    chunk.update(first, -first, 0)
    roomy = side_by_side([chunk], [0, 1, 2])
    for step in range(2 * SPARE + 3):
        if step in (5, SPARE + 9):
            keep = torch.arange(1, roomy.layers[0].keys.shape[0])
            plain.reorder_cache(keep)
            roomy.reorder_cache(keep)
        new = torch.randn(roomy.layers[0].keys.shape[0], 2, 1, 4)
        expected, got = plain.update(new, -new, 0), roomy.update(new, -new, 0)
        assert all(map(torch.equal, expected, got))
    assert roomy.get_seq_length() == plain.get_seq_length() == 7 + 2 * SPARE + 3


def test_a_step_copies_one_token(build, sequences, monkeypatch):
    """The keys of earlier tokens stay where they are between steps."""
    addresses, update = [], module._RoomyLayer.update

    def watched(self, *args, **kwargs):
        out = update(self, *args, **kwargs)
        addresses.append(out[0].data_ptr())
        return out

    monkeypatch.setattr(module._RoomyLayer, "update", watched)
    generate(build(), sequences, max_new_tokens=20, stop=())
    assert len(addresses) == 19 * 3
    assert len(set(addresses)) == 3
