"""`--csv`: figures on stdout and nothing else, from diff and show alike."""

import csv
import io
from pathlib import Path

import linked
import pytest


@pytest.fixture
def runs(tmp_path):
    for name, run in zip(("base", "tuned"), linked.runs(categories=2, each=4), strict=True):
        (tmp_path / name).mkdir()
        run.single.to_jsonl(tmp_path / name / "responses.jsonl")


def test_a_comparison_as_csv(run, runs):
    done = run("diff", "base", "tuned", "--out", "d", "--csv")
    assert done.code == 0, done.err
    assert done.err == ""
    rows = list(csv.DictReader(io.StringIO(done.out)))
    rates = [r for r in rows if r["table"] == "refusal" and r["metric"] == "base_rate"]
    assert len(rates) == 3  # all prompts, and two categories
    assert run("show", "d", "--csv").out == done.out
    assert Path("d/report.html").exists()


def test_no_page_is_written_where_none_is_wanted(run, runs):
    assert run("diff", "base", "tuned", "--out", "d", "--no-report").code == 0
    assert Path("d/behaviour.json").exists() and not Path("d/report.html").exists()


def test_what_has_no_figures_is_a_mistake(run, captured):
    done = run("show", "base.h5", "--csv")
    assert done.code == 2 and "--json" in done.err
