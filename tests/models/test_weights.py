import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from refusaldir.errors import ModelLoadError, ModelSpecError
from refusaldir.models import cache
from refusaldir.models.weights import (
    adapter_file,
    read_header,
    weight_files,
    weights_hash,
)


def test_header_agrees_with_safetensors(base: Path) -> None:
    header = read_header(base / "model.safetensors")
    tensors = load_file(base / "model.safetensors")
    assert {name: info.shape for name, info in header.items()} == {
        name: tuple(value.shape) for name, value in tensors.items()
    }


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated(base: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((base / "model.safetensors").read_bytes()[:keep])
    with pytest.raises(ModelLoadError, match=r"truncated|damaged") as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_too_long(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((base / "model.safetensors").read_bytes() + b"x")
    with pytest.raises(ModelLoadError, match="truncated or damaged"):
        read_header(path)


def test_shards(base: Path, tmp_path: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for index, part in enumerate((names[:3], names[3:]), start=1):
        file = f"model-{index:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, tmp_path / file)
        weight_map |= dict.fromkeys(part, file)
    index_file = tmp_path / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": weight_map}))
    assert [path.name for path in weight_files(tmp_path)] == sorted(set(weight_map.values()))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="without model-00002"):
        weight_files(tmp_path)


@pytest.mark.parametrize("find", [weight_files, adapter_file])
def test_pickles_are_refused(tmp_path: Path, find: object) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelSpecError, match=r"only pickled files \(pytorch_model.bin\)") as caught:
        find(tmp_path)  # type: ignore[operator]
    assert "save_pretrained" in str(caught.value)


class TestHash:
    def test_path_does_not_matter(self, base: Path, lora: Path, tmp_path: Path) -> None:
        moved, adapter = tmp_path / "elsewhere", tmp_path / "adapter"
        shutil.copytree(base, moved)
        shutil.copytree(lora, adapter)
        assert weights_hash(base, [lora]) == weights_hash(moved, [adapter])

    def test_what_changes_the_model_matters(
        self, tiny: SimpleNamespace, base: Path, lora: Path, tmp_path: Path
    ) -> None:
        other = tiny.save_adapter(
            tmp_path / "o", tiny.lora_tensors(tiny.hf(), ("q_proj",), seed=9), targets=("q_proj",)
        )
        louder = tmp_path / "louder"
        shutil.copytree(lora, louder)
        config = json.loads((louder / "adapter_config.json").read_text())
        (louder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 64}))
        rope = tmp_path / "rope"
        shutil.copytree(base, rope)
        config = json.loads((rope / "config.json").read_text())
        config["rope_parameters"]["rope_theta"] = 500.0
        (rope / "config.json").write_text(json.dumps(config))
        cases = [
            (base, []), (base, [lora]), (base, [other]), (base, [lora, other]),
            (base, [other, lora]), (base, [louder]), (rope, []),
        ]  # fmt: skip
        assert len({weights_hash(model, adapters) for model, adapters in cases}) == len(cases)

    def test_what_does_not_change_it_does_not(self, base: Path, lora: Path, tmp_path: Path) -> None:
        same = tmp_path / "same"
        shutil.copytree(lora, same)
        config = json.loads((same / "adapter_config.json").read_text())
        config |= {"base_model_name_or_path": "/gone", "peft_version": "9", "inference_mode": True}
        (same / "adapter_config.json").write_text(json.dumps(config))
        assert weights_hash(base, [same]) == weights_hash(base, [lora])

    def test_remembered_until_the_file_changes(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"one")
        first = cache.sha256_file(path)
        assert first == hashlib.sha256(b"one").hexdigest()
        (memo,) = (cache.cache_root() / "hashes").iterdir()
        memo.write_text(memo.read_text().replace(first, "remembered"))
        assert cache.sha256_file(path) == "remembered"
        path.write_bytes(b"two!")
        assert cache.sha256_file(path) == hashlib.sha256(b"two!").hexdigest()
        memo.write_text("not json")
        assert cache.sha256_file(path) == hashlib.sha256(b"two!").hexdigest()

    def test_a_cache_that_cannot_be_written_is_no_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_bytes(b"one")
        (tmp_path / "blocked").write_bytes(b"")
        first = cache.sha256_file(tmp_path / "file")
        monkeypatch.setenv("REFUSALDIR_CACHE", str(tmp_path / "blocked" / "cache"))
        assert cache.sha256_file(tmp_path / "file") == first


class TestBuildOnce:
    def test_built_once_and_whole(self) -> None:
        calls = []

        def build(target: Path) -> dict[str, str]:
            calls.append(target)
            (target / "weights").write_text("w")
            return {"source_sha256": "s"}

        first, second = cache.build_once("m", build), cache.build_once("m", build)
        assert first == second and len(calls) == 1
        assert sorted(p.name for p in first.iterdir()) == ["refusaldir.json", "weights"]

    def test_a_failed_build_leaves_nothing(self) -> None:
        def broken(target: Path) -> dict[str, str]:
            (target / "half").write_text("w")
            raise RuntimeError("power cut")

        with pytest.raises(RuntimeError):
            cache.build_once("m", broken)
        left = [p.name for p in (cache.cache_root() / "models").iterdir()]
        assert all(name.endswith(".lock") for name in left)
        assert cache.build_once("m", lambda _: {"source_sha256": "s"}).is_dir()

    def test_what_a_killed_process_left_is_removed(self) -> None:
        stale = cache.cache_root() / "models" / ".m-xyz"
        stale.mkdir(parents=True)
        (cache.cache_root() / "models" / "m").mkdir()
        done = cache.build_once("m", lambda _: {"source_sha256": "s"})
        assert not stale.exists() and cache.read_marker(done) == {"source_sha256": "s"}

    def test_unwritable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "blocked").write_bytes(b"")
        monkeypatch.setenv("REFUSALDIR_CACHE", str(tmp_path / "blocked" / "cache"))
        with pytest.raises(ModelLoadError, match="REFUSALDIR_CACHE"):
            cache.build_once("m", lambda _: {"source_sha256": "s"})


def test_default_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REFUSALDIR_CACHE")
    assert cache.cache_root().name == "refusaldir"
