"""A command that is killed with SIGKILL at any moment and repeated ends as if it never had been."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ASKED = (
    "--max-new-tokens", "24", "--device", "cpu", "--batch-size", "3", "--refusal-token", "a",
    "--temperature", "0,1", "--samples", "2",
)  # fmt: skip
KILLS = 12


class Killed:
    """Runs one command again and again, killing it a little later each time."""

    def __init__(self, folder: Path, words) -> None:
        folder.mkdir()
        self.folder, self.words = folder, [str(word) for word in words]
        self.kills = 0

    def start(self) -> subprocess.Popen:
        # A folder of its own, paths relative to it: documents of two runs are then alike.
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "refusaldir.cli", *self.words],
            cwd=self.folder,
            env={
                **os.environ,
                "REFUSALDIR_CACHE": str(self.folder.parent / "cache"),
                "HF_HUB_OFFLINE": "1",
                "REFUSALDIR_STORE": "store",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def to_the_end(self) -> str:
        done = self.start()
        out, err = done.communicate(timeout=600)
        assert done.returncode == 0, err.decode()[-2000:]
        return out.decode()

    def until(self, grown, seconds) -> bool:
        """Kill so many seconds after some file has grown; True when the command ended first."""
        process = self.start()
        size = self.written()
        while process.poll() is None and grown and self.written() == size:
            time.sleep(0.005)
        time.sleep(seconds)
        process.kill()
        process.communicate()
        self.kills += process.returncode < 0
        return process.returncode == 0

    def written(self) -> int:
        found = 0
        for path in self.folder.rglob("*"):
            try:
                found += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:
                pass
        return found


def figures(text: str) -> dict:
    """A document without what names a moment."""

    def without(value):
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if k not in ("created", "folder")}
        return [without(v) for v in value] if isinstance(value, list) else value

    return without(json.loads(text))


@pytest.mark.parametrize("command", ["probe", "diff"])
def test_killed_at_any_moment(command, long_model, tuned_long_model, prompt_file, tmp_path):
    rng = random.Random(7)
    if command == "probe":
        words = ("probe", long_model, "-p", prompt_file, "--limit", "4", *ASKED)
    else:
        words = ("diff", long_model, tuned_long_model, "-p", prompt_file, "--limit", "8", *ASKED)
    words = (
        *words,
        "--escalations",
        "both" if command == "probe" else "live",
        "--out",
        "r",
        "--json",
    )
    whole = Killed(tmp_path / "whole", words).to_the_end()
    killed = Killed(tmp_path / "killed", words)
    for number in range(KILLS):
        # Most kills fall into writing; the first ones before anything is there.
        killed.until(grown=number > 1, seconds=rng.random() * (0.5 if number % 3 else 2.5))
    assert killed.kills >= KILLS // 2
    assert figures(killed.to_the_end()) == figures(whole)
    for path in sorted((tmp_path / "whole" / "r").rglob("*.jsonl")):
        other = killed.folder / path.relative_to(tmp_path / "whole")
        # To the last digit, all but the moment in the header.
        assert other.read_text().splitlines()[1:] == path.read_text().splitlines()[1:]
    left = {path.suffix for path in (killed.folder / "r").rglob("*") if path.is_file()}
    assert not left & {".partial", ".tmp", ".lock"}
    assert figures(killed.to_the_end()) == figures(whole), "kept"
