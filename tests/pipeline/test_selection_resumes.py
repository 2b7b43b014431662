"""A selection that was killed or interrupted goes on, and ends as one in a piece does."""

import json
import os
import signal
import subprocess
import sys

import pytest

import refusaldir as rd
from refusaldir.directions import trials

#: One candidate a chunk, in the child and here.
SMALL = {"cpu": 1}
CRITERIA = {
    "refusal_tokens": ("a", "i"), "filter_prompts": False, "kl": 1e9, "induce": -1e9, "depth": 1.0,
}  # fmt: skip
CHILD = """
import json, os, signal, sys
import refusaldir as rd
from refusaldir.directions import trials

trials.FIRST_BUDGET, (model, prompts, criteria) = {small}, json.loads(sys.argv[1])

def progress(stage, done, total):
    if stage == "Candidates" and done == 3:
        os.kill(os.getpid(), signal.SIGKILL)

rd.select(model, prompts=prompts, positions="-1,-2", criteria=rd.Criteria(**criteria),
          out="killed", progress=progress)
"""


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFUSALDIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trials, "FIRST_BUDGET", SMALL)


@pytest.fixture
def run(base_model, prompt_file):
    def select(folder, *, progress=lambda *step: None, **changed):
        return rd.select(
            str(base_model),
            prompts=prompt_file,
            positions="-1,-2",
            criteria=rd.Criteria(**{**CRITERIA, **changed}),
            out=folder,
            progress=progress,
        )

    return select


def without_capture(document):
    """What is said; the two folders share one capture."""
    return json.loads(json.dumps({k: v for k, v in document.items() if k != "capture"}))


@pytest.mark.slow
def test_killed_and_started_again(run, base_model, prompt_file, tmp_path):
    given = json.dumps([str(base_model), str(prompt_file), CRITERIA])
    command = [sys.executable, "-c", CHILD.replace("{small}", repr(SMALL)), given]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.run(command, cwd=tmp_path, env=one_thread, check=False)
    assert child.returncode == -signal.SIGKILL
    (partial,) = (tmp_path / "killed").iterdir()
    assert partial.name == "candidates-mean_diff.partial.jsonl"
    kept = partial.read_text().splitlines()
    assert len(kept) == 4
    seen = []
    resumed = run("killed", progress=lambda *step: seen.append(step))
    assert [step[1] for step in seen if step[0] == "Candidates"] == [1, 2, 3, 4]
    scores = [c.bypass for c in resumed.choice.candidates if c.valid]
    assert [json.loads(line)["scores"][0]["bypass"] for line in kept[1:]] == scores[:3]
    assert without_capture(resumed.document) == without_capture(run("whole").document)
    assert not list((tmp_path / "killed").glob("*.partial*"))
    assert (tmp_path / "killed" / "direction.safetensors").read_bytes() == (
        tmp_path / "whole" / "direction.safetensors"
    ).read_bytes()


def interrupt(stage, after):
    def progress(now, done, total):
        if now == stage and done == after:
            raise KeyboardInterrupt

    return progress


def test_interrupted_in_the_second_estimator(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run("cut", progress=interrupt("Candidates lda", 2), estimator="all")
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [
        "candidates-lda.partial.jsonl",
        "candidates-mean_diff.partial.jsonl",
    ]
    before = {p.name: p.read_bytes() for p in (tmp_path / "cut").iterdir()}
    kept = []

    def progress(stage, done, total):
        if stage == "Candidates lda" and done == 3:
            kept.extend((p.name, p.read_bytes()) for p in (tmp_path / "cut").iterdir())

    resumed = run("cut", progress=progress, estimator="all")
    for name, content in kept:
        assert content.startswith(before[name])
    assert without_capture(resumed.document) == without_capture(
        run("whole", estimator="all").document
    )
    assert not list((tmp_path / "cut").glob("*.partial*"))


def test_another_criterion_starts_anew(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run("cut", progress=interrupt("Candidates", 4))
    partial = tmp_path / "cut" / "candidates-mean_diff.partial.jsonl"
    before = partial.read_text().splitlines()[0]
    with pytest.raises(KeyboardInterrupt):
        run("cut", progress=interrupt("Candidates", 1), criterion="cosmic")
    header, *chunks = partial.read_text().splitlines()
    assert header != before and len(chunks) == 1
