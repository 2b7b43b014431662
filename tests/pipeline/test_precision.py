"""Models in unlike precision: base captured once more, and what precision alone does."""

from pathlib import Path

import numpy as np
import pytest

import refusaldir as rd
from refusaldir.drift.compare import compare
from refusaldir.errors import CaptureMismatchError
from refusaldir.models.options import LoadOptions

LOW = LoadOptions(dtype="bfloat16", device="cpu")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFUSALDIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def captures(base_model, tuned_model, prompt_file):
    """Base in float32 and tuned in bfloat16."""
    asked = {"prompts": prompt_file, "hooks": ["resid_post"]}
    base = rd.extract(str(base_model), out="base.h5", **asked)
    tuned = rd.extract(str(tuned_model), out="tuned.h5", options=LOW, **asked)
    return base.path, tuned.path


def test_unlike_precision_is_refused_with_the_way_out(captures):
    with pytest.raises(CaptureMismatchError) as caught:
        rd.diff(*captures, hook="resid_post")
    said = str(caught.value)
    assert "float32 as in base" in said and "bfloat16 in tuned" in said
    assert "--dtype" in said and "--allow-dtype-mismatch" in said


def test_like_is_compared_with_like(captures, base_model, prompt_file):
    result = rd.diff(*captures, hook="resid_post", allow_dtype_mismatch=True, out="d")
    document = result.document
    assert document["base"]["model"]["dtype"] == document["tuned"]["model"]["dtype"] == "bfloat16"
    (alike,) = Path("activations").glob("*.h5")  # in the store, beside base.h5
    with rd.Capture.open(alike) as low, rd.Capture.open(captures[1]) as tuned:
        expected = compare(low, tuned, hook="resid_post")
        assert expected.at_site.rotation.value == result.drift.at_site.rotation.value
        with rd.Capture.open(captures[0]) as own:
            alone = compare(
                own, low, hook="resid_post", site=expected.site.site, allow_dtype_mismatch=True
            ).at_site
    precision = document["precision"]
    assert (precision["base"], precision["tuned"]) == ("float32", "bfloat16")
    assert precision["like_with_like"]
    for name in ("rotation", "angle", "shrinkage"):
        assert precision[name] == getattr(alone, name).to_dict()
    assert precision["translation"]["harmful"] == alone.translation.harmful.to_dict()
    assert 0 <= precision["angle"]["value"] < 5 < result.drift.at_site.angle.value
    assert precision["sentence"] in document["verdict"]["certainty"]
    assert "Both models are compared in bfloat16" in precision["sentence"]

    from refusaldir.report.document import load_document

    assert load_document("d/diff.json") == document
    time = alike.stat().st_mtime_ns  # found again
    rd.diff(*captures, hook="resid_post", allow_dtype_mismatch=True, out="e")
    assert [p.stat().st_mtime_ns for p in Path("activations").glob("*.h5")] == [time]


def test_the_change_of_precision_itself_is_told_from_drift(base_model, prompt_file):
    """Known answer: one model in two precisions has no drift once like is compared with like."""
    asked = {"prompts": prompt_file, "hooks": ["resid_post"]}
    own = rd.extract(str(base_model), out="base.h5", **asked).path
    low = rd.extract(str(base_model), out="low.h5", options=LOW, **asked).path
    document = rd.diff(own, low, hook="resid_post", allow_dtype_mismatch=True).document
    row = next(
        r for r in document["drift"]["layers"] if r["layer"] == document["drift"]["site"]["layer"]
    )
    assert row["identical"] and row["angle"]["value"] == 0
    with rd.Capture.open(own) as one, rd.Capture.open(low) as two:
        layer = document["drift"]["site"]["layer"]
        pair = [c.read("resid_post", layer=layer) for c in (one, two)]
    assert np.abs(pair[0] - pair[1]).max() > 1e-4  # so precision did move them


def test_base_that_cannot_be_opened_is_compared_as_it_is_with_a_note(
    captures, make_model, base_model, prompt_file
):
    import shutil

    moved = make_model(like=base_model)
    own = rd.extract(
        str(moved), prompts=prompt_file, hooks=["resid_post"], out="moved.h5"
    ).path  # fmt: skip
    shutil.rmtree(moved)
    document = rd.diff(own, captures[1], hook="resid_post", allow_dtype_mismatch=True).document
    assert document["base"]["model"]["dtype"] == "float32"
    assert document["precision"]["like_with_like"] is False
    assert document["precision"]["rotation"] is None
    said = document["precision"]["sentence"]
    assert "part of any drift may be precision" in said and "no such file" in said.lower()
    assert said in document["verdict"]["certainty"]


def test_base_as_a_spec_is_captured_in_both_precisions(captures, base_model, prompt_file):
    seen = []
    document = rd.diff(
        str(base_model),
        captures[1],
        hook="resid_post",
        options=LoadOptions(device="cpu"),
        allow_dtype_mismatch=True,
        progress=lambda stage, done, total: seen.append(stage),
    ).document
    assert document["precision"]["like_with_like"]
    assert {"Capture base in bfloat16", "Capture base in float32"} <= set(seen)


def test_one_precision_has_nothing_to_tell_apart(base_model, tuned_model, prompt_file):
    document = rd.diff(
        str(base_model), str(tuned_model), prompts=prompt_file, behaviour="off", select="off",
        options=LOW, allow_dtype_mismatch=True,
    ).document  # fmt: skip
    assert document["precision"] is None
    assert document["base"]["model"]["dtype"] == "bfloat16"
