"""Batched generation against Hugging Face `generate`, and against each prompt alone."""

import numpy as np
import pytest
import scipy.stats
import torch

from refusaldir.capture import capture
from refusaldir.directions.mean_diff import Direction
from refusaldir.errors import CaptureError, ProbeError
from refusaldir.geometry import project
from refusaldir.hooks import Ablation, intervene
from refusaldir.probes.generation import generate as module
from refusaldir.probes.generation.decoding import Decoding
from refusaldir.probes.generation.generate import generate, stop_ids
from refusaldir.records import Positions, Site

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
    """Negative control: without the mask the tokens differ."""
    model = build()
    reference = alone(model.hf, sequences, 8, (2,))
    forward = Decoding._forward

    def careless(self):
        self.mask = None
        return forward(self)

    monkeypatch.setattr(Decoding, "_forward", careless)
    got = generate(model, sequences, max_new_tokens=8, stop=(2,), batch_size=10)
    assert [r.ids for r in got] != reference


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
    assert max(map(len, seen)) <= 4
    lengths = [len(sequences[i]) for batch in seen for i in batch]
    assert lengths == sorted(lengths, reverse=True)
    by_index = {r.index: r for r in whole}
    assert all(by_index[r.index] == r for r in part)
    assert all(by_index[i].ids[0] == token for i, token in prefilled.items())


def test_skipping_leaves_the_batches_as_they_were(build, sequences):
    """Resumed where it was cut off, a run computes the same batches: equal to the last bit."""
    model = build(dtype=torch.bfloat16)

    def run(skip):
        batches, prefilled = [], {}
        with model.hooked({("resid_pre", 0): lambda x: batches.append(tuple(x.shape))}):
            got = generate(
                model,
                sequences,
                max_new_tokens=5,
                stop=(),
                skip=skip,
                batch_size=4,
                direction=direction_at("resid_pre", 2, -1),
                on_prefill=lambda i, z: prefilled.update(zip(i.tolist(), z, strict=True)),
            )
        return got, batches, prefilled

    whole, every, logits = run(set())
    longest = sorted(range(10), key=lambda i: -len(sequences[i]))
    part, some, seen = run({*longest[:4], longest[5]})
    assert part == [r for r in whole if r.index not in {*longest[:4], longest[5]}]
    assert set(seen) == {r.index for r in part}
    assert all(torch.equal(seen[i], logits[i]) for i in seen)
    first = len(every) - len(some)  # the first batch alone was left out
    assert first > 0 and every[1 + first :] == some[1:] and every[0] == some[0]
    assert run(set(range(10))) == ([], [], {})


def test_halves_when_memory_runs_out(build, sequences, monkeypatch):
    model = build()
    reference = generate(model, sequences, max_new_tokens=8, stop=())
    run = Decoding.run
    tried = []

    def scarce(self, on_prefill):
        tried.append(len(self.rows))
        if len(self.rows) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return run(self, on_prefill)

    monkeypatch.setattr(Decoding, "run", scarce)
    assert generate(model, sequences, max_new_tokens=8, stop=()) == reference
    assert tried[0] > 3 and max(tried[3:]) <= 3


def test_one_prompt_too_large_says_so(build, sequences, monkeypatch):
    def never(self, on_prefill):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Decoding, "run", never)
    with pytest.raises(ProbeError, match="does not fit in memory"):
        generate(build(), sequences)


def test_other_errors_pass_through(build, sequences, monkeypatch):
    def broken(self, on_prefill):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Decoding, "run", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        generate(build(), sequences)


@pytest.mark.parametrize(
    ("sequences", "arguments", "message"),
    [
        ([[1, 2]], {"max_new_tokens": 0}, "at least one token"),
        ([[1, 2], []], {}, "prompt is empty"),
        ([[1] * 250], {"max_new_tokens": 10}, "do not fit in the model's context"),
        ([[1, 2]], {"batch_size": 0}, "at least one row"),
        ([[1, 2]], {"temperatures": [-1.0], "seeds": [0]}, "0 or a positive number"),
        ([[1, 2]], {"temperatures": [float("nan")], "seeds": [0]}, "0 or a positive number"),
        ([[1, 2]], {"temperatures": [1.0]}, "sampling needs a seed"),
        ([[1, 2]], {"temperatures": [1.0], "seeds": [-3]}, "sampling needs a seed"),
        ([[1, 2]], {"temperatures": [1.0, 1.0], "seeds": [0]}, "every prompt needs a temperature"),
        ([[1, 2]], {"temperatures": [1.0], "seeds": [0, 1]}, "every prompt needs a seed"),
    ],
)
def test_refuses(build, sequences, arguments, message):
    with pytest.raises(ProbeError, match=message):
        generate(build(), sequences, **arguments)


def test_nothing_to_do(build):
    assert generate(build(), []) == []
    assert generate(build(), [[5, 6]], skip={0}) == []


@pytest.mark.parametrize("name", ["llama", "gemma3"])  # the second goes without padding
def test_a_draw_depends_on_prompt_temperature_and_seed_alone(build, sequences, name):
    model = build(name)
    jobs = [(i, t, s) for i in range(0, 10, 2) for t in (0.0, 0.7, 1.5) for s in (3, 4)]
    ids = [sequences[i] for i, _, _ in jobs]
    temperatures, seeds = [t for _, t, _ in jobs], [s for _, _, s in jobs]
    each = [
        generate(model, [row], max_new_tokens=12, temperatures=[t], seeds=[s], stop=(9, 60))[0].ids
        for row, t, s in zip(ids, temperatures, seeds, strict=True)
    ]
    order = np.random.default_rng(0).permutation(len(jobs)).tolist()
    for batch_size in (None, 7):
        got = generate(
            model,
            [ids[i] for i in order],
            max_new_tokens=12,
            temperatures=[temperatures[i] for i in order],
            seeds=[seeds[i] for i in order],
            stop=(9, 60),
            batch_size=batch_size,
        )
        assert [r.ids for r in got] == [each[i] for i in order]
    assert len(set(each)) > 20, "seeds must matter"
    greedy = [r.ids for r in generate(model, sequences[::2], max_new_tokens=12, stop=(9, 60))]
    assert [e for e, t in zip(each[::2], temperatures[::2], strict=True) if t == 0] == greedy


def test_equal_weights_draw_equal_replies(build, sequences):
    asked = {"max_new_tokens": 10, "temperatures": [1.0] * 10, "seeds": range(10)}
    assert generate(build(seed=5), sequences, **asked) == generate(
        build(seed=5), sequences, **asked
    )
    assert generate(build(seed=5), sequences, **asked) != generate(
        build(seed=6), sequences, **asked
    )


def test_little_heat_is_greedy(build, sequences):
    model = build()
    cold = generate(
        model, sequences, max_new_tokens=10, temperatures=[1e-7] * 10, seeds=range(10), stop=()
    )
    assert cold == generate(model, sequences, max_new_tokens=10, stop=())


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_draws_follow_the_softmax(build, name):
    """First and second token of many samples, against Hugging Face's logits."""
    n, temperature, prompt = 6000, 1.3, [3, 40, 41, 42, 43, 50, 51]
    model = build(name)
    got = generate(
        model,
        [prompt] * n,
        max_new_tokens=2,
        temperatures=[temperature] * n,
        seeds=range(n),
        stop=(),
        batch_size=n,
    )
    first = [r.ids[0] for r in got]
    often = max(set(first), key=first.count)
    second = [r.ids[1] for r in got if r.ids[0] == often]
    assert fits(model, prompt, temperature, first) > 1e-3
    assert fits(model, [*prompt, often], temperature, second) > 1e-3
    assert fits(model, prompt, 1.0, first) < 1e-6, "another temperature must not fit"


def fits(model, sequence, temperature, drawn) -> float:
    """p of the chi-square test of drawn tokens against the model's own probabilities."""
    with torch.inference_mode():
        logits = model.hf(torch.tensor([list(sequence)])).logits[0, -1].double()
    expected = torch.softmax(logits / temperature, -1).numpy() * len(drawn)
    counts = np.bincount(drawn, minlength=len(expected))
    common = expected >= 5
    rest = [counts[~common].sum()], [expected[~common].sum()]
    return scipy.stats.chisquare(
        np.concatenate([counts[common], rest[0]]), np.concatenate([expected[common], rest[1]])
    ).pvalue


def test_a_prompt_that_comes_several_times_runs_once(build, sequences):
    model, seen = build(), []
    with model.hooked({("resid_pre", 0): lambda x: seen.append(tuple(x.shape[:2]))}):
        generate(
            model,
            [*sequences[:3]] * 4,
            max_new_tokens=3,
            temperatures=[1.0] * 12,
            seeds=range(12),
            stop=(),
        )
    prefix, *prompts = [shape for shape in seen if shape[1] > 1]
    assert prefix == (1, 5)
    assert sum(rows for rows, _ in prompts) == 3
    assert [shape for shape in seen if shape[1] == 1] == [(12, 1)] * 2


def test_prefill_hands_over_each_index_once(build, sequences):
    model, logits = build(), {}
    generate(
        model,
        [sequences[0], sequences[1], sequences[0]],
        max_new_tokens=1,
        on_prefill=lambda indices, rows: logits.update(zip(indices.tolist(), rows, strict=True)),
    )
    assert sorted(logits) == [0, 1, 2]
    assert torch.equal(logits[0], logits[2]) and not torch.equal(logits[0], logits[1])


def direction_at(hook: str, layer: int, position: int) -> Direction:
    return Direction(
        vector=np.random.default_rng(7).normal(size=32) * 3,
        site=Site(hook=hook, layer=layer, position=position),
        n_harmful=1,
        n_harmless=1,
    )


def captured(model, sequences, direction: Direction) -> np.ndarray:
    """Projections by way of the capture room, one prompt at a time."""
    site, out = direction.site, np.empty(len(sequences))
    for i, sequence in enumerate(sequences):
        (batch,) = capture(
            model,
            [sequence],
            hooks=(site.hook,),
            layers=(site.layer,),
            positions=Positions(offsets=(site.position,), labels=("",)),
        )
        out[i] = project(batch.values[site.hook][0, 0, 0], direction.vector)
    return out


@pytest.mark.parametrize("position", [-1, -2, -4, -7])  # -4: in the shared prefix of the shortest
@pytest.mark.parametrize(
    ("name", "hook", "layer"),
    [("llama", "resid_pre", 1), ("llama", "resid_mid", 2), ("gemma3", "resid_post", 2),
     ("neox", "attn_out", 0)],
)  # fmt: skip
def test_projection_is_that_of_the_capture(build, sequences, name, hook, layer, position):
    model, direction = build(name), direction_at(hook, layer, position)
    expected = captured(model, sequences, direction)
    for batch_size in (None, 3):
        got = generate(
            model, sequences, max_new_tokens=3, direction=direction, batch_size=batch_size
        )
        np.testing.assert_allclose([r.projection for r in got], expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(expected) > 0.1


def test_projection_costs_no_pass_and_changes_no_reply(build, sequences):
    model, passes = build(), []
    with model.hooked({("resid_pre", 0): lambda x: passes.append(tuple(x.shape))}):
        plain = generate(model, sequences, max_new_tokens=4)
        without = list(passes)
        passes.clear()
        read = generate(
            model, sequences, max_new_tokens=4, direction=direction_at("resid_pre", 2, -1)
        )
    assert passes == without
    assert [r.ids for r in read] == [r.ids for r in plain]
    assert {r.projection for r in plain} == {None}


def test_projection_under_an_intervention(build, sequences):
    """What is read is what the model reads: nothing is left along an ablated direction."""
    model, direction = build(), direction_at("resid_pre", 2, -1)
    with intervene(model, Ablation.of(torch.from_numpy(direction.vector))):
        got = generate(model, sequences, max_new_tokens=2, direction=direction)
    np.testing.assert_allclose([r.projection for r in got], 0, atol=1e-4)


def test_refuses_a_site_that_is_not_there(build, sequences):
    with pytest.raises(ProbeError, match=r"shorter than the direction's position.*at least 8"):
        generate(build(), sequences, direction=direction_at("resid_pre", 1, -8))
    with pytest.raises(CaptureError, match="no such hook point"):
        generate(build(), sequences, direction=direction_at("resid_pre", 3, -1))
