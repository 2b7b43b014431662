"""Surprise of replies against Hugging Face's own loss, one reply at a time."""

import numpy as np
import pytest
import torch

from refusaldir.batching import run_batches
from refusaldir.errors import ProbeError
from refusaldir.probes.generation import perplexity as module
from refusaldir.probes.generation.perplexity import surprises

REPLIES = (
    "sorry i can't help with that",
    "sure",
    "here is the cake",
    "",
    "w1 w2 w3 w4 w5 w6 w7",
    "no",
    "bake the cake and find the lock of the door",
    "yes",
    "ok ok ok",
    "make it",
)


def by_loss(model, prompt, reply) -> float | None:
    """Hugging Face's loss over the reply alone, in float64."""
    ids = model.tokenizer(reply, add_special_tokens=False)["input_ids"]
    if not ids:
        return None
    whole = torch.tensor([[*prompt, *ids]])
    labels = whole.clone()
    labels[:, : len(prompt)] = -100
    with torch.inference_mode():
        return float(model.hf.double()(whole, labels=labels).loss)


@pytest.mark.parametrize("batch_size", [None, 1, 3])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "neox"])
def test_equals_the_loss(build, sequences, name, batch_size):
    counts = []
    got = surprises(build(name), sequences, REPLIES, batch_size=batch_size, on_batch=counts.append)
    reference = build(name)
    expected = [by_loss(reference, p, r) for p, r in zip(sequences, REPLIES, strict=True)]
    assert [g is None for g in got] == [e is None for e in expected]
    np.testing.assert_allclose(
        [g for g in got if g is not None], [e for e in expected if e is not None], rtol=1e-5
    )
    assert sum(counts) == 9
    assert np.ptp([g for g in got if g is not None]) > 0.5


def test_the_prompt_matters(build, sequences):
    """Negative control: another prompt gives other figures."""
    model = build()
    got = surprises(model, sequences, REPLIES)
    other = surprises(model, sequences[::-1], REPLIES)
    assert all(a is None or abs(a - b) > 1e-4 for a, b in zip(got, other, strict=True))


def test_the_shared_prefix_runs_once(build, sequences, monkeypatch):
    """Long replies to short prompts must not stand in its way."""
    model, seen = build(), []
    with model.hooked({("resid_pre", 0): lambda x: seen.append(tuple(x.shape[:2]))}):
        surprises(model, [s[:6] for s in sequences], ["help " * 40] * 9 + ["no"])
    assert seen[0] == (1, 5)
    assert sum(rows for rows, _ in seen[1:]) == 10


def test_logits_bound_a_batch(build, sequences, monkeypatch):
    model, seen = build(), []
    expected = surprises(model, sequences, REPLIES)
    monkeypatch.setitem(module.LOGITS, "cpu", 97 * 80)

    def watched(*args, **kwargs):
        seen.append(kwargs["batch_size"])
        return run_batches(*args, **kwargs)

    monkeypatch.setattr(module, "run_batches", watched)
    got = surprises(model, sequences, REPLIES)
    assert 1 < seen[0] < 5
    np.testing.assert_allclose(
        [g for g in got if g is not None], [e for e in expected if e is not None], rtol=1e-5
    )


def test_a_reply_beyond_the_context_is_read_as_far_as_it_goes(build):
    model = build()
    assert model.max_length == 256
    ids = [3, 40, 41, 42]
    (got,) = surprises(model, [ids], ["cake " * 300])
    assert got == pytest.approx(surprises(model, [ids], ["cake " * 252])[0])


def test_nothing_to_read(build):
    assert surprises(build(), [], []) == []
    assert surprises(build(), [[3, 4]], ["  "]) == [None]


@pytest.mark.parametrize(
    ("prompts", "replies", "message"),
    [
        ([[1, 2]], [], "every reply needs its prompt"),
        ([[]], ["no"], "leaves nothing to read"),
        ([[1] * 256], ["no"], "leaves nothing to read"),
    ],
)
def test_refuses(build, prompts, replies, message):
    with pytest.raises(ProbeError, match=message):
        surprises(build(), prompts, replies)
