"""What is said of the layers: the right ones, how sure, and nothing where nothing changed."""

import json

import numpy as np
import pytest
from simulated import effects, measured, path_of, transplanted_of

from refusaldir.layers.conclude import conclude
from refusaldir.layers.words import layer_words

TRUE = (0.0, 0.02, 0.5, 0.4, 0.0, 0.05, 0.03, 0.0)


def found(true=TRUE, *, full=False, seed=0, whole=-3.0, noise=0.1, **changes):
    values, clusters = effects(true, seed=seed, whole=whole, noise=noise)
    path = path_of(values)
    other = transplanted_of(values, base=path.base, tuned=path.tuned) if full else None
    return conclude(measured(path, clusters, **changes), clusters, path=path, transplant=other)


def said(result):
    words = result.verdict
    return " ".join([words.headline, *words.layers, *words.certainty, *words.limits])


def test_the_planted_layers_are_named_with_the_change():
    result = found()
    assert result.verdict.headline.startswith("The fine-tune disturbed layers 2, 3")
    assert "fell by" in result.verdict.headline and "nats" in result.verdict.headline
    assert "layer 2 " in result.verdict.layers[0]
    assert "layers 2 and 3 (2 of 8 changed)" in said(result)
    assert "MLPs 75 %" in said(result) and "attention 25 %" in said(result)


def test_no_change_is_said_in_ninety_five_of_a_hundred():
    """Negative control, and no layer is named then."""
    quiet = 0
    for seed in range(100):
        result = found((0.5, 0.5, 0.0, 0.0), whole=0.0, seed=seed)
        if result.ranking is None:
            quiet += 1
            assert result.verdict.headline.startswith("No change to attribute")
            assert result.verdict.layers == () and result.agreement == ()
            assert all(row.share.value is None for row in result.path.layers)
            assert all(row.effect.value is not None for row in result.path.layers)
    assert quiet >= 95 - 6


def test_a_rise_is_a_rise():
    assert "rose by" in found(whole=3.0).verdict.headline


def test_a_change_spread_over_noise_names_no_layer():
    result = found((1 / 20,) * 20, noise=0.6)
    assert not result.ranking.disturbing
    assert "no single layer" in result.verdict.headline
    assert "account" not in result.verdict.headline


def test_agreement_depth_and_small_layers_are_said_with_transplants():
    result = found(full=True)
    text = said(result)
    assert "The lenses agree" in text and "τ =" in text
    assert "Recovery depth 1 of 8" in text
    assert "layers act almost independently" in text
    assert "Too small to attribute" in text and "could have gone unseen" in text
    assert result.ranking.lenses == ("path attribution", "restore", "inject")
    assert result.transplant.fronts[0].value == 0
    assert result.transplant.fronts[-1].value == pytest.approx(1)
    assert "Only one causal lens" in said(found())


def test_lenses_that_disagree_are_not_said_to_agree():
    values, clusters = effects(TRUE, noise=0.1)
    path = path_of(values)
    other = transplanted_of(values[:, ::-1], base=path.base, tuned=path.tuned)
    result = conclude(measured(path, clusters), clusters, path=path, transplant=other)
    assert "The lenses do not all agree" in said(result)


def test_an_outcome_without_gradient_needs_transplants_alone():
    values, clusters = effects(TRUE, noise=0.1)
    path = path_of(values)
    other = transplanted_of(values, base=path.base, tuned=path.tuned)
    result = conclude(measured(path, clusters, unit="share"), clusters, transplant=other)
    assert result.path is None and result.ranking.lenses == ("restore", "inject")
    assert "points" in result.verdict.headline
    with pytest.raises(ValueError, match="path attribution or a transplant"):
        conclude(measured(path, clusters), clusters)


def test_a_gap_is_said_and_a_closed_path_is_not():
    values, clusters = effects(TRUE, noise=0.1)
    for gap, there in ((0.0, False), (-0.3, True)):
        path = path_of(values, gap=gap)
        result = conclude(measured(path, clusters), clusters, path=path)
        assert result.path.gap_absolute == pytest.approx(abs(gap), abs=1e-9)
        assert ("Path attribution misses" in said(result)) == there


def test_never_the_safety_layer_and_json_is_plain():
    result = found(full=True)
    assert "safety layer" not in said(result)
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert json.loads(text)["ranking"]["layers"][0]["disturbs"] is True
    parts = result.to_dict()["path"]["matrices"]
    assert sum(row["share"] for row in parts) == pytest.approx(1)


def test_equal_weights_are_said_to_be_equal():
    values, clusters = effects((0.5, 0.5))
    path = path_of(np.zeros_like(values))
    result = conclude(measured(path, clusters, changed=(), outside=False), clusters, path=path)
    assert "the weights are equal" in result.verdict.headline


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((3,), "layer 3"),
        ((4, 3), "layers 3 and 4"),
        ((9, 4, 3, 5), "layers 3–5 and 9"),
        ((1, 3, 5), "layers 1, 3 and 5"),
        ((2, None), "layer 2 and what lies outside the blocks"),
        ((None,), "what lies outside the blocks"),
    ],
)
def test_layers_in_words(layers, words):
    assert layer_words(layers) == words
