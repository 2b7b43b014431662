"""`refusaldir plan` as a user types it."""

import json
import subprocess
import sys

import pytest


def test_without_a_pilot(run):
    done = run("plan")
    assert done.code == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 80
    assert "the direction turns by 10.0°" in done.out
    assert "No pilot" in done.text
    assert "Next: refusaldir extract" in done.sentence


def test_a_smaller_change_asks_for_more(run):
    intents = []
    for degrees in ("10", "5"):
        document = json.loads(run("plan", "--rotation", degrees, "--json").out)
        intents.append(document["needed"][0]["intents"])
    assert intents[1] > 2 * intents[0]


def test_more_than_a_million_is_said_so(run):
    done = run("plan", "--rotation", "0.01")
    assert done.code == 0, done.err
    assert "over a million" in done.out


def test_pilots_on_disk(captured):
    # Tiny random models have hardly a direction: the site with the clearest one is named.
    site = ("--site", "resid_pre.2@-1")
    for files, following in (
        (("base.h5",), "Next: refusaldir diff base.h5 TUNED_MODEL"),
        (("base.h5", "tuned.h5"), "Next: refusaldir diff base.h5 tuned.h5"),
    ):
        done = captured("plan", *files, *site)
        assert done.code == 0, done.err
        assert max(map(len, done.out.splitlines())) <= 80
        assert "▸ the pilot itself: base.h5" in done.text
        assert following in done.sentence
        document = json.loads(captured("plan", *files, *site, "--json").out)
        assert document["pilot"]["prompts"] == 40
        assert document["noise"]["measured"] == (len(files) == 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("missing.h5",), "missing.h5"),
        (("--rotation", "100"), "--rotation"),
        (("--site", "resid_pre.1@-1"), "pilot"),
        (("--base-rate", "2"), "--base-rate"),
        (("--base-rate", "0.05"), "--refusal-change"),
        (("--power", "80"), "--power"),
    ],
)
def test_bad_input_is_one_sentence(run, words, says):
    done = run("plan", *words)
    assert done.code == 2
    assert done.err.startswith("Error: ")
    assert says in done.sentence
    assert "Traceback" not in done.err


def test_a_site_that_cannot_be_read(captured):
    done = captured("plan", "base.h5", "--site", "2")
    assert done.code == 2
    assert "resid_pre.18@-1" in done.sentence


def test_help(run):
    done = run("plan", "--help")
    assert done.code == 0
    assert "Examples" in done.out


def test_light_imports():
    """Neither torch nor transformers, nor what they would take seconds for."""
    script = (
        "import sys\nfrom typer.testing import CliRunner\nimport refusaldir.cli.main as m\n"
        "assert CliRunner().invoke(m.app, ['plan']).exit_code == 0\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'statsmodels', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "[]"
