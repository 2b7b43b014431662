"""Drift against behaviour of a series, read off its documents."""

import copy

import pytest
from scipy import stats

from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.series_measures import distance_between, series_measures

SITE = {"hook": "resid_pre", "layer": 2, "position": -1}


def cell(value):
    return {"value": value}


def document(angle, refusal, cka=0.9):
    """The part of a diff document that is read."""
    row = {
        "layer": 2,
        "angle": cell(angle),
        "shrinkage": cell(1.0),
        "translation": {"harmful": cell(-angle), "harmless": cell(0.0)},
        "d_prime_change": {"base_direction": cell(None)},
        "cka": cell(cka),
        "relative_change": cell(0.1),
    }
    axes = {"refusal": {"overall": {"difference": cell(refusal)}}, "over_refusal": None}
    return {
        "drift": {"site": SITE, "layers": [{**row, "layer": 1, "angle": cell(0)}, row]},
        "behaviour": {"axes": axes},
    }


ANGLES, CHANGES = [1.0, 5, 3, 9, 7, 2], [-0.1, -0.4, -0.3, -0.8, -0.9, 0.0]
CKAS, DISTANCES = [0.99, 0.7, 0.9, 0.6, 0.5, 0.98], [1.0, 2.0, None, 4.0, 5.0, 6.0]


def found(documents, **settings):
    names = [f"tuned {i}" for i in range(len(documents))]
    settings = {"independent": True, "level": 0.95, "seed": 0, **settings}
    return series_measures(names, documents, DISTANCES[: len(documents)], **settings)


def test_the_sites_figures_are_held_against_behaviour():
    documents = [document(*row) for row in zip(ANGLES, CHANGES, CKAS, strict=True)]
    link = found(documents)
    by_name = {each.measure: each for each in link.axes["refusal"]}
    assert list(link.axes) == ["refusal"]
    for name, column in (("rotation", ANGLES), ("1 − CKA", [1 - v for v in CKAS])):
        tau = stats.kendalltau(column, CHANGES).statistic
        assert by_name[name].kendall.value == pytest.approx(tau)
    assert by_name["weight distance"].rows == tuple(f"tuned {i}" for i in (0, 1, 3, 4, 5))
    assert "d′ change" not in by_name and by_name["norm ratio"].kendall.value is None
    assert link.rivals == ("weight distance", "1 − CKA", "relative change")


def test_a_series_without_behaviour_has_no_link():
    documents = [document(*row) for row in zip(ANGLES, CHANGES, CKAS, strict=True)]
    mute = copy.deepcopy(documents)
    mute[2]["behaviour"] = None
    assert found(mute) is None and found(documents) is not None


def test_a_distance_that_cannot_be_read_is_none(tmp_path):
    missing = ModelSpec.parse(str(tmp_path / "nowhere"))
    assert distance_between(missing, missing) is None
