"""A command line run as the shell would, for every command."""

import json
import shutil
import sys
from pathlib import Path

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


@pytest.fixture(scope="session")
def captures(base_model, tuned_model, prompt_file, tmp_path_factory):
    """Captures of base and tuned, made once; not to be written to."""
    import refusaldir as rd

    folder = tmp_path_factory.mktemp("captures")
    for name, model in (("base", base_model), ("tuned", tuned_model)):
        options = rd.LoadOptions(device="cpu")
        rd.extract(str(model), prompts=prompt_file, out=folder / f"{name}.h5", options=options)
    return folder


@pytest.fixture
def captured(run, captures, tmp_path):
    """Run a command line in a directory that holds captures of base and tuned."""
    for name in ("base.h5", "tuned.h5"):
        shutil.copy(captures / name, tmp_path / name)
    return run


@pytest.fixture(scope="session")
def long_model(tmp_path_factory, base_model) -> Path:
    """The base with room for a conversation."""
    return lengthened(base_model, tmp_path_factory.mktemp("long") / "base")


@pytest.fixture(scope="session")
def tuned_long_model(tmp_path_factory, tuned_model) -> Path:
    """The tuned model with room for a conversation."""
    return lengthened(tuned_model, tmp_path_factory.mktemp("long") / "tuned")


def lengthened(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return folder
