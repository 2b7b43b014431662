"""`diff_series`: checkpoints of one fine-tune, kept, gone on with, and joined."""

import json
import shutil
from pathlib import Path

import pytest

import refusaldir as rd
from refusaldir.errors import CaptureMismatchError, OutputExistsError
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.series_measures import distance_between
from refusaldir.pipeline.stops import find_stops, is_series
from refusaldir.pipeline.trajectory import diff_series

ASKED = {"hook": "resid_post", "max_new_tokens": 2, "refusal_tokens": ["a"]}


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFUSALDIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def checkpoints(make_model, base_model):
    """Models that change layer 1 more and more."""
    return [make_model(seed=1, like=base_model, change=change) for change in (0.1, 0.3, 0.6)]


def place(models, folder, first=1):
    for i, model in enumerate(models, start=first):
        shutil.copytree(model, Path(folder) / f"checkpoint-{100 * i}")
    return folder


def counted():
    seen = []
    return seen, lambda stage, done, total: seen.append(stage)


def test_base_is_captured_and_probed_once_and_stages_name_the_checkpoint(
    base_model, checkpoints, prompt_file
):
    seen, progress = counted()
    folder = place(checkpoints, "tune")
    result = diff_series(base_model, [folder], prompts=prompt_file, progress=progress, **ASKED)
    stages = list(dict.fromkeys(seen))
    assert [s for s in stages if "base" in s] == [
        "1/3 checkpoint-100: Capture base",
        "1/3 checkpoint-100: Respond base",
        "1/3 checkpoint-100: Read replies of base",
        "1/3 checkpoint-100: Judge base by phrases",
        "1/3 checkpoint-100: Judge base by first-token",
    ]
    assert "3/3 checkpoint-300: Respond tuned" in stages
    rates = [point["refusal"] for point in result.document["checkpoints"]]
    assert all(rate["tuned_rate"]["value"] is not None for rate in rates)
    link = result.document["link"]
    assert link["rows"] == [f"checkpoint-{100 * i}" for i in (1, 2, 3)] and not link["independent"]
    assert "3 independent rows" in link["axes"]["refusal"][0]["kendall"]["note"]
    assert {"trajectory.json", "trajectory.png", "base/responses.jsonl"} < set(result.files)
    assert all(path.exists() for path in result.files.values())


def test_weights_lie_further_off_the_more_was_changed(base_model, checkpoints):
    base, *tuned = (ModelSpec.parse(str(model)) for model in (base_model, *checkpoints))
    near, far, farther = (distance_between(base, each) for each in tuned)
    assert 0 < near < far < farther and distance_between(base, base) == 0.0


def test_every_checkpoint_is_the_diff_it_would_be_alone(base_model, checkpoints, prompt_file):
    folder = place(checkpoints, "tune")
    diff_series(base_model, [folder], prompts=prompt_file, out="s", **ASKED)
    alone = rd.diff(
        base_model, folder + "/checkpoint-200", prompts=prompt_file, out="one", **ASKED
    ).document  # fmt: skip
    mine = json.loads(Path("s/checkpoint-200/diff.json").read_text("utf-8"))
    for key in ("drift", "behaviour", "causality", "verdict"):
        for document in (alone, mine):
            if key == "behaviour":
                for side in ("base", "tuned"):
                    document[key][side].pop("created", None)
        assert mine[key] == alone[key]


def test_what_is_finished_is_kept_and_the_series_grows(base_model, checkpoints, prompt_file):
    asked = {"prompts": prompt_file, "out": "s", **ASKED}
    folder = place(checkpoints[:2], "tune")
    before = diff_series(base_model, [folder], **asked)
    times = {path: path.stat().st_mtime_ns for path in Path("s").glob("*/diff.json")}
    place(checkpoints[2:], "tune", first=3)
    seen, progress = counted()
    after = diff_series(base_model, [folder], progress=progress, **asked)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    stages = list(dict.fromkeys(seen))
    assert stages[:2] == ["1/3 checkpoint-100: Kept", "2/3 checkpoint-200: Kept"]
    assert all(stage.startswith("3/3") for stage in stages[2:])
    whole = diff_series(base_model, [folder], **{**asked, "out": "fresh"})
    assert after.document["checkpoints"] == whole.document["checkpoints"]
    assert len(before.document["checkpoints"]) == 2

    (capture,) = Path("activations").glob("tune-checkpoint-200-*.h5")
    capture.unlink()  # the band over all of them needs it, the diff does not
    seen, progress = counted()
    again = diff_series(base_model, [folder], progress=progress, **asked)
    assert [s for s in dict.fromkeys(seen) if "Kept" not in s] == [
        "2/3 checkpoint-200: Capture tuned"
    ]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert again.document["checkpoints"] == after.document["checkpoints"]


def test_what_was_cut_off_goes_on(base_model, checkpoints, prompt_file):
    def stop(stage, done, total):
        if stage == "2/3 checkpoint-200: Respond tuned":
            raise KeyboardInterrupt

    asked = {"prompts": prompt_file, "out": "s", **ASKED}
    folder = place(checkpoints, "tune")
    with pytest.raises(KeyboardInterrupt):
        diff_series(base_model, [folder], progress=stop, **asked)
    assert not Path("s/trajectory.json").exists()
    seen, progress = counted()
    diff_series(base_model, [folder], progress=progress, **asked)
    stages = list(dict.fromkeys(seen))
    assert stages[0] == "1/3 checkpoint-100: Kept"
    assert not any("Capture base" in stage or "200: Capture" in stage for stage in stages)


def test_other_settings_or_another_base_ask_for_force(
    make_model, base_model, checkpoints, prompt_file
):
    asked = {"prompts": prompt_file, "out": "s", "behaviour": "off", "hook": "resid_post"}
    folder = place(checkpoints[:1], "tune")
    diff_series(base_model, [folder], **asked)
    with pytest.raises(OutputExistsError, match=r"checkpoint-100.*--force"):
        diff_series(base_model, [folder], **{**asked, "seed": 1})
    other = make_model(seed=5, like=base_model, change=0.05)
    with pytest.raises(OutputExistsError, match="series of another base"):
        diff_series(other, [folder], **asked)
    forced = diff_series(other, [folder], **{**asked, "force": True})
    assert forced.document["base"]["model"]["spec"] == str(other)


def test_adapters_in_a_folder_are_stacked_on_base(base_model, tuned_model, prompt_file):
    """On tuned as the base: their own configuration names another one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for step in (9, 10):
        torch.manual_seed(step)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base_model),
            LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False),
        )
        model.save_pretrained(f"lora/checkpoint-{step}")
    stops = find_stops(str(tuned_model), ["lora"])
    assert [str(stop.side) for stop in stops] == [
        f"{tuned_model}+lora/checkpoint-{step}" for step in (9, 10)
    ]
    asked = {"behaviour": "off", "select": "off", "hook": "resid_post"}
    result = diff_series(tuned_model, ["lora"], prompts=prompt_file, **asked)
    models = [point["model"] for point in result.document["checkpoints"]]
    assert [model["adapters"] for model in models] == [
        ["lora/checkpoint-9"],
        ["lora/checkpoint-10"],
    ]
    capture = rd.extract(str(tuned_model), prompts=prompt_file, hooks=["resid_post"])
    again = diff_series(capture.path, ["lora"], out="from-capture", **asked)
    for one, two in zip(result.document["checkpoints"], again.document["checkpoints"], strict=True):
        assert (one["rotation_band"], one["name"]) == (two["rotation_band"], two["name"])


def test_captures_are_checkpoints_too(base_model, checkpoints, prompt_file):
    paths = [
        rd.extract(str(model), prompts=prompt_file, hooks=["resid_post"], out=f"{name}.h5").path
        for name, model in (("base", base_model), ("a", checkpoints[0]), ("b", checkpoints[2]))
    ]
    result = diff_series(paths[0], paths[1:], hook="resid_post")
    assert [point["name"] for point in result.document["checkpoints"]] == ["a", "b"]
    assert [point["step"] for point in result.document["checkpoints"]] == [None, None]
    first, second = (b.value for b in result.trajectory.bands)
    assert second < first < 1
    lines = prompt_file.read_text("utf-8").splitlines()
    Path("fewer.jsonl").write_text("\n".join(lines[:32]), encoding="utf-8")
    fewer = rd.extract(
        str(checkpoints[1]), prompts="fewer.jsonl", hooks=["resid_post"], out="c.h5"
    ).path  # fmt: skip
    with pytest.raises(CaptureMismatchError, match=r"must not differ in rendered prompts.*\(c\)"):
        diff_series(paths[0], [paths[1], fewer], hook="resid_post")


def test_two_runs_with_the_same_steps_get_names_of_their_own(base_model, checkpoints):
    place(checkpoints[:2], "one")
    place(checkpoints[1:2], "two")
    stops = find_stops(str(base_model), ["one", "two"])
    assert [stop.name for stop in stops] == ["checkpoint-100", "checkpoint-200", "checkpoint-100-2"]
    assert is_series(["one"]) and not is_series([str(base_model)])
    assert not is_series(["org/model"]) and is_series(["org/a", "org/b"])
