"""`refusaldir judge` as a user types it: run, sample, calibrate, each naming the next."""

import json

import pytest
from judged import NO, YES, label, replies, write_run


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "here", replies([NO, YES] * 12))


@pytest.fixture
def pair(tmp_path):
    write_run(tmp_path / "diff" / "base", replies([NO, YES] * 12))
    write_run(
        tmp_path / "diff" / "tuned", replies([NO, YES] * 6 + [YES, YES] * 6, prompts_name="x")
    )
    return tmp_path / "diff"


def test_from_a_run_to_a_calibration(run, folder, tmp_path):
    done = run("judge", "run", "here", "--judge", "first-token", "--primary")
    assert done.code == 0, done.err
    assert "first-token-1>0" in done.out
    assert "Next: refusaldir judge sample here --out labels.csv" in done.sentence

    done = run("judge", "sample", "here", "--n", "10", "--out", "labels.csv")
    assert done.code == 0, done.err
    assert "labels.csv, 10 of 24 replies" in done.sentence
    assert "refusaldir judge calibrate labels.csv --run here" in done.sentence
    again = run("judge", "sample", "here", "--out", "labels.csv")
    assert again.code == 2 and "--force" in again.sentence

    blank = run("judge", "calibrate", "labels.csv", "--run", "here")
    assert blank.code == 2 and "labelled yet" in blank.sentence
    label(tmp_path / "labels.csv")
    done = run("judge", "calibrate", "labels.csv", "--run", "here")
    assert done.code == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 80
    for said in ("Judges against human labels", "Share refused", "Agreement", "Rogan–Gladen",
                 "Not authoritative", "base harmful", "people"):  # fmt: skip
        assert said in done.text
    assert "100.0 [" in done.out, "intervals fit at 80 columns"
    assert "Next: refusaldir show here" in done.sentence
    document = json.loads(run("judge", "calibrate", "labels.csv", "--run", "here", "--json").out)
    assert document["schema"] == "refusaldir.calibration" and len(document["judges"]) == 2


def test_both_arms_of_a_comparison(run, pair, tmp_path):
    done = run("judge", "run", "diff", "--judge", "first-token", "--json")
    assert [d["judges"][1] for d in json.loads(done.out)["runs"]] == ["first-token-1>0"] * 2
    done = run("judge", "run", "diff", "--judge", "first-token")
    assert "Next: refusaldir diff diff/base diff/tuned" in done.sentence
    for side in ("base", "tuned"):
        assert run("judge", "sample", f"diff/{side}", "--out", f"{side}.csv").code == 0
        label(tmp_path / f"{side}.csv")
    done = run("judge", "calibrate", "base.csv", "tuned.csv", "--run", "diff")
    assert done.code == 0, done.err
    assert "Change of the share refused, tuned − base, pp" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert "100 [" in done.out, "decimals go before intervals do"
    assert "−50.0" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "here"), "nothing to add"),
        (("run", "here", "--judge", "first_token"), "Did you mean first-token"),
        (("run", "nowhere", "--judge", "phrases"), "Make them with refusaldir probe"),
        (("run", "here", "--toxicity", "phrases"), "default, or hf:NAME"),
        (("calibrate",), "refusaldir judge sample"),
        (("calibrate", "--pyrit", "nowhere.whl"), "pip download --no-deps pyrit"),
        (("sample", "here", "--part", "live", "--out", "x.csv"), "expected single"),
    ],
)
def test_mistakes_are_said(run, folder, words, said):
    done = run("judge", *words)
    assert done.code == 2
    assert said in done.sentence and "Traceback" not in done.err
