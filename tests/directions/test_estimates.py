"""Directions of some of a capture's prompts, against the estimators on the same rows."""

import numpy as np
import pytest

from refusaldir.directions.estimates import direction_of, estimates
from refusaldir.directions.estimators import ESTIMATORS
from refusaldir.directions.mean_diff import direction_at, mean_diff
from refusaldir.errors import DirectionError
from refusaldir.records import Site

SITE = Site(hook="resid_pre", layer=1, position=-2)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_site_is_a_cell_of_all_of_them(plant, name):
    base, _ = plant()
    rows = np.arange(10, 70)
    table = estimates(base, rows, "resid_pre", name)
    assert table.shape[:2] == (len(base.layers), len(base.positions.offsets))
    cell = base.layers.index(SITE.layer), base.positions.offsets.index(SITE.position)
    found = direction_of(base, rows, SITE, name)
    np.testing.assert_array_equal(found.vector, table[cell])
    assert (found.site, found.estimator) == (SITE, name)
    y = base.labels[rows]
    assert (found.n_harmful, found.n_harmless) == (int(y.sum()), int((1 - y).sum()))
    x = base.values["resid_pre"][rows][:, cell[0], cell[1]].astype(np.float64)
    expected = ESTIMATORS[name](x, y, [base.prompts[i].intent_id for i in rows])
    np.testing.assert_allclose(found.vector, expected, rtol=1e-9, atol=1e-12)


def test_only_the_rows_given_take_part(plant):
    base, _ = plant()
    every, some = np.arange(len(base.prompts)), np.arange(20)
    whole = direction_of(base, every, SITE, "mean_diff").vector
    np.testing.assert_allclose(whole, direction_at(base, SITE).vector, rtol=1e-6, atol=1e-6)
    part = direction_of(base, some, SITE, "mean_diff").vector
    base.values["resid_pre"][20:] += 100.0 * base.labels[20:, None, None, None]
    np.testing.assert_array_equal(direction_of(base, some, SITE, "mean_diff").vector, part)
    # Negative control: those of all prompts do move.
    assert np.abs(direction_of(base, every, SITE, "mean_diff").vector - whole).max() > 10


def test_zero_without_signal(plant):
    base, _ = plant()
    rows = np.arange(len(base.prompts))
    base.values["resid_pre"][:, base.layers.index(1)] = 7.0
    assert not direction_of(base, rows, SITE, "lda").vector.any()
    table = estimates(base, rows, "resid_pre", "lda")
    assert not table[base.layers.index(1)].any() and table[base.layers.index(2)].any()
    assert not mean_diff(base.values["resid_pre"][:, base.layers.index(1), 0], base.labels).any()


def test_refuses_a_site_that_was_not_captured(plant):
    base, _ = plant()
    with pytest.raises(DirectionError, match="not captured"):
        direction_of(base, np.arange(8), Site(hook="resid_pre", layer=9, position=-1), "mean_diff")
