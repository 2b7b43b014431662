import json

import numpy as np
import pytest

from refusaldir.directions.mean_diff import Direction, class_means, direction_at, mean_diff
from refusaldir.errors import CaptureError, DirectionError
from refusaldir.records import Site

X = np.array([[1.0, 0.0], [3.0, 2.0], [10.0, 5.0], [20.0, 7.0]])


def test_by_hand_and_in_float64():
    r = mean_diff(X.astype(np.float32), np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(r, [13.0, 5.0])
    assert r.dtype == np.float64


def test_swapping_labels_flips_the_sign():
    y = np.array([0, 0, 1, 1])
    np.testing.assert_array_equal(mean_diff(X, 1 - y), -mean_diff(X, y))


def test_accumulates_in_float64():
    x = np.full((100_001, 1), 0.1, dtype=np.float32)
    x[0] = 1e4
    y = np.zeros(100_001, dtype=np.int64)
    y[0] = 1
    assert class_means(x, y)[0, 0] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


@pytest.mark.parametrize(
    "labels, message", [([0, 0, 0, 0], "no harmful"), ([1, 1, 1, 1], "no harmless")]
)
def test_needs_both_classes(labels, message):
    with pytest.raises(DirectionError, match=message):
        mean_diff(X, np.array(labels))


def test_needs_labels_of_zero_and_one():
    with pytest.raises(DirectionError, match="0 or 1"):
        mean_diff(X, np.array([0, 1, 2, 1]))


class TestDirectionAt:
    def test_equals_the_mean_difference_there(self, plant):
        base, _ = plant()
        site = Site(hook="resid_pre", layer=1, position=-2)
        direction = direction_at(base, site)
        x = base.values["resid_pre"][:, 1, 0]
        np.testing.assert_allclose(direction.vector, mean_diff(x, base.labels))
        assert direction.norm == pytest.approx(6, abs=1.5)
        assert np.linalg.norm(direction.unit) == pytest.approx(1)
        assert (direction.n_harmful, direction.n_harmless) == (40, 40)
        assert direction.provenance is base.provenance
        json.dumps(direction.to_dict(), allow_nan=False)

    @pytest.mark.parametrize(
        "site", [("resid_post", 1, -1), ("resid_pre", 9, -1), ("resid_pre", 1, -3)]
    )
    def test_refuses_a_site_that_was_not_captured(self, plant, site):
        hook, layer, position = site
        with pytest.raises(DirectionError, match="not captured"):
            direction_at(plant()[0], Site(hook=hook, layer=layer, position=position))

    def test_refuses_nan(self, plant):
        base, _ = plant()
        base.values["resid_pre"][3, 1, 0, 0] = np.nan
        with pytest.raises(CaptureError, match="not finite"):
            direction_at(base, Site(hook="resid_pre", layer=1, position=-2))

    def test_zero_direction_has_no_unit(self):
        site = Site(hook="resid_pre", layer=0, position=-1)
        zero = Direction(vector=np.zeros(3), site=site, n_harmful=1, n_harmless=1)
        with pytest.raises(DirectionError):
            _ = zero.unit
