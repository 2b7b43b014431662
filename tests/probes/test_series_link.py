"""Drift against behaviour over fine-tunes: independent ones have intervals, one run's have none."""

import json

import numpy as np
import pytest
from scipy import stats

from refusaldir.probes.link.series import series_link

ROWS = [f"tuned {i}" for i in range(12)]
SAID = {"rotation": "angle, degrees", "weight distance": "Frobenius norm", "CKA": "one minus CKA"}


def link(*, independent=True, seed=0, **changes):
    rng = np.random.default_rng(seed)
    change = rng.standard_normal(12)
    measures = {
        "rotation": (-change + 0.2 * rng.standard_normal(12)).tolist(),
        "weight distance": rng.standard_normal(12).tolist(),
        "CKA": [None] * 12,
    }
    behaviour = {"refusal": change.tolist(), "over_refusal": [None] * 12}
    return measures, series_link(
        ROWS, measures, {**behaviour, **changes}, said=SAID, rivals=("weight distance", "CKA"),
        independent=independent,
    )  # fmt: skip


def test_a_measure_that_goes_with_behaviour_and_a_rival_that_does_not():
    measures, found = link()
    rotation, rival = found.axes["refusal"]
    assert rotation.kendall.upper < -0.4 and rival.kendall.lower < 0 < rival.kendall.upper
    change = np.random.default_rng(0).standard_normal(12)
    assert rotation.kendall.value == pytest.approx(
        stats.kendalltau(measures["rotation"], change).statistic
    )
    assert found.rivals == ("weight distance",) and "CKA" not in found.measures
    assert list(found.axes) == ["refusal"] and found.to_dict()["axes"]["over_refusal"] is None
    (sentence,) = found.sentences
    assert sentence.startswith("Over 12 fine-tunes") and " to " in sentence
    json.dumps(found.to_dict(), allow_nan=False)


def test_checkpoints_of_one_run_have_no_interval():
    _, alone = link()
    _, found = link(independent=False)
    for a, b in zip(alone.axes["refusal"], found.axes["refusal"], strict=True):
        assert a.kendall.value == b.kendall.value and b.kendall.lower is b.spearman.upper is None
        assert "not independent" in b.kendall.note
    assert "checkpoints of one run" in found.sentences[0] and " to " not in found.sentences[0]


def test_two_that_merely_grow_go_together():
    """Why there is no interval: a walk and its weight distance correlate without any link."""
    rng = np.random.default_rng(1)
    taus = []
    for _ in range(40):
        walk = np.cumsum(np.abs(rng.standard_normal(12))).tolist()
        other = np.cumsum(np.abs(rng.standard_normal(12))).tolist()
        found = series_link(
            ROWS, {"weight distance": walk}, {"refusal": other}, said=SAID,
            rivals=("weight distance",), independent=False,
        )  # fmt: skip
        taus.append(found.axes["refusal"][0].kendall.value)
    assert np.mean(taus) > 0.9


def test_few_rows_have_no_figure():
    found = series_link(
        ROWS[:3], {"rotation": [1.0, 2.0, 3.0]}, {"refusal": [3.0, 2.0, 1.0]}, said=SAID,
        rivals=(), independent=True,
    )  # fmt: skip
    assert found.axes["refusal"][0].kendall.value is None and found.sentences == ()
