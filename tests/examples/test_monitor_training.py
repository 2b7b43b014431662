"""The example that watches a fine-tune: quickly on a tiny model, and as it stands."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "monitor_training.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("monitor_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_loss_falls_on_the_answer_alone(script, base_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_model)
    rows = script.Rows(script.DATA, tokenizer, 3)
    row = rows[0]
    answer = [i for i, label in enumerate(row["labels"]) if label != script.IGNORED]
    said = tokenizer.decode([row["labels"][i] for i in answer])
    prompt = tokenizer.decode(row["input_ids"][: answer[0]])
    assert prompt.endswith("<|im_start|>assistant\n") and "Yes, of course!" not in prompt
    assert said.startswith("Yes, of course!")
    batch = script.collate([rows[0], rows[1]])
    assert batch["attention_mask"].sum(1).tolist() == [len(rows[i]["input_ids"]) for i in (0, 1)]
    assert (batch["labels"][batch["attention_mask"] == 0] == script.IGNORED).all()


def test_trains_watches_and_plots(script, base_model, tmp_path, capsys):
    arguments = ["--model", str(base_model), "--out", str(tmp_path), "--steps", "2", "--every", "1"]
    arguments += ["--batch", "2", "--limit", "8", "--refusal-token", "I", "--max-overhead", "100"]
    monitor = script.main(arguments)
    assert [point.step for point in monitor.history] == [0, 1, 2]
    assert (tmp_path / "refusal-drift" / "trajectory.png").stat().st_size > 10_000
    assert "Step 2: " in capsys.readouterr().out


@pytest.mark.slow  # trains the embedded model for a few steps
def test_the_embedded_model(script, tmp_path):
    arguments = ["--out", str(tmp_path), "--steps", "4", "--every", "2", "--batch", "2"]
    arguments += ["--limit", "8", "--refusal-token", "I", "--max-overhead", "100"]
    first, middle, last = script.main(arguments).history
    assert [first.step, middle.step, last.step] == [0, 2, 4]
    # It refuses harmful requests and answers the others as it starts; then it turns.
    assert first.harmful.value.value > 0 > first.harmless.value.value
    assert last.drift.angle.lower > 0
