"""What a notebook shows of each result is what the command prints."""

import re
from html import unescape

import pytest

import refusaldir as rd


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFUSALDIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def shown(result):
    return " ".join(unescape(re.sub(r"<[^>]+>", "", result._repr_html_())).split())


def test_results_show_themselves(base_model, tuned_model, prompt_file):
    base = rd.extract(str(base_model), prompts=prompt_file, select=True)
    assert base.provenance.model.name in shown(base)
    assert "direction" in shown(base.selected)
    found = rd.diff(
        base.path,
        str(tuned_model),
        behaviour="off",
        select="off",
        layers="fast",
        refusal_tokens=["a"],
    )
    assert " ".join(found.document["verdict"]["headline"].split()[:4]) in shown(found)
    assert found._repr_html_().count("data:image/svg+xml") == sum(
        name.endswith(".svg") for name in found.files
    )
    assert "layers" in shown(found.layers)
    planned = rd.plan(base.path)
    assert "prompts" in shown(planned)
    # At a prompt, too, they say what they are in a few lines.
    assert all(len(repr(one)) < 8000 for one in (base, found, found.layers, planned))


def test_a_probe_shows_itself(base_model, prompt_file):
    """Asked in Python, read again from its folder, and kept when asked again."""
    asked = {"battery": prompt_file, "max_new_tokens": 2, "limit": 2}
    found = rd.probe(str(base_model), **asked)
    assert "Share refused" in shown(found) and not found.reused
    assert len(found.run.single.rows) == 4
    again = rd.probe(str(base_model), **asked)
    assert again.reused and again.document == found.document and again.folder == found.folder


def test_a_series_shows_itself(base_model, tuned_model, prompt_file):
    series = rd.diff_series(
        str(base_model), [str(tuned_model)], prompts=prompt_file, behaviour="off", select="off"
    )
    assert series.document["base"]["model"]["name"] in shown(series)
