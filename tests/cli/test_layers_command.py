"""`refusaldir layers` as a user types it."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def found(run, base_model, tuned_model, prompt_file):
    """Run layers on base and tuned, with more words where given."""

    def go(*words, tuned=tuned_model):
        given = ("-p", prompt_file, "--refusal-token", "a", "--device", "cpu", *words)
        return run("layers", base_model, tuned, *given)

    return go


def test_the_table_files_and_next_step(found, run):
    done = found("--out", "here", "--mode", "full")
    assert done.code == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 80
    for name in ("layers.json", "layers.png", "layers.svg"):
        assert f"{name}: here/{name}" in done.sentence
    assert "Next: refusaldir show here/layers.json" in done.sentence
    shown = run("show", "here")
    assert shown.code == 0 and shown.out == done.out
    document = json.loads(run("show", "here/layers.json", "--json").out)
    assert document["schema"] == "refusaldir.layers"
    assert document["measured"]["changed"] == [1]


def test_json_is_the_document_and_nothing_else(found):
    done = found("--out", "here", "--json")
    assert done.code == 0 and done.err == ""
    document = json.loads(done.out)
    assert json.loads(Path("here/layers.json").read_text("utf-8")) == document
    assert document["options"]["mode"] == "fast"


def test_options_reach_the_run(found):
    done = found(
        "--json", "--outcome", "projection", "--site", "resid_pre.2@-1", "--heads", "--seed", "3"
    )
    assert done.code == 0, done.err
    options = json.loads(done.out)["options"]
    assert options["site"] == "resid_pre.2@-1" and options["outcome"] == "projection"
    assert options["heads"] is True and options["seed"] == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--mode", "slow"), "expected fast | full"),
        (("--outcome", "rate"), "--mode full"),
        (("--site", "here"), "HOOK.LAYER@POSITION"),
        (("--task-text", "none.txt"), "--repair"),
        (("--category", "nine"), "no such category"),
        (("--harmful", "only.txt"), "Only one of the two classes"),
    ],
)
def test_mistakes_end_in_one_sentence(found, words, says):
    done = found(*words)
    assert done.code == 2
    assert says in done.sentence and "Traceback" not in done.err


def test_a_model_of_another_shape_is_refused(run, base_model, prompt_file, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(base_model)
    config.intermediate_size = 48
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(base_model).save_pretrained(tmp_path / "other")
    done = run("layers", base_model, tmp_path / "other", "-p", prompt_file, "--refusal-token", "a")
    assert done.code == 2 and "Traceback" not in done.err


def test_a_second_run_does_not_overwrite(found):
    assert found("--out", "here").code == 0
    again = found("--out", "here")
    assert again.code == 2 and "--force" in again.sentence
    assert found("--out", "here", "--force").code == 0


def test_help_has_examples(run):
    done = run("layers", "--help")
    assert done.code == 0
    assert "smollm2-135m+aligned" in done.out and "--repair" in done.out


def test_inside_diff(run, base_model, tuned_model, prompt_file):
    given = ("-p", prompt_file, "--refusal-token", "a", "--device", "cpu", "--max-new-tokens", "4")
    done = run("diff", base_model, tuned_model, *given, "--layers", "fast", "--out", "d")
    assert done.code == 0, done.err
    document, diff = (json.loads(Path(f"d/{name}.json").read_text()) for name in ("layers", "diff"))
    assert document["measured"]["changed"] == [1]
    assert document["site"]["layer"] == diff["drift"]["site"]["layer"]
    assert document["site"]["position"] == diff["drift"]["site"]["position"]
    assert document["refusal_tokens"] == ["a"]
    assert "layers.json: d/layers.json" in done.sentence
    assert "Path attribution" in done.out


def test_inside_diff_of_captures(captured):
    done = captured("diff", "base.h5", "tuned.h5", "--layers", "fast", "--refusal-token", "a",
                    "--device", "cpu", "--out", "d")  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(Path("d/layers.json").read_text())["measured"]["changed"] == [1]


@pytest.mark.parametrize(
    ("words", "says"),
    [(("tuned.h5", "--layers", "deep"), "expected off | fast | full"),
     (("tuned.h5", "tuned.h5", "--layers", "fast"), "one checkpoint at a time")],
)  # fmt: skip
def test_inside_diff_mistakes(captured, words, says):
    done = captured("diff", "base.h5", *words, "--out", "d")
    assert done.code == 2 and says in done.sentence
    assert not Path("d").exists()
