"""Measures by category: the category that was disturbed is the one that stands out."""

from dataclasses import replace

import numpy as np
import pytest
from linked import runs
from planted import make_capture, make_prompts

from refusaldir.drift.compare import compare
from refusaldir.drift.disturbance import linear_cka
from refusaldir.pipeline.link import category_measures
from refusaldir.probes.link.runs import link_runs
from refusaldir.statistics import Clusters


@pytest.fixture(scope="module")
def found():
    """Five categories of twelve intents; tuned scrambles the harmful prompts of one, turns one."""
    rng = np.random.default_rng(0)
    d, each, categories = 48, 12, 5
    prompts = tuple(
        replace(prompt, category=f"category {i // (2 * each)}")
        for i, prompt in enumerate(make_prompts(each * categories))
    )
    y = np.array([p.y for p in prompts])
    kind = np.arange(len(prompts)) // (2 * each)
    axes = np.linalg.qr(rng.standard_normal((d, 3)))[0].T
    x = 5 + rng.standard_normal((len(prompts), d)) + 6 * (y[:, None] - 0.5) * axes[0]
    scrambled, turned = (y == 1) & (kind == 3), kind == 1
    z = x + 0.1 * rng.standard_normal(x.shape)
    z[scrambled] += 2.0 * rng.standard_normal((scrambled.sum(), d))
    z[turned] += 6 * (y[turned, None] - 0.5) * (axes[1] - axes[0]) * 0.8
    captures = [make_capture(v[:, None, None], prompts) for v in (x, z)]
    drift = compare(*captures, draws=100)
    return prompts, x, z, {m.name: m for m in category_measures(*captures, drift)}


def test_each_measure_sees_what_was_planted(found):
    _, _, _, measures = found
    assert set(measures) == {
        "own rotation", "own norm ratio", "captured shift", "1 − CKA", "relative change",
    }  # fmt: skip
    largest = {
        name: max(measure.axes["refusal"].items(), key=lambda row: abs(row[1].value))[0]
        for name, measure in measures.items()
    }
    assert largest["1 − CKA"] == largest["relative change"] == "category 3"
    assert largest["own rotation"] == largest["captured shift"] == "category 1"
    assert measures["own rotation"].axes["refusal"]["category 1"].lower > 0.2
    # The harmless prompts of the scrambled category stayed as they were.
    assert measures["1 − CKA"].axes["over_refusal"]["category 3"].value < 0.05
    assert [m.name for m in measures.values() if m.rival] == ["1 − CKA", "relative change"]
    assert "over_refusal" not in measures["captured shift"].axes


def test_the_rival_is_the_cka_of_the_categorys_prompts(found):
    prompts, x, z, measures = found
    here = [i for i, p in enumerate(prompts) if p.category == "category 2" and p.y == 1]
    ours = measures["1 − CKA"].axes["refusal"]["category 2"]
    a, b = (v[here].astype(np.float32).astype(np.float64) for v in (x, z))
    theirs = linear_cka(a, b, Clusters.of([prompts[i].intent_id for i in here]))
    assert ours.value == pytest.approx(1 - theirs.value)
    assert (ours.lower, ours.upper) == pytest.approx((1 - theirs.upper, 1 - theirs.lower))


def test_they_stand_beside_behaviour(found):
    measures = tuple(found[-1].values())
    refusal, over = link_runs(*runs(categories=5), measures=measures).categories
    assert {c.measure for c in refusal.correlations} == {"projection shift", *found[-1]}
    assert "captured shift" not in {c.measure for c in over.correlations}
    assert refusal.rivals == ("1 − CKA", "relative change")
