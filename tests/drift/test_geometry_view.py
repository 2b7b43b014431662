"""The plane of both models: planted moves appear where they were planted."""

import importlib.util
import json
import sys

import numpy as np
import pytest
from planted import plant, site
from sklearn.decomposition import PCA

from refusaldir.directions.reader import read_site
from refusaldir.drift.compare import compare
from refusaldir.drift.geometry_view import PER_CLASS, geometry_view
from refusaldir.errors import DirectionError, MissingExtraError

SITE = site(1)


def activations(**change):
    """Base's and tuned's activations, labels and ids, at a layer with signal."""
    base, tuned = plant(**{"intents": 40, "noise": 0.5, "shared": 0.9, **change})
    x, y = (read_site(side, SITE).astype(np.float64) for side in (base, tuned))
    return x, y, base.labels, base.ids


def view(*data, **settings):
    return geometry_view(*data, site=SITE, **settings)


def shift(found, side):
    return found.means[side]["tuned"] - found.means[side]["base"]


def test_a_planted_shift_lies_along_the_first_axis():
    found = view(*activations(shift=(0.0, -3.0)))
    assert shift(found, "harmful") == pytest.approx([-3, 0], abs=0.4)
    assert shift(found, "harmless") == pytest.approx([0, 0], abs=0.4)
    assert found.means["harmful"]["base"][0] == pytest.approx(3, abs=0.3)
    assert found.means["harmless"]["base"][0] == pytest.approx(-3, abs=0.3)
    assert found.axes[0].share_change > 0.3 and "squared change" in found.note


def test_a_planted_rotation_pulls_the_classes_in_along_the_direction():
    x, y, labels, ids = activations(degrees=60, noise=0.2)
    along = view(x, y, labels, ids)
    gap = [along.means["harmful"][m][0] - along.means["harmless"][m][0] for m in ("base", "tuned")]
    assert gap[1] / gap[0] == pytest.approx(np.cos(np.radians(60)), abs=0.05)


def test_axes_are_at_right_angles_and_their_shares_those_of_pca():
    x, y, labels, ids = activations(topic=1.0)
    for method in ("direction", "pca"):
        found = view(x, y, labels, ids, method=method)
        # Every prompt is drawn; the plane's axes follow from the places by least squares.
        centred = x - x.mean(axis=0)
        places = found.base - found.base.mean(axis=0)
        basis = np.linalg.lstsq(centred, places, rcond=None)[0].T
        assert basis @ basis.T == pytest.approx(np.eye(2), abs=1e-8)
        for i, axis in enumerate(found.axes):
            share = np.sum(places[:, i] ** 2) / np.sum(centred**2)
            assert axis.share_base == pytest.approx(share, abs=1e-10)
            change = np.sum((found.tuned - found.base)[:, i] ** 2) / np.sum((y - x) ** 2)
            assert axis.share_change == pytest.approx(change, abs=1e-10)
    ratio = PCA(2, svd_solver="full").fit(x).explained_variance_ratio_
    assert [axis.share_base for axis in found.axes] == pytest.approx(ratio)


def test_the_second_axis_is_sklearns_first_component_across_the_direction():
    x, y, labels, ids = activations(topic=1.0)
    r = x[labels == 1].mean(axis=0) - x[labels == 0].mean(axis=0)
    u = r / np.linalg.norm(r)
    across = x - np.outer(x @ u, u)
    theirs = PCA(1, svd_solver="full").fit(across).transform(across)[:, 0]
    ours = view(x, y, labels, ids).base[:, 1]
    assert abs(np.corrcoef(theirs, ours)[0, 1]) == pytest.approx(1)
    assert np.std(theirs) == pytest.approx(np.std(ours))


def test_more_prompts_than_dimensions_or_fewer_give_the_same_plane():
    """The two Gram matrices: pad with zero dimensions, and nothing changes."""
    x, y, labels, ids = activations(d=24, intents=20)
    wide = [np.pad(v, ((0, 0), (0, 40))) for v in (x, y)]
    for method in ("direction", "pca"):
        a, b = view(x, y, labels, ids, method=method), view(*wide, labels, ids, method=method)
        assert a.base == pytest.approx(b.base, abs=1e-8)
        assert a.tuned == pytest.approx(b.tuned, abs=1e-8)


@pytest.mark.parametrize("method", ["direction", "pca"])
def test_swapped_labels_mirror_the_first_axis(method):
    x, y, labels, ids = activations(shift=(0.0, -3.0))
    there, back = view(x, y, labels, ids, method=method), view(x, y, 1 - labels, ids, method=method)
    assert back.base[:, 0] == pytest.approx(-there.base[:, 0], abs=1e-8)
    assert there.means["harmful"]["base"][0] > there.means["harmless"]["base"][0]
    assert back.means["harmful"]["base"][0] > back.means["harmless"]["base"][0]


@pytest.mark.parametrize("method", ["direction", "pca"])
def test_signs_do_not_hang_on_the_order_of_prompts_or_on_the_tuned_model(method):
    x, y, labels, ids = activations(degrees=30)
    found = view(x, y, labels, ids, method=method)
    order = np.random.default_rng(0).permutation(len(labels))
    mixed = view(x[order], y[order], labels[order], [ids[i] for i in order], method=method)
    place = dict(zip(mixed.ids, mixed.base, strict=True))
    assert np.stack([place[name] for name in found.ids]) == pytest.approx(found.base, abs=1e-8)
    other = view(x, x - 7, labels, ids, method=method)
    assert other.base == pytest.approx(found.base, abs=1e-12)
    assert view(x, y, labels, ids, method=method).base == pytest.approx(found.base, abs=0)


def test_a_rotation_of_the_whole_space_changes_nothing():
    x, y, labels, ids = activations(degrees=30, topic=1.0)
    q = np.linalg.qr(np.random.default_rng(1).standard_normal((24, 24)))[0]
    found, turned = view(x, y, labels, ids), view(x @ q, y @ q, labels, ids)
    assert turned.base[:, 0] == pytest.approx(found.base[:, 0], abs=1e-8)
    assert np.abs(turned.base[:, 1]) == pytest.approx(np.abs(found.base[:, 1]), abs=1e-8)


def test_nothing_changed_is_said():
    x, _, labels, ids = activations()
    found = view(x, x, labels, ids)
    assert found.base == pytest.approx(found.tuned) and found.axes[0].share_change is None
    assert found.note == "nothing changed from base to tuned"


def test_some_hundred_prompts_are_drawn_evenly_and_the_means_are_of_all():
    x, y, labels, ids = activations(intents=150)
    found = view(x, y, labels, ids, per_class=20)
    assert np.bincount(found.labels).tolist() == [20, 20] and found.n == 300
    rows = [ids.index(name) for name in found.ids]
    assert rows == sorted(rows) and np.diff(rows).max() < 20
    every = view(x, y, labels, ids)
    assert len(every.ids) == 2 * PER_CLASS
    assert found.means["harmful"]["tuned"] == pytest.approx(every.means["harmful"]["tuned"])


def test_the_document_has_four_digits_and_no_text():
    found = view(*activations()).to_dict()
    text = json.dumps(found, allow_nan=False)
    assert "request" not in text and found["n_drawn"] == len(found["points"]["id"]) == 80
    assert all(v == float(f"{v:.4g}") for place in found["points"]["base"] for v in place)


def test_what_has_no_plane_is_said():
    x, y, labels, ids = activations()
    with pytest.raises(DirectionError, match="no direction to look along"):
        view(np.ones_like(x), y, labels, ids)
    line = np.outer(2.0 * labels - 1, np.eye(24)[0])
    with pytest.raises(DirectionError, match="no spread for a second axis"):
        view(line, line, labels, ids)
    with pytest.raises(DirectionError, match="got tsne"):
        view(x, y, labels, ids, method="tsne")


def test_a_comparison_holds_the_views_of_its_site():
    base, tuned = plant(intents=12, degrees=20)
    result = compare(base, tuned, draws=50)
    assert [found.method for found in result.views] == ["direction", "pca"]
    assert {found.site for found in result.views} == {result.site.site}
    assert [found["method"] for found in result.to_dict()["views"]] == ["direction", "pca"]
    shown = result.views[0]
    x = read_site(base, result.site.site).astype(np.float64)
    assert shown.base == pytest.approx(
        geometry_view(x, x, base.labels, base.ids, site=result.site.site).base
    )


def test_umap_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'refusaldir\[umap\]'"):
        view(*activations(), method="umap")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("umap") is None, reason="umap-learn is not installed")
@pytest.mark.filterwarnings("ignore")
def test_umap_keeps_neighbours_and_repeats_itself():
    data = activations(intents=60, shift=(0.0, -1.0))
    found, again = view(*data, method="umap"), view(*data, method="umap")
    assert found.base == pytest.approx(again.base) and found.tuned == pytest.approx(again.tuned)
    side = np.array(found.labels) == 1
    nearest = np.linalg.norm(found.base[:, None] - found.base[None], axis=-1)
    np.fill_diagonal(nearest, np.inf)
    assert np.mean(side[nearest.argmin(axis=1)] == side) > 0.95
    assert found.axes[0].share_base is None and "neither distances nor directions" in found.note
