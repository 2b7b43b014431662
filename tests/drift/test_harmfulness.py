"""Harmfulness at the last instruction token and refusal after it, apart."""

import numpy as np
import pytest
from planted import make_capture, make_prompts

from refusaldir.directions.reader import clusters_of
from refusaldir.drift.compare import compare
from refusaldir.drift.contrasts import Contrasts, Design
from refusaldir.drift.rotation import rotation

LABELS = ("t_inst", "<end>")


def pair(turned_inst, turned_post, *, seed=0, intents=60, d=24, layers=3, norm=6.0, between=50):
    """Base and tuned whose directions at the two positions turn by the angles given."""
    rng = np.random.default_rng(seed)
    prompts = make_prompts(intents)
    y = np.array([p.y for p in prompts]) - 0.5
    axes = np.linalg.qr(rng.standard_normal((d, 4)))[0].T

    def at(angle, plane):
        return np.cos(np.radians(angle)) * axes[plane] + np.sin(np.radians(angle)) * axes[plane + 1]

    inst = {"base": at(0, 0), "tuned": at(turned_inst, 0)}
    post = {}
    for name, angle in (("base", 0), ("tuned", turned_post)):
        own = np.cos(np.radians(angle)) * axes[2] + np.sin(np.radians(angle)) * axes[3]
        post[name] = np.cos(np.radians(between)) * axes[0] + np.sin(np.radians(between)) * own
    captures = []
    shared = rng.standard_normal((len(prompts), layers, 2, d))
    for name in ("base", "tuned"):
        values = shared + 0.3 * rng.standard_normal(shared.shape)
        values[:, 1:, 0] += norm * y[:, None, None] * inst[name]
        values[:, 1:, 1] += norm * y[:, None, None] * post[name]
        captures.append(make_capture(values, prompts, name=name, labels=LABELS))
    return captures


def test_refusal_turned_and_harmfulness_not():
    found = compare(*pair(0, 70)).harmfulness
    assert found.site.position == -2
    assert found.difference.lower > 0
    assert "refusal moved more than harmfulness" in found.sentence
    assert found.drift.rotation.value == pytest.approx(1, abs=0.05)


def test_harmfulness_turned_and_refusal_not():
    found = compare(*pair(70, 0)).harmfulness
    assert found.difference.upper < 0
    assert "harmfulness moved more than refusal" in found.sentence


def test_the_same_turn_of_both_shows_no_difference():
    """Negative control: nominal 95 %."""
    shown = [
        "is not shown"
        not in compare(*pair(0, 0, seed=seed, intents=40), draws=20).harmfulness.sentence
        for seed in range(15)
    ]
    assert sum(shown) <= 3


def test_cosine_between_the_two_directions_in_each_model():
    base, tuned = pair(0, 0, between=50)
    found = compare(base, tuned).harmfulness
    for e in (found.cosine_base, found.cosine_tuned):
        assert e.lower < np.cos(np.radians(50)) < e.upper
    labels, clusters = base.labels, clusters_of(base.prompts, base.labels)
    design = Design(labels, clusters, clusters.folds(5))
    layer = compare(base, tuned).site.site.layer
    x = base.values["resid_pre"][:, layer].astype(np.float64)
    assert rotation(Contrasts.of(design, x[:, 0], x[:, 1]))[0].value == found.cosine_base.value


def test_the_site_of_refusal_is_never_the_instruction():
    """Even where harmfulness separates far better."""
    base, tuned = pair(0, 0)
    for capture in (base, tuned):
        capture.values["resid_pre"][:, 1:, 0] *= 1.0
        capture.values["resid_pre"][:, :, 1] += np.random.default_rng(1).standard_normal(
            capture.values["resid_pre"][:, :, 1].shape
        )
    result = compare(base, tuned)
    assert result.site.site.position == -1 and result.harmfulness.site.position == -2
    asked = compare(base, tuned, position=-2)
    assert asked.site.site.position == -2 and asked.harmfulness is None


def test_without_the_position_or_its_signal_there_is_nothing_to_say(plant):
    assert compare(*plant()).harmfulness is None
    base, tuned = pair(0, 0)
    for capture in (base, tuned):
        capture.values["resid_pre"][:, :, 0] = capture.values["resid_pre"][:1, :, 0]
    assert compare(base, tuned).harmfulness is None


def test_document(plant):
    document = compare(*pair(0, 60)).to_dict()["harmfulness"]
    assert set(document) == {
        "site", "drift", "cosine_base", "cosine_tuned", "difference", "sentence",
    }  # fmt: skip
    assert compare(*plant()).to_dict()["harmfulness"] is None
