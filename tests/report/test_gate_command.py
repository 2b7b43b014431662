"""`refusaldir gate` as a release pipeline calls it: files, exit codes, words."""

import json
import xml.etree.ElementTree as ET

import pytest
import typer
from refusaldir.cli import gate as command
from typer.testing import CliRunner

from refusaldir.report.document import build_document, write_json


@pytest.fixture
def run(drift, behaviour, tmp_path, monkeypatch):
    """Run the command beside documents of a good, a bad and a small comparison."""
    monkeypatch.chdir(tmp_path)
    for name, n, tuned in (("good", 120, (0.95, 0.05)), ("bad", 120, (0.3, 0.05)),
                           ("small", 5, (0.95, 0.05))):  # fmt: skip
        compared = behaviour(2, n=n, base=(0.95, 0.05), tuned=tuned)
        write_json(build_document(drift(4), compared), tmp_path / name / "diff.json")
    write_json(build_document(drift(4)), tmp_path / "silent" / "diff.json")
    app = typer.Typer()
    app.command("gate", epilog=command.EXAMPLES)(command.gate)
    return lambda *words: CliRunner().invoke(app, list(words))


@pytest.mark.parametrize(("name", "code"), [("good", 0), ("bad", 3), ("small", 4)])
def test_exit_codes(run, tmp_path, name, code):
    words = ("--max-drop", "5pp", "--category", "violent crimes=8%", "--max-over-refusal", "0.05")
    done = run(f"{name}/diff.json", *words, "--junit", "out/gate.xml", "--json")
    assert done.exit_code == code, done.output
    found = json.loads(done.stdout)
    assert found["exit_code"] == code
    assert [check["limit"]["most"] for check in found["checks"]] == [0.05, 0.08, 0.05]
    assert [check["limit"]["group"] for check in found["checks"]] == [
        None, "violent crimes", None
    ]  # fmt: skip
    root = ET.parse(tmp_path / "out" / "gate.xml").getroot()
    kinds = [case[0].tag if len(case) else "pass" for case in root.iter("testcase")]
    words = {"pass": "pass", "fail": "failure", "undecided": "error"}
    assert kinds == [words[check["outcome"]] for check in found["checks"]]


def test_a_folder_will_do_and_the_table_is_printed(run):
    done = run("bad", "--max-drop", "5pp")
    assert done.exit_code == 3
    assert "a limit is broken" in done.stdout and "FAIL" in done.stdout
    assert "5.0 pp" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("good",), "a gate needs a limit: expected --max-drop, --category or --max-over-refusal"),
        (("good", "--max-drop", "5"), "expected 5pp, 5% or 0.05, got '5'"),
        (("good", "--category", "x=3pp"), "expected non-violent crimes, violent crimes, got x"),
        (("good", "--category", "x"), "expected NAME=LIMIT, e.g. medical=3pp, got 'x'"),
        (("silent", "--max-drop", "5pp"), "measured no behaviour"),
        (("nowhere.json", "--max-drop", "5pp"), "There is no such file"),
    ],
)
def test_mistakes_are_sentences(run, tmp_path, words, said):
    done = run(*words, "--junit", "gate.xml")
    assert done.exception is not None and said in str(done.exception)
    assert done.exception.exit_code == 2
    assert not (tmp_path / "gate.xml").exists()


def test_help_names_the_exit_codes(run):
    text = " ".join(run("--help").stdout.split())
    assert "Exit codes: 0 pass; 3 fail; 4 not enough data to decide." in text
