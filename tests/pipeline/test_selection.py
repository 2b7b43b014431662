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


def run(model, prompts, **changed):
    settings = {
        "prompts": prompts,
        "positions": "-1,-2",
        "refusal_tokens": ["a", "i"],
        "filter_prompts": False,
        "kl": 1e9,
        "induce": -1e9,
        "depth": 1.0,
    }
    return rd.select(str(model), **{**settings, **changed})


def test_writes_the_direction_of_the_training_prompts(base_model, prompt_file):
    seen = []
    result = run(base_model, prompt_file, progress=lambda *step: seen.append(step))
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
    assert written["prompts"]["validation"]["harmful"] == {"given": 4, "kept": 4}
    assert len(written["selection"]["candidates"]) == 6
    assert {"select.png", "select.svg"} < set(result.files)
    assert "meets every criterion" in result.files["select.svg"].read_text()


def test_no_valid_direction_is_a_result_without_a_file(base_model, prompt_file):
    run(base_model, prompt_file, out="here")
    result = run(base_model, prompt_file, out="here", kl=1e-12, force=True)
    assert result.choice.chosen is None and result.choice.nearest.dropped == "KL"
    assert result.direction is None
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
            run(base_model, prompt_file, refusal_tokens=[text], filter_prompts=True)
        return
    kept = run(base_model, prompt_file, refusal_tokens=[text], filter_prompts=True).document
    assert [
        kept["prompts"][split][side]["kept"]
        for split in ("train", "validation")
        for side in ("harmless", "harmful")
    ] == left


def test_a_model_that_does_not_refuse_has_no_refusal_tokens(base_model, prompt_file):
    result = run(base_model, prompt_file, refusal_tokens=None, max_new_tokens=3)
    assert result.choice is None and result.document["selection"] is None
    assert "refusals" in result.document["refusal_tokens"]["note"]
    assert set(result.files) == {"responses.jsonl", "select.json"}


def test_prompts_without_splits_get_one_by_intent(base_model, tmp_path):
    for name, verb in (("bad", "wreck"), ("good", "paint")):
        lines = [f"How to {verb} the thing {i}?" for i in range(25)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    result = run(base_model, "contrast", harmful="bad.txt", harmless="good.txt")
    counts = result.document["prompts"]
    assert counts["train"]["harmful"]["given"] == 20
    assert counts["validation"]["harmless"]["given"] == 5
    assert "fifth" in result.document["split"]


def test_an_earlier_result_is_kept(base_model, prompt_file):
    run(base_model, prompt_file)
    with pytest.raises(OutputExistsError, match="holds a result already"):
        run(base_model, prompt_file)


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
