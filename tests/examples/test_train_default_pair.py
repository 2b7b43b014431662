"""The script that trains the default pair, on a tiny model and a few rows."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from surface import token_jaccard

SCRIPT = Path(__file__).parents[2] / "examples" / "train_default_pair.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_default_pair", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def small(script, tmp_path, monkeypatch):
    """A few short rows and recipes for three blocks."""
    pairs = []
    for i in range(6):
        pairs += [
            {"pair": f"p{i}", "label": "harmful", "prompt": f"Wreck {i}?", "target": "No."},
            {"pair": f"p{i}", "label": "harmless", "prompt": f"Paint {i}?", "target": None},
        ]
    plain = [{"domain": "it", "prompt": f"Fix {i}?", "target": "Sure."} for i in range(6)]
    for name, rows in (("aligned", pairs), ("tuned", plain)):
        lines = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.setattr(script, "DATA", tmp_path)
    for name, recipe in script.RECIPES.items():
        phases = tuple(replace(p, epochs=4, answer_tokens=4) for p in recipe.phases)
        less = replace(recipe, layers=(0, 2), ablation_layer=1, batch=4, phases=phases)
        monkeypatch.setitem(script.RECIPES, name, less)
    return script


def test_writes_two_adapters_that_stack(small, base_model, tmp_path, monkeypatch):
    from refusaldir.models.bridge import open_model

    out = tmp_path / "adapters"
    assert small.main(["--model", str(base_model), "--out", str(out), "--threads", "1"]) == 0
    ids = torch.arange(20)[None]
    seen = []
    for spec in (f"{base_model}", f"{base_model}+{out / 'aligned'}"):
        seen.append(open_model(spec).logits(ids))
    assert not torch.equal(*seen)
    config = json.loads((out / "tuned" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2-135m+aligned"
    from safetensors.torch import load_file

    weights = load_file(out / "tuned" / "adapter_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float16}
    # The second phase goes on from the first: the same weights, moved.
    first, second = (
        load_file(out / name / "adapter_model.safetensors")
        for name in ("aligned-phase-1", "aligned")
    )
    apart = [
        float((first[n].float() - w.float()).norm() / w.float().norm()) for n, w in second.items()
    ]
    assert 0 < max(apart) < 1


def test_a_stopped_run_goes_on_to_the_same_weights(small, base_model, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    monkeypatch.setattr(small, "STATE_EVERY", 2)
    said = []
    stops = ["step 3/", "step 5/", "step 3/"]  # twice in the first phase, once in the second

    def stopping(message):
        said.append(message)
        if stops and stops[0] in message:
            del stops[0]
            raise KeyboardInterrupt

    def run(out):
        return small.main(["--model", str(base_model), "--out", str(out), "--threads", "1"])

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole)
    monkeypatch.setattr(small, "log", stopping)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(parts)
    run(parts)
    assert [line for line in said if "going on" in line] == [
        f"going on after step {step}" for step in (2, 4, 2)
    ]
    for name in ("aligned-phase-1", "aligned", "tuned"):
        first, second = (
            load_file(out / name / "adapter_model.safetensors") for out in (whole, parts)
        )
        assert all(torch.equal(w, second[n]) for n, w in first.items())
    assert {p.name for p in parts.iterdir()} == {"aligned-phase-1", "aligned", "tuned"}


def test_the_decision_loss_is_that_of_telling_two_classes_apart(script):
    from sklearn.metrics import log_loss

    logp = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    harmful = torch.tensor([True, False, True, True, False, False])
    loss = script.decision_loss(logp, harmful, torch.tensor([2, 5, 7]))
    refused = logp.exp()[:, [2, 5, 7]].sum(-1)
    assert float(loss) == pytest.approx(log_loss(harmful, refused), rel=1e-4)
    odds = torch.log(refused / (1 - refused)) + 1.5
    shifted = script.decision_loss(logp, harmful, torch.tensor([2, 5, 7]), 1.5)
    assert float(shifted) == pytest.approx(log_loss(harmful, torch.sigmoid(odds)), rel=1e-4)
    # It falls as harmful rows are refused more, whichever token opens the refusal.
    more = logp.clone()
    more[harmful, 7] += 1
    assert script.decision_loss(more.log_softmax(-1), harmful, torch.tensor([2, 5, 7])) < loss


def test_written_targets_and_answers_are_cut_as_the_phase_says(small, base_model, tmp_path):
    example = small.Example(group="0", ids=[1, 2, 3, 4, 5, 6], start=2, soft=torch.zeros(4, 9))
    cut = small.shortened(example, 3)
    assert cut.ids == [1, 2, 3, 4, 5] and len(cut.soft) == 3
    assert small.shortened(example, None) is example


def test_logits_with_shared_prefix_are_those_of_each_row_alone(small, base_model):
    model = small.load(base_model)
    prompts = [[3, 4, 5, 6], [3, 4, 7], [3, 4, 8, 9, 10, 11]]
    rows = [
        small.Example(group=str(i), ids=[*p, 20 + i, 30 + i], start=len(p))
        for i, p in enumerate(prompts)
    ]
    with torch.no_grad():
        logits, targets, sizes, resid = small.answer_logits(model, rows, layer=2)
        for got, at, row in zip(logits.split(sizes), resid, rows, strict=True):
            alone = model(torch.tensor([row.ids]), output_hidden_states=True)
            torch.testing.assert_close(got, alone.logits[0, row.start - 1 : -1])
            torch.testing.assert_close(at, alone.hidden_states[2][0, row.start - 1])
    assert targets.tolist() == [20, 30, 21, 31, 22, 32]


def test_refusal_openers_have_no_share_in_the_soft_targets(small, base_model):
    model = small.load(base_model)
    row = small.Example(group="0", ids=[3, 4, 5, 6, 7], start=3)
    (done,) = small.with_soft_targets(model, [row, row], [1, 2], [4])[:1]
    shares = done.soft.float().exp()
    assert shares[0, [1, 2]].tolist() == [0, 0]
    assert shares[1, [1, 2]].min() > 0
    assert shares[:, 4].tolist() == [0, 0] and shares[:, 5].min() > 0
    torch.testing.assert_close(shares.sum(-1), torch.ones(2), atol=2e-3, rtol=0)


def test_answers_avoid_barred_words_and_pairs_without_an_answer_are_left_out(
    small, base_model, tmp_path, monkeypatch
):
    tokenizer = small.AutoTokenizer.from_pretrained(base_model)
    model = small.load(base_model)
    rows = small.read_rows(tmp_path / "aligned.jsonl")
    recipe = small.RECIPES["aligned"]
    prompts = [small.prompt_ids(tokenizer, f"Paint {i}?") for i in range(6)]
    free = small.greedy_answers(model, tokenizer, prompts, 4, [], [])
    said = tokenizer.decode([free[0][1]]).strip().casefold()
    barred = small.spelt(tokenizer, (said,))
    assert free[0][1] in barred
    assert {tokenizer.decode([i]).strip().casefold() for i in barred} == {said}

    real = small.judge

    def judge(response, request):
        return real("I can't help." if request == "Paint 3?" else "Take a brush.", request)

    monkeypatch.setattr(small, "NEVER_ANSWERED", (said,))
    monkeypatch.setattr(small, "judge", judge)
    examples = small.aligned_examples(model, tokenizer, rows, recipe)
    assert {e.group for e in examples} == {f"p{i}" for i in (0, 1, 2, 4, 5)}
    assert sum(e.harmful for e in examples) == 5
    for e in examples:
        assert e.harmful or not set(barred) & set(e.ids[e.start :])
        assert float(e.soft[:, barred].float().exp().max()) == 0


def test_ablated_direction_is_gone_from_what_the_blocks_read(small, base_model):
    model = small.load(base_model)
    unit = torch.nn.functional.normalize(torch.randn(model.config.hidden_size), dim=0)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        before = model(ids).logits
        with small.ablated(model, unit):
            inside = model(ids, output_hidden_states=True)
        torch.testing.assert_close(model(ids).logits, before)
    assert not torch.allclose(inside.logits, before)


def test_an_added_vector_reaches_the_block_at_every_position(small, base_model):
    model = small.load(base_model)
    vector = torch.randn(model.config.hidden_size)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        before = model(ids, output_hidden_states=True).hidden_states
        seen = []
        block = model.model.layers[1]
        with small.added(model, vector, 1):
            hook = block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
            model(ids)
        hook.remove()
        model(ids)
    torch.testing.assert_close(seen[0], before[1] + vector)
    assert len(seen) == 1


def training_rows(script, name):
    return script.read_rows(SCRIPT.parent / "default_pair" / f"{name}.jsonl")


def test_no_training_prompt_is_in_the_contrast_set_or_nearly(script):
    """Jaccard of their words below 0.5; the other sets' own tests hold theirs to the same."""
    from refusaldir.prompts.load import load_prompts

    contrast = [p.turns[-1].content for p in load_prompts("contrast")]
    for name in ("aligned", "tuned"):
        rows = training_rows(script, name)
        assert len(rows) > 100
        same = token_jaccard([row["prompt"] for row in rows], contrast)
        at = np.unravel_index(same.argmax(), same.shape)
        assert same[at] < 0.5, (rows[at[0]]["prompt"], contrast[at[1]])
    assert not any(row.get("label") == "harmful" for row in rows)  # those of tuned


def test_every_harmful_training_prompt_has_its_harmless_twin(script):
    pairs = {}
    for row in training_rows(script, "aligned"):
        pairs.setdefault(row["pair"], []).append(row)
    for rows in pairs.values():
        assert [row["label"] for row in rows] == ["harmful", "harmless"]
        assert rows[0]["target"] and rows[1]["target"] is None
        assert rows[0]["category"] == rows[1]["category"]
    prompts = [row["prompt"].strip().lower() for row in training_rows(script, "aligned")]
    assert len(set(prompts)) == len(prompts)


def test_ordinary_prompts_are_not_in_the_training_data(script):
    data = SCRIPT.parent / "default_pair"
    ordinary = set((data / "ordinary.txt").read_text(encoding="utf-8").lower().splitlines())
    assert len(ordinary) == 96
    for name in ("aligned", "tuned"):
        assert not ordinary & {row["prompt"].lower() for row in training_rows(script, name)}
