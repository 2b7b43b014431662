from dataclasses import replace
from pathlib import Path

import pytest

from refusaldir.store import default_path, default_store, find_capture


def test_store_is_the_option_then_the_environment_then_here(monkeypatch, tmp_path):
    monkeypatch.delenv("REFUSALDIR_STORE", raising=False)
    assert default_store() == Path("activations")
    monkeypatch.setenv("REFUSALDIR_STORE", "")
    assert default_store() == Path("activations")
    monkeypatch.setenv("REFUSALDIR_STORE", str(tmp_path))
    assert default_store() == tmp_path
    assert default_store("elsewhere") == Path("elsewhere")
    assert default_store("~/x") == Path.home() / "x"


def test_default_path_names_the_model_and_the_fingerprint(case):
    fingerprint = case.provenance.fingerprint()
    assert default_path(case.provenance, "s") == Path("s") / f"tiny-{fingerprint}.h5"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/My Model:v1", "org-My-Model-v1"),
        ("../../etc", "etc"),
        ("模型", "model"),
        ("", "model"),
    ],
)
def test_default_path_stays_in_the_store_whatever_the_name(case, name, expected):
    provenance = replace(case.provenance, model=replace(case.provenance.model, name=name))
    path = default_path(provenance, "s")
    assert path == Path("s") / f"{expected}-{provenance.fingerprint()}.h5"
    assert path.parent == Path("s")


def test_find_capture_by_fingerprint_whatever_the_file_name(case, new_case, tmp_path):
    fingerprint = case.provenance.fingerprint()
    assert find_capture(tmp_path / "none", fingerprint) is None
    (tmp_path / f"decoy-{fingerprint}.h5").write_bytes(b"not HDF5")
    assert find_capture(tmp_path, fingerprint) is None
    new_case(weights="other").write(tmp_path / "other.h5")
    assert find_capture(tmp_path, fingerprint) is None
    with case.writer(tmp_path / "zzz.h5") as writer:
        assert find_capture(tmp_path, fingerprint) is None
        writer.write(range(10), case.values)
        path = writer.finish()
    assert find_capture(tmp_path, fingerprint) == path
    assert find_capture(tmp_path, fingerprint, storage_dtype="float32") == path
    assert find_capture(tmp_path, fingerprint, storage_dtype="bfloat16") is None
    named = case.write(default_path(case.provenance, tmp_path))
    assert find_capture(tmp_path, fingerprint) == named
