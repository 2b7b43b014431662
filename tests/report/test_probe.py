"""The probe document: schema and tables, from runs made by hand."""

import io
import json
from dataclasses import replace

import pytest
from arms import behaviour
from arms import labelled as row
from jsonschema import Draft202012Validator
from rich.console import Console

from refusaldir.errors import StoreError
from refusaldir.probes.outcomes import LABELS, Judgement
from refusaldir.probes.run import ProbeRun
from refusaldir.probes.summary import summarise
from refusaldir.report.document import write_json
from refusaldir.report.probe_document import build_probe, load_probe
from refusaldir.report.probe_table import probe_report
from refusaldir.report.schema import CHECKED, DESCRIBING, document_schema, first_violation

VALIDATOR = Draft202012Validator(document_schema("probe"))


def single():
    rows = [
        replace(
            row(f"{side}{i}", LABELS[i % 6] if side == "h" else "compliance", harmful=side == "h",
                category=("hate", "a very long category of hazards that wraps")[i % 2],
                framing=("plain", "professional")[i % 2], temperature=t, score=i / 3,
                severity="high" if side == "h" else None, domain="medical"),
            others={"llm:judge#12": Judgement(label="compliance")},
        )
        for t in (0.0, 0.7)
        for i in range(12)
        for side in "hb"
    ]  # fmt: skip
    return behaviour(rows, judges=("phrases-1", "llm:judge#12"))


def talks(mode):
    rows = [
        row(f"{side}{i}", "full_refusal" if turn == 2 and side == "h" else "compliance",
            harmful=side == "h", turn=turn, prompt=f"{side}{turn}")
        for i in range(3) for side in "hb" for turn in (1, 2)
    ]  # fmt: skip
    return behaviour(rows, mode=mode)


RUNS = {
    "all": ProbeRun(single=single(), frozen=talks("frozen"), live=talks("live")),
    "single": ProbeRun(single=single()),
    "talks": ProbeRun(live=talks("live")),
    "one_axis": ProbeRun(single=behaviour([row(f"h{i}", "full_refusal") for i in range(3)])),
    "nothing_judged": ProbeRun(single=behaviour([row("h", "judge_error")])),
}


@pytest.fixture(params=RUNS)
def document(request):
    return build_probe(summarise(RUNS[request.param]), options={"limit": 3})


def printed(document, width=80):
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(probe_report(document))
    return console.file.getvalue()


def test_documents_obey_the_schema(document, tmp_path):
    VALIDATOR.validate(document)
    assert first_violation(document, document_schema("probe")) is None
    path = write_json(document, tmp_path / "probe.json")
    assert load_probe(path) == document
    path.write_text(json.dumps({**document, "single": 3}), "utf-8")
    with pytest.raises(StoreError, match="damaged or was edited"):
        load_probe(path)
    path.write_text(json.dumps({**document, "schema_version": 2}), "utf-8")
    with pytest.raises(StoreError, match="a newer refusaldir"):
        load_probe(path)


def test_the_schema_is_valid_closed_and_known_to_the_checker():
    schema = document_schema("probe")
    Draft202012Validator.check_schema(schema)

    def walk(part):
        if isinstance(part, dict):
            if part.get("type") == "object" and "properties" in part:
                assert part.get("additionalProperties") is False
            keys = set(part) if "type" in part or "$ref" in part or "anyOf" in part else set()
            assert keys <= CHECKED | DESCRIBING
            for value in part.values():
                walk(value)
        elif isinstance(part, list):
            for value in part:
                walk(value)

    walk(schema)


@pytest.mark.parametrize("width", [50, 80, 120])
def test_tables_fit_and_no_number_is_cut(document, width):
    text = printed(document, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_the_table_says_what_is_in_the_document():
    text = printed(build_probe(summarise(RUNS["all"])), 120)
    for words in ("by category", "by framing", "by temperature", "hate", "professional",
                  "Every judge", "llm:judge#12", "phrases-1 °", "(frozen): share refused,",
                  "(live): share refused", "at the last", "incoherent 4, empty 4"):  # fmt: skip
        assert words in text, words
    assert "by severity" not in text and "by domain" not in text
    assert "12 harmful, 12 harmless" in text


def test_names_of_others_do_not_reach_the_terminal():
    rows = [row("h", "compliance", category="evil\x1b[31m\nname")]
    rows.append(row("i", "compliance", category="other"))
    assert "\x1b" not in printed(build_probe(summarise(ProbeRun(single=behaviour(rows)))))
