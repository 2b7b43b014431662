"""Variants side by side against each alone, and what happens when memory runs out."""

import pytest
import torch
from tiny import make_model

from refusaldir.errors import CaptureError
from refusaldir.hooks import Ablation, Addition, intervene
from refusaldir.variants import Variants

PREFIX = 5


class Scarce:
    """An intervention that changes nothing and fails on more than so many rows, as memory does."""

    def __init__(self, rows):
        self.most, self.seen = rows, []

    def edits(self, model):
        def edit(x):
            if x.shape[1] != PREFIX:
                self.seen.append(len(x))
                if len(x) > self.most:
                    raise RuntimeError("CUDA out of memory")
            return x

        return {("resid_pre", 0): edit}


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def interventions(model):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, model.d_model, generator=generator)
    units = vectors / vectors.norm(dim=-1, keepdim=True)
    return lambda rows: [Ablation(units[rows][:, None]), Addition(vectors[rows], 1)]


def test_each_row_is_what_it_would_be_alone(model, sequences, interventions):
    variants = Variants(model, sequences[0][:PREFIX], 3, interventions)
    pairs = [(i % 3, sequence) for i, sequence in enumerate(sequences)]
    logits = torch.cat([part for _, part in variants.logits(pairs)])
    last = torch.cat([part for _, part in variants.last(pairs, "resid_post", (2, 0))])
    for row, (variant, sequence) in enumerate(pairs):
        ids = torch.tensor([sequence])
        kept = {}
        hooks = {
            ("resid_post", i): lambda x, i=i, to=kept: to.update({i: x[0, -1]}) for i in (0, 2)
        }
        with intervene(model, *interventions(torch.tensor([variant]))), model.hooked(hooks):
            expected = model.logits(ids)[0]
        torch.testing.assert_close(logits[row], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(last[row], torch.stack([kept[2], kept[0]]), atol=1e-4, rtol=1e-4)
    # Negative control: variants differ.
    ids = torch.tensor([sequences[0]])
    assert (model.logits(ids)[0] - logits[0]).abs().max() > 0.1


def test_later_layers_are_not_run(model, sequences, interventions):
    variants = Variants(model, sequences[0][:PREFIX], 3, interventions)
    ran = []
    with model.hooked({("resid_pre", i): lambda x, i=i: ran.append(i) for i in range(3)}):
        list(variants.last([(0, sequences[0])], "resid_post", (1,)))
    assert ran == [0, 1]


def test_batches_get_smaller_when_memory_runs_out(model, sequences):
    scarce = Scarce(2)
    pairs = [(0, sequence) for sequence in sequences]
    plain = Variants(model, sequences[0][:PREFIX], 1, lambda rows: ())
    expected = torch.cat([part for _, part in plain.logits(pairs)])
    variants = Variants(model, sequences[0][:PREFIX], 1, lambda rows: [scarce])
    found = torch.cat([part for _, part in variants.logits(pairs)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert scarce.seen[0] == len(sequences) and max(scarce.seen[-3:]) <= 2


def test_a_single_prompt_that_does_not_fit(model, sequences):
    variants = Variants(model, sequences[0][:PREFIX], 1, lambda rows: [Scarce(0)])
    with pytest.raises(CaptureError, match="does not fit"):
        list(variants.logits([(0, sequence) for sequence in sequences]))


def test_batches_stay_within_the_budget(model, sequences):
    seen = Scarce(10**9)
    variants = Variants(model, sequences[0][:PREFIX], 1, lambda rows: [seen])
    many = [(0, sequence) for sequence in sequences * 12]
    assert sum(len(part) for _, part in variants.logits(many)) == len(many)
    longest = max(map(len, sequences))
    assert sum(seen.seen) == len(many) and len(seen.seen) > 1
    assert variants.rows(longest) * (longest - PREFIX) <= 512
