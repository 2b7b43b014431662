"""The walkthrough runs as it stands, on tiny models here and on the embedded pair by name."""

import json
import shutil
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "walkthrough.ipynb"


def cells():
    found = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def test_every_cell_runs(base_model, tuned_model, prompt_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFUSALDIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    swaps = {
        '"smollm2-135m+aligned+tuned"': repr(str(tuned_model)),
        '"smollm2-135m+aligned"': repr(str(base_model)),
        "limit=LIMIT": f"prompts={str(prompt_file)!r}",
        '["I"]': '["a"]',
    }
    names = {}
    for source in cells():
        for old, new in swaps.items():
            source = source.replace(old, new)
        exec(compile(source, str(NOTEBOOK), "exec"), names)
    assert (tmp_path / "walkthrough-diff" / "report.html").exists()
    said = capsys.readouterr().out
    assert "no signal" in said and "95 % interval" in said
    assert names["result"].layers is not None


@pytest.mark.slow  # two minutes, and the embedded weights
def test_on_the_embedded_pair(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    shutil.copy(NOTEBOOK, tmp_path)
    notebook = nbformat.read(tmp_path / NOTEBOOK.name, 4)
    nbclient.NotebookClient(
        notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    document = json.loads((tmp_path / "walkthrough-diff" / "diff.json").read_text("utf-8"))
    assert document["behaviour"]["axes"]["refusal"]["overall"]["difference"]["value"] < -0.1
