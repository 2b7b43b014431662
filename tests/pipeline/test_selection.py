"""`rd.select` on tiny models: what is written, filtered, and said when nothing works."""

import json

import numpy as np
import pytest
import torch

import refusaldir as rd
from refusaldir.directions.exchange import load_direction
from refusaldir.errors import OutputExistsError, PromptError


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFUSALDIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


OPEN = {
    "refusal_tokens": ("a", "i"),
    "filter_prompts": False,
    "kl": 1e9,
    "induce": -1e9,
    "depth": 1.0,
}


def run(model, prompts, *, options=None, **criteria):
    given = {"prompts": prompts, "positions": "-1,-2", **(options or {})}
    return rd.select(str(model), criteria=rd.Criteria(**{**OPEN, **criteria}), **given)


def test_writes_the_direction_of_the_training_prompts(base_model, prompt_file):
    seen = []
    result = run(base_model, prompt_file, options={"progress": lambda *step: seen.append(step)})
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == ["Capture", "Candidates"]
    direction = load_direction(result.files["direction.safetensors"])
    site = result.choice.chosen.site
    assert direction.site == site
    with rd.Capture.open(result.document["capture"]) as capture:
        x = capture.read("resid_pre", layer=site.layer)
        x = x[:, capture.positions.offsets.index(site.position)].astype(np.float64)
        train = np.array([p.split == "train" for p in capture.prompts])
        y = np.asarray(capture.labels)
        expected = x[train & (y == 1)].mean(0) - x[train & (y == 0)].mean(0)
        assert direction.provenance.fingerprint() == capture.provenance.fingerprint()
    np.testing.assert_allclose(direction.vector, expected, rtol=1e-6, atol=1e-7)
    assert (direction.n_harmful, direction.n_harmless) == (8, 8)
    written = json.loads(result.files["select.json"].read_text())
    assert written["selection"]["chosen"]["site"]["layer"] == site.layer
    assert written["prompts"]["validation"]["harmful"] == {
        "given": 4,
        "kept": 4,
        "used": 4,
    }
    assert len(written["selection"]["candidates"]) == 6
    assert {"select.png", "select.svg"} < set(result.files)
    assert "meets every criterion" in result.files["select.svg"].read_text()


def test_no_valid_direction_is_a_result_without_a_file(base_model, prompt_file):
    run(base_model, prompt_file, options={"out": "here"})
    result = run(base_model, prompt_file, options={"out": "here", "force": True}, kl=1e-12)
    assert result.choice.chosen is None and result.choice.nearest.dropped == "KL"
    assert result.direction is None
    near = load_direction(result.files["nearest-invalid.safetensors"])
    assert near.site == result.choice.nearest.site == result.nearest.site
    assert not (result.folder / "direction.safetensors").exists()  # nor that of the run before


def test_prompts_are_filtered_by_the_models_own_score(base_model, prompt_file):
    """Split by the median score into prompts kept and dropped, the counts are exact."""
    from refusaldir.models.bridge import open_model
    from refusaldir.prompts.render import ChatRenderer
    from refusaldir.refusal_score import refusal_scores

    model = open_model(str(base_model))
    prompts = rd.load_prompts(prompt_file)
    ids = ChatRenderer(model.tokenizer).render(prompts).ids
    tokens = np.argsort(-model.logits(torch.tensor([ids[0]]))[0].numpy())[:1]
    found = refusal_scores(model, ids, tokens.tolist())
    y = np.asarray(prompts.labels)
    good = (found > 0) == (y == 1)
    left = [
        int((good & (y == label) & np.array([p.split == split for p in prompts])).sum())
        for split in ("train", "validation")
        for label in (0, 1)
    ]
    text = model.tokenizer.decode(tokens)
    if min(left) < 4:
        with pytest.raises(PromptError, match=r"Too few .* are left.*--no-filter"):
            run(base_model, prompt_file, refusal_tokens=(text,), filter_prompts=True)
        return
    kept = run(base_model, prompt_file, refusal_tokens=(text,), filter_prompts=True).document
    assert [
        kept["prompts"][split][side]["kept"]
        for split in ("train", "validation")
        for side in ("harmless", "harmful")
    ] == left


def test_a_model_that_does_not_refuse_is_scored_by_cosmic(base_model, prompt_file):
    result = run(
        base_model, prompt_file, refusal_tokens=None, max_new_tokens=3, filter_prompts=True
    )
    assert "refusals" in result.document["refusal_tokens"]["note"]
    assert result.document["criterion"] == "cosmic" and not result.document["filtered"]
    assert result.choice.chosen.cosmic is not None and result.choice.chosen.bypass is None
    assert {"responses.jsonl", "select.json", "select.svg"} < set(result.files)
    text = result.files["select.svg"].read_text()
    assert "COSMIC" in text and "No refusal tokens were found" in text


def test_every_estimator_is_scored_and_the_first_decides(base_model, prompt_file):
    result = run(base_model, prompt_file, estimator="all")
    table = result.document["estimators"]
    assert list(table) == ["mean_diff", "lda", "logistic", "pca", "winsorised"]
    assert all(row["chosen"]["bypass"] is not None for row in table.values())
    assert result.direction.estimator == "mean_diff"
    assert len({row["chosen"]["bypass"] for row in table.values()}) > 1
    alone = run(base_model, prompt_file, estimator="lda", options={"force": True})
    assert alone.direction.estimator == "lda"
    assert alone.document["selection"]["chosen"]["bypass"] == pytest.approx(
        table["lda"]["chosen"]["bypass"], abs=1e-4
    )


def test_only_some_positions_are_searched(base_model, prompt_file):
    both = run(base_model, prompt_file, options={"out": "both"}, exhaustive=True).choice
    last = run(base_model, prompt_file, positions=(-1,), exhaustive=True)
    assert {c.site.position for c in last.choice.candidates} == {-1}
    expected = {c.site: c for c in both.candidates if c.site.position == -1}
    for c in last.choice.candidates:
        assert c.bypass == pytest.approx(expected[c.site].bypass, abs=1e-4)
    assert last.direction.site.position == -1
    assert [p["offset"] for p in last.document["positions"]] == [-1]
    with pytest.raises(rd.RefusaldirError, match=r"was not captured.*--at"):
        run(base_model, prompt_file, positions=(-1, -9), options={"out": "none"})


def test_at_most_so_many_validation_prompts(base_model, prompt_file):
    counts = [
        run(base_model, prompt_file, validation=n, options={"out": str(n)}).choice.n_harmful
        for n in (2, 3, 32)
    ]
    assert counts == [2, 3, 4]


@pytest.mark.parametrize("field", ["criterion", "estimator"])
def test_unknown_criteria_are_refused(field):
    with pytest.raises(rd.RefusaldirError, match=f"got nonsense.*|--{field}"):
        rd.Criteria(**{field: "nonsense"})


def test_check_counts_refusals_under_the_direction_and_under_chance(base_model, prompt_file):
    result = run(base_model, prompt_file, options={"check": 2})
    check = result.document["check"]
    assert check["held_out"] == "the set's test split"
    for side, change in (("harmful", "ablated"), ("harmless", "added")):
        part = check[side]
        assert len(part["random"]) == 2
        for cell in (part["clean"], part[change], *part["random"]):
            assert cell["refused"]["n"] + cell["left_out"] == 8
    made = sorted(path.name for path in result.folder.glob("check-*.jsonl"))
    assert len(made) == 2 * 4
    rows = [
        json.loads(line)
        for line in next(result.folder.glob("check-harmful-ablated-????????.jsonl"))
        .read_text()
        .splitlines()
    ]
    from refusaldir.hooks import Ablation, intervene
    from refusaldir.models.bridge import open_model
    from refusaldir.probes.generation.generate import generate
    from refusaldir.prompts.render import ChatRenderer

    # What was written is what the model says with the direction ablated, and not without.
    model = open_model(str(base_model))
    held = rd.load_prompts(prompt_file).select(split="test")
    held = [i for i, p in enumerate(held) if p.y == 1], held
    ids = [ChatRenderer(model.tokenizer).render(held[1]).ids[i] for i in held[0]]
    with intervene(model, Ablation.of(torch.from_numpy(result.direction.vector))):
        expected = generate(model, ids[:2], max_new_tokens=64)
    plain = generate(model, ids[:2], max_new_tokens=64)
    said = {row["id"]: row["response"] for row in rows if "response" in row}
    names = [held[1][i].id for i in held[0][:2]]
    assert [said[name] for name in names] == [r.text for r in sorted(expected, key=_index)]
    assert [said[name] for name in names] != [r.text for r in sorted(plain, key=_index)]


def _index(response):
    return response.index


def test_directions_by_category_share_a_subspace(base_model, tmp_path):
    lines = [
        {
            "id": f"{i}-{label}",
            "intent_id": f"i{i}",
            "label": label,
            "category": ("one", "two")[i % 2],
            "split": ("train", "train", "train", "validation")[i // 2 % 4],
            "turns": [{"role": "user", "content": f"How to {verb} the thing {i}?"}],
        }
        for i in range(40)
        for label, verb in (("harmful", "wreck"), ("harmless", "paint"))
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = run(base_model, "p.jsonl")
    found = result.document["categories"]
    assert found["directions"]["categories"] == ["one", "two"]
    axes, chosen = found["subspace"], result.document["selection"]["chosen"]
    assert 1 <= axes["k"] <= 2 and len(axes["basis"]) == axes["k"]
    # "wreck" and "paint" are what tells all of them apart: one direction, the one selected.
    assert axes["direction_inside"] > 0.99
    assert axes["bypass"] == pytest.approx(chosen["bypass"], abs=0.5)
    assert found["directions"]["effective_rank"]["value"] == pytest.approx(1, abs=0.2)


def test_extract_can_select_and_keeps_what_it_selected(base_model, prompt_file):
    criteria = rd.Criteria(**OPEN)
    first = rd.extract(
        str(base_model), prompts=prompt_file, out="b.h5", select=True, criteria=criteria
    )
    assert first.selected.folder == first.path.with_name("b-select")
    stamp = (first.selected.folder / "select.json").stat().st_mtime_ns
    seen = []
    again = rd.extract(
        str(base_model),
        prompts=prompt_file,
        out="b.h5",
        select=True,
        criteria=criteria,
        progress=lambda *step: seen.append(step),
    )
    assert again.reused and not seen
    assert (again.selected.folder / "select.json").stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(
        again.selected.direction.vector, first.selected.direction.vector.astype(np.float32)
    )
    other = rd.extract(
        str(base_model),
        prompts=prompt_file,
        out="b.h5",
        select=True,
        criteria=rd.Criteria(**{**OPEN, "kl": 1e-12}),
    )
    assert other.reused and other.selected.direction is None
    with pytest.raises(rd.RefusaldirError, match="resid_pre among the hooks"):
        rd.extract(str(base_model), prompts=prompt_file, hooks=("mlp_out",), select=True)


def test_prompts_without_splits_get_one_by_intent(base_model, tmp_path):
    for name, verb in (("bad", "wreck"), ("good", "paint")):
        lines = [f"How to {verb} the thing {i}?" for i in range(25)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    files = {"harmful": "bad.txt", "harmless": "good.txt"}
    result = run(base_model, "contrast", options=files, estimator="all")
    assert list(result.document["estimators_left_out"]) == ["pca"]  # nothing is paired
    assert "pca" not in result.document["estimators"] and "lda" in result.document["estimators"]
    counts = result.document["prompts"]
    assert counts["train"]["harmful"]["given"] == 20
    assert counts["validation"]["harmless"]["given"] == 5
    assert "fifth" in result.document["split"]


def test_an_earlier_result_is_kept(base_model, prompt_file):
    first = run(base_model, prompt_file)
    again = run(base_model, prompt_file)
    assert again.reused and not first.reused and again.document["check"] is None
    np.testing.assert_allclose(again.direction.vector, first.direction.vector, rtol=1e-6)
    with pytest.raises(OutputExistsError, match="holds a result already"):
        run(base_model, prompt_file, kl=3.0)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "safetensors"), (b"\x80\x04nonsense" * 9, "safetensors")],
)
def test_foreign_direction_files(tmp_path, content, said):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(rd.RefusaldirError, match=said):
        load_direction(path)


def test_another_safetensors_file_is_no_direction(tmp_path):
    from safetensors.numpy import save_file

    save_file({"direction": np.ones(3, dtype=np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(rd.RefusaldirError, match="another safetensors file"):
        load_direction(tmp_path / "x.safetensors")
    with pytest.raises(rd.RefusaldirError, match="can be read"):
        load_direction(tmp_path / "missing.safetensors")
