"""Planning from real capture files: the pilot's noise, what it needs and what it could see."""

import json
from dataclasses import replace

import numpy as np
import pytest

from refusaldir.directions.reader import clusters_of
from refusaldir.drift.contrasts import Contrasts, Design
from refusaldir.drift.power.detectable import minimum_detectable
from refusaldir.drift.verdict import question_level
from refusaldir.errors import CaptureMismatchError, DirectionError, RefusaldirError, StoreError
from refusaldir.pipeline.planning import DEFAULT_NOISE, SIZES, plan
from refusaldir.prompts.schema import PromptSet
from refusaldir.store import Capture, CaptureWriter

SITE = "resid_pre.1@-1"


@pytest.fixture
def pilots(plant, tmp_path):
    """Write planted captures to disk: ``pilots(intents=…)`` gives the paths of base and tuned."""

    def write(**how):
        paths = []
        for capture in plant(**{"intents": 40, "shared": 0.8, "noise": 2.0, **how}):
            path = tmp_path / f"{capture.provenance.model.name}-{len(list(tmp_path.iterdir()))}.h5"
            values = capture.values["resid_pre"]
            prompts = PromptSet(name="planted", prompts=capture.prompts)
            with CaptureWriter.create(
                path,
                provenance=replace(capture.provenance, prompts_hash=prompts.hash),
                prompts=prompts,
                lengths=capture.lengths,
                d_model=values.shape[-1],
                storage_dtype="float32",
            ) as writer:
                writer.write(np.arange(len(values)), {"resid_pre": values})
                writer.finish()
            paths.append(path)
        return paths

    return write


def needed(planned):
    return {row["effect"]: row for row in planned.document["needed"]}


def test_without_a_pilot():
    document = plan().document
    assert document["pilot"] is None and document["pilot_could_see"] is None
    assert [row["intents"] for row in document["table"]] == list(SIZES)
    assert document["interval_level"] == question_level(0.95)
    json.dumps(document, allow_nan=False)
    for figure in ("rotation", "norm", "translation_harmful", "translation_harmless", "refusals"):
        column = [row[figure] for row in document["table"]]
        assert column == sorted(column, reverse=True), figure


def test_what_is_needed_shows_what_was_asked_for():
    document = plan(rotation=6.5, translation=0.3).document
    rows = {row["effect"]: row for row in document["needed"]}
    table = {row["intents"]: row for row in document["table"]}
    for effect, least in (("rotation", "rotation"), ("translation", "translation_harmful")):
        below = [n for n in SIZES if table[n][least] > rows[effect]["size"]]
        above = [n for n in SIZES if table[n][least] <= rows[effect]["size"]]
        assert max(below) < rows[effect]["intents"] <= min(above)
        assert rows[effect]["prompts"] == 2 * rows[effect]["intents"]
    assert rows["refusals"]["intents"] is None


def test_two_captures_measure_what_one_assumes(pilots):
    base, tuned = pilots(intents=150)
    one, two = plan(base, site=SITE, shared=0.8), plan(base, tuned, site=SITE)
    assert two.noise.measured and not one.noise.measured
    assert two.noise.shared == pytest.approx(0.8, abs=0.03)
    for effect in ("rotation", "norm", "translation"):
        assert needed(one)[effect]["intents"] == pytest.approx(
            needed(two)[effect]["intents"], rel=0.3
        )
    assert plan(base, site=SITE).noise.shared == DEFAULT_NOISE.shared


def test_what_the_pilot_could_see_is_what_diff_says_it_could(pilots):
    base, tuned = pilots()
    planned = plan(base, tuned, site=SITE)
    with Capture.open(base) as left, Capture.open(tuned) as right:
        x, y = (c.read("resid_pre", layer=1)[:, -1].astype(np.float64) for c in (left, right))
        labels = np.asarray(left.labels)
        clusters = clusters_of(left.prompts, labels)
    design = Design(labels, clusters, np.zeros(len(labels), dtype=np.int64))
    found = minimum_detectable(Contrasts.of(design, x, y), x, level=question_level(0.95)).to_dict()
    own = planned.document["pilot_could_see"]
    assert own["intents"] == found["n"] == 40
    for figure in ("rotation", "norm", "translation_harmful", "translation_harmless"):
        assert own[figure] == pytest.approx(found[figure], rel=1e-9), figure


def test_the_site_is_chosen_on_base_and_may_be_named(pilots):
    base, _ = pilots()
    chosen = plan(base).document["pilot"]["site"]
    assert chosen["layer"] in (1, 2)  # layer 0 has no signal
    named = plan(base, site="resid_pre.2@−2").document["pilot"]["site"]
    assert named == {"hook": "resid_pre", "layer": 2, "position": -2}


def test_unmatched_prompts_are_intents_of_their_own(pilots):
    base, _ = pilots(twins=False)
    planned = plan(base, site=SITE)
    assert planned.noise.prompts == 1 and planned.noise.strata == 2
    assert all(row["prompts"] == row["intents"] for row in planned.document["table"])


def test_what_cannot_be_planned_from(pilots, tmp_path):
    base, tuned = pilots()
    with pytest.raises(DirectionError, match="no signal"):
        plan(base, site="resid_pre.0@-1")
    with pytest.raises(DirectionError, match="not captured"):
        plan(base, site="resid_pre.9@-1")
    with pytest.raises(DirectionError, match="same activations"):
        plan(base, base, site=SITE)
    other, _ = pilots(d=16)
    with pytest.raises(CaptureMismatchError, match="d_model"):
        plan(base, other)
    with pytest.raises(StoreError):
        plan(tmp_path / "missing.h5")
    with pytest.raises(RefusaldirError, match="measured"):
        plan(base, tuned, shared=0.5)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"rotation": 0.0}, "--rotation"),
        ({"rotation": 120.0}, "--rotation"),
        ({"norm": 1.0}, "--norm"),
        ({"translation": -1.0}, "--translation"),
        ({"refusal_change": 0.95}, "--refusal-change"),
        ({"base_rate": 1.5}, "--base-rate"),
        ({"base_rate": 0.9, "discordant": 0.5}, "flips"),
        ({"power": 1.0}, "--power"),
        ({"level": float("nan")}, "--level"),
        ({"site": "resid_pre.1@-1"}, "pilot"),
        ({"shared": 0.5}, "pilot"),
    ],
)
def test_options_that_cannot_be(how, says):
    with pytest.raises(RefusaldirError, match=says):
        plan(**how)


def test_a_site_that_cannot_be_read(pilots):
    with pytest.raises(RefusaldirError, match=r"resid_pre\.18@-1"):
        plan(pilots()[0], site="layer 3")
