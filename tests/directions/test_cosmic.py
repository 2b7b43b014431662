"""COSMIC against plain hooks, against a planted feature, and where it has to say no."""

import numpy as np
import pytest
import torch
from plain import PlainHooks
from refusing import HARMFUL, HARMLESS, Refusing, U
from refusing import prompts as planted_prompts

from refusaldir.directions.candidates import Thresholds
from refusaldir.directions.causal import select_causal
from refusaldir.directions.cosmic import least_alike
from refusaldir.errors import DirectionError
from refusaldir.geometry import cosine

LAYERS, OFFSETS = (0, 1, 2), (-2, -1)
WIDE = Thresholds(kl=1e9, depth=1.0)


def run(model, directions, prompts, **options):
    harmful, harmless = prompts
    return select_causal(
        model,
        directions,
        layers=LAYERS,
        offsets=OFFSETS,
        harmful=harmful,
        harmless=harmless,
        criterion="cosmic",
        **options,
    )


@pytest.fixture(scope="module")
def prompts():
    """Classes that end in other words, so that their means differ."""
    rng = np.random.default_rng(3)

    def some(n, last):
        return [
            [3, 40, 41, *rng.integers(5, 97, rng.integers(3, 12)).tolist(), int(rng.choice(last))]
            for _ in range(n)
        ]

    return some(9, range(60, 70)), some(7, range(70, 80))


@pytest.fixture
def directions():
    values = np.random.default_rng(4).normal(size=(3, 2, 32))
    return values * np.array([0.02, 1.0, 4.0])[:, None, None]


def obvious(hf, directions, prompts):
    """One prompt at a time, every layer, in the plainest words."""

    def outputs(prompt):
        kept = []
        handles = [
            block.register_forward_hook(
                lambda m, a, out: kept.append((out[0] if isinstance(out, tuple) else out)[0, -1])
            )
            for block in hf.model.layers
        ]
        with torch.no_grad():
            hf(torch.tensor([prompt]))
        for handle in handles:
            handle.remove()
        return torch.stack(kept).double().numpy()

    def mean(group):
        return np.mean([outputs(p) for p in group], axis=0)

    def cos(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    harmful, harmless = prompts
    up, down = mean(harmful), mean(harmless)
    # A tenth of three layers is less than one: one is taken.
    best = min(range(3), key=lambda layer: cos(up[layer], down[layer]))
    table = {}
    for i, layer in enumerate(LAYERS):
        for j, offset in enumerate(OFFSETS):
            v = torch.tensor(directions[i, j]).float()
            with PlainHooks(hf, ablate=[v / v.norm()]):
                ablated = mean(harmful)[best]
            with PlainHooks(hf, add=(layer, v)):
                added = mean(harmless)[best]
            table[layer, offset] = cos(ablated, down[best]), cos(added, up[best])
    return table, best, cos(up[best], down[best])


@pytest.mark.parametrize("backend", ["transformer_lens", "torch_hooks"])
def test_every_score(backend, directions, prompts):
    from tiny import make_model

    truth, layer, clean = obvious(make_model().hf, directions, prompts)
    choice = run(make_model(backend=backend), directions, prompts, thresholds=WIDE)
    assert choice.cosmic_layers == (layer,)
    assert choice.clean_cosine == pytest.approx(clean, abs=1e-5)
    for c in choice.candidates:
        expected = truth[c.site.layer, c.site.position]
        np.testing.assert_allclose([c.ablated_cosine, c.added_cosine], expected, atol=1e-4)
        assert c.cosmic == pytest.approx(sum(expected), abs=1e-4)
        assert c.kl_exact and c.bypass is None and c.induce is None
    best = max(truth, key=lambda key: sum(truth[key]))
    assert (choice.chosen.site.layer, choice.chosen.site.position) == best
    # Negative control: the scores do tell the candidates apart.
    assert np.ptp([sum(v) for v in truth.values()]) > 0.05


def test_only_what_passes_kl_is_scored(directions, prompts):
    from tiny import make_model

    model = make_model()
    full = run(model, directions, prompts, thresholds=WIDE)
    kl = sorted(c.kl for c in full.candidates)[2] + 1e-6
    quick = run(model, directions, prompts, thresholds=Thresholds(kl=kl, depth=1.0))
    assert sum(c.valid for c in quick.candidates) == 3
    for a, b in zip(quick.candidates, full.candidates, strict=True):
        assert a.dropped == ("" if b.kl <= kl else "KL")
        if a.valid:
            assert a.cosmic == pytest.approx(b.cosmic, abs=1e-5)
        else:
            assert a.cosmic is None
    best = max((c for c in full.candidates if c.kl <= kl), key=lambda c: c.cosmic)
    assert quick.chosen.site == best.site


def test_nothing_valid(directions, prompts):
    from tiny import make_model

    model = make_model()
    full = run(model, directions, prompts, thresholds=WIDE)
    choice = run(model, directions, prompts, thresholds=Thresholds(kl=1e-9, depth=1.0))
    assert choice.chosen is None
    assert choice.nearest.site == min(full.candidates, key=lambda c: c.kl).site
    assert choice.nearest.dropped == "KL" and choice.nearest.kl_exact
    assert choice.nearest.cosmic is not None and choice.nearest in choice.candidates


class TestPlantedRefusal:
    @pytest.fixture(scope="class")
    def refusing(self):
        return Refusing()

    def test_its_layer_and_direction(self, refusing):
        table = refusing.directions()
        choice = run(refusing.model(), table, planted_prompts())
        site = choice.chosen.site
        assert (site.layer, site.position) == (1, -1)
        assert cosine(table[1, 1], U) > 0.99
        # After block 1, which amplifies what block 0 wrote; block 2 does nothing.
        assert choice.cosmic_layers == (1,)
        assert choice.clean_harmful is None and choice.refusal_tokens == ()

    def test_its_cosines_by_plain_numpy(self, refusing):
        table = refusing.directions()
        choice = run(refusing.model(), table, planted_prompts(), thresholds=WIDE)
        for c in choice.candidates:
            vector = table[c.site.layer, c.site.position]
            expected = refusing.cosines(1, ablate=vector, add=(c.site.layer, vector))
            np.testing.assert_allclose([c.ablated_cosine, c.added_cosine], expected, atol=1e-4)
        # The mean difference is what block 0 wrote and what the last words differ by: without it
        # the harmful mean is the harmless one, and with it the other way round.
        assert choice.chosen.ablated_cosine > 0.999
        assert choice.chosen.added_cosine > 0.999 > 0.2 > choice.clean_cosine

    def test_random_directions_score_low(self, refusing):
        table = refusing.directions()
        clean = run(refusing.model(), table, planted_prompts(), thresholds=WIDE)
        planted = clean.chosen.cosmic
        rng = np.random.default_rng(0)
        noise = rng.normal(size=table.shape)
        noise *= np.linalg.norm(table[1, 1]) / np.linalg.norm(noise, axis=-1, keepdims=True)
        choice = run(refusing.model(), noise, planted_prompts(), thresholds=WIDE)
        assert max(c.cosmic for c in choice.candidates) < planted - 0.5

    def test_a_model_without_the_feature(self):
        """Only the features of the last words are left, and no direction is u."""
        plain = Refusing(feature=False)
        table = plain.directions()
        choice = run(plain.model(), table, planted_prompts(), thresholds=WIDE)
        planted = run(Refusing().model(), Refusing().directions(), planted_prompts())
        assert abs(cosine(table[1, 1], U)) < 0.01
        assert choice.clean_cosine == pytest.approx(1 / (1 + 1 / 8), abs=1e-4)
        best = max(c.cosmic for c in choice.candidates) - 2 * choice.clean_cosine
        assert best < 0.25 < 1 < planted.chosen.cosmic - 2 * planted.clean_cosine


class TestLeastAlike:
    def means(self, cosines):
        a = np.tile([1.0, 0.0], (len(cosines), 1))
        b = np.array([[c, np.sqrt(1 - c * c)] for c in cosines])
        return 3 * a, 7 * b

    def test_a_tenth_but_at_least_one(self):
        cosines = np.linspace(0.99, 0.5, 30)
        assert least_alike(*self.means(cosines)) == (27, 28, 29)
        assert least_alike(*self.means(cosines[:29])) == (27, 28)
        assert least_alike(*self.means([0.9, 0.3, 0.8])) == (1,)

    def test_in_order_of_depth(self):
        assert least_alike(*self.means([0.1, *[0.9] * 18, 0.0])) == (0, 19)

    def test_a_mean_that_is_not_finite(self):
        a, b = self.means([0.9, 0.8])
        a[1] = np.nan
        with pytest.raises(DirectionError):
            least_alike(a, b)


def test_an_unknown_criterion(directions, prompts):
    from tiny import make_model

    with pytest.raises(DirectionError, match="criterion"):
        select_causal(
            make_model(),
            directions,
            layers=LAYERS,
            offsets=OFFSETS,
            harmful=prompts[0],
            harmless=prompts[1],
            criterion="vibes",
        )


@pytest.mark.parametrize("group", [HARMFUL, HARMLESS])
def test_the_planted_model_is_what_numpy_says(group):
    """Negative control of the tests above: the model's own probabilities."""
    refusing = Refusing()
    model = refusing.model()
    for token in group:
        with torch.no_grad():
            p = model.hf(torch.tensor([[3, 50, token]])).logits[0, -1].double().softmax(-1)
        np.testing.assert_allclose(p, refusing.run(token)[0], atol=1e-5)
