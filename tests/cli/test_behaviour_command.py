"""`refusaldir diff` of two probes' folders, then show and gate of what it wrote."""

import json

import pytest
from arms import arm


@pytest.fixture
def folders(tmp_path):
    """What two models said; the second refuses far less."""
    for name, letters in (("base", "F" * 40), ("tuned", "F" * 10 + "C" * 30)):
        (tmp_path / name).mkdir()
        run = arm(letters, "C" * 20, categories=2, name=name)
        run.single.to_jsonl(tmp_path / name / "responses.jsonl")
    return tmp_path


def test_two_probes_are_compared_shown_and_gated(run, folders):
    done = run("diff", "base", "tuned", "--out", "out")
    assert done.code == 0, done.err
    assert "Refusals of harmful prompts fell from 100.0 % to 25.0 %" in done.text
    assert "No geometry was measured" in done.text
    assert "Next: refusaldir show out/behaviour.json" in done.text
    written = {path.name for path in (folders / "out").iterdir()}
    assert {"behaviour.json", "behaviour.png", "behaviour.svg"} <= written
    shown = run("show", "out")
    assert shown.code == 0 and "Over-refusal of harmless prompts" in shown.out
    assert json.loads(run("show", "out", "--json").out)["schema"] == "refusaldir.behaviour"
    gated = run("gate", "out", "--max-drop", "5pp", "--category", "c0=5pp")
    assert gated.code == 3 and "category c0" in gated.text


def test_json_alone_is_printed(run, folders):
    done = run("diff", "base", "tuned", "--json", "--store", "store")
    assert json.loads(done.out)["behaviour"]["axes"]["refusal"]["overall"]["lost"] == 0.75
    assert done.err == ""


def test_what_differs_is_refused_unless_allowed(run, folders):
    (folders / "other").mkdir()
    other = arm("F" * 40, "C" * 20, categories=2, judges=("phrases-0",))
    other.single.to_jsonl(folders / "other" / "responses.jsonl")
    done = run("diff", "base", "other", "--out", "out")
    assert done.code == 2 and "--allow judge" in done.text
    done = run("diff", "base", "other", "--out", "out", "--allow", "judge")
    assert done.code == 0 and "Judges differ, as was allowed" in done.text
    done = run("diff", "base", "tuned", "--out", "x", "--allow", "prompts")
    assert done.code == 2 and "no such difference can be allowed" in done.text


def test_what_cannot_be_compared_is_said(run, folders):
    done = run("diff", "base", "some/model")
    assert done.code == 2 and "what models said is compared with what another said" in done.text
    done = run("diff", "base", "tuned", "tuned")
    assert done.code == 2 and "two folders of probes" in done.text
    done = run("diff", "some/model", "other/model", "--allow", "judge")
    assert done.code == 2 and "Only between two probes" in done.text
