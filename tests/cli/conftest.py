"""A command line run as the shell would, for every command."""

import sys

import pytest
from refusaldir.cli import main as cli


class Outcome:
    """Exit code and output of a command line."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def sentence(self) -> str:
        """What was said on stderr, on one line."""
        return " ".join(self.err.split())

    @property
    def text(self) -> str:
        """All that was said, on one line."""
        return " ".join((self.out + self.err).split())


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a command line in an empty directory, as `main()` would from the shell."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFUSALDIR_STORE", raising=False)
    monkeypatch.setenv("REFUSALDIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def go(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["refusaldir", *map(str, words)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return go


@pytest.fixture
def captured(run, base_model, tuned_model, prompt_file):
    """Run a command line in a directory that holds captures of base and tuned."""
    for name, model in (("base", base_model), ("tuned", tuned_model)):
        done = run("extract", model, "-p", prompt_file, "--out", f"{name}.h5", "--device", "cpu")
        assert done.code == 0, done.err
    return run
