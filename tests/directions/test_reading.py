"""What is said of a direction, against the models' own norm and head, and against simulation."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny import CONFIGS, SMALL, make_tokenizer
from transformers import AutoModelForCausalLM, Gemma2Config

from refusaldir.directions.estimators import ESTIMATORS
from refusaldir.directions.mean_diff import Direction, mean_diff
from refusaldir.directions.reading import Reading, split_half, top_dimension_share, transfer
from refusaldir.directions.vocabulary import token_weights, vocabulary
from refusaldir.errors import DirectionError, ModelLoadError
from refusaldir.geometry import unit
from refusaldir.models.bridge import hook_model
from refusaldir.models.load import LoadedModel
from refusaldir.records import ModelIdentity, Site
from refusaldir.statistics import Clusters

GEMMA2 = Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, final_logit_softcapping=3.0)
NORMS = {"llama": "model.norm", "gemma2": "model.norm", "gemma3": "model.norm",
         "gpt2": "transformer.ln_f", "neox": "gpt_neox.final_layer_norm"}  # fmt: skip
CENTRED = ("gpt2", "neox")


def model_of(name, *, backend="torch_hooks", dtype=torch.float32, change=None):
    """A tiny model whose gains, and biases where there are any, are not 1 and 0."""
    torch.manual_seed(0)
    config = GEMMA2 if name == "gemma2" else CONFIGS[name]
    hf = (
        AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype).eval().requires_grad_(False)
    )
    for parameter in hf.parameters():
        if parameter.dim() == 1:
            parameter += 0.4 * torch.randn_like(parameter)
    if change is not None:
        change(hf)
    identity = ModelIdentity(
        spec=name, name=name, weights_hash=name, architecture=type(hf).__name__, n_layers=3,
        d_model=32, vocab_size=97, dtype=str(dtype).removeprefix("torch."),
    )  # fmt: skip
    loaded = LoadedModel(hf=hf, tokenizer=make_tokenizer(), identity=identity)
    return hook_model(loaded, backend)


def direction_vector(seed=0):
    """With a mean, so that centring it changes it."""
    return np.random.default_rng(seed).standard_normal(32) * 4 + 1.5


def finite_difference(name, vector):
    """Change of the head's logits as v is added before the final norm, by the norm's name."""
    hf = model_of(name).hf.double()
    norm, head = hf.get_submodule(NORMS[name]), hf.get_output_embeddings()
    v = torch.from_numpy(vector)
    x = torch.randn(32, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 5
    if name in CENTRED:
        x = x - x.mean()
    against = v - v.mean() if name in CENTRED else v
    x = x - (x @ against) / (against @ against) * against
    assert abs(float(x @ v)) < 1e-9
    step = 1e-2  # An RMS norm computes in float32; x ⟂ v leaves an error of order step².
    up, down = (head(norm((x + sign * step * v)[None, None]))[0, 0] for sign in (1, -1))
    return ((up - down) / (2 * step) * x.square().mean().sqrt()).numpy()


class TestVocabulary:
    @pytest.mark.parametrize("backend", ["torch_hooks", "transformer_lens"])
    @pytest.mark.parametrize("name", NORMS)
    def test_is_the_slope_of_the_models_own_logits(self, name, backend):
        vector = direction_vector()
        found = token_weights(model_of(name, backend=backend), vector)
        np.testing.assert_allclose(found, finite_difference(name, vector), atol=1e-3)

    @pytest.mark.parametrize("name", NORMS)
    def test_gain_and_centring_matter(self, name):
        """Negative control: the same figures without one of them are far off."""
        vector = direction_vector()
        model = model_of(name)
        found = token_weights(model, vector)
        rows = model.hf.get_output_embeddings().weight.double().numpy()
        assert not np.allclose(found, rows @ vector, atol=0.3)
        gain = model.hf.get_submodule(NORMS[name]).weight.double().numpy()
        gain = 1 + gain if name.startswith("gemma") else gain
        uncentred = np.allclose(found, rows @ (gain * vector), atol=1e-3)
        assert uncentred == (name not in CENTRED)

    def test_scales_with_the_vector_and_changes_sign_with_it(self):
        model, vector = model_of("gpt2"), direction_vector()
        once = token_weights(model, vector)
        np.testing.assert_allclose(token_weights(model, -3 * vector), -3 * once, rtol=1e-4)

    def test_leaves_the_model_as_it_was(self):
        model, ids = model_of("llama"), torch.tensor([[3, 40, 41]])
        before = model.logits(ids)
        token_weights(model, direction_vector())
        torch.testing.assert_close(model.logits(ids), before, rtol=0, atol=0)

    def test_finds_a_planted_token(self):
        """A direction that is one row of the unembedding, gain undone, speaks for that token."""
        model = model_of("llama")
        gain = model.hf.model.norm.weight.double().numpy()
        row = model.hf.lm_head.weight[17].double().numpy()
        found = vocabulary(model, row / gain, top=3)
        assert found.top[0].id == 17
        assert found.top[0].text == make_tokenizer().decode([17])
        assert found.top[0].weight == pytest.approx(float(row @ row), rel=1e-4)
        weights = token_weights(model, row / gain)
        assert [t.id for t in found.bottom] == np.argsort(weights)[:3].tolist()
        assert [t.id for t in found.top] == np.argsort(-weights)[:3].tolist()
        assert found.spread == pytest.approx(weights.std())
        assert found.n_tokens == 97

    def test_rows_without_a_token_are_left_out(self):
        def widen(hf):
            hf.resize_token_embeddings(128)
            hf.lm_head.weight[97:] *= 1000

        model = model_of("llama", change=widen)
        found = vocabulary(model, direction_vector(), top=200)
        assert found.n_tokens == len(found.top) == 97
        assert max(t.id for t in found.top) < 97

    def test_an_offloaded_head(self):
        """Weights that are fetched for each call, here and in the norm."""
        from accelerate import cpu_offload

        vector = direction_vector()
        for name in ("llama", "gpt2"):
            model = model_of(name)
            expected = token_weights(model, vector)
            cpu_offload(model.hf, execution_device=torch.device("cpu"))
            assert all(p.is_meta for p in model.hf.get_output_embeddings().parameters())
            np.testing.assert_allclose(token_weights(model, vector), expected, atol=1e-4)

    def test_a_head_with_a_bias_and_an_adapter(self):
        """What an unmerged adapter adds to the head counts, the bias does not."""
        from peft import LoraConfig, get_peft_model

        vector, deltas = direction_vector(), []

        def adapt(hf):
            hf.lm_head.bias = torch.nn.Parameter(torch.randn(97))
            peft = get_peft_model(hf, LoraConfig(target_modules=["lm_head"], r=2, lora_alpha=8))
            lora = peft.base_model.model.lm_head
            lora.lora_B["default"].weight.data.normal_()
            deltas.append(lora.get_delta_weight("default").double().detach().numpy())

        plain, adapted = model_of("llama"), model_of("llama", change=adapt)
        gain = plain.hf.model.norm.weight.double().numpy()
        expected = token_weights(plain, vector) + deltas[0] @ (gain * vector)
        np.testing.assert_allclose(token_weights(adapted, vector), expected, atol=1e-3)

    def test_bfloat16_is_near(self):
        vector = direction_vector()
        exact = token_weights(model_of("gemma3"), vector)
        found = token_weights(model_of("gemma3", dtype=torch.bfloat16), vector)
        assert np.corrcoef(exact, found)[0, 1] > 0.999
        assert np.abs(found - exact).max() < 0.03 * exact.std()

    def test_a_stream_that_is_not_normalised_is_refused(self):
        def flatten(hf):
            hf.model.norm = torch.nn.Identity()

        with pytest.raises(ModelLoadError, match="final norm cannot be read"):
            token_weights(model_of("llama", change=flatten), direction_vector())

    def test_refuses_what_is_no_direction_of_this_model(self):
        model = model_of("llama")
        for vector, message in ((np.ones(33), "d_model 32"), (np.zeros(32), "normalised")):
            with pytest.raises(DirectionError, match=message):
                token_weights(model, vector)

    def test_a_byte_of_a_character_goes_by_the_tokenizers_name(self, base_model):
        from refusaldir.models.bridge import open_model

        found = vocabulary(open_model(base_model.as_posix()), direction_vector(), top=300)
        texts = [token.text for token in found.top]
        assert len(texts) == found.n_tokens == 258
        assert all(texts) and not any("\ufffd" in text for text in texts)
        assert {"a", " ", "\n", "<|im_end|>"} <= set(texts)


def test_top_dimension_share():
    found = top_dimension_share(np.array([1.0, -3.0, 2.0, 0.0]))
    assert (found.index, found.share) == (1, pytest.approx(9 / 14))
    assert top_dimension_share(np.eye(5)[2] * 1e-200).share == pytest.approx(1)
    with pytest.raises(DirectionError):
        top_dimension_share(np.zeros(4))


def noisy(seed, *, signal, d=300, intents=32, noise=1.0, twins=False):
    """Prompts whose mean difference has a known norm, and the share that is signal."""
    rng = np.random.default_rng(seed)
    r = unit(rng.standard_normal(d)) * signal
    y = np.tile([0, 1], intents)
    x = 5 + noise * rng.standard_normal((2 * intents, d)) + y[:, None] * r
    ids = [f"i{i // 2 if twins else i}" for i in range(2 * intents)]
    floor = 2 * d * noise**2 / intents
    return x, y, ids, signal**2 / (signal**2 + floor), signal**2 / (signal**2 + 2 * floor)


class TestSplitHalf:
    @pytest.mark.parametrize("twins", [False, True])
    @pytest.mark.parametrize("signal", [0.0, 3.0, 6.0, 12.0])
    def test_both_ways_find_the_true_share(self, signal, twins):
        found, shares = [], []
        for seed in range(40):
            x, y, ids, whole, half = noisy(seed, signal=signal, twins=twins)
            result = split_half(x, y, ids, repeats=10, seed=seed)
            found.append((result.reliability, result.signal_share.value, result.cosine))
            shares.append(result.signal_share)
        reliability, share, cosine = np.mean(found, axis=0)
        assert reliability == pytest.approx(whole, abs=0.02)
        assert share == pytest.approx(whole, abs=0.02)
        assert cosine == pytest.approx(half, abs=0.02)
        covered = np.mean([s.lower <= whole <= s.upper for s in shares])
        assert covered >= 0.88

    def test_twins_that_share_noise_are_not_split(self):
        """Halves of prompts, not of intents, would share a topic and look reliable."""
        rng = np.random.default_rng(0)
        y = np.tile([0, 1, 1, 0], 20)
        topic = np.repeat(rng.standard_normal((20, 200)), 4, axis=0)
        x = 0.1 * rng.standard_normal((80, 200)) + np.where(y == 1, 1, -1)[:, None] * topic
        intents = split_half(x, y, [f"i{i // 4}" for i in range(80)])
        prompts = split_half(x, y, [f"p{i}" for i in range(80)])
        assert abs(intents.cosine) < 0.1 and abs(intents.signal_share.value) < 0.2
        assert prompts.cosine > 0.4

    def test_takes_any_estimator_and_a_seed(self):
        x, y, ids, _, _ = noisy(0, signal=30.0, d=40, twins=True)
        for name, estimator in ESTIMATORS.items():
            found = split_half(x, y, ids, estimator=estimator, repeats=5, seed=1)
            assert found == split_half(x, y, ids, estimator=estimator, repeats=5, seed=1)
            assert found.lowest <= found.cosine <= found.highest
            assert found.reliability > 0.9
            assert (found.signal_share is None) == (name != "mean_diff")
        assert split_half(x, y, ids, repeats=5, seed=2).cosine != split_half(
            x, y, ids, repeats=5, seed=1
        ).cosine  # fmt: skip

    def test_without_noise_all_is_signal(self):
        y = np.tile([0, 1], 8)
        found = split_half(np.outer(y, np.ones(5)), y, [f"i{i}" for i in range(16)])
        assert (found.cosine, found.reliability) == (pytest.approx(1), pytest.approx(1))
        assert found.signal_share.value == pytest.approx(1)

    def test_uneven_intents_leave_both_classes_in_each_half(self):
        """Four harmful intents, one with a twin: every half must hold some."""
        x, y, _, _, _ = noisy(0, signal=3.0, d=10, intents=6)
        keep = np.array([0, 1, 2, 4, 6, 8, 3, 5, 7])
        ids = ["t", "t", *"abcdefg"]
        assert split_half(x[keep], y[keep], ids, repeats=200).repeats == 200

    def test_too_few(self):
        x, y, ids, _, _ = noisy(0, signal=3.0, d=10, intents=3)
        with pytest.raises(DirectionError, match=r"at least 4 intents.*3 harmful"):
            split_half(x, y, ids)


def fixed(vector):
    site = Site(hook="resid_pre", layer=1, position=-1)
    return Direction(vector=vector, site=site, n_harmful=9, n_harmless=9)


class TestTransfer:
    def test_equals_scikit_learn_and_the_definition(self):
        x, y, ids, _, _ = noisy(3, signal=2.0, d=20, intents=30)
        vector = mean_diff(x[:20], y[:20])
        found = transfer(fixed(vector), x[20:], y[20:], Clusters.of(ids[20:], y[20:]))
        scores = x[20:] @ vector / np.linalg.norm(vector)
        assert found.auroc.value == pytest.approx(roc_auc_score(y[20:], scores))
        one, none = scores[y[20:] == 1], scores[y[20:] == 0]
        pooled = np.sqrt((one.var(ddof=1) + none.var(ddof=1)) / 2)
        assert found.d_prime.value == pytest.approx((one.mean() - none.mean()) / pooled)
        assert found.auroc.lower < found.auroc.value < found.auroc.upper
        assert (found.n_harmful, found.n_harmless) == (20, 20)
        assert 0.6 < found.auroc.value < 1

    def test_fits_nothing_not_even_the_sign(self):
        x, y, ids, _, _ = noisy(3, signal=6.0, d=20, intents=30)
        clusters, r = Clusters.of(ids, y), mean_diff(x, y)
        right, wrong = (transfer(fixed(s * r), x, y, clusters) for s in (1, -2))
        assert wrong.auroc.value == pytest.approx(1 - right.auroc.value)
        assert wrong.d_prime.value == pytest.approx(-right.d_prime.value)

    def test_a_random_direction_is_at_chance(self):
        rng = np.random.default_rng(0)
        values = []
        for seed in range(40):
            x, y, ids, _, _ = noisy(seed, signal=0.0, d=20, intents=20)
            found = transfer(fixed(rng.standard_normal(20)), x, y, Clusters.of(ids, y))
            values.append((found.auroc.value, found.auroc.lower <= 0.5 <= found.auroc.upper))
        value, covered = np.mean(values, axis=0)
        assert value == pytest.approx(0.5, abs=0.05)
        assert covered >= 0.87


def test_a_reading_is_json():
    x, y, ids, _, _ = noisy(0, signal=3.0, d=32)
    direction = fixed(direction_vector())
    reading = Reading(
        direction=direction,
        model="m",
        top_share=top_dimension_share(direction.vector),
        vocabulary=vocabulary(model_of("llama"), direction.vector, top=2),
        prompts="p",
        transfer=transfer(direction, x, y, Clusters.of(ids, y)),
        split_half=split_half(x, y, ids, repeats=3),
        notes=("n",),
    )
    found = json.loads(json.dumps(reading.to_dict(), allow_nan=False))
    assert "vector" not in found["direction"]
    assert found["direction"]["norm"] == pytest.approx(direction.norm)
    assert len(found["vocabulary"]["bottom"]) == 2
    assert found["split_half"]["signal_share"]["value"] is not None
