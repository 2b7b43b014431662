"""`refusaldir diff BASE CHECKPOINTS…`: folders of checkpoints as Trainer writes them."""

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def tune(tmp_path_factory, make_model, base_model):
    """A folder with three checkpoints that change layer 1 more and more, and what else lies there.

    Steps sort as numbers, not as text.
    """
    folder = tmp_path_factory.mktemp("tune")
    for step, change in ((90, 0.0), (500, 0.2), (1000, 0.6)):
        shutil.copytree(
            make_model(seed=1, like=base_model, change=change), folder / f"checkpoint-{step}"
        )
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (folder / "runs").mkdir()
    (folder / "trainer_state.json").write_text("{}")
    return folder


#: The output of layer 1 is what changes.
WORDS = (
    "--behaviour", "off", "--select", "off", "--device", "cpu", "--hook", "resid_post"
)  # fmt: skip


def test_a_folder_of_checkpoints(run, base_model, tune, prompt_file):
    done = run("diff", base_model, tune, "-p", prompt_file, *WORDS, "--out", "s")
    assert done.code == 0, done.err
    names = {path.name for path in Path("s").iterdir()}
    assert names == {
        "checkpoint-90", "checkpoint-500", "checkpoint-1000", "trajectory.json",
        "trajectory.png", "trajectory.svg", "report.html",
    }  # fmt: skip
    document = json.loads(Path("s/trajectory.json").read_text("utf-8"))
    points = document["checkpoints"]
    assert [point["step"] for point in points] == [90, 500, 1000]
    assert document["first_drift"] != "checkpoint-90" and points[0]["detected"] == []
    assert points[0]["angle"]["value"] == 0.0
    assert 0 < points[1]["angle"]["value"] < points[2]["angle"]["value"]
    assert max(map(len, done.out.splitlines())) <= 100
    assert "checkpoint-1000" in done.out and "Next: refusaldir show s/trajectory.json" in done.text
    for file in ("s", "s/trajectory.json"):
        shown = run("show", file)
        assert (shown.code, shown.out) == (0, done.out)
    assert json.loads(run("show", "s", "--json").out) == document
    one = run("show", "s/checkpoint-500")
    assert one.code == 0 and "Drift of the refusal direction by layer" in one.out


def test_a_single_checkpoint_by_name_is_a_plain_diff(run, base_model, tune, prompt_file):
    done = run(
        "diff", base_model, tune / "checkpoint-500", "-p", prompt_file, *WORDS, "--json"
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["schema"] == "refusaldir.diff"


def test_named_checkpoints_keep_the_order_given(run, base_model, tune, prompt_file):
    last_first = [tune / f"checkpoint-{step}" for step in (1000, 90)]
    done = run("diff", base_model, *last_first, "-p", prompt_file, *WORDS, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["schema"] == "refusaldir.trajectory"
    assert [point["name"] for point in document["checkpoints"]] == [
        "checkpoint-1000",
        "checkpoint-90",
    ]


def test_a_folder_without_checkpoints(run, base_model, prompt_file):
    Path("empty").mkdir()
    Path("other").mkdir()
    Path("other/notes.txt").write_text("x")
    for folder, says in (("empty", "an empty folder"), ("other", "notes.txt")):
        done = run("diff", base_model, folder, "-p", prompt_file)
        assert done.code == 2
        assert "neither a model nor checkpoints" in done.sentence and says in done.sentence
        assert "checkpoint-100" in done.sentence and "Traceback" not in done.err


def test_a_checkpoint_of_another_size_is_named_before_anything_runs(
    run, base_model, tune, prompt_file, tmp_path
):
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "mixed"
    shutil.copytree(tune / "checkpoint-90", folder / "checkpoint-1")
    shutil.copytree(tune / "checkpoint-90", folder / "checkpoint-2")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=264, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=192,
        )
    ).save_pretrained(folder / "checkpoint-2")  # fmt: skip
    done = run("diff", base_model, folder, "-p", prompt_file, *WORDS)
    assert done.code == 2
    assert "cannot be compared" in done.sentence and "number of layers" in done.sentence
    assert "mixed-checkpoint-2" in done.sentence
    assert not list(tmp_path.rglob("*.h5"))


def test_an_unfinished_checkpoint_is_named(run, base_model, tune, prompt_file, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(tune / "checkpoint-90", folder / "checkpoint-1")
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "optimizer.pt").write_bytes(b"x")
    done = run("diff", base_model, folder, "-p", prompt_file, *WORDS)
    assert done.code == 2
    assert "checkpoint-2" in done.sentence and "holds no model" in done.sentence
