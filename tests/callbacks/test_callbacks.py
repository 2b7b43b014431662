"""The training monitor on a tiny random model: what it sees, and that nobody notices it."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from refusaldir.callbacks import RefusalDriftCallback
from refusaldir.drift.at_site import drift_at
from refusaldir.errors import RefusaldirError
from refusaldir.models.bridge import open_model
from refusaldir.pipeline import extract
from refusaldir.prompts.load import load_prompts
from refusaldir.records import Site
from refusaldir.refusal_score import refusal_scores
from refusaldir.report.monitor_figure import write_monitor_figure
from refusaldir.report.trajectory_document import load_trajectory
from refusaldir.store import Capture

# With its default data collator the Trainer warns about pinned memory on a CPU.
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")

#: First bytes of a reply that count as refusing: a random model refuses nothing by its words.
TOKENS = ["I", "S"]


def rows(n=24, length=24):
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(n):
        ids = torch.randint(5, 250, (length,), generator=generator)
        found.append({"input_ids": ids, "labels": ids.clone()})
    return found


def make(folder, out, *, lora=False, dropout=0.1, **options):
    """A trainer of the model in a folder, with dropout, so that training draws random numbers."""
    model = AutoModelForCausalLM.from_pretrained(folder, attention_dropout=dropout)
    if lora:
        torch.manual_seed(0)
        model = get_peft_model(
            model,
            LoraConfig(r=4, lora_dropout=0.2, target_modules=["q_proj", "v_proj"]),
        )
    options = {
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
        **options,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(out), **options),
        train_dataset=rows(),
        data_collator=default_data_collator,
        processing_class=AutoTokenizer.from_pretrained(folder),
    )


def watch(trainer, prompt_file, **options):
    options = {
        "prompts": str(prompt_file),
        "limit": 16,
        "every": 2,
        "max_overhead": None,
        "refusal_tokens": TOKENS,
        **options,
    }
    monitor = RefusalDriftCallback(trainer, **options)
    trainer.add_callback(monitor)
    return monitor


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"gradient_checkpointing": True},
        {"lora": True},
        {"lora": True, "gradient_checkpointing": True, "gradient_accumulation_steps": 2},
        {"bf16": True},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
@pytest.mark.filterwarnings("ignore:.*will be removed in v6.*:FutureWarning")
def test_the_weights_are_those_of_a_run_without_it(tmp_path, base_model, prompt_file, options):
    plain = make(base_model, tmp_path / "a", **options)
    before = weights(plain)
    plain.train()
    watched = make(base_model, tmp_path / "b", **options)
    monitor = watch(watched, prompt_file, every=1)
    watched.train()
    assert [point.step for point in monitor.history] == [0, 1, 2, 3, 4]
    without, with_it = weights(plain), weights(watched)
    assert all(torch.equal(without[name], with_it[name]) for name in without)
    assert any(not torch.equal(before[name], with_it[name]) for name in before)
    # Neither is what the trainer logs by itself.
    logged = [[row for row in run.state.log_history if "loss" in row] for run in (plain, watched)]
    assert logged[0] == logged[1] and len(logged[0]) == 2


def test_random_numbers_do_matter_in_these_runs(tmp_path, base_model):
    """Negative control: the comparison above would see one that was drawn in between."""

    class Draws(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            torch.rand(1)

    runs = [make(base_model, tmp_path / str(i)) for i in range(2)]
    runs[1].add_callback(Draws())
    for run in runs:
        run.train()
    one, other = map(weights, runs)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_it_sees_what_extract_and_diff_see(tmp_path, base_model, prompt_file):
    trainer = make(base_model, tmp_path / "run", dropout=0.0)
    monitor = watch(trainer, prompt_file)
    trainer.train()
    first, _, last = monitor.history
    assert first.drift.rotation.value == 1 and first.harmful.change.value == 0
    trainer.save_model(str(tmp_path / "tuned"))
    site = monitor.monitor.site
    taken = load_prompts(prompt_file, limit=16)
    captures = [
        extract(str(where), prompts=taken, out=tmp_path / f"{i}.h5", backend="torch_hooks").path
        for i, where in enumerate((base_model, tmp_path / "tuned"))
    ]
    with Capture.open(captures[0]) as base, Capture.open(captures[1]) as tuned:
        row, _ = drift_at(base, tuned, site)
    assert last.drift.angle.value > 1
    for ours, theirs in (
        (last.drift.angle, row.angle),
        (last.drift.shrinkage, row.shrinkage),
        (last.drift.translation.harmful, row.translation.harmful),
        (last.drift.d_prime_change, row.d_prime_change.base_direction),
    ):
        assert ours.value == pytest.approx(theirs.value, rel=1e-3, abs=1e-3)
        assert ours.lower == pytest.approx(theirs.lower, rel=1e-3, abs=1e-3)
    model = open_model(str(tmp_path / "tuned"))
    scores = refusal_scores(model, monitor.monitor.rendered.ids, monitor.monitor.tokens.ids)
    harmful = np.array(taken.labels) == 1
    assert last.harmful.value.value == pytest.approx(scores[harmful].mean(), abs=1e-3)
    assert last.harmless.value.value == pytest.approx(scores[~harmful].mean(), abs=1e-3)


def test_figures_go_to_the_trainers_loggers_and_to_files(tmp_path, base_model, prompt_file):
    seen = []

    class Logger(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append((state.global_step, dict(logs)))

    trainer = make(base_model, tmp_path)
    trainer.add_callback(Logger())
    monitor = watch(trainer, prompt_file)
    trainer.train()
    ours = [(step, logs) for step, logs in seen if "refusal/rotation_degrees" in logs]
    assert [step for step, _ in ours] == [0, 2, 4]
    assert {"refusal/norm_ratio", "refusal/score_harmful", "refusal/shift_harmless_sd"} <= set(
        ours[-1][1]
    )
    assert any("refusal/score_harmful" in row for row in trainer.state.log_history)

    document = load_trajectory(monitor.folder / "trajectory.json")
    assert [point["step"] for point in document["checkpoints"]] == [0, 2, 4]
    last = document["checkpoints"][-1]
    assert last["angle"]["value"] == ours[-1][1]["refusal/rotation_degrees"]
    assert last["score"]["harmful"]["value"]["lower"] is not None
    assert document["monitor"]["seconds"] > 0 and document["monitor"]["stopped"] == ""
    with (monitor.folder / "trajectory.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["step"] for row in table] == ["0", "2", "4"]
    assert float(table[-1]["rotation_degrees"]) == pytest.approx(last["angle"]["value"])
    png, svg = write_monitor_figure(document, tmp_path)
    assert png.stat().st_size > 10_000 and "refusal score" in svg.read_text("utf-8").lower()


def test_base_may_be_a_capture(tmp_path, base_model, tuned_model, prompt_file):
    taken = load_prompts(prompt_file, limit=16)
    base = extract(str(base_model), prompts=taken, out=tmp_path / "base.h5", backend="torch_hooks")
    trainer = make(tuned_model, tmp_path / "run", max_steps=1)
    site = Site(hook="resid_pre", layer=2, position=-1)  # behind the layer that differs
    monitor = watch(trainer, prompt_file, base=base.path, site=site)
    trainer.train()
    shift = monitor.history[0].drift.translation.harmful.value
    assert abs(shift) > 0.1  # it starts away from base
    assert not (monitor.folder / "base.h5").exists()
    with pytest.raises(RefusaldirError, match="no such capture"):
        trainer = make(tuned_model, tmp_path / "run")
        watch(trainer, prompt_file, base=tmp_path / "absent.h5")
        trainer.train()


def test_training_stops_past_a_limit(tmp_path, base_model, prompt_file, caplog):
    trainer = make(base_model, tmp_path / "a", max_steps=12, dropout=0.0)
    monitor = watch(trainer, prompt_file, max_rotation=0.5)
    trainer.train()
    assert trainer.state.global_step == monitor.history[-1].step < 12
    assert monitor.history[-1].drift.angle.lower > 0.5
    assert "past the limit of 0.5° of rotation." in monitor.stopped
    assert monitor.stopped in caplog.text
    assert load_trajectory(monitor.folder / "trajectory.json")["monitor"]["stopped"]

    trainer = make(base_model, tmp_path / "b", dropout=0.0)
    monitor = watch(trainer, prompt_file, max_rotation=179.0, max_score_drop=1000.0)
    trainer.train()
    assert trainer.state.global_step == 4 and not monitor.stopped


def test_a_score_that_drops_stops_training(tmp_path, base_model, prompt_file):
    trainer = make(base_model, tmp_path, max_steps=30, dropout=0.0)
    for row in trainer.train_dataset:  # learns to say one token, which is no refusal
        row["input_ids"] = row["labels"] = torch.full((24,), 77)
    monitor = watch(trainer, prompt_file, max_score_drop=0.5)
    trainer.train()
    assert "past the limit of 0.5 nats of refusal score lost." in monitor.stopped
    assert trainer.state.global_step < 30


def test_the_interval_grows_until_the_cost_is_within_the_limit(tmp_path, base_model, prompt_file):
    trainer = make(base_model, tmp_path, max_steps=6)
    monitor = watch(trainer, prompt_file, every=1, max_overhead=1e-9)
    trainer.train()
    assert [point.step for point in monitor.history] == [0, 6]  # both ends come in any case
    assert monitor.trained_seconds == monitor.trained_seconds  # training is over
    monitor._cost, monitor.seconds, monitor._began, monitor._ended = 1.0, 2.0, 1.0, 0.0
    for trained, affordable in ((79.0, False), (81.0, True)):
        clock = monitor._began + monitor.seconds + trained
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("refusaldir.callbacks.time.perf_counter", lambda clock=clock: clock)
            monitor.max_overhead = 0.05  # 2 s spent, 2 s to come: 4 s of 80
            assert monitor._affordable() is affordable


def test_a_run_that_goes_on_keeps_its_start_and_its_history(tmp_path, base_model, prompt_file):
    whole = make(base_model, tmp_path / "whole", max_steps=8)
    wanted = watch(whole, prompt_file)
    whole.train()

    part = make(base_model, tmp_path / "part", max_steps=8, save_strategy="steps", save_steps=4)
    watch(part, prompt_file)
    part.add_callback(StopAt(5))
    part.train()
    again = make(base_model, tmp_path / "part", max_steps=8)
    found = watch(again, prompt_file)
    again.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-4"))
    assert [point.step for point in found.history] == [0, 2, 4, 6, 8]
    for ours, theirs in zip(found.history, wanted.history, strict=True):
        for name, estimate in theirs.figures().items():
            assert ours.figures()[name].value == pytest.approx(estimate.value, abs=1e-6)

    lost = make(base_model, tmp_path / "lost", max_steps=8)
    watch(lost, prompt_file)
    with pytest.raises(RefusaldirError, match=r"goes on from step 4.*base=CAPTURE"):
        lost.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-4"))


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_refusal_tokens_are_read_off_replies_and_may_be_absent(tmp_path, base_model, prompt_file):
    trainer = make(base_model, tmp_path, max_steps=1)
    monitor = watch(trainer, prompt_file, refusal_tokens=None)
    trainer.train()
    assert not monitor.monitor.tokens and monitor.monitor.tokens.note
    assert monitor.history[-1].harmful is None
    assert "refusal/score_harmful" not in trainer.state.log_history[-2]


def test_what_cannot_be_watched_is_said(tmp_path, base_model, prompt_file):
    trainer = make(base_model, tmp_path)
    for name in ("every", "max_overhead", "max_rotation", "max_score_drop"):
        with pytest.raises(RefusaldirError, match=f"{name} must be above 0"):
            RefusalDriftCallback(trainer, **{name: 0})
    with pytest.raises(RefusaldirError, match="nothing has been measured"):
        RefusalDriftCallback(trainer).document()

    trainer.processing_class = None
    watch(trainer, prompt_file)
    with pytest.raises(RefusaldirError, match="processing_class"):
        trainer.train()

    trainer = make(base_model, tmp_path)
    watch(trainer, prompt_file)
    trainer.is_fsdp_enabled = True
    with pytest.raises(RefusaldirError, match=r"spread over processes.*FSDP"):
        trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)

    trainer = make(base_model, tmp_path)
    trainer.model = get_peft_model(
        trainer.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    watch(trainer, prompt_file)
    with pytest.raises(RefusaldirError, match="part of the prompt"):
        trainer.train()


@pytest.mark.slow  # two processes import torch and transformers anew
def test_two_processes_stop_together(tmp_path, base_model, prompt_file):
    script = Path(__file__).with_name("two_processes.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*launch, script, base_model, prompt_file, tmp_path],
        check=True,
        capture_output=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    first, second = (
        json.loads((tmp_path / f"process-{i}.json").read_text("utf-8")) for i in range(2)
    )
    assert first["world"] == second["world"] == 2
    assert first["steps"] == second["steps"] == first["measured"][-1] < 12
    assert "past the limit" in first["stopped"]
    assert second["measured"] == [] and second["stopped"] == ""
    assert first["weights"] == second["weights"]
