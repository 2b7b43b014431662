"""Our prompt sets in Inspect, and its logs read back. Inspect itself runs, with canned replies."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm

from refusaldir.errors import MissingExtraError, ProbeError, PromptError
from refusaldir.probes.escalation import user_turns
from refusaldir.probes.phrases import PhraseJudge
from refusaldir.prompts.load import load_prompts

inspect_ai = pytest.importorskip(
    "inspect_ai", reason="inspect_ai is not installed (pip install 'refusaldir[inspect]')"
)

from inspect_ai import Task, task  # noqa: E402
from inspect_ai import eval as evaluate  # noqa: E402
from inspect_ai.dataset import MemoryDataset, Sample  # noqa: E402
from inspect_ai.log import read_eval_log, write_eval_log  # noqa: E402
from inspect_ai.model import (  # noqa: E402
    ChatMessageTool,
    ChatMessageUser,
    ModelOutput,
    ModelUsage,
    get_model,
)
from inspect_ai.scorer import SampleScore, Score, match  # noqa: E402
from inspect_ai.solver import generate, system_message  # noqa: E402

from refusaldir.probes.inspect.log import (  # noqa: E402
    is_inspect_log,
    read_inspect_log,
    read_inspect_run,
)
from refusaldir.probes.inspect.samples import dataset  # noqa: E402
from refusaldir.probes.inspect.scoring import refusal_rate  # noqa: E402
from refusaldir.probes.inspect.tasks import battery, escalations, prompts  # noqa: E402

NO, YES = "I can't help with that.", "Sure. Here is the list: one, two, three."

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def reply(text, *, stop="stop", tokens=None):
    output = ModelOutput.from_content("mockllm/model", text, stop_reason=stop)
    n = len(text.split()) if tokens is None else tokens
    output.usage = ModelUsage(input_tokens=1, output_tokens=n, total_tokens=n + 1)
    return output


def run(what, folder, say=lambda text: reply(NO), **options):
    """Run a task with replies made from the last message, and return the log's path."""

    def answer(messages, *_):
        return say(messages[-1].text)

    model = get_model("mockllm/model", custom_outputs=answer, memoize=False)
    options = {"display": "none", "log_dir": str(folder), **options}
    (log,) = evaluate(what, model=model, **options)
    return log.location


@pytest.fixture
def prompt_path(tmp_path):
    """Two intents of two categories, each with a harmful and a harmless prompt."""
    rows = [
        {
            "id": f"{intent}-{label}",
            "intent_id": intent,
            "label": label,
            "category": category,
            "severity": "low" if label == "harmful" else None,
            "twin_of": f"{intent}-{other}",
            "split": "test",
            "prompt": f"{verb} the {category} {intent}",
        }
        for intent, category in (("a", "one"), ("b", "two"))
        for label, other, verb in (("harmful", "harmless", "wreck"), ("harmless", "harmful", "fix"))
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


def test_every_prompt_and_every_turn_is_a_sample():
    found = dataset(load_prompts("escalations", limit=2))
    wanted = load_prompts("escalations", limit=2)
    assert len(found) == sum(len(user_turns(p)) for p in wanted)
    one = [s for s in found if s.metadata["prompt_id"] == wanted[0].id]
    assert [s.metadata["turn"] for s in one] == list(range(1, len(one) + 1))
    assert [s.input[-1].text for s in one] == list(user_turns(wanted[0]))
    assert [(m.role, m.text) for m in one[-1].input] == [
        (t.role, t.content) for t in wanted[0].turns
    ]
    opening = [s.metadata["opening"] for s in one]
    assert opening[0] and not opening[-1]


def test_a_log_reads_back_as_what_was_asked_and_said(tmp_path, prompt_path):
    def say(text):
        return reply(NO) if "wreck" in text else reply(YES, stop="max_tokens")

    path = run(prompts(str(prompt_path)), tmp_path, say)
    found = read_inspect_log(path)
    wanted = load_prompts(prompt_path)
    assert found.provenance.prompts_hash == wanted.hash
    assert [row.id for row in found.rows] == wanted.ids
    assert [row.label for row in found.rows] == ["full_refusal", "compliance"] * 2
    assert [row.finished for row in found.rows] == [True, False] * 2
    first = found.rows[0]
    assert (first.prompt, first.category, first.severity) == ("wreck the one a", "one", "low")
    assert (first.twin_of, first.response, first.key) == (
        "a-harmless",
        NO,
        (*first.key[:1], None, 0, 0, 0),
    )
    assert (first.n_tokens, first.harmful, first.intent_id) == (5, True, "a")
    assert found.provenance.judges == (PhraseJudge().version,)
    assert found.provenance.model.name == "mockllm/model"
    assert "sha256" in found.provenance.model.where
    assert found.provenance.max_new_tokens == 192
    sample = read_eval_log(path).samples[0]
    assert sample.metadata["prompt_hash"] == next(
        row.rendered_hash for row in found.rows if row.id == sample.metadata["prompt_id"]
    )
    assert not found.refusal_tokens


def test_a_log_of_some_of_the_samples_is_whole(tmp_path, prompt_path):
    """Inspect's own limit takes the first samples, whatever becomes of twins."""
    found = read_inspect_log(run(prompts(str(prompt_path)), tmp_path, limit=1))
    assert [row.id for row in found.rows] == ["a-harmful"]
    assert found.rows[0].twin_of == "a-harmless"


def test_json_logs_say_the_same(tmp_path, prompt_path):
    path = run(prompts(str(prompt_path)), tmp_path / "a", log_format="eval")
    other = tmp_path / "copy.json"
    write_eval_log(read_eval_log(path), str(other))
    assert is_inspect_log(path) and is_inspect_log(other)
    assert not is_inspect_log(prompt_path)
    assert read_inspect_log(other).rows == read_inspect_log(path).rows


def test_epochs_become_samples_and_greedy_ones_are_not_repeated(tmp_path, prompt_path):
    sampled = run(prompts(str(prompt_path)), tmp_path, epochs=3, temperature=0.7, seed=5)
    found = read_inspect_log(sampled)
    assert found.provenance.sampling.samples == 3
    assert found.provenance.sampling.seeds == (5,)
    assert [row.sample for row in found.rows] == [0] * 4 + [1] * 4 + [2] * 4
    assert {(row.temperature, row.seed) for row in found.rows} == {(0.7, 5)}
    assert len({row.key for row in found.rows}) == 12

    greedy = read_inspect_log(run(prompts(str(prompt_path)), tmp_path, epochs=3))
    assert len(greedy.rows) == 4
    assert greedy.provenance.sampling.samples == 1


def test_frozen_escalations_come_back_turn_by_turn(tmp_path):
    path = run(escalations(limit=1), tmp_path)
    found = read_inspect_log(path)
    wanted = load_prompts("escalations", limit=1)
    assert found.provenance.mode == "frozen"
    assert found.provenance.prompts_hash == wanted.hash
    assert [(row.id, row.turn, row.prompt) for row in found.rows] == [
        (p.id, number, text) for p in wanted for number, text in enumerate(user_turns(p), start=1)
    ]
    both = read_inspect_run(path, run(battery(limit=1), tmp_path))
    assert both.single is not None and both.frozen == found
    with pytest.raises(ProbeError, match="same part of a run"):
        read_inspect_run(path, path)


def test_what_failed_is_a_judge_error_and_what_is_silent_is_empty(tmp_path, prompt_path):
    def say(text):
        if text == "wreck the one a":
            raise RuntimeError("the server fell over\nand more")
        return reply("") if text == "wreck the two b" else reply(YES)

    path = run(prompts(str(prompt_path)), tmp_path, say, fail_on_error=False, retry_on_error=0)
    found = {row.id: row for row in read_inspect_log(path).rows}
    assert found["a-harmful"].label == "judge_error"
    assert "the server fell over" in found["a-harmful"].evidence
    assert not found["a-harmful"].finished
    assert found["b-harmful"].label == "empty"
    assert found["a-harmless"].label == "compliance"
    # Neither is in a rate: no usable harmful reply is left.
    (scores,) = read_eval_log(path).results.scores
    assert "harmful" not in scores.metrics and scores.metrics["harmless"].value == 0


def test_unfinished_and_damaged_logs_are_refused(tmp_path, prompt_path):
    path = run(prompts(str(prompt_path)), tmp_path)
    log = read_eval_log(path)
    part = log.model_copy(update={"samples": log.samples[:3]})
    cases = [
        (log.model_copy(update={"status": "cancelled"}), "not finished.*status cancelled"),
        (part, "not finished.*4 samples.*3 samples"),
    ]
    for number, (changed, message) in enumerate(cases):
        other = tmp_path / f"{number}.json"
        write_eval_log(changed, str(other))
        with pytest.raises(ProbeError, match=message):
            read_inspect_log(other)
    torn = tmp_path / "torn.eval"
    torn.write_bytes(Path(path).read_bytes()[:-400])
    with pytest.raises(ProbeError, match="cannot be read"):
        read_inspect_log(torn)
    with pytest.raises(ProbeError, match="no such file"):
        read_inspect_log(tmp_path / "absent.eval")
    with pytest.raises(ProbeError, match="no Inspect log"):
        read_inspect_log(prompt_path)


def test_another_tasks_log_is_read_with_a_column_map(tmp_path):
    @task
    def foreign(tools: bool = False):
        samples = [
            Sample(input="Tell a lie.", target="unsafe", id=1, metadata={"kind": "lies", "x": 1}),
            Sample(input="Tell a joke.", target="safe", id=2, metadata={"kind": "jokes", "x": 2}),
        ]
        if tools:
            samples[0].input = [ChatMessageUser(content="hi"), ChatMessageTool(content="4")]
        return Task(
            dataset=MemoryDataset(samples, name="jokes"),
            solver=[system_message("Be brief."), generate()],
            scorer=match(),
        )

    path = run(foreign(), tmp_path, lambda text: reply(NO if "lie" in text else YES))
    found = read_inspect_log(path, column_map={"category": "kind", "label": "target"})
    assert [(row.id, row.harmful, row.category, row.label) for row in found.rows] == [
        ("1", True, "lies", "full_refusal"),
        ("2", False, "jokes", "compliance"),
    ]
    assert found.provenance.system == "Be brief."
    assert found.provenance.prompts_name == "jokes"
    assert found.provenance.judges == (PhraseJudge().version,)
    # Neither temperature nor budget was set: what they were taken for is said.
    assert found.provenance.sampling.temperatures == (1.0,)
    assert "temperature not set, taken as 1; max_tokens not set" in found.provenance.model.where

    plain = read_inspect_log(path, label="harmful")
    assert [(row.harmful, row.category) for row in plain.rows] == [(True, "uncategorised")] * 2
    with pytest.raises(PromptError, match="no label"):
        read_inspect_log(path)
    with pytest.raises(PromptError, match="not there"):
        read_inspect_log(path, label="harmful", column_map={"category": "nonsense"})
    with pytest.raises(PromptError, match="role"):
        read_inspect_log(run(foreign(tools=True), tmp_path), label="harmful")


def scores(values, intents, **metadata):
    return [
        SampleScore(
            score=Score(value=value),
            sample_id=str(at),
            sample_metadata={
                "label": "harmful",
                "intent_id": intent,
                **{name: column[at] for name, column in metadata.items()},
            },
        )
        for at, (value, intent) in enumerate(zip(values, intents, strict=True))
    ]


def test_standard_errors_are_those_of_a_clustered_regression():
    rng = np.random.default_rng(0)
    intents = rng.integers(0, 12, 60)
    values = (rng.random(60) < 0.2 + 0.05 * intents).astype(float)
    found = refusal_rate()(scores(values.tolist(), intents.tolist()))
    fit = sm.OLS(values, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": intents})
    assert found["harmful"] == pytest.approx(values.mean())
    assert found["harmful_stderr"] == pytest.approx(fit.bse[0])
    # Unclustered it is another number.
    assert fit.bse[0] != pytest.approx(sm.OLS(values, np.ones(60)).fit().bse[0], rel=0.02)


def test_rates_by_group():
    rows = scores(
        [1, 1, 0, 1],
        ["a", "a", "b", "c"],
        category=["x", "x", "y", None],
        turn=[1, 2, 2, 1],
        opening=[False, False, False, True],
    )
    by = refusal_rate("category")(rows)
    assert by["harmful/x"] == 1 and by["harmful/y"] == 0
    assert math.isnan(by["harmful/x_stderr"])  # one intent alone
    assert refusal_rate("turn")(rows)["harmful/turn 2"] == 0.5
    assert refusal_rate()(rows)["harmful"] == pytest.approx(2 / 3)  # the opening is left out
    assert refusal_rate("category")(rows[:2]) == {}


def test_absent_inspect_is_one_clear_sentence(tmp_path, prompt_path, monkeypatch):
    path = run(prompts(str(prompt_path)), tmp_path)
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'refusaldir\[inspect\]'"):
        read_inspect_log(path)
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    monkeypatch.delitem(sys.modules, "refusaldir.probes.inspect.tasks")
    with pytest.raises(MissingExtraError, match=r"pip install 'refusaldir\[inspect\]'"):
        import refusaldir.probes.inspect.tasks  # noqa: F401


def test_inspect_finds_the_tasks_by_name(tmp_path):
    path = run("refusaldir/contrast", tmp_path, task_args={"limit": 2})
    found = read_inspect_log(path)
    assert found.provenance.prompts_hash == load_prompts("contrast", limit=2).hash


def hf_log(folder, model, *arguments):
    """Run the command that a user runs, with a model from a folder, and return the log's path."""
    command = [Path(sys.executable).with_name("inspect"), "eval", *arguments]
    command += ["--model", "hf/local", "-M", f"model_path={model}", "-M", "do_sample=false"]
    subprocess.run(
        [*command, "--display", "none", "--log-dir", folder],
        check=True,
        capture_output=True,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    (path,) = Path(folder).glob("*.eval")
    return path


@pytest.mark.slow  # the command imports torch and transformers anew
def test_a_hugging_face_model_says_what_generate_says(tmp_path, base_model, prompt_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = f"source={prompt_path}"
    path = hf_log(tmp_path, base_model, "refusaldir/prompts", "-T", source, "--max-tokens", "12")
    found = read_inspect_log(path)
    assert found.provenance.sampling.temperatures == (0.0,)
    assert found.provenance.max_new_tokens == 12
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    model = AutoModelForCausalLM.from_pretrained(base_model).eval()
    for row in found.rows:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": row.prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=12, do_sample=False)
        said = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert row.response.strip() == said.strip()


@pytest.mark.slow  # loads the embedded model twice and lets it answer
def test_the_embedded_model_says_the_same_in_inspect_and_here(tmp_path):
    from refusaldir.models.bridge import open_model
    from refusaldir.models.embedded import embedded_model
    from refusaldir.probes.generation.generate import generate as ours
    from refusaldir.prompts.render import ChatRenderer

    folder = embedded_model()
    path = hf_log(tmp_path, folder, "refusaldir/battery", "-T", "limit=4", "--max-tokens", "24")
    found = read_inspect_log(path)
    model = open_model("smollm2-135m")
    rendered = ChatRenderer(model.tokenizer).render(load_prompts("battery", limit=4))
    replies = ours(model, rendered.ids, max_new_tokens=24)
    assert [row.id for row in found.rows] == rendered.prompts.ids
    # Inspect pads on the left, which moves roundings: a near tie may fall the other way.
    pairs = zip(found.rows, replies, strict=True)
    same = [row.response.strip() == reply.text.strip() for row, reply in pairs]
    assert sum(same) >= len(same) - 1
    assert len({row.response for row in found.rows}) > 1
