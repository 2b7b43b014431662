"""The figure of the plane draws the document's places."""

import copy

import numpy as np
import pytest
from drawn import assert_legible

from refusaldir.report.document import build_document
from refusaldir.report.figures import geometry_figure, write_figures
from refusaldir.report.geometry_figure import has_views


@pytest.fixture(scope="module")
def seen(computed):
    return build_document(computed)


def markers(axes, kind):
    """Lines of points drawn with a marker, means left out."""
    return [line for line in axes.get_lines() if line.get_marker() == kind and line.get_ms() < 5]


def test_places_and_means_are_the_documents(seen):
    figure = geometry_figure(seen)
    assert len(figure.axes) == 2
    for axes, view in zip(figure.axes, seen["drift"]["views"], strict=True):
        points = view["points"]
        for side, label, kind in (("harmless", 0, "s"), ("harmful", 1, "o")):
            rows = [i for i, own in enumerate(points["label"]) if own == label]
            base, tuned = markers(axes, kind)
            assert base.get_markerfacecolor() == "white" != tuned.get_markerfacecolor()
            for line, model in ((base, "base"), (tuned, "tuned")):
                np.testing.assert_array_equal(
                    np.stack([line.get_xdata(), line.get_ydata()], axis=1),
                    [points[model][i] for i in rows],
                )
            ends = [[list(text.xyann), list(text.xy)] for text in axes.texts]
            assert [view["means"][side][model] for model in ("base", "tuned")] in ends
        segments = [s for c in axes.collections for s in c.get_segments()]
        assert len(segments) == view["n_drawn"] == len(points["id"])


def test_text_is_legible_and_every_view_is_named(seen):
    figure = geometry_figure(seen)
    assert_legible(figure)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Base's direction", "PCA"]


@pytest.mark.parametrize("scale", [1e-3, 30, 1e3, 1e6])
def test_text_is_legible_at_any_scale(seen, scale):
    """Residual streams of some models hold values of thousands."""
    big = copy.deepcopy(seen)
    for view in big["drift"]["views"]:
        for key in ("base", "tuned"):
            view["points"][key] = (scale * np.array(view["points"][key])).tolist()
            for side in view["means"].values():
                side[key] = (scale * np.array(side[key])).tolist()
    assert_legible(geometry_figure(big))


def test_several_sites_are_named_and_an_axis_may_have_no_share(seen):
    first, second = seen["drift"]["views"]
    other = {
        **first,
        "site": {**first["site"], "layer": 7},
        "method": "umap",
        "axes": [
            {"label": f"UMAP {i}", "share_base": None, "share_tuned": None, "share_change": None}
            for i in (1, 2)
        ],
    }
    document = {**seen, "drift": {**seen["drift"], "views": [first, second, other]}}
    figure = geometry_figure(document)
    assert len(figure.axes) == 3 and "layer 7" in figure.axes[2].get_title(loc="left")
    assert_legible(figure)
    assert "2 sites" in figure.texts[1].get_text()
    assert any(t.get_text().count("UMAP:") == 1 for t in figure.texts)


def test_files(seen, make_document, tmp_path):
    names = [path.name for path in write_figures(seen, tmp_path)]
    assert names == ["drift.png", "drift.svg", "geometry.png", "geometry.svg"]
    document = make_document(3, 0)
    assert not has_views(document)
    with pytest.raises(ValueError, match="no view to draw"):
        geometry_figure(document)
