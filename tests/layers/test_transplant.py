"""Transplants equal copying weights by hand, and give exact answers where these are known."""

import numpy as np
import pytest
import torch
from mixtures import ALL, REFUSAL, Pair, mixed, noise, scores_of
from tiny import SMALL
from transformers import Gemma4TextConfig, LlamaConfig

from refusaldir.errors import CaptureError, ProbeError
from refusaldir.geometry import unit
from refusaldir.layers.exchange import sweep as sweep_module
from refusaldir.layers.exchange.partial_run import PartialRuns
from refusaldir.layers.exchange.sweep import Mixture, sweep
from refusaldir.layers.exchange.transplant import Transplant, transplant
from refusaldir.layers.outcomes import Projection, RefusalRate, RefusalScore
from refusaldir.layers.weight_pair import WeightPair
from refusaldir.models.bridge import open_model
from refusaldir.models.hookpoints import find_blocks
from refusaldir.records import Site

SCORE = RefusalScore(REFUSAL)
U = unit(np.random.default_rng(3).standard_normal(32))


def by_hand(pair, sequences):
    """Every entry of a transplant, by copying."""
    every = set(range(pair.depth))

    def run(*mixture):
        return pair.scores(sequences, *mixture)

    return {
        "base": run(set(), False),
        "tuned": run(every, True),
        "restored": [run(every - {k}, True) for k in sorted(every)],
        "injected": [run({k}, False) for k in sorted(every)],
        "fronts": [run(every - set(range(f)), True) for f in range(pair.depth + 1)],
        "restored_outside": run(every, False),
        "injected_outside": run(set(), True),
    }


def equal(got, want, *, outside, atol=5e-5):
    for name in ("restored", "injected", "fronts"):
        np.testing.assert_allclose(getattr(got, name), np.stack(want[name], 1), atol=atol)
    for name in ("base", "tuned", *(["restored_outside", "injected_outside"] * outside)):
        np.testing.assert_allclose(getattr(got, name), want[name], atol=atol)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("outside", [False, True])
def test_equals_copying_block_by_block(name, outside, sequences, tmp_path):
    pair = Pair(tmp_path, name, noise(outside=outside))
    want = by_hand(pair, sequences)
    got = transplant(pair.open(), sequences, SCORE, batch_size=4)

    assert got.layers == (0, 1, 2)
    assert (got.restored_outside is not None) == outside
    equal(got, want, outside=outside)
    effects = np.abs([got.restoring, got.injecting])
    assert effects.mean() > 0.05  # something to be found
    full = 2 * 3 + 2 + 2 + 2 * outside
    assert got.forwards < full


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "neox", "mixtral"])
def test_equals_copying_through_transformer_lens(name, sequences, tmp_path):
    pair = Pair(tmp_path, name)
    opened = pair.open("transformer_lens")
    assert opened.model.identity.backend == "transformer_lens"
    equal(transplant(opened, sequences, SCORE), by_hand(pair, sequences), outside=False)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2"])
def test_adapters_equal_copying_what_they_merge_to(name, make_pair, sequences):
    specs = make_pair(name, "lora").specs
    base, tuned = (open_model(spec, backend="torch_hooks").hf for spec in specs)
    pair = WeightPair.open(*specs)
    assert pair.outside == (name == "llama")
    got = transplant(pair, sequences, SCORE)
    for k in range(3):
        restored = scores_of(mixed(base, tuned, {0, 1, 2} - {k}, True), sequences)
        np.testing.assert_allclose(got.restored[:, k], restored, atol=5e-5)
        injected = scores_of(mixed(base, tuned, {k}, False), sequences)
        np.testing.assert_allclose(got.injected[:, k], injected, atol=5e-5)
    assert np.abs([got.restoring, got.injecting]).mean() > 1e-3


@pytest.mark.parametrize("backend", ["torch_hooks", "transformer_lens"])
@pytest.mark.parametrize("name", ALL)
def test_partial_runs_equal_full_runs(name, backend, sequences, tmp_path):
    model = Pair(tmp_path, name).open(backend).model
    runs = PartialRuns(model)
    tokens = torch.tensor([sequences[0], sequences[0][::-1]])
    with torch.inference_mode(), runs.keeping([1, 2]) as kept:
        full = model.logits(tokens)
    assert runs.equal_full_runs([0, 1, 2], sequences[0])
    for layer in (1, 2):
        with torch.inference_mode(), runs.resumed(layer, kept[layer]):
            part = model.logits(tokens)
        assert float((part - full).abs().max()) <= 1e-6 * float(full.abs().max())
        with torch.inference_mode(), runs.resumed(layer, 1.1 * kept[layer] + 0.1):
            assert float((model.logits(tokens) - full).abs().max()) > 1e-3
    with torch.inference_mode():  # nothing is left behind
        torch.testing.assert_close(model.logits(tokens), full, rtol=0, atol=0)


def test_blocks_before_the_start_do_not_run(sequences, tmp_path):
    depth = 6
    pair = Pair(tmp_path, config=LlamaConfig(**{**SMALL, "num_hidden_layers": depth})).open()
    ran = np.zeros(depth, dtype=int)

    def count(index):
        def hook(module, args):
            ran[index] += len(args[0]) == len(sequences)  # prefixes are run as one row

        return hook

    # Attention, since a block that is passed over is called as well.
    for index, block in enumerate(find_blocks(pair.model.hf)):
        block.self_attn.q_proj.register_forward_pre_hook(count(index))
    got = transplant(pair, sequences, SCORE, batch_size=10, fronts=False)
    # Base and tuned; each of the others from its block on, and those of block 0 from block 1:
    # there the other model has left its stream already.
    assert ran.tolist() == [2, 6, 8, 10, 12, 14]
    assert got.forwards == pytest.approx(ran.sum() / depth)


def test_one_changed_block_is_all_there_is(sequences, tmp_path):
    pair = Pair(tmp_path, change=noise(layers=[1])).open()
    got = transplant(pair, sequences, SCORE, layers=[0, 1, 2])
    assert np.abs(got.base - got.tuned).min() > 1e-3
    np.testing.assert_array_equal(got.restored[:, 1], got.base)
    np.testing.assert_array_equal(got.injected[:, 1], got.tuned)
    for other in (0, 2):
        assert not got.restoring[:, other].any() and not got.injecting[:, other].any()
    assert got.restored_share[1] == got.injected_share[1] == pytest.approx(1)
    np.testing.assert_array_equal(got.fronts[:, :2], np.stack([got.tuned] * 2, 1))
    np.testing.assert_array_equal(got.fronts[:, 2:], np.stack([got.base] * 2, 1))
    assert got.recovery_depth == 2
    assert got.forwards == 2
    assert transplant(pair, sequences, SCORE).layers == (1,)


def turned(hf):
    """Another basis for the values of block 1, and a change of block 2 that is felt."""
    attention = find_blocks(hf)[1].self_attn
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    r = torch.from_numpy(rotation).float()
    values, out = attention.v_proj.weight, attention.o_proj.weight
    values.copy_((r @ values.view(2, 8, 32)).reshape(16, 32))
    out.copy_((out.view(32, 4, 8) @ r.T).reshape(32, 32))
    noise(layers=[2])(hf)


def test_a_change_that_the_function_does_not_feel_has_no_effect(sequences, tmp_path):
    made = Pair(tmp_path, change=turned)
    weights = [find_blocks(hf)[1].self_attn.v_proj.weight for hf in (made.hf, made.other)]
    assert float((weights[1] - weights[0]).norm() / weights[0].norm()) > 1
    got = transplant(made.open(), sequences, SCORE)
    assert got.layers == (1, 2)
    assert np.abs(got.restoring[:, 0]).max() < 1e-4
    assert np.abs(got.injecting[:, 0]).max() < 1e-4
    assert np.abs(got.restoring[:, 1]).max() > 0.1
    np.testing.assert_allclose(got.injected_share, [0, 1], atol=1e-3)


def test_fronts_end_at_tuned_and_base(sequences, tmp_path):
    got = transplant(Pair(tmp_path).open(), sequences, SCORE)
    assert got.fronts.shape == (10, 4)
    np.testing.assert_array_equal(got.fronts[:, 0], got.tuned)
    np.testing.assert_array_equal(got.fronts[:, -1], got.base)
    np.testing.assert_array_equal(got.fronts[:, 1], got.restored[:, 0])
    np.testing.assert_array_equal(got.fronts[:, 2], got.injected[:, 2])


@pytest.mark.parametrize(
    ("site", "reach"),
    [
        (Site(hook="resid_pre", layer=0, position=-1), 0),
        (Site(hook="resid_pre", layer=2, position=-1), 2),
        (Site(hook="resid_post", layer=0, position=-2), 1),
        (Site(hook="attn_out", layer=1, position=-3), 2),
    ],
)
def test_a_projection_feels_nothing_behind_its_site(site, reach, sequences, tmp_path):
    pair = Pair(tmp_path)
    got = transplant(pair.open(), sequences, Projection(site, U), batch_size=3)
    assert got.outcome == "projection"
    for k in range(3):
        for effect in (got.restoring[:, k], got.injecting[:, k]):
            assert np.abs(effect).max() == 0 if k >= reach else np.abs(effect).min() > 0
    assert (got.fronts[:, reach:] == got.base[:, None]).all()

    def projected(hf, ids):
        seen = []
        block = find_blocks(hf)[site.layer]
        part = block.self_attn if site.hook == "attn_out" else block
        if site.hook == "resid_pre":
            handle = part.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
        else:
            handle = part.register_forward_hook(
                lambda m, a, o: seen.append(o[0] if isinstance(o, tuple) else o)
            )
        with torch.inference_mode():
            hf(input_ids=torch.tensor([ids]), use_cache=False)
        handle.remove()
        return float(seen[0][0, site.position].double().numpy() @ U)

    for k in range(3):
        mixed = pair.obvious({0, 1, 2} - {k}, True)
        want = [projected(mixed, ids) for ids in sequences]
        np.testing.assert_allclose(got.restored[:, k], want, atol=2e-5)


def test_batches_and_memory_make_no_difference(sequences, tmp_path, monkeypatch):
    pair = Pair(tmp_path).open()
    whole = transplant(pair, sequences, SCORE)
    monkeypatch.setattr(sweep_module, "KEPT_BYTES", 32 * 4 * 2 * 30)
    seen = []
    small = transplant(pair, sequences, SCORE, on_progress=lambda *at: seen.append(at))
    for name in ("base", "tuned", "restored", "injected", "fronts"):
        np.testing.assert_allclose(getattr(small, name), getattr(whole, name), atol=2e-5)
    done, total = np.array(seen).T
    assert (np.diff(done) > 0).all() and len(seen) > 40
    assert done[-1] == pytest.approx(total[0]) == pytest.approx(small.forwards)
    assert not pair.tuned_layers and not pair.tuned_outside


def test_falls_back_to_full_runs_where_blocks_read_more_than_the_stream(sequences, tmp_path):
    # Blocks 2 and 3 attend to the keys and values of blocks 0 and 1.
    config = Gemma4TextConfig(
        **{**SMALL, "num_hidden_layers": 4},
        num_key_value_heads=2,
        head_dim=8,
        global_head_dim=8,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=97,
        tie_word_embeddings=False,
    )
    pair = Pair(tmp_path, config=config)
    opened = pair.open()
    assert not PartialRuns(opened.model).equal_full_runs([1], sequences[0])
    got = transplant(opened, sequences, SCORE, batch_size=10)
    assert got.forwards == 2 + 2 * 4 + 3 - 2  # two of the three fronts are among the others
    equal(got, by_hand(pair, sequences), outside=False)


def test_a_rate_from_generations_is_run_once_a_mixture(sequences, tmp_path):
    pair = Pair(tmp_path).open()
    runs = []

    def judged(model, prompts):
        runs.append(set(pair.tuned_layers))
        with torch.inference_mode():
            logits = [model.logits(torch.tensor([ids]))[0] for ids in prompts]
        return [int(x.argmax()) % 2 for x in logits]

    got = transplant(pair, sequences, RefusalRate(judged))
    assert got.outcome == "refusal rate"
    assert len(runs) == got.forwards == 2 + 6 + 2 - 2
    assert set(np.unique(got.restored)) <= {0, 1}
    np.testing.assert_array_equal(got.fronts[:, 1], got.restored[:, 0])
    with pytest.raises(ProbeError, match="one judgement a prompt"):
        transplant(pair, sequences, RefusalRate(lambda model, prompts: [0.5] * len(prompts)))


def test_shares_and_depth_of_known_figures():
    rows = np.array([0.0, 2.0])
    known = Transplant(
        outcome="refusal score",
        layers=(0, 1),
        base=4 + rows,
        tuned=rows,
        restored=np.stack([1 + rows, 4 + rows], 1),
        injected=np.stack([4 + rows, 3 + rows], 1),
        fronts=np.stack([rows, 1 + rows, 4 + rows], 1),
        restored_outside=None,
        injected_outside=None,
        forwards=1.0,
    )
    assert known.gap == 4
    np.testing.assert_allclose(known.restored_share, [0.25, 1])
    np.testing.assert_allclose(known.injected_share, [0, 0.25])
    assert known.recovery_depth == 2
    one = known.of_prompts(np.array([False, True]))
    assert one.tuned.tolist() == [2] and one.fronts.shape == (1, 3)
    np.testing.assert_allclose(one.restored_share, [0.25, 1])


def test_a_model_against_itself(sequences, tmp_path):
    pair = Pair(tmp_path, change=lambda hf: None).open()
    got = transplant(pair, sequences, SCORE)
    assert got.layers == () and got.restored.shape == (10, 0)
    assert got.forwards == 1 and got.recovery_depth is None
    other = transplant(pair, sequences, SCORE, layers=[1])
    assert np.isnan(other.restored_share).all() and np.isnan(other.injected_share).all()


def test_refuses_what_cannot_be_swept(sequences, tmp_path):
    made = Pair(tmp_path)
    pair = made.open()
    with pytest.raises(CaptureError, match="at least one prompt"):
        transplant(pair, [], SCORE)
    with pytest.raises(CaptureError, match="no such layer"):
        transplant(pair, sequences, SCORE, layers=[3])
    with pytest.raises(CaptureError, match="no such layer"):
        sweep(pair, sequences, SCORE, [Mixture(frozenset({7}), True)])
    pair.set_tuned()
    find_blocks(pair.model.hf)[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ProbeError, match="not finite"):
        transplant(pair, sequences, SCORE)
