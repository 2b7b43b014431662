"""A measurement in training survives being written, and says what it found."""

import json
from dataclasses import replace

import numpy as np
import pytest

from refusaldir.drift.layer_result import ByClass
from refusaldir.drift.training import ScoreChange, TrainingPoint, spanned
from refusaldir.drift.trajectory import Checkpoint
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, Deviations


def estimate(value, half=0.5, **more):
    return Estimate(value=value, lower=value - half, upper=value + half, n=12, method="m", **more)


@pytest.fixture
def point():
    deviations = Deviations(
        first=np.zeros(4), second=np.zeros((4, 4)), clusters=Clusters.of([0, 1, 2, 3])
    )
    drift = Checkpoint(
        name="checkpoint-20",
        step=20,
        rotation=estimate(0.9, 0.05),
        angle=estimate(25.8, 6.0),
        shrinkage=estimate(0.8),
        translation=ByClass(harmful=estimate(-1.5), harmless=estimate(0.25)),
        d_prime_change=estimate(-0.75),
        detected=("rotation",),
        deviations=deviations,
    )
    score = ScoreChange(value=estimate(2.0), change=estimate(-1.25))
    return TrainingPoint(step=20, epoch=0.5, drift=drift, harmful=score, harmless=None)


def test_reads_back_without_its_deviations(point):
    data = json.loads(json.dumps(point.to_dict()))
    found = TrainingPoint.from_dict(data)
    assert found.drift.deviations is None
    assert found.to_dict() == point.to_dict()
    assert found.figures() == point.figures()


def test_headline_and_figures(point):
    assert point.headline == (
        "Step 20: the refusal direction is rotated by 25.8° (19.8° to 31.8°); the refusal score of "
        "harmful prompts has changed by −1.25 (−1.75 to −0.75) nats."
    )
    assert point.figures()["score_change_harmful"].value == -1.25
    assert "score_harmless" not in point.figures()
    absent = Estimate(value=None, n=12, note="not estimable: too noisy")
    vague = replace(point, harmful=None, drift=replace(point.drift, angle=absent))
    assert vague.headline == "Step 20: the rotation is not estimable: too noisy."
    assert spanned(absent, ".1f") == "unknown"
    assert spanned(estimate(-0.001, 0.25), "+.2f") == "0.00 (−0.25 to +0.25)"
