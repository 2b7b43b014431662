"""Captured values against HF hidden states of each prompt run alone, and what is not computed."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from refusaldir.batching import Budget, SharedPrefix, TokenBatch, run_batches
from refusaldir.capture import capture
from refusaldir.errors import CaptureError
from refusaldir.models.bridge import HookedModel, hook_model
from refusaldir.models.load import LoadedModel
from refusaldir.records import ModelIdentity, Positions

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gemma3": Gemma3TextConfig(
        **SMALL, num_key_value_heads=2, head_dim=8, sliding_window=6, sliding_window_pattern=2
    ),
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=4, n_head=4, n_positions=128),
    "neox": GPTNeoXConfig(**SMALL),
}
POST = Positions(offsets=(-3, -2, -1), labels=("a", "b", "c"))


def build(name: str = "llama", dtype: torch.dtype = torch.float32, backend: str = "torch_hooks"):
    torch.manual_seed(0)
    config = CONFIGS[name]
    hf = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    identity = ModelIdentity(
        spec=name,
        name=name,
        weights_hash="0" * 16,
        architecture=type(hf).__name__,
        n_layers=4,
        d_model=32,
        vocab_size=97,
        dtype=str(dtype).removeprefix("torch."),
    )
    return hook_model(LoadedModel(hf=hf, tokenizer=None, identity=identity), backend=backend)


@pytest.fixture
def sequences() -> list[list[int]]:
    """Twenty prompts that share 5 tokens at the start and 3 at the end; lengths 9 to 28."""
    rng = np.random.default_rng(0)
    return [
        [5, 4, 3, 2, 1, *rng.integers(10, 97, 1 + n).tolist(), 7, 8, 9] for n in rng.permutation(20)
    ]


def collect(batches, count: int, hook: str = "resid_pre") -> np.ndarray:
    rows: list[np.ndarray | None] = [None] * count
    for batch in batches:
        for index, value in zip(batch.indices, batch.values[hook], strict=True):
            assert rows[index] is None, "a prompt was captured twice"
            rows[index] = value
    assert all(row is not None for row in rows)
    return np.stack(rows)


def alone(hf, sequences, offsets) -> np.ndarray:
    """[prompt, layer, pos, d_model] from `output_hidden_states`, one prompt at a time."""
    out = []
    with torch.inference_mode():
        for sequence in sequences:
            states = hf(torch.tensor([sequence]), output_hidden_states=True).hidden_states
            out.append(torch.stack([h[0, list(offsets)] for h in states[:-1]]))
    return torch.stack(out).float().numpy()


@pytest.mark.parametrize(
    ("backend", "batch_size"),
    [("torch_hooks", 1), ("torch_hooks", 20), ("torch_hooks", None), ("transformer_lens", 3)],
)
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_hidden_states_of_each_prompt_alone(name, batch_size, backend, sequences):
    reference = alone(build(name).hf, sequences, POST.offsets)
    model = build(name, backend=backend)
    got = collect(capture(model, sequences, positions=POST, batch_size=batch_size), len(sequences))
    assert got.dtype == np.float32
    error = np.sqrt(np.square(got - reference).sum(axis=(0, 2, 3)))
    assert (error <= 1e-5 * np.sqrt(np.square(reference).sum(axis=(0, 2, 3)))).all()


def test_a_shifted_position_does_not_pass(sequences):
    """Negative control: the bound above tells neighbouring positions and layers apart."""
    model = build()
    reference = alone(model.hf, sequences, POST.offsets)
    moved = Positions(offsets=(-4, -3, -2), labels=("a", "b", "c"))
    got = collect(capture(model, sequences, positions=moved), len(sequences))
    assert np.linalg.norm(got - reference) > 0.1 * np.linalg.norm(reference)
    got = collect(capture(model, sequences, positions=POST), len(sequences))
    assert np.linalg.norm(got[:, 1:] - reference[:, :-1]) > 0.05 * np.linalg.norm(reference)


def test_bfloat16_keeps_its_bits_and_its_rounding(sequences):
    model = build(dtype=torch.bfloat16)
    reference = alone(build().hf, sequences, POST.offsets)
    bits = collect(capture(model, sequences, positions=POST), len(sequences))
    assert bits.dtype == np.uint16
    got = torch.from_numpy(bits).view(torch.bfloat16).float().numpy()
    assert np.linalg.norm(got - reference) <= 0.02 * np.linalg.norm(reference)


def test_hooks_and_layers_are_those_asked_for(sequences):
    model = build()
    hooks = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    every = list(capture(model, sequences, hooks=hooks, layers=[2, 1], positions=POST))
    values = {hook: collect(every, len(sequences), hook) for hook in hooks}
    assert all(v.shape == (20, 2, 3, 32) for v in values.values())
    total = values["resid_pre"] + values["attn_out"] + values["mlp_out"]
    np.testing.assert_allclose(total, values["resid_post"], atol=1e-5)
    np.testing.assert_allclose(values["resid_post"][:, 0], values["resid_pre"][:, 1], atol=1e-6)


class Counter:
    """Counts the tokens that reach a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.tokens = self.calls = 0
        module.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs) -> None:
        x = args[0] if args else kwargs.get("hidden_states", kwargs.get("input_ids"))
        self.calls += 1
        self.tokens += x.shape[0] * x.shape[1]


def test_nothing_superfluous_is_computed(sequences):
    model = build()
    head = Counter(model.hf.lm_head)
    first = Counter(model.hf.model.layers[0].mlp)
    second = Counter(model.hf.model.layers[1].mlp)
    third = Counter(model.hf.model.layers[2].self_attn)
    collect(capture(model, sequences, layers=[0, 2], positions=POST), 20)
    assert head.calls == 0, "logits were computed"
    assert third.calls == 0, "a block after the last site was computed"
    suffixes = sum(len(s) - 5 for s in sequences)
    assert first.tokens == second.tokens
    assert 5 + suffixes <= first.tokens <= 5 + 1.35 * suffixes
    first.tokens = 0
    collect(capture(model, sequences, layers=[0, 2], positions=POST, batch_size=2), 20)
    assert first.tokens <= 5 + 1.05 * suffixes, "the prefix was run again or rows were unsorted"


def test_skip_leaves_out_what_is_stored(sequences):
    model = build()
    full = collect(capture(model, sequences, positions=POST), 20)
    done = set(range(0, 20, 2))
    seen = {}
    for batch in capture(model, sequences, positions=POST, skip=done):
        seen.update(zip(batch.indices.tolist(), batch.values["resid_pre"], strict=True))
    assert set(seen) == set(range(1, 20, 2))
    for index, value in seen.items():
        np.testing.assert_allclose(value, full[index], atol=1e-5)
    assert list(capture(model, sequences, positions=POST, skip=set(range(20)))) == []


@pytest.mark.parametrize("batch_size", [None, 16])
def test_out_of_memory_halves_the_batch(sequences, batch_size):
    model = build()
    sizes: list[int] = []

    def step(batch: TokenBatch, prefix):
        sizes.append(len(batch.indices))
        if len(batch.indices) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")
        return batch.indices.tolist()

    done = [
        i for _, rows in run_batches(model, sequences, step, batch_size=batch_size) for i in rows
    ]
    assert sorted(done) == list(range(20))
    assert sizes[0] > 3
    assert sizes.count(16) <= 1, "a batch that failed was tried again at the same size"


def test_out_of_memory_with_one_row_is_one_sentence(sequences):
    def step(batch, prefix):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(CaptureError, match="single prompt does not fit"):
        list(run_batches(build(), sequences, step))


def test_other_errors_are_not_taken_for_memory(sequences):
    def step(batch, prefix):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(run_batches(build(), sequences, step))


def test_hooks_are_gone_after_an_exception(sequences):
    model = build()
    before = alone(model.hf, sequences[:1], POST.offsets)  # transformers keeps hooks of its own
    count = hooks_in(model.hf)
    iterator = capture(model, sequences, positions=POST, batch_size=2)
    next(iterator)
    iterator.close()
    assert hooks_in(model.hf) == count
    np.testing.assert_array_equal(alone(model.hf, sequences[:1], POST.offsets), before)


def hooks_in(module: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_prefix_cache_is_not_changed_by_batches(sequences):
    model = build()
    prefix = SharedPrefix(model, sequences[0][:5])
    assert prefix.length == 5
    keys = [layer.keys.clone() for layer in prefix._cache.layers]
    cache = prefix.expand(7)
    with torch.inference_mode():
        model.run(torch.zeros((7, 4), dtype=torch.long), past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 9
    for layer, before in zip(prefix._cache.layers, keys, strict=True):
        torch.testing.assert_close(layer.keys, before)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hooks": ("resid_pre", "nonsense")}, "no such hook point"),
        ({"layers": [4]}, "no such layer"),
        ({"layers": []}, "no such layer"),
        ({"positions": Positions(offsets=(-40,), labels=("x",))}, "fewer tokens"),
    ],
)
def test_impossible_sites_are_refused(sequences, kwargs, message):
    with pytest.raises(CaptureError, match=message):
        list(capture(build(), sequences, **{"positions": POST, **kwargs}))


def test_budget_grows_only_while_it_pays():
    budget = Budget("cpu")
    first = budget.tokens
    budget.record(first, 1.0)  # Warm-up is not counted.
    budget.record(first, 1.0)
    assert budget.tokens == 2 * first
    budget.record(2 * first, 1.9)
    assert budget.tokens == 4 * first
    budget.record(4 * first, 4.5)  # Slower a token: back, and stay.
    assert budget.tokens == 2 * first
    budget.record(2 * first, 0.1)
    assert budget.tokens == 2 * first


def test_budget_never_returns_to_what_did_not_fit():
    budget = Budget("cuda")
    budget.out_of_memory(1000)
    assert budget.tokens == 500
    budget.record(500, 1e-6)
    assert budget.tokens == 500


def test_identity_is_kept(sequences):
    """The stand-in identity of these tests is what the protocol hands on."""
    model: HookedModel = build()
    assert dataclasses.asdict(model.identity)["n_layers"] == model.n_layers == 4


@pytest.mark.gpu
def test_cuda_equals_cpu(sequences):
    reference = collect(capture(build(), sequences, positions=POST), 20)
    model = build()
    model.hf.to("cuda")
    got = collect(capture(model, sequences, positions=POST), 20)
    np.testing.assert_allclose(got, reference, atol=1e-4)
