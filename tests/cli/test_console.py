"""Colours and characters: what a terminal gets, what a pipe gets, and what NO_COLOR leaves."""

import json
import os
import pty
import re
import subprocess
import sys

import pytest
import simulated

from refusaldir.report.document import write_json

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]")


def command(*words, terminal=False, **environment):
    """Run the command in a process of its own; returns what it printed on both streams."""
    line = [sys.executable, "-m", "refusaldir.cli", *map(str, words)]
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    settings = {**kept, "TERM": "xterm-256color", **environment}
    if not terminal:
        done = subprocess.run(line, capture_output=True, env=settings, timeout=120)
        return (done.stdout + done.stderr).decode(environment.get("PYTHONIOENCODING", "utf-8"))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(line, stdout=theirs, stderr=theirs, stdin=theirs, env=settings)
    os.close(theirs)
    out = b""
    while True:
        try:
            chunk = os.read(ours, 1 << 16)
        except OSError:  # The other end was closed.
            break
        if not chunk:
            break
        out += chunk
    process.wait(60)
    os.close(ours)
    return out.decode()


@pytest.fixture(scope="module")
def layers_file(tmp_path_factory):
    return write_json(simulated.document(), tmp_path_factory.mktemp("x") / "layers.json")


def test_colours_are_for_terminals(tmp_path):
    missing = tmp_path / "none.json"
    said = command("show", missing, terminal=True)
    assert COLOUR.search(said) and "no such file" in said
    assert not COLOUR.search(command("show", missing, terminal=True, NO_COLOR="1"))
    assert "\x1b" not in command("show", missing)


def test_an_encoding_that_lacks_characters_gets_others(layers_file):
    text = command("show", layers_file, PYTHONIOENCODING="latin-1")
    assert "-> " in text and "?" not in text
    assert "fault of refusaldir" not in text
    document = json.loads(command("show", layers_file, "--json", PYTHONIOENCODING="latin-1"))
    assert document == json.loads(layers_file.read_text("utf-8"))


def test_utf8_gets_them_all(layers_file):
    assert "→ " in command("show", layers_file, PYTHONIOENCODING="utf-8")
