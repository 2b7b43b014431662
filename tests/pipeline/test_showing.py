"""`shown`: every kind of file that is written, and what is said of others."""

import io

import linked
import numpy as np
import pytest
import simulated
from rich.console import Console

from refusaldir.directions.exchange import direction_bytes
from refusaldir.directions.mean_diff import Direction
from refusaldir.errors import StoreError
from refusaldir.pipeline.behaviour_pair import diff_behaviour
from refusaldir.pipeline.showing import shown
from refusaldir.records import Site
from refusaldir.report.document import to_json, write_json


def drawn(found, width=80):
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(found.draw(found.document))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return " ".join(" ".join(lines).split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, run in zip(
        ("base", "tuned"), linked.runs(categories=2, each=4, turns=3, scripts=4), strict=True
    ):
        (folder / name).mkdir()
        run.single.to_jsonl(folder / name / "responses.jsonl")
        run.live.to_jsonl(folder / name / "escalations-live.jsonl")
    return folder


def test_layers_by_folder_and_under_another_name(tmp_path):
    document = simulated.document()
    write_json(document, tmp_path / "layers.json")
    write_json(document, tmp_path / "renamed.json")
    for given in (tmp_path, tmp_path / "renamed.json"):
        found = shown(given)
        assert found.document == document
        assert document["verdict"]["headline"][:40] in drawn(found).replace("│ ", "")


def test_behaviour(runs):
    folder = diff_behaviour(runs / "base", runs / "tuned", out=runs / "out").folder
    text = drawn(shown(folder))
    assert "Refusal of harmful prompts" in text


@pytest.mark.parametrize(("name", "says"), [("responses", "harmful"), ("escalations-live", "live")])
def test_responses_of_every_part(runs, name, says):
    found = shown(runs / "base" / f"{name}.jsonl")
    assert says in drawn(found)
    assert "SECRET" not in to_json(found.document)


def test_a_direction_without_its_numbers(tmp_path):
    direction = Direction(
        vector=np.arange(1.0, 5.0),
        site=Site(hook="resid_pre", layer=3, position=-1),
        estimator="mean_diff",
        n_harmful=8,
        n_harmless=8,
        provenance=None,
    )
    path = tmp_path / "d.safetensors"
    path.write_bytes(direction_bytes(direction))
    found = shown(path)
    assert "vector" not in found.document
    assert "resid_pre.3@−1" in drawn(found)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.json", None, "no such file"),
        ("cut.json", "{", "not JSON"),
        ("foreign.json", '{"schema": "other"}', "not a diff document"),
        ("list.json", "[1]", "not a diff document"),
        ("responses.jsonl.partial", "x", "unfinished.*Repeat the command"),
        ("report.html", "x", "page.*browser"),
        ("drift.png", "x", "picture"),
        ("trajectory.csv", "x", "table"),
    ],
)
def test_other_files(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(StoreError, match=f"(?s){says}"):
        shown(tmp_path / name)
