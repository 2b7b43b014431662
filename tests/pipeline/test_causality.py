"""`rd.diff` with a selected direction: the site it follows, and both directions in both models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from plain import PlainHooks

import refusaldir as rd
from refusaldir.report.document import load_document

OPEN = rd.Criteria(refusal_tokens=("a", "i"), filter_prompts=False, kl=1e9, induce=-1e9, depth=1.0)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFUSALDIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run(base, tuned, prompts, **changed):
    settings = {"prompts": prompts, "criteria": OPEN, "behaviour": "off"}
    return rd.diff(str(base), str(tuned), **{**settings, **changed})


def test_each_direction_in_each_model_against_plain_hooks(base_model, tuned_model, prompt_file):
    seen = []
    result = run(base_model, tuned_model, prompt_file, progress=lambda *step: seen.append(step[0]))
    assert list(dict.fromkeys(seen)) == [
        "Capture base",
        "Candidates",
        "Capture tuned",
        "Try directions in tuned",
        "Try directions in base",
        "Compare layers",
    ]
    causality = result.document["causality"]
    site = causality["selection"]["candidate"]["site"]
    assert {k: result.document["drift"]["site"][k] for k in site} == site
    assert "causes refusal" in result.document["drift"]["site"]["reason"]
    assert load_document(result.files["diff.json"]) == result.document

    from transformers import AutoModelForCausalLM

    from refusaldir.models.bridge import open_model
    from refusaldir.prompts.render import ChatRenderer

    tokenizer = open_model(str(base_model)).tokenizer
    tokens = [tokenizer.encode(t)[0] for t in ("a", "i")]
    prompts = rd.load_prompts(prompt_file)
    ids = ChatRenderer(tokenizer).render(prompts).ids
    y = np.asarray(prompts.labels)
    split = np.array([p.split for p in prompts])
    hf = {
        n: AutoModelForCausalLM.from_pretrained(p)
        for n, p in (("base", base_model), ("tuned", tuned_model))
    }

    def mean_score(name, label, **what):
        found = []
        with PlainHooks(hf[name], **what), torch.no_grad():
            for i in np.flatnonzero((split == "test") & (y == label)):
                p = hf[name](torch.tensor([ids[i]])).logits[0, -1].double().softmax(-1)
                found.append(
                    float((p[tokens].sum() + 1e-8).log() - (1 - p[tokens].sum() + 1e-8).log())
                )
        return np.mean(found)

    directions = {}
    for name in hf:
        with torch.no_grad():
            x = np.stack(
                [
                    hf[name](torch.tensor([row]), output_hidden_states=True)
                    .hidden_states[site["layer"]][0, site["position"]]
                    .numpy()
                    for row in ids
                ]
            )
        train = split == "train"
        directions[name] = torch.tensor(x[train & (y == 1)].mean(0) - x[train & (y == 0)].mean(0))
    for model in hf:
        part = causality["handles"][model]
        assert part["clean_harmful"]["value"] == pytest.approx(mean_score(model, 1), abs=1e-3)
        assert part["clean_harmless"]["value"] == pytest.approx(mean_score(model, 0), abs=1e-3)
        for name, r in directions.items():
            cell = part[f"{name}_direction"]
            ablated = mean_score(model, 1, ablate=[r / r.norm()])
            added = mean_score(model, 0, add=(site["layer"], r))
            assert cell["ablated"]["value"] == pytest.approx(ablated, abs=1e-3)
            assert cell["added"]["value"] == pytest.approx(added, abs=1e-3)
            assert cell["ablation_effect"]["value"] == pytest.approx(
                ablated - mean_score(model, 1), abs=1e-3
            )
    sentence = result.document["verdict"]["causality"][-1]
    assert "in tuned" in sentence
    assert not any(
        "does not show that this direction" in s for s in result.document["verdict"]["limits"]
    )


def test_captures_with_a_selection_beside_them_need_no_model(
    base_model, tuned_model, prompt_file, monkeypatch
):
    base = rd.extract(str(base_model), prompts=prompt_file, select=True, criteria=OPEN)
    tuned = rd.extract(str(tuned_model), prompts=prompt_file)
    from refusaldir.models import bridge

    monkeypatch.setattr(bridge, "open_model", None)
    result = rd.diff(base.path, tuned.path)
    causality = result.document["causality"]
    assert causality["selection"]["followed"] and causality["handles"] is None
    site = base.selected.direction.site
    assert result.drift.site.site == site
    assert any(
        "causes refusal in tuned" in sentence for sentence in result.document["verdict"]["limits"]
    )
    off = rd.diff(base.path, tuned.path, select="off", out="off")
    assert off.document["causality"] is None
    given = rd.diff(base.path, tuned.path, position=-2, out="given")
    assert given.document["causality"] is None and given.drift.site.site.position == -2


def test_without_a_valid_direction_the_nearest_is_followed_only_when_asked(
    base_model, tuned_model, prompt_file
):
    import dataclasses

    strict = dataclasses.replace(OPEN, kl=1e-12)
    plain = run(base_model, tuned_model, prompt_file, criteria=strict)
    causality = plain.document["causality"]
    assert not causality["selection"]["valid"] and not causality["selection"]["followed"]
    assert causality["handles"] is None
    assert "No valid direction" in plain.document["verdict"]["causality"][0]
    assert "separation" in plain.document["drift"]["site"]["reason"]
    asked = run(
        base_model, tuned_model, prompt_file, criteria=strict, follow_nearest=True, out="asked"
    )
    causality = asked.document["causality"]
    assert causality["selection"]["followed"] and causality["handles"] is not None
    assert "not valid (KL)" in asked.document["drift"]["site"]["reason"]


def test_too_few_prompts_end_the_selection_but_not_the_comparison(
    base_model, tuned_model, prompt_file
):
    import dataclasses

    picky = dataclasses.replace(OPEN, filter_prompts=True)
    result = run(base_model, tuned_model, prompt_file, criteria=picky)
    causality = result.document["causality"]
    assert causality["selection"] is None and "Too few" in causality["sentences"][0]
    assert result.document["drift"]["layers"]


def test_captures_get_a_selection_where_it_is_asked_for(base_model, tuned_model, prompt_file):
    base = rd.extract(str(base_model), prompts=prompt_file)
    result = rd.diff(base.path, str(tuned_model), select="on", criteria=OPEN)
    assert result.document["causality"]["handles"] is not None
    assert Path(result.document["causality"]["selection"]["folder"]).is_dir()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"select": "perhaps"}, "auto | on | off"),
        ({"select": "on", "hook": "mlp_out"}, "brings its own site"),
        ({"select": "on", "position": -1}, "brings its own site"),
    ],
)
def test_options_that_do_not_go_together(base_model, tuned_model, prompt_file, options, said):
    with pytest.raises(rd.RefusaldirError) as error:
        run(base_model, tuned_model, prompt_file, **options)
    assert said in str(error.value)
