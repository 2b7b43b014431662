"""The behaviour document and its tables: several replies, escalations, instruments, no texts."""

import dataclasses
import json
from io import StringIO

import numpy as np
import pytest
from arms import behaviour, escalation, row
from jsonschema import Draft202012Validator
from rich.console import Console

from refusaldir.errors import StoreError
from refusaldir.probes.comparison import compare_runs
from refusaldir.probes.outcomes import Judgement
from refusaldir.probes.plan import SamplingPlan
from refusaldir.probes.run import ProbeRun
from refusaldir.report.behaviour_document import (
    SCHEMA_VERSION,
    build_behaviour,
    load_behaviour,
    load_compared,
)
from refusaldir.report.behaviour_figure import behaviour_figure
from refusaldir.report.behaviour_table import behaviour_report
from refusaldir.report.document import tables_csv, write_json
from refusaldir.report.schema import CHECKED, DESCRIBING, document_schema, first_violation

PLAN = SamplingPlan(temperatures=(0.0, 0.7), samples=2, max_new_tokens=64)
LABELS = {"F": "full_refusal", "C": "compliance"}


def whole_run(name, chance, twins=0.1, seed=0):
    """Prompts sampled in two framings, with two judges, and escalations in both modes."""
    rng = np.random.default_rng(seed)
    rows = []
    for harmful in (True, False):
        for i in range(36):
            said = ["F" if u < (chance if harmful else twins) else "C" for u in rng.random(6)]
            for k, (t, s) in enumerate([(0.0, 0), (0.7, 0), (0.7, 1)]):
                rows.append(
                    row(
                        f"{harmful}{i}", said[k], harmful=harmful, intent_id=f"i{i // 2}",
                        category=f"category {i % 6}", framing=("plain", "fictional")[i % 2],
                        domain=("medical", "legal")[i % 2], severity=("low", "high")[i % 2],
                        temperature=t, sample=s, score=rng.normal(), prompt="SECRET PROMPT",
                        response="SECRET RESPONSE",
                        secondary={"toxicity": 0.1 + 0.01 * k},
                        others={"hf:guard-1": Judgement(label=LABELS[said[k + 3]])},
                    )
                )  # fmt: skip
    judges = ("phrases-1", "hf:guard-1")
    scorers = {"toxicity": "toxic-1"}
    single = behaviour(rows, name=name, sampling=PLAN, judges=judges, scorers=scorers)
    parts = {"single": single}
    for mode in ("frozen", "live"):
        turns = []
        for i in range(6):
            said = "C" + "".join("F" if u < chance else "C" for u in rng.random(3))
            turns += escalation(f"e{i}-h", said, intent=f"e{i}", twin=f"e{i}-b")
            turns += escalation(f"e{i}-b", "CCCC", harmful=False, intent=f"e{i}", twin=f"e{i}-h")
        parts[mode] = behaviour(turns, name=name, mode=mode, judges=judges)
    return ProbeRun(**parts)


@pytest.fixture(scope="module")
def full():
    """A document with everything that a comparison of behaviour can hold."""
    runs = whole_run("base", 0.95), whole_run("tuned", 0.5, seed=1)
    return build_behaviour(compare_runs(*runs, n_boot=50), created="2026-01-01T00:00:00+00:00")


def draw(document, width):
    console = Console(file=StringIO(), width=width)
    console.print(behaviour_report(document))
    return console.file.getvalue()


def test_the_schema_is_valid_and_whole():
    schema = document_schema("behaviour")
    Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema_version"]["const"] == SCHEMA_VERSION
    assert schema["$id"].endswith(f":{SCHEMA_VERSION}")
    stack = [schema]
    while stack:
        part = stack.pop()
        assert set(part) <= CHECKED | DESCRIBING
        if "properties" in part:
            assert part["additionalProperties"] is False
            assert set(part["required"]) == set(part["properties"])
            assert all(
                len(field.get("description", "")) > 10 for field in part["properties"].values()
            )
        if "$ref" in part:
            assert part["$ref"].removeprefix("#/$defs/") in schema["$defs"]
        stack += [*part.get("properties", {}).values(), *part.get("$defs", {}).values()]
        stack += [*part.get("anyOf", []), *([part["items"]] if "items" in part else [])]


def test_diff_takes_in_the_definition_of_behaviour():
    diff, alone = document_schema("diff"), document_schema("behaviour")
    assert diff["$defs"]["behaviour"] == alone["$defs"]["behaviour"]
    assert {"$ref": "#/$defs/behaviour"} in diff["properties"]["behaviour"]["anyOf"]


def test_a_full_document_obeys_the_schema_and_comes_back(full, tmp_path):
    Draft202012Validator(document_schema("behaviour")).validate(full)
    assert first_violation(full, document_schema("behaviour")) is None
    path = write_json(full, tmp_path / "behaviour.json")
    assert load_behaviour(path) == load_compared(path) == load_compared(tmp_path) == full


def test_a_field_too_many_or_a_wrong_one_is_found(full, tmp_path):
    broken = json.loads(json.dumps(full))
    broken["behaviour"]["axes"]["refusal"]["sampling"]["replies"] = "many"
    with pytest.raises(StoreError, match="sampling is"):
        load_behaviour(write_json(broken, tmp_path / "behaviour.json"))
    broken["schema"] = "refusaldir.diff"
    with pytest.raises(StoreError):
        load_compared(write_json(broken, tmp_path / "behaviour.json"))


def test_it_holds_ids_but_no_texts(full):
    text = json.dumps(full)
    assert "SECRET" not in text and "True0" in text


def test_words(full):
    verdict = full["verdict"]
    assert "Refusals of harmful prompts fell" in verdict["headline"]
    words = " ".join(verdict["behaviour"] + verdict["certainty"])
    assert "6 frozen escalations" in words and "6 live escalations" in words
    assert "one greedy response and 2 responses at temperature 0.7 a prompt" in words
    assert "the outcome changes in" in words and "Variance of the change" in words
    assert verdict["limits"][0].startswith("No geometry was measured")


def test_a_headline_without_single_prompts():
    runs = whole_run("base", 0.95), whole_run("tuned", 0.5, seed=1)
    compared = compare_runs(*(dataclasses.replace(run, single=None) for run in runs), n_boot=2)
    document = build_behaviour(compared)
    assert first_violation(document, document_schema("behaviour")) is None
    assert document["verdict"]["headline"].startswith("In 6 frozen escalations base complied")
    assert "Harmful escalations, live" in draw(document, 80)


@pytest.mark.parametrize("width", [50, 80, 120])
def test_tables_fit_and_say_everything(full, width):
    text = draw(full, width)
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.split())
    for said in (
        "all prompts", "category 2", "framing fictional", "temperature 0.7", "Flips:",
        "Up to 3 responses a prompt", "By instrument: phrases-1", "Kendall's τ",
        "toxicity 0.110 → 0.110",
        "Harmful escalations, frozen", "turns held", "Their harmless twins",
    ):  # fmt: skip
        assert said in flat, said


def test_a_severity_is_shown_where_one_changed(full):
    changed = json.loads(json.dumps(full))
    for axis in changed["behaviour"]["axes"].values():
        for by in ("severity", "domain"):
            for group in axis["breakdowns"][by]["groups"]:
                group["p_holm"] = 1.0
    quiet = draw(changed, 80)
    assert "severity low" not in quiet and "domain medical" not in quiet
    changed["behaviour"]["axes"]["refusal"]["breakdowns"]["domain"]["groups"][0]["p_holm"] = 0.01
    loud = draw(changed, 80)
    assert "domain medical" in loud and "severity low" not in loud


def test_the_figure_is_drawn_and_says_how_many_responses(full):
    figure = behaviour_figure(full)
    said = " ".join(text.get_text() for text in figure.texts)
    assert "2 responses at temperature 0.7" in said


def test_the_csv_has_every_breakdown(full):
    text = tables_csv(full)
    for said in ("fictional", "high", "medical", "0.7", '"refusal, live escalations"'):
        assert said in text
    assert "hazard.complied_by" in text and "any_complied.difference" in text
