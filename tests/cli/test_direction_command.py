"""`refusaldir direction` as a user types it, on tiny real models and real files."""

import json
import sys
from functools import partial

import gguf
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from refusaldir import pipeline
from refusaldir.directions.exchange import direction_bytes, load_direction
from refusaldir.directions.mean_diff import direction_at
from refusaldir.geometry import project
from refusaldir.records import Site
from refusaldir.store import Capture

SITE = Site(hook="resid_pre", layer=2, position=-3)


@pytest.fixture
def run(run):
    """Run a command line under `refusaldir direction`."""
    return partial(run, "direction")


@pytest.fixture(scope="module")
def capture_file(base_model, prompt_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("capture") / "base.h5"
    pipeline.extract(str(base_model), prompts=str(prompt_file), out=path)
    return path


@pytest.fixture(scope="module")
def file(capture_file):
    """A direction with its provenance."""
    path = capture_file.with_name("d.safetensors")
    with Capture.open(capture_file) as capture:
        path.write_bytes(direction_bytes(direction_at(capture, SITE)))
    return path


@pytest.fixture
def reference(tmp_path):
    """What the reference code leaves behind."""
    torch.save(torch.arange(32, dtype=torch.float64) - 3, tmp_path / "direction.pt")
    (tmp_path / "direction_metadata.json").write_text('{"pos": -5, "layer": 2}')
    return tmp_path / "direction.pt"


class TestImport:
    def test_with_the_metadata_beside_it(self, run, reference, base_model, tmp_path):
        done = run("import", reference, "--model", base_model, "--out", "d.safetensors")
        assert done.code == 0, done.err
        assert "resid_pre.2@−5" in done.text and "not recorded" in done.text
        assert f"Next: refusaldir direction read d.safetensors {base_model}" in done.text
        found = load_direction(tmp_path / "d.safetensors")
        np.testing.assert_array_equal(found.vector, np.arange(32) - 3)
        assert found.site == Site(hook="resid_pre", layer=2, position=-5)

    def test_with_options_as_json(self, run, tmp_path):
        torch.save(torch.ones(4, 3, 8), tmp_path / "mean_diffs.pt")
        words = ("import", "mean_diffs.pt", "--layer", "1", "--position", "-4", "--out", "d.st")
        content = json.loads(run(*words, "--json").out)
        assert content["file"] == "d.st"
        assert content["direction"]["site"] == {"hook": "resid_pre", "layer": 1, "position": -4}
        assert content["direction"]["norm"] == pytest.approx(8**0.5)
        assert "vector" not in content["direction"]

    def test_existing_output_needs_force(self, run, reference, tmp_path):
        (tmp_path / "d.st").write_text("mine")
        done = run("import", reference, "--out", "d.st")
        assert done.code == 2 and "--force" in done.text
        assert (tmp_path / "d.st").read_text() == "mine"
        assert run("import", reference, "--out", "d.st", "--force").code == 0
        assert load_direction(tmp_path / "d.st").norm > 0

    def test_mistakes_are_one_sentence_and_write_nothing(self, run, base_model, tmp_path):
        torch.save(torch.ones(33), tmp_path / "wide.pt")
        (tmp_path / "bad.pt").write_bytes(b"import os")
        site = ("--layer", "1", "--position", "-1", "--out", "d.st")
        for words, said in (
            (("import", "wide.pt", "--out", "d.st"), "Give --layer"),
            (("import", "wide.pt", *site, "--model", base_model), "d_model 32"),
            (("import", "bad.pt", *site), "nothing in it was run"),
            (("import", "absent.pt", *site), "no such file"),
        ):
            done = run(*words)
            assert done.code == 2, said
            assert said in done.text and "Traceback" not in done.err
        assert not (tmp_path / "d.st").exists()


class TestExport:
    def test_both_formats(self, run, file, tmp_path):
        vector = load_direction(file).vector
        done = run("export", file, "--format", "gguf", "--out", "d.gguf")
        assert done.code == 0, done.err
        assert "--control-vector d.gguf" in done.text
        (tensor,) = gguf.GGUFReader(tmp_path / "d.gguf").tensors
        assert tensor.name == "direction.1"
        np.testing.assert_allclose(tensor.data, vector, rtol=1e-6)
        words = ("export", file, "--format", "steering-vectors", "--out", "d.pt")
        content = json.loads(run(*words, "--json").out)
        assert content["direction"]["norm"] == pytest.approx(np.linalg.norm(vector))
        held = torch.load(tmp_path / "d.pt", weights_only=True)
        np.testing.assert_allclose(held["layer_activations"][1], vector, rtol=1e-6)

    def test_mistakes(self, run, file, reference, tmp_path):
        run("import", reference, "--out", "low.st")
        low = load_direction(tmp_path / "low.st")
        site = Site(hook="resid_pre", layer=1, position=-1)
        (tmp_path / "low.st").write_bytes(direction_bytes(type(low)(
            vector=low.vector, site=site, n_harmful=1, n_harmless=1)))  # fmt: skip
        (tmp_path / "there.gguf").write_text("mine")
        for words, said in (
            ((file, "--format", "onnx", "--out", "x"), "gguf or steering-vectors"),
            ((file, "--format", "gguf", "--out", "there.gguf"), "--force"),
            (("low.st", "--format", "gguf", "--out", "x"), "layer 2 or later"),
            (("direction.pt", "--format", "gguf", "--out", "x"), "not a direction that can be"),
        ):
            done = run("export", *words)
            assert done.code == 2, said
            assert said in done.text
        assert (tmp_path / "there.gguf").read_text() == "mine"
        assert not (tmp_path / "x").exists()


class TestRead:
    def test_tokens_without_prompts(self, run, file, base_model):
        done = run("read", file, base_model, "--top", "4")
        assert done.code == 0, done.err
        for said in ("resid_pre.2@−3", "mean_diff", "20 harmful and 20 harmless", "dimension"):
            assert said in done.text
        content = json.loads(run("read", file, base_model, "--top", "4", "--json").out)
        assert len(content["vocabulary"]["top"]) == len(content["vocabulary"]["bottom"]) == 4
        assert content["prompts"] is content["transfer"] is content["split_half"] is None
        assert content["notes"] == []

    def test_control_characters_are_written_out(self, run, file, base_model):
        done = run("read", file, base_model, "--top", "300")
        assert "“\\n”" in done.out and "“ ”" in done.out
        assert not any(ord(c) < 32 for c in done.out.replace("\n", ""))

    def test_of_its_own_set_only_the_test_split_is_scored(
        self, run, file, base_model, prompt_file, capture_file
    ):
        words = ("read", file, base_model, "-p", prompt_file)
        content = json.loads(run(*words, "--json").out)
        with Capture.open(capture_file) as capture:
            x = capture.read("resid_pre", layer=2)[:, capture.positions.offsets.index(-3)]
            test = np.array([p.split == "test" for p in capture.prompts])
            scores = project(x[test], load_direction(file).vector)
            expected = roc_auc_score(capture.labels[test], scores)
            in_sample = roc_auc_score(capture.labels, project(x, load_direction(file).vector))
        assert content["transfer"]["n_harmful"] == 8
        assert content["transfer"]["auroc"]["value"] == pytest.approx(expected)
        assert expected != pytest.approx(in_sample)
        assert "only its test split is scored" in content["notes"][0]
        done = run(*words)
        assert "AUROC" in done.out and "only its test split" in done.text

    def test_without_a_test_split_nothing_is_scored(self, run, file, base_model, prompt_file):
        lines = [json.loads(line) for line in prompt_file.read_text("utf-8").splitlines()]
        for line in lines:
            del line["split"]
        prompt_file.with_name("all.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
        words = ("read", file, base_model, "-p", prompt_file.with_name("all.jsonl"))
        done = run(*words)
        assert done.code == 0, done.err
        assert "its separation is not reported" in done.text and "AUROC" not in done.out
        content = json.loads(run(*words, "--json").out)
        assert content["transfer"] is None
        assert content["split_half"]["signal_share"]["n"] == 20

    def test_other_prompts_are_all_scored(self, run, file, base_model, prompt_file):
        lines = prompt_file.read_text("utf-8").replace("How to", "Tell me how to")
        other = prompt_file.with_name("other.jsonl")
        other.write_text(lines, encoding="utf-8")
        content = json.loads(run("read", file, base_model, "-p", other, "--json").out)
        assert content["transfer"]["n_harmful"] == 20
        assert content["notes"] == []

    def test_part_of_its_own_set_goes_by_the_name(self, run, file, base_model, prompt_file):
        words = ("read", file, base_model, "-p", prompt_file, "--limit", "16", "--json")
        content = json.loads(run(*words).out)
        assert content["transfer"]["n_harmful"] == 6
        assert "a set of this name: only its test split" in content["notes"][0]
        words = ("read", file, base_model, "-p", prompt_file, "--limit", "8", "--json")
        content = json.loads(run(*words).out)
        assert content["transfer"]["n_harmful"] == 8
        assert "if prompts are shared" in content["notes"][0]

    def test_another_template_is_noted(self, run, file, base_model, prompt_file, other_template):
        prompt_file.with_name("t.jinja").write_text(other_template, encoding="utf-8")
        words = ("read", file, base_model, "-p", prompt_file)
        done = run(*words, "--template", prompt_file.with_name("t.jinja"))
        assert "its position is another token here" in done.text

    def test_another_model_and_an_imported_direction_are_noted(
        self, run, file, tuned_model, base_model, prompt_file, reference
    ):
        content = json.loads(run("read", file, tuned_model, "--json").out)
        assert "another model" in content["notes"][0]
        run("import", reference, "--position", "-5", "--out", "d.st")
        words = ("read", "d.st", base_model, "-p", prompt_file, "--json")
        content = json.loads(run(*words).out)
        assert "does not say which prompts" in content["notes"][0]
        assert content["transfer"]["n_harmful"] == 20

    def test_a_direction_of_another_width(self, run, base_model, tmp_path):
        torch.save(torch.ones(8), tmp_path / "d.pt")
        run("import", "d.pt", "--layer", "1", "--position", "-1", "--out", "d.st")
        done = run("read", "d.st", base_model)
        assert done.code == 2
        assert "does not fit the model" in done.text and "d_model 32" in done.text


def test_help_is_light_and_has_examples(run):
    assert run("--help").code == 0
    for command in ("import", "export", "read"):
        done = run(command, "--help")
        assert done.code == 0
        assert "Examples" in done.out


def test_help_loads_neither_torch_nor_the_pipeline():
    import subprocess

    script = (
        "import sys, refusaldir.cli.main as m\n"
        "from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(m.app, ['direction', 'read', '--help']).exit_code == 0\n"
        "import refusaldir.report.direction_table, refusaldir.report.selection_table\n"
        "print({'torch', 'transformers', 'sklearn', 'refusaldir.pipeline'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["set()"]
