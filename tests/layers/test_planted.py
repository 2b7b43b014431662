"""The parts of the planted-drift benchmark that have known answers."""

import numpy as np
import pytest
import torch
from benchmarks.planted import decoys, edits, factors, score, texts
from benchmarks.planted.bands import BANDS, N_LAYERS
from benchmarks.planted.score import LayerScores
from peft import PeftModel
from tiny import CONFIGS
from transformers import AutoModelForCausalLM

IDS = torch.tensor([[3, 40, 41, 7, 9, 60, 61, 12]])


@pytest.fixture
def llama():
    """Query heads in groups of two, so that a head turned for one query alone would show."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS["llama"]).double().eval()


def logits(hf):
    with torch.inference_mode():
        return hf(input_ids=IDS).logits


def weights_moved(hf, change):
    before = {key: factors.values(hf, *key).copy() for key in change}
    with factors.applied(hf, change):
        return {key: np.linalg.norm(factors.values(hf, *key) - before[key]) for key in change}


@pytest.mark.parametrize("components", [("attn",), ("mlp",), ("attn", "mlp")])
def test_a_rotation_decoy_changes_weights_by_the_norm_asked_for_and_no_output(llama, components):
    wanted = {0: 1.5, 2: 0.7}
    decoy = decoys.rotation(llama, wanted, components, seed=3)
    clean = logits(llama)
    with factors.applied(llama, decoy):
        assert torch.allclose(logits(llama), clean, atol=1e-10)
    assert torch.equal(logits(llama), clean)
    moved = weights_moved(llama, decoy)
    for layer, norm in wanted.items():
        assert np.sqrt(sum(v**2 for k, v in moved.items() if k[0] == layer)) == pytest.approx(norm)
        assert factors.layer_norms(decoy)[layer] == pytest.approx(norm)


@pytest.mark.parametrize("half", ["v_proj", "o_proj", "up_proj", "down_proj"])
def test_half_of_a_rotation_does_change_the_output(llama, half):
    decoy = decoys.rotation(llama, {1: 1.5}, ("attn", "mlp"), seed=3)
    broken = {key: pair for key, pair in decoy.items() if key[1] != half}
    clean = logits(llama)
    with factors.applied(llama, broken):
        assert (logits(llama) - clean).abs().max() > 1e-3


def test_a_rotation_that_is_too_large_is_refused(llama):
    with pytest.raises(ValueError, match="no rotation changes it"):
        decoys.rotation(llama, {0: 1e3}, ("attn",), seed=0)


def test_decoys_are_louder_than_the_true_change(llama):
    rng = np.random.default_rng(0)
    change = {
        (1, name): (rng.standard_normal((rows, 2)), rng.standard_normal((2, 32)) / 20)
        for name, rows in (("q_proj", 32), ("gate_proj", 48))
    }
    text = {
        (layer, name): (rng.standard_normal((rows, 2)), rng.standard_normal((2, 32)) / 50)
        for layer in range(3)
        for name, rows in (("q_proj", 32), ("gate_proj", 48), ("v_proj", 16))
    }
    for decoy in (
        decoys.rotation_decoy(llama, change, (0, 2), seed=1),
        decoys.text_decoy(llama, text, change, (0, 2), 1, seed=1),
    ):
        assert {layer for layer, _ in decoy} == {0, 2}
        for of in (factors.layer_norms, lambda c: factors.relative_norms(llama, c)):
            loudest, true = max(of(decoy).values()), max(of(change).values())
            assert decoys.LOUDER * 0.999 < loudest / true
    assert {matrix for _, matrix in decoy} == {"q_proj", "gate_proj"}


def test_an_adapter_on_disk_is_the_change_it_was_made_from(llama, tmp_path):
    """Through PEFT itself, with ranks that differ between matrices and layers."""
    rng = np.random.default_rng(0)
    change = {
        (layer, name): (rng.standard_normal((rows, rank)), rng.standard_normal((rank, 32)) / 9)
        for layer, rank in ((0, 1), (2, 3))
        for name, rows in (("v_proj", 16), ("up_proj", 48))
    }
    change[0, "up_proj"] = (rng.standard_normal((48, 5)), rng.standard_normal((5, 32)) / 9)
    clean = logits(llama)
    with factors.applied(llama, change):
        expected = logits(llama)
    assert (expected - clean).abs().max() > 1e-2
    factors.write_adapter(tmp_path / "a", change, "base")
    read = factors.read_adapter(tmp_path / "a")
    assert factors.layer_norms(read) == pytest.approx(factors.layer_norms(change))
    merged = PeftModel.from_pretrained(llama, tmp_path / "a").merge_and_unload()
    assert torch.allclose(logits(merged), expected, atol=1e-5)
    with pytest.raises(ValueError, match="same matrices"):
        factors.write_adapter(tmp_path / "b", {k: change[k] for k in list(change)[:3]}, "base")


def test_an_erased_direction_is_no_longer_written_and_a_turned_one_goes_elsewhere(llama):
    u = np.random.default_rng(2).standard_normal(32)
    u /= np.linalg.norm(u)
    before = factors.values(llama, 1, "down_proj").copy()
    with factors.applied(llama, edits.erased(llama, 1, "down_proj", u)):
        after = factors.values(llama, 1, "down_proj")
        assert np.abs(u @ after).max() < 1e-12
        rest = np.eye(32) - np.outer(u, u)
        assert np.allclose(rest @ after, rest @ before)
    with factors.applied(llama, edits.turned(llama, 1, "down_proj", u, 90, seed=0)):
        after = factors.values(llama, 1, "down_proj")
        assert np.allclose(after.T @ after, before.T @ before)
        assert abs(u @ after @ (u @ before)) < 0.9 * np.sum((u @ before) ** 2)


def test_bands_cover_every_place_size_and_component():
    for of in (lambda b: b.place, lambda b: len(b.layers), lambda b: b.components):
        assert len({of(band) for band in BANDS}) == 3
    assert len({band.name for band in BANDS}) == len(BANDS)
    for band in BANDS:
        assert sorted([*band.layers, *band.outside]) == list(range(N_LAYERS))


def test_texts_are_the_same_for_the_same_seed_alone():
    assert texts.unrelated_texts(5, 1) == texts.unrelated_texts(5, 1)
    assert texts.unrelated_texts(5, 1) != texts.unrelated_texts(5, 2)


def test_a_lens_that_points_at_the_band_and_one_that_points_away():
    band = (2, 3)
    good = score.score(LayerScores(scores=(0, 0.1, 3, 1, -0.2, 0), flagged=(2, 3)), band)
    assert (good.top, good.precision, good.auc) == (True, 1.0, 1.0)
    assert good.mass == pytest.approx(4 / 4.1)
    assert (good.flagged_inside, good.found) == (1.0, True)
    bad = score.score(LayerScores(scores=(5, 4, -3, -1, 2, 1), flagged=(0,)), band)
    assert (bad.top, bad.precision, bad.auc, bad.mass) == (False, 0.0, 0.0, 0.0)
    assert bad.spearman < 0 < good.spearman
    assert (bad.flagged_inside, bad.found) == (0.0, False)


def test_a_lens_that_says_nothing_gains_nothing():
    hit = score.score(LayerScores(scores=(0.0,) * 10, flagged=()), (1, 2))
    assert (hit.top, hit.mass, hit.spearman, hit.auc) == (False, None, None, 0.5)
    assert hit.precision == pytest.approx(0.2)
    assert (hit.flagged_inside, hit.found) == (None, False)


def test_ties_and_missing_scores():
    tied = score.score(LayerScores(scores=(1.0, 1.0, 0.0, 0.0)), (0,))
    assert (tied.top, tied.precision) == (False, 0.5)
    assert tied.auc == pytest.approx((0.5 + 1 + 1) / 3)
    missing = score.score(LayerScores(scores=(float("nan"), 1.0, -2.0)), (0,))
    assert (missing.top, missing.auc, missing.mass) == (False, 0.0, 0.0)
    with pytest.raises(ValueError, match="not none and not all"):
        score.score(LayerScores(scores=(1.0, 2.0)), ())


def test_summary_has_wilsons_interval():
    hits = [score.score(LayerScores(scores=s), (0,)) for s in [(2.0, 1.0)] * 9 + [(1.0, 2.0)]]
    row = score.summarise("lens", "plain", hits)
    assert row.n == 10
    # Wilson 1927 for 9 of 10.
    assert row.top == pytest.approx((0.9, 0.5958, 0.9821), abs=1e-3)
    assert row.found is None


def test_false_alarms_by_flags_and_by_size():
    quiet, loud = LayerScores(scores=(0.1, 0.0), flagged=()), LayerScores(scores=(2.0, 0.0))
    alarmed = LayerScores(scores=(0.2, 0.1), flagged=(0,))
    row = score.false_alarms("lens", [quiet, alarmed], [loud, loud])
    assert row.alarms[0] == 0.5
    assert row.told_apart == 1.0
    without = score.false_alarms("rival", [LayerScores(scores=(5.0,))], [loud])
    assert without.alarms is None
    assert without.told_apart == 0.0


def test_the_table_names_every_lens_and_group():
    pairs = {"a": (1,), "b": (2,), "c": ()}
    kinds = {"a": "plain", "b": "decoy-text", "c": "none-text"}
    lens = {
        "a": LayerScores(scores=(0.0, 1.0, 0.0), flagged=(1,)),
        "b": LayerScores(scores=(0.0, 1.0, 0.0), flagged=(1,)),
        "c": LayerScores(scores=(0.0, 0.0, 0.0), flagged=()),
    }
    text = score.table({"verdict": lens}, kinds, pairs)
    assert "| verdict | 1 | 100 % |" in text
    assert "| verdict | 1 | 0 % |" in text
    assert "**plain**" in text and "**all decoys**" in text
    assert "| verdict | 1 | 0 % | 1.00 |" in text
