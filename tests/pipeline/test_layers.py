"""`rd.which_layers` on tiny models: the changed layer is found, and all that is said of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import refusaldir as rd
from refusaldir.errors import (
    CaptureMismatchError,
    OutputExistsError,
    ProbeError,
    PromptError,
    RefusaldirError,
)
from refusaldir.pipeline.layer_prompts import outcome_prompts
from refusaldir.report.layers_document import load_layers


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFUSALDIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def pair(tmp_path_factory, base_model):
    """Base, and base with block 1 writing less of the token ``a`` into the head's reach."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("pushed")
    hf = AutoModelForCausalLM.from_pretrained(base_model)
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    away = hf.lm_head.weight[tokenizer.encode("a")[0]].detach()
    with torch.no_grad():
        block = hf.model.layers[1]
        # Every output of the block moves away from the token, whatever the prompt.
        matrix = block.self_attn.o_proj.weight
        unit = away / away.norm()
        matrix -= 1.5 * torch.outer(unit, unit @ matrix)
        block.mlp.down_proj.weight -= 1.5 * torch.outer(unit, unit @ block.mlp.down_proj.weight)
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(base_model), str(folder)


def run(pair, prompts, **changed):
    settings = {"prompts": prompts, "refusal_tokens": ("a",), "limit": None}
    return rd.which_layers(*pair, **{**settings, **changed})


def scores(model, prompts, rows):
    """Refusal scores by a forward pass of plain Hugging Face, prompt by prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from refusaldir.prompts.render import ChatRenderer

    hf = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    token = tokenizer.encode("a")[0]
    ids = ChatRenderer(tokenizer).render(prompts).ids
    found = []
    for row in rows:
        with torch.no_grad():
            logits = hf(input_ids=torch.tensor([ids[row]])).logits[0, -1].double()
        p = logits.softmax(-1)[token]
        found.append(float(torch.log(p + 1e-8) - torch.log(1 - p + 1e-8)))
    return np.array(found)


def test_full_mode_finds_the_block_that_changed(pair, prompt_file):
    seen = []
    result = run(
        pair, prompt_file, mode="full", heads=True, repair=True,
        progress=lambda *step: seen.append(step[0]),
    )  # fmt: skip
    assert list(dict.fromkeys(seen))[:2] == ["Open models", "Capture base"]
    assert {"Path attribution", "Transplant", "Residual stream", "Compare weights"} < set(seen)
    document = result.document
    assert load_layers(result.files["layers.json"]) == document
    assert {"layers.png", "layers.svg"} < set(result.files)
    prompts = rd.load_prompts(prompt_file)
    rows = [i for i, p in enumerate(prompts) if p.split == "test" and p.label == "harmful"]
    base, tuned = (scores(model, prompts, rows) for model in pair)
    change = document["change"]
    assert change["base"]["value"] == pytest.approx(base.mean(), rel=1e-4)
    assert change["change"]["value"] == pytest.approx((tuned - base).mean(), rel=1e-4)
    assert document["measured"]["changed"] == [1] and not document["measured"]["outside"]
    assert change["attributable"]
    (only,) = document["ranking"]["layers"]
    assert only["layer"] == 1 and only["disturbs"]
    assert only["share"]["value"] == pytest.approx(1, abs=1e-3)
    assert document["path"]["gap_relative"] < 1e-3
    for key in ("restored", "injected"):
        (cell,) = document["transplant"][key]
        assert cell["share"]["value"] == pytest.approx(1, abs=1e-4)
    fronts = [front["value"] for front in document["transplant"]["fronts"]]
    np.testing.assert_allclose(fronts, [0, 0, 1, 1], atol=1e-4)
    assert document["transplant"]["recovery_depth"] == 2
    assert document["repair"]["layers"] == [1] and document["repair"]["back"]
    assert "KL" in document["repair"]["cost"]["name"]
    assert document["residual"]["heads"]["terms"]
    names = {(m["layer"], m["name"]) for m in document["weights"]["matrices"]}
    assert names == {(1, "o_proj"), (1, "down_proj")}
    assert document["verdict"]["headline"].startswith("The fine-tune disturbed layer 1:")
    assert not any("one causal lens" in said for said in document["verdict"]["certainty"])


def test_fast_mode_leaves_transplants_out_and_reuses_the_capture(pair, prompt_file):
    first = run(pair, prompt_file)
    document = first.document
    assert document["transplant"] is None and document["repair"] is None
    assert document["residual"]["heads"] is None
    (capture,) = Path("activations").glob("*.h5")
    before = capture.stat().st_mtime_ns
    with pytest.raises(OutputExistsError, match="holds a result already"):
        run(pair, prompt_file)
    again = run(pair, prompt_file, force=True)
    assert capture.stat().st_mtime_ns == before
    for key in ("change", "ranking", "path"):
        assert again.document[key] == document[key]


def test_equal_models_have_no_change_to_attribute(base_model, prompt_file, tmp_path):
    """Negative control: base against itself."""
    result = run((str(base_model), str(base_model)), prompt_file, mode="full", repair=True)
    document = result.document
    assert document["ranking"] is None and document["repair"] is None
    assert document["measured"]["changed"] == []
    assert "the weights are equal" in document["verdict"]["headline"]


def test_an_adapter_is_attributed_without_a_second_copy(base_model, prompt_file, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(base_model)
    adapted = get_peft_model(
        hf, LoraConfig(r=2, target_modules=["o_proj", "down_proj"], layers_to_transform=[2])
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(tmp_path / "adapter")
    spec = f"{base_model}+{tmp_path / 'adapter'}"
    document = run((str(base_model), spec), prompt_file, mode="full").document
    assert document["measured"]["changed"] == [2]
    assert {m["layer"] for m in document["weights"]["matrices"]} == {2}
    effects = document["path"]["layers"][0]["effect"]["value"]
    assert effects == pytest.approx(document["change"]["change"]["value"], rel=2e-3)


def test_projection_at_a_site_of_the_users(pair, prompt_file):
    document = run(
        pair, prompt_file, outcome="projection", site="resid_pre.2@-1", mode="full",
        refusal_tokens=None,
    ).document  # fmt: skip
    assert document["site"]["layer"] == 2 and "as given" in document["site"]["reason"]
    assert document["refusal_tokens"] is None
    assert document["measured"]["unit"] == "residual norm"
    # What the projection gained is what block 1 writes: all lenses say the same.
    change = document["change"]["change"]["value"]
    terms = document["residual"]["terms"]
    written = sum(t["harmful"]["pointwise"]["value"] for t in terms if t["layer"] == 1)
    assert written == pytest.approx(change, rel=1e-3)
    assert document["path"]["layers"][0]["effect"]["value"] == pytest.approx(change, rel=1e-3)


def test_a_site_before_the_change_shows_no_change(pair, prompt_file):
    document = run(pair, prompt_file, outcome="projection", site="resid_pre.1@-1").document
    assert document["ranking"] is None
    assert document["change"]["change"]["value"] == 0
    assert "in both models" in document["verdict"]["headline"]


def test_the_refusal_rate_is_attributed_by_transplants_alone(pair, prompt_file):
    document = run(
        pair, prompt_file, outcome="rate", mode="full", max_new_tokens=2, refusal_tokens=None
    ).document
    assert document["path"] is None and document["measured"]["unit"] == "share"
    assert document["transplant"]["fronts"] == []
    assert document["ranking"] is None  # random weights refuse nothing


def test_the_judge_of_the_refusal_rate_reads_request_and_response(pair, prompt_file, monkeypatch):
    from refusaldir.probes import phrases

    asked = []
    judge = phrases.judge

    def listening(response, prompt=""):
        asked.append(prompt)
        return judge(response, prompt)

    monkeypatch.setattr(phrases, "judge", listening)
    run(pair, prompt_file, outcome="rate", mode="full", max_new_tokens=2, refusal_tokens=None)
    harmful = [p.text for p in rd.load_prompts(prompt_file) if p.label == "harmful"]
    assert asked and set(asked) <= set(harmful)


def test_a_direction_selected_in_base_is_followed(pair, prompt_file):
    criteria = rd.Criteria(
        refusal_tokens=("a",), filter_prompts=False, kl=1e9, induce=-1e9, depth=1.0
    )
    selected = rd.select(pair[0], prompts=prompt_file, criteria=criteria)
    document = run(pair, prompt_file, refusal_tokens=None).document
    site = selected.direction.site
    assert [document["site"][k] for k in ("hook", "layer", "position")] == [
        site.hook, site.layer, site.position,
    ]  # fmt: skip
    assert "causes refusal" in document["site"]["reason"]
    assert document["refusal_tokens"] == ["a"]


def test_a_category_and_sets_without_splits(pair, prompt_file, tmp_path):
    document = run(pair, prompt_file, limit=None, category=None).document
    assert document["prompts"]["which"] == "test split"
    assert document["measured"]["n_prompts"] == 8
    prompts = rd.load_prompts(prompt_file)
    bare = replace(prompts, prompts=tuple(replace(p, split=None) for p in prompts))
    document = run(pair, bare, category="one").document
    wanted = [p for p in prompts if p.label == "harmful" and p.category == "one"]
    assert document["measured"]["n_prompts"] == len(wanted)
    assert document["measured"]["subject"].endswith("of category one")
    labels = np.asarray(bare.labels)
    held = outcome_prompts(bare, range(20), None, held_out=True)
    assert set(held.harmful) == {i for i in range(20, 40) if labels[i] == 1}


def test_the_tasks_text_prices_the_repair(pair, prompt_file):
    Path("task.txt").write_text("paint the garden\n\nhow to paint a door\n", "utf-8")
    document = run(pair, prompt_file, repair=True, task_text="task.txt").document
    cost = document["repair"]["cost"]
    assert "loss" in cost["name"] and cost["tuned"]["n"] == 2
    assert cost["repaired"]["value"] == pytest.approx(cost["base"]["value"], rel=1e-5)


def test_no_direction_and_unreadable_weights_leave_their_lenses_out(pair, prompt_file, tmp_path):
    prompts = rd.load_prompts(prompt_file)
    turns = {p.intent_id: p.turns for p in prompts if p.label == "harmful"}
    # Both classes say the same, so no site separates them.
    same = replace(
        prompts,
        prompts=tuple(
            p if p.label == "harmful" else replace(p, turns=turns[p.intent_id]) for p in prompts
        ),
    )
    document = run(pair, same).document
    assert document["site"] is None and document["residual"] is None
    assert document["weights"] is None and "No direction" in document["notes"][0]
    assert document["ranking"]["layers"][0]["layer"] == 1


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"mode": "slow"}, RefusaldirError, "fast | full"),
        ({"outcome": "vibes"}, RefusaldirError, "score | projection | rate"),
        ({"outcome": "rate"}, ProbeError, "has no gradient"),
        ({"task_text": "x.txt"}, RefusaldirError, "--repair"),
        ({"task_text": "x.txt", "repair": True}, ProbeError, "cannot be read"),
        ({"category": "nine"}, PromptError, "one | three | two"),
        ({"category": "one"}, PromptError, "too few harmful prompts"),
        ({"site": "here"}, RefusaldirError, "HOOK.LAYER@POSITION"),
        ({"site": "resid_pre.9@-1"}, RefusaldirError, "no such layer"),
    ],
)
def test_mistakes_are_said_before_weights_are_loaded(pair, prompt_file, changed, error, says):
    with pytest.raises(error) as caught:
        run(pair, prompt_file, **changed)
    assert says in str(caught.value)
    assert not Path("activations").exists()


def test_another_template_is_refused(pair, make_model, prompt_file, other_template):
    other = make_model(template=other_template)
    with pytest.raises(CaptureMismatchError):
        run((pair[0], str(other)), prompt_file)


def test_a_model_without_refusals_needs_tokens(pair, prompt_file):
    with pytest.raises(ProbeError, match="no refusal tokens") as caught:
        run(pair, prompt_file, refusal_tokens=None)
    assert "--refusal-token" in str(caught.value)


def test_the_document_is_plain_json(pair, prompt_file):
    result = run(pair, prompt_file, out="here")
    assert json.loads((Path("here") / "layers.json").read_text("utf-8")) == result.document
