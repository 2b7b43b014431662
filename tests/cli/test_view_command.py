"""`refusaldir view` as a user types it."""

import json

import pytest


def test_two_captures_become_a_figure_and_a_table(captured, tmp_path):
    done = captured("view", "base.h5", "tuned.h5", "--layer", "2", "--layer", "1", "--out", "seen")
    assert done.code == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 80
    for site in ("resid_pre.2@", "resid_pre.1@"):
        assert done.out.count(site) == 2
    assert "Figure: seen/geometry.png" in done.sentence
    assert sorted(p.name for p in (tmp_path / "seen").iterdir()) == ["geometry.png", "geometry.svg"]


def test_json_holds_the_views(captured):
    words = ("view", "base.h5", "tuned.h5", "--layer", "2", "--position", "-1")
    document = json.loads(captured(*words, "--method", "pca", "--json").out)
    (view,) = document["drift"]["views"]
    assert view["method"] == "pca" and view["site"] == {
        "hook": "resid_pre", "layer": 2, "position": -1,
    }  # fmt: skip
    assert view["n"] == view["n_drawn"] == 40
    again = json.loads(captured(*words, "--method", "pca", "--json").out)
    assert again == document


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "tsne"), "expected direction | pca | umap"),
        (("--layer", "99"), "a layer was not captured"),
        (("--position", "-90"), "a position was not captured"),
        (("--hook", "mlp_out"), "differ in hook"),
        (("--layer", "0", "--position", "-1"), "harmful and harmless activations are the same"),
    ],
)
def test_mistakes_are_said(captured, words, said):
    done = captured("view", "base.h5", "tuned.h5", *words)
    assert done.code == 2 and said in done.sentence
