"""`write_report`: what it finds in a folder, and what it says where there is nothing."""

import json

import linked
import pytest
import simulated

from refusaldir.errors import StoreError
from refusaldir.pipeline.behaviour_pair import diff_behaviour
from refusaldir.pipeline.report import write_report
from refusaldir.report.document import write_json


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison of two run folders."""
    folder = tmp_path_factory.mktemp("runs")
    for name, run in zip(("base", "tuned"), linked.runs(categories=2, each=4), strict=True):
        (folder / name).mkdir()
        run.single.to_jsonl(folder / name / "responses.jsonl")
    return diff_behaviour(folder / "base", folder / "tuned", out=folder / "out").folder


def test_behaviour_with_the_texts_of_its_runs(compared):
    path = write_report(compared)
    assert path == compared / "report.html"
    html = path.read_text("utf-8")
    document = json.loads((compared / "behaviour.json").read_text("utf-8"))
    assert document["verdict"]["headline"].split(" (")[0] in html.replace("\u00a0", " ")
    assert document["behaviour"]["axes"]["refusal"]["flips"] and "SECRET RESPONSE" in html
    assert "diff" in html and str(compared.parent / "base") in html


def test_runs_that_are_gone_leave_their_texts_out(compared, tmp_path):
    document = json.loads((compared / "behaviour.json").read_text("utf-8"))
    document["options"] |= {"base": "gone", "tuned": "gone"}
    write_json(document, tmp_path / "behaviour.json")
    html = write_report(tmp_path).read_text("utf-8")
    assert "SECRET" not in html and "there are no texts to show" in html


def test_layers_and_another_place(tmp_path):
    write_json(simulated.document(), tmp_path / "in" / "layers.json")
    for given in (tmp_path / "in", tmp_path / "in" / "layers.json"):
        path = write_report(given, tmp_path / "page.html")
        assert path == tmp_path / "page.html"
        assert "Which layers?" in path.read_text("utf-8")


def test_a_page_of_before_is_replaced(compared):
    (compared / "report.html").write_text("old")
    assert "old" != write_report(compared).read_text("utf-8")


def test_nothing_to_report(tmp_path):
    with pytest.raises(StoreError, match=r"nothing to report.*diff\.json"):
        write_report(tmp_path)
    with pytest.raises(StoreError, match="nothing to report"):
        write_report(tmp_path / "missing")


def test_a_damaged_document(tmp_path):
    (tmp_path / "diff.json").write_text("{", "utf-8")
    with pytest.raises(StoreError, match="not JSON"):
        write_report(tmp_path)
