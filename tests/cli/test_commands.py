"""The commands as a user types them, on tiny real models, in a directory of their own."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import refusaldir


def test_extract_then_show(run, base_model, prompt_file, tmp_path):
    done = run("extract", base_model, "-p", prompt_file, "--hook", "resid_pre", "--hook", "mlp_out",
               "--layers", "0,2", "--positions", "inst,-1", "--out", "a/b.h5")  # fmt: skip
    assert done.code == 0, done.err
    assert "refusaldir diff a/b.h5" in done.sentence
    with h5py.File(tmp_path / "a" / "b.h5") as file:
        assert file["resid_pre"].shape == file["mlp_out"].shape == (40, 2, 2, 32)
    shown = run("show", "a/b.h5")
    assert shown.code == 0
    assert "resid_pre" in shown.out
    as_json = json.loads(run("show", "a/b.h5", "--json").out)
    assert as_json["shape"] == {"prompt": 40, "layer": 2, "pos": 2, "d_model": 32}


def test_extract_names_its_file_and_keeps_it(run, base_model, prompt_file, tmp_path):
    words = ("extract", base_model, "-p", prompt_file, "--json")
    first = json.loads(run(*words).out)
    again = json.loads(run(*words).out)
    assert (first["reused"], again["reused"]) == (False, True)
    assert first["path"] == again["path"]
    assert [p.parent.name for p in tmp_path.rglob("*.h5")] == ["activations"]


def test_diff_of_captures_and_of_specs_agree(captured, base_model, tuned_model, prompt_file):
    words = ("--out", "d1", "--json", "--behaviour", "off")
    from_captures = captured("diff", "base.h5", "tuned.h5", *words)
    assert from_captures.code == 0, from_captures.err
    words = ("--out", "d2", "--json", "--behaviour", "off", "-p", prompt_file, "--device", "cpu")
    from_specs = captured("diff", base_model, tuned_model, *words)
    assert from_specs.code == 0, from_specs.err
    one, two = json.loads(from_captures.out), json.loads(from_specs.out)
    assert one["drift"]["layers"] == two["drift"]["layers"]
    assert one["behaviour"] is None
    for folder in ("d1", "d2"):
        names = {path.name for path in Path(folder).iterdir()}
        assert {"diff.json", "drift.png", "drift.svg"} <= names
        assert json.loads(Path(folder, "diff.json").read_text("utf-8"))["drift"]


def test_diff_with_behaviour_prints_tables_and_says_where(captured):
    done = captured("diff", "base.h5", "tuned.h5", "--behaviour", "on", "--out", "d",
                    "--max-new-tokens", "4", "--refusal-token", "a")  # fmt: skip
    assert done.code == 0, done.err
    assert "diff.json" in done.err
    names = {str(path.relative_to("d")) for path in Path("d").rglob("*")}
    assert {"behaviour.png", "base/responses.jsonl", "tuned/responses.jsonl"} <= names
    assert {"base/probe.json", "tuned/probe.json"} <= names
    assert max(map(len, done.out.splitlines())) <= 80
    shown = captured("show", "d")
    assert shown.code == 0
    assert shown.out == done.out
    assert captured("show", "d", "--csv").out.count("\n") > 4


def test_only_the_changed_layers_drift(captured):
    """Known answer: layer 1 was changed, so resid_pre of layers 0 and 1 did not move at all."""
    layers = json.loads(
        captured("diff", "base.h5", "tuned.h5", "--json", "--out", "d", "--position", "-1").out
    )["drift"]["layers"]
    assert [row["layer"] for row in layers] == [0, 1, 2]
    with h5py.File("base.h5") as base, h5py.File("tuned.h5") as tuned:
        moved = [
            float(np.abs(base["resid_pre"][:, i] - tuned["resid_pre"][:, i]).max())
            for i in (0, 1, 2)
        ]
    assert moved[0] == moved[1] == 0.0
    assert moved[2] > 0.01


def test_an_adapter_directory_is_a_model(run, base_model, prompt_file, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base_model),
        LoraConfig(target_modules=["q_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "lora")
    for i, spec in enumerate((f"{base_model}+lora", tmp_path / "lora")):
        done = run("extract", spec, "-p", prompt_file, "--out", f"{i}.h5")
        assert done.code == 0, done.err
    with h5py.File("0.h5") as one, h5py.File("1.h5") as two:
        np.testing.assert_array_equal(one["resid_pre"][:], two["resid_pre"][:])


def test_two_plain_files(run, base_model, tuned_model):
    Path("bad.txt").write_text("\n".join(f"Harm the thing number {i}" for i in range(12)), "utf-8")
    Path("good.txt").write_text("\n".join(f"Help the thing number {i}" for i in range(12)), "utf-8")
    done = run("diff", base_model, tuned_model, "--harmful", "bad.txt", "--harmless", "good.txt",
               "--max-new-tokens", "3", "--out", "d")  # fmt: skip
    assert done.code == 0, done.err
    assert Path("d/behaviour.svg").exists()


# --- bad input: one sentence, exit code 2, nothing half-written ---------------------------------


def test_no_such_model(run):
    done = run("extract", "no/such-model-here")
    assert done.code == 2
    assert done.err.startswith("Error: ")
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--hook", "resid_nowhere"), "hook point"),
        (("--layers", "0-9"), "layer"),
        (("--layers", "x"), "layers"),
        (("--positions", "first"), "position"),
        (("--positions", "-400"), "position"),
        (("--dtype", "float64"), "dtype"),
        (("--device", "tpu"), "device"),
        (("--quantize", "3bit"), "4bit | 8bit"),
        (("--prompts", "missing.jsonl"), "missing.jsonl"),
        (("--prompts", "contrats"), "contrast"),
        (("--harmful", "x.txt"), "harmless"),
        (("--thinking",), "thinking"),
        (("--template", "nowhere.jinja"), "template"),
        (("--backend", "onnx"), "backend"),
    ],
)
def test_options_that_cannot_be(run, base_model, prompt_file, tmp_path, words, says):
    prompts = () if {"--prompts", "--harmful"} & set(words) else ("-p", prompt_file)
    done = run("extract", base_model, *prompts, "--out", "x.h5", *words)
    assert done.code == 2, done.err
    assert says in done.sentence
    assert "Traceback" not in done.err
    assert not list(tmp_path.glob("x.h5*"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "empty"),
        ('{"prompt": "only this", "label": "harmful"}', "harmless"),
        ('{"prompt": "  ", "label": "harmful"}', "empty"),
        ('{"prompt": "x", "label": "evil"}', "label"),
        ("{not json", "line 1"),
    ],
)
def test_prompt_files_that_cannot_be(run, base_model, tmp_path, content, says):
    Path("p.jsonl").write_text(content, encoding="utf-8")
    done = run("extract", base_model, "-p", "p.jsonl", "--out", "x.h5")
    assert done.code == 2
    assert says in done.sentence
    assert not list(tmp_path.glob("x.h5*"))


def test_prompt_longer_than_the_context(run, base_model, tmp_path):
    rows = [{"prompt": "y" * 300, "label": "harmful"}, {"prompt": "ok", "label": "harmless"}]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    done = run("extract", base_model, "-p", "p.jsonl", "--out", "x.h5")
    assert done.code == 2
    assert "context" in done.sentence
    assert "192" in done.sentence
    assert not list(tmp_path.glob("x.h5*"))


def test_nan_weights_name_prompt_and_layer(run, make_model, base_model, prompt_file, tmp_path):
    broken = make_model(like=base_model, change=float("nan"))
    done = run("extract", broken, "-p", prompt_file, "--out", "x.h5")
    assert done.code == 2
    assert "layer 2" in done.sentence
    assert not (tmp_path / "x.h5").exists()


def test_existing_output_asks_for_force(captured, tuned_model, prompt_file):
    before = Path("base.h5").read_bytes()
    words = ("extract", tuned_model, "-p", prompt_file, "--out", "base.h5")
    done = captured(*words)
    assert done.code == 2
    assert "--force" in done.sentence
    assert Path("base.h5").read_bytes() == before
    assert captured(*words, "--force").code == 0
    assert Path("base.h5").read_bytes() != before


def test_existing_diff_asks_for_force(captured):
    words = ("diff", "base.h5", "tuned.h5", "--out", "d")
    first = captured(*words)
    assert first.code == 0
    again = captured(*words)
    assert (again.code, again.out) == (0, first.out)
    assert "Kept: d holds this comparison already" in again.sentence
    done = captured(*words, "--seed", "1")
    assert done.code == 2
    assert "--force" in done.sentence
    assert captured(*words, "--seed", "1", "--force").code == 0


@pytest.mark.parametrize("damage", ["missing", "foreign", "truncated", "text", "pickle"])
def test_files_that_are_not_captures(captured, damage):
    path = Path("broken.h5")
    if damage == "foreign":
        with h5py.File(path, "w") as file:
            file["x"] = [1, 2, 3]
    elif damage == "truncated":
        whole = Path("tuned.h5").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "text":
        path.write_text("hello", encoding="utf-8")
    elif damage == "pickle":
        path.write_bytes(b"\x80\x04\x95\x1a\x00cos\nsystem\n(S'touch owned'\ntR.")
    for words in (("diff", "base.h5", path), ("show", path)):
        done = captured(*words)
        assert done.code == 2, (words, done.err)
        assert "broken.h5" in done.sentence
        assert "Traceback" not in done.err
    assert not Path("owned").exists()


def test_interrupted_capture_is_refused_until_it_is_resumed(
    run, base_model, prompt_file, monkeypatch
):
    from refusaldir import capture

    real = capture.capture

    def interrupted(*args, **kwargs):
        yield next(real(*args, **{**kwargs, "batch_size": 4}))
        raise KeyboardInterrupt

    words = ("extract", base_model, "-p", prompt_file, "--out", "x.h5")
    monkeypatch.setattr(capture, "capture", interrupted)
    done = run(*words)
    assert done.code == 130
    assert "--resume" in done.sentence
    monkeypatch.setattr(capture, "capture", real)
    assert not Path("x.h5").exists()
    for file in ("x.h5", "x.h5.partial"):
        done = run("show", file)
        assert done.code == 2
        assert "Traceback" not in done.err
    done = run(*words)
    assert done.code == 2
    assert "--resume" in done.sentence
    assert run(*words, "--resume").code == 0
    assert Path("x.h5").exists()
    assert not Path("x.h5.partial").exists()


def test_other_prompts_and_other_template_are_named(
    captured, make_model, base_model, prompt_file, other_template
):
    lines = prompt_file.read_text("utf-8").splitlines()
    for count, code in ((32, 0), (18, 2)):  # more than half, and less
        Path("fewer.jsonl").write_text("\n".join(lines[:count]), encoding="utf-8")
        words = ("extract", base_model, "-p", "fewer.jsonl", "--out", "fewer.h5", "--force")
        assert captured(*words).code == 0
        done = captured("diff", "base.h5", "fewer.h5", "--out", f"d{count}")
        assert done.code == code
        assert "prompts" in done.text
    other = make_model(like=base_model, template=other_template)
    done = captured("diff", "base.h5", other)
    assert done.code == 2
    assert "template" in done.sentence


def test_prompts_beside_a_capture_are_refused(captured, base_model, prompt_file):
    done = captured("diff", "base.h5", base_model, "-p", prompt_file)
    assert done.code == 2
    assert "fixed" in done.sentence


def test_adapter_for_another_base(run, make_model, base_model, prompt_file, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    wide = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=264,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
        )
    )
    get_peft_model(wide, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    done = run("extract", f"{base_model}+lora", "-p", prompt_file, "--out", "x.h5")
    assert done.code == 2
    assert "lora" in done.sentence
    assert not list(tmp_path.glob("x.h5*"))


def test_full_disk(base_model, prompt_file, tmp_path):
    """A file size limit in a process of its own: one sentence, and nothing under the name."""
    command = [
        sys.executable, "-W", "ignore", "-m", "refusaldir.cli", "extract", str(base_model),
        "-p", str(prompt_file), "--out", "x.h5",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "REFUSALDIR_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "x.h5" in done.stderr
    assert not (tmp_path / "x.h5").exists()


def test_our_fault_is_exit_code_1_and_debug_shows_where(run, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("refusaldir.store.summary", broken)
    Path("x.h5").touch()
    done = run("show", "x.h5")
    assert done.code == 1
    assert "fault of refusaldir" in done.sentence
    assert "Traceback" not in done.err
    assert "Traceback" in run("show", "x.h5", "--debug").err


def test_help_and_version(run):
    for words in ((), ("extract",), ("diff",), ("show",)):
        done = run(*words, "--help")
        assert done.code == 0
        if words:
            assert "Examples" in done.out
    assert refusaldir.__version__ in run("--version").out


SELECT = ("--positions", "-1", "--refusal-token", "a", "--no-filter")


def test_select_prints_and_writes(run, base_model, prompt_file, tmp_path):
    words = ("select", base_model, "-p", prompt_file, *SELECT, "--out", "s")
    done = run(*words, "--kl", "1e9", "--induce", "-1e9", "--depth", "1")
    assert done.code == 0, done.err
    assert "meets every criterion" in " ".join(done.out.replace("│", " ").split())
    assert "Next: refusaldir diff" in done.sentence
    assert (tmp_path / "s" / "direction.safetensors").exists()
    assert json.loads((tmp_path / "s" / "select.json").read_text())["format_version"] == 2
    again = run(*words)
    assert again.code == 2 and "holds a result already" in again.sentence


def test_select_without_a_valid_direction_ends_well(run, base_model, prompt_file):
    words = ("select", base_model, "-p", prompt_file, *SELECT, "--kl", "1e-12")
    done = run(*words)
    assert done.code == 0, done.err
    text = " ".join(done.out.replace("│", " ").split())
    assert "No valid direction" in text and "fails KL" in text
    document = json.loads(run(*words, "--force", "--json").out)
    assert document["selection"]["chosen"] is None
    assert document["selection"]["nearest"]["kl_exact"]


def test_paths_with_brackets_are_printed_as_they_are(run, base_model, tuned_model, prompt_file):
    """Square brackets are rich's markup: a path is none."""
    folder = "[red]it[/red] [/]"
    for name, model in (("base", base_model), ("tuned", tuned_model)):
        words = ("extract", model, "-p", prompt_file, "--out", f"{folder}/{name}.h5")
        done = run(*words)
        assert done.code == 0, done.err
        assert f"refusaldir diff {folder}/{name}.h5" in done.sentence
    assert f"Kept: {folder}/tuned.h5" in run(*words).sentence
    done = run("diff", f"{folder}/base.h5", f"{folder}/tuned.h5", "--out", f"{folder}/d")
    assert done.code == 0, done.err
    assert f"diff.json: {folder}/d/diff.json" in done.sentence
    assert f"refusaldir show {folder}/d/diff.json" in done.sentence
    done = run("select", base_model, "-p", prompt_file, *SELECT, "--out", f"{folder}/s")
    assert done.code == 0, done.err
    assert f"select.json: {folder}/s/select.json" in done.sentence


def test_inst_and_post_are_captured_and_only_post_is_searched(run, base_model, prompt_file):
    done = run("extract", base_model, "-p", prompt_file, "--json")
    offsets = [p["offset"] for p in json.loads(done.out)["positions"]]
    labels = [p["label"] for p in json.loads(done.out)["positions"]]
    assert labels.count("t_inst") == 1 and labels[0] == "t_inst"
    words = ("--refusal-token", "a", "--no-filter", "--json")
    document = json.loads(run("select", base_model, "-p", prompt_file, *words).out)
    assert [p["offset"] for p in document["positions"]] == offsets[1:]
    assert len(list(Path("activations").glob("*.h5"))) == 1
    assert document["provenance"]["model"]["backend"] == "transformer_lens"
    at = ("--at", str(offsets[0]), "--force")
    document = json.loads(run("select", base_model, "-p", prompt_file, *words, *at).out)
    assert [p["offset"] for p in document["positions"]] == [offsets[0]]


def test_a_template_with_nothing_after_the_instruction(run, base_model, tuned_model, prompt_file):
    plain = ("-p", prompt_file, "--template", "plain")
    done = run("extract", base_model, *plain, "--positions", "post")
    assert done.code == 2 and "nothing after the instruction" in done.sentence
    done = run("extract", base_model, *plain)
    assert done.code == 0, done.err
    assert "nothing after the instruction" in done.sentence and "t_inst" in done.out
    words = ("--behaviour", "off", "--select", "off", "--json")
    done = run("diff", base_model, tuned_model, *plain, *words)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["drift"]["site"]["position"] == -1
    assert document["drift"]["site"]["token"] == "t_inst"
    assert any("nothing after the instruction" in note for note in document["drift"]["notes"])


def test_a_battery_beside_captures(captured, prompt_file):
    """What is asked is another matter than what was captured; a limit is the battery's."""
    words = ("diff", "base.h5", "tuned.h5", "--battery", prompt_file, "--limit", "5", "--out", "d",
             "--max-new-tokens", "3", "--judge", "phrases", "--json")  # fmt: skip
    done = captured(*words)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["drift"]["n_prompts"] == 40
    behaviour = document["behaviour"]
    assert behaviour["axes"]["refusal"]["overall"]["n"] == 5
    assert [name.split("-")[0] for name in behaviour["base"]["judges"]] == ["phrases"]
    # Both are projected on the direction of base, though none was selected.
    directions = {behaviour[arm]["direction"] for arm in ("base", "tuned")}
    assert len(directions) == 1 and None not in directions
    assert behaviour["link"] is not None
    # Each model's folder is a run, and the two are compared again without any model.
    alone = json.loads(captured("diff", "d/base", "d/tuned", "--out", "e", "--json").out)
    assert alone["behaviour"]["axes"] == behaviour["axes"]
    off = captured(*words[:-1], "--behaviour", "off")
    assert off.code == 2 and "--behaviour off" in off.sentence
