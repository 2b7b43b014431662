import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from refusaldir.errors import MissingExtraError, ModelLoadError, ModelSpecError
from refusaldir.models import config as config_module
from refusaldir.models import embedded, resolve
from refusaldir.models.load import identify, load_model, load_tokenizer
from refusaldir.models.options import LoadOptions

Tokens = Callable[..., Tensor]


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def copy_of_base(base: Path, tmp_path: Path) -> Path:
    shutil.copytree(base, tmp_path / "copy")
    return tmp_path / "copy"


class TestLoading:
    def test_equal_to_transformers(self, base: Path, tokens: Tokens) -> None:
        loaded = load_model(str(base))
        expected = AutoModelForCausalLM.from_pretrained(base)
        assert torch.equal(loaded.hf(tokens()).logits, expected(tokens()).logits)
        assert not loaded.hf.training
        assert not any(p.requires_grad for p in loaded.hf.parameters())
        assert loaded.tokenizer("w7 w9")["input_ids"] == [7, 9]

    def test_identity(self, base: Path, lora: Path) -> None:
        spec = f"{base}+{lora}"
        identity = load_model(spec).identity
        assert identity == identify(spec)
        assert identity.spec == spec
        assert identity.name == "base+extra"
        assert identity.adapters == (str(lora),)
        assert (identity.architecture, identity.n_layers) == ("LlamaForCausalLM", 3)
        assert (identity.d_model, identity.vocab_size) == (32, 96)
        assert (identity.dtype, identity.backend) == ("float32", "none")
        assert identity.weights_hash != identify(str(base)).weights_hash

    @pytest.mark.parametrize(
        "architecture", ["gpt2", "gpt_neox", "gemma2", "gemma3_text", "qwen3_moe", "phi3"]
    )
    def test_identity_of_other_architectures(
        self, architecture: str, tiny: SimpleNamespace, tmp_path: Path
    ) -> None:
        hf = tiny.hf(architecture)
        spec = str(tiny.save_model(tmp_path / "m", hf))
        loaded = load_model(spec)
        assert loaded.identity == identify(spec)
        assert loaded.identity.architecture == type(hf).__name__ == type(loaded.hf).__name__
        assert (loaded.identity.n_layers, loaded.identity.d_model) == (3, 32)
        assert loaded.identity.vocab_size == hf.get_input_embeddings().weight.shape[0]

    def test_the_checkpoint_dtype_is_used_on_an_accelerator(
        self, base: Path, tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        half = str(tiny.save_model(tmp_path / "half", tiny.hf().bfloat16()))
        assert identify(half).dtype == "float32"
        assert load_model(half, LoadOptions(dtype="bfloat16")).hf.dtype == torch.bfloat16
        monkeypatch.setattr(config_module, "pick_device", lambda _: torch.device("cuda:0"))
        assert identify(half).dtype == "bfloat16"
        assert identify(str(base)).dtype == "float32"
        edit_json(tmp_path / "half" / "config.json", dtype=None, torch_dtype=None)
        assert identify(half).dtype == "bfloat16"
        assert identify(half, LoadOptions(dtype="float32")).dtype == "float32"

    def test_tokenizer_alone(self, base: Path, lora: Path) -> None:
        spec = f"{base}+{lora}"
        assert load_tokenizer(spec).get_vocab() == load_model(spec).tokenizer.get_vocab()

    def test_silence(self, base: Path, lora: Path, capfd: pytest.CaptureFixture[str]) -> None:
        load_model(f"{base}+{lora}")
        assert capfd.readouterr() == ("", "")

    def test_device_map(self, base: Path, lora: Path, tokens: Tokens) -> None:
        expected = load_model(f"{base}+{lora}").hf(tokens()).logits
        for device_map in ({"": "cpu"}, "auto"):
            options = LoadOptions(device_map=device_map)
            if device_map == "auto" and torch.cuda.is_available():
                continue
            loaded = load_model(f"{base}+{lora}", options)
            torch.testing.assert_close(loaded.hf(tokens()).logits, expected)

    def test_relative_and_gone_paths(self, base: Path) -> None:
        Path("here").symlink_to(base)
        assert load_model("./here").identity.name == "here"
        assert load_model("here").identity.weights_hash == identify(str(base)).weights_hash


class TestBadModels:
    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("smolm2-135m", "no such model.*Did you mean smollm2-135m"),
            ("./nowhere", "no such file or directory"),
            ("nonsense", "bundled name.*Hub id of the form org/name"),
            ("/tmp", "holds no model"),
            ("smollm2-135m+nonsense", "no such model"),
        ],
    )
    def test_unknown(self, spec: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "embedded_model", lambda: Path("/tmp"))
        monkeypatch.setattr(resolve, "_check_model_directory", _only_for("/tmp", spec))
        with pytest.raises(ModelSpecError, match=message) as caught:
            identify(spec)
        assert "\n" not in str(caught.value)

    def test_directory_above_the_model(self, base: Path) -> None:
        with pytest.raises(ModelSpecError, match=f"Did you mean {base}"):
            identify(str(base.parent))

    def test_not_a_model_file(self, tmp_path: Path) -> None:
        (tmp_path / "m.safetensors").write_bytes(b"x")
        with pytest.raises(ModelSpecError, match="Give the directory"):
            identify(str(tmp_path / "m.safetensors"))

    def test_pickle_only(self, copy_of_base: Path) -> None:
        tensors = load_file(copy_of_base / "model.safetensors")
        torch.save(tensors, copy_of_base / "pytorch_model.bin")
        (copy_of_base / "model.safetensors").unlink()
        with pytest.raises(ModelSpecError, match=r"only pickled files.*save_pretrained"):
            load_model(str(copy_of_base))

    def test_truncated(self, copy_of_base: Path) -> None:
        path = copy_of_base / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        for function in (identify, load_model):
            with pytest.raises(ModelLoadError, match="truncated"):
                function(str(copy_of_base))

    def test_missing_weight(self, copy_of_base: Path) -> None:
        tensors = load_file(copy_of_base / "model.safetensors")
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, copy_of_base / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelLoadError, match=r"lacks weights.*layers.1.mlp.up_proj"):
            load_model(str(copy_of_base))

    def test_misshapen_weight(self, copy_of_base: Path) -> None:
        tensors = load_file(copy_of_base / "model.safetensors")
        key = "model.layers.1.mlp.up_proj.weight"
        tensors[key] = tensors[key][:5].contiguous()
        save_file(tensors, copy_of_base / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelLoadError):
            load_model(str(copy_of_base))

    def test_unmerged_adapter_in_the_checkpoint(self, copy_of_base: Path) -> None:
        tensors = load_file(copy_of_base / "model.safetensors")
        tensors["model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.ones(2, 32)
        save_file(tensors, copy_of_base / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelLoadError, match=r"no place in the model.*q_proj.lora_A"):
            load_model(str(copy_of_base))

    def test_harmless_extra_tensors_are_accepted(self, copy_of_base: Path, tokens: Tokens) -> None:
        expected = load_model(str(copy_of_base)).hf(tokens()).logits
        tensors = load_file(copy_of_base / "model.safetensors")
        tensors["value_head.weight"] = torch.ones(1, 32)
        save_file(tensors, copy_of_base / "model.safetensors", metadata={"format": "pt"})
        assert torch.equal(load_model(str(copy_of_base)).hf(tokens()).logits, expected)

    @pytest.mark.parametrize("family", ["bert", "t5", "classifier"])
    def test_not_a_chat_model(
        self, family: str, tiny: SimpleNamespace, base: Path, tmp_path: Path
    ) -> None:
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                 "intermediate_size": 32, "vocab_size": 96}  # fmt: skip
        if family == "bert":
            AutoModel.from_config(AutoConfig.for_model("bert", **sizes)).save_pretrained(tmp_path)
        elif family == "t5":
            small = AutoConfig.for_model("t5", d_model=32, num_layers=1, vocab_size=96, d_ff=32)
            AutoModelForSeq2SeqLM.from_config(small).save_pretrained(tmp_path)
        else:
            shutil.copytree(base, tmp_path, dirs_exist_ok=True)
            edit_json(tmp_path / "config.json", architectures=["LlamaForSequenceClassification"])
        with pytest.raises(ModelSpecError, match="not a chat model"):
            identify(str(tmp_path))

    def test_remote_code(self, copy_of_base: Path) -> None:
        edit_json(
            copy_of_base / "config.json",
            model_type="my_own",
            auto_map={"AutoConfig": "configuration.MyConfig"},
        )
        with pytest.raises(ModelSpecError, match="--trust-remote-code"):
            identify(str(copy_of_base))

    def test_unknown_architecture(self, copy_of_base: Path) -> None:
        edit_json(copy_of_base / "config.json", model_type="from_the_future")
        with pytest.raises(ModelSpecError, match="A newer transformers"):
            identify(str(copy_of_base))

    def test_config_is_not_json(self, copy_of_base: Path) -> None:
        (copy_of_base / "config.json").write_text("{")
        with pytest.raises(ModelLoadError, match="not valid JSON"):
            identify(str(copy_of_base))

    def test_no_tokenizer(self, tiny: SimpleNamespace, tmp_path: Path) -> None:
        tiny.save_model(tmp_path / "m", tokenizer=False)
        with pytest.raises(ModelLoadError, match="tokenizer cannot be loaded"):
            load_model(str(tmp_path / "m"))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
    @pytest.mark.parametrize("device", ["cuda", "cuda:3"])
    def test_no_such_device(self, base: Path, device: str) -> None:
        for function in (identify, load_model):
            with pytest.raises(ModelLoadError, match=f"expected cpu.*got {device}"):
                function(str(base), LoadOptions(device=device))

    def test_quantisation_needs_its_extra(
        self, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import importlib.util

        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda n: None if n == "bitsandbytes" else find(n)
        )
        with pytest.raises(MissingExtraError, match=r"refusaldir\[quantize\]"):
            load_model(str(base), LoadOptions(quantize="4bit"))


def _only_for(path: str, spec: str) -> Any:
    """The real check for the case that tests it, none for the others."""
    real = resolve._check_model_directory
    return real if spec == path else lambda directory: None


class TestHub:
    @pytest.mark.parametrize("spec", ["org/no-such-model", "org/repo/file.gguf", "org/m@v1"])
    def test_switched_off(self, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        started = time.monotonic()
        with pytest.raises(ModelSpecError, match="HF_HUB_OFFLINE is set") as caught:
            identify(spec)
        assert time.monotonic() - started < 5
        assert "\n" not in str(caught.value) and spec in str(caught.value)

    @pytest.mark.parametrize("spec", ["org/no-such-model", "org/repo/file.gguf"])
    def test_unreachable(self, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._without_network(monkeypatch)
        started = time.monotonic()
        with pytest.raises(ModelSpecError, match="the Hub cannot be reached") as caught:
            load_model(spec)
        assert time.monotonic() - started < 20
        assert "\n" not in str(caught.value)

    def test_adapter_unreachable(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._without_network(monkeypatch)
        with pytest.raises(ModelSpecError, match="org/lora"):
            load_model(f"{base}+org/lora")

    def test_downloads(
        self, base: Path, lora: Path, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is asked of the Hub, and that what it gives is opened."""
        import huggingface_hub

        asked = []

        def snapshot(repo: str, **options: Any) -> str:
            asked.append((repo, options["revision"], options["allow_patterns"]))
            return str(lora if "lora" in repo else base)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        identity = load_model("org/m@v1+org/lora@v2").identity
        assert identity.revision == "v1" and identity.adapters == ("org/lora@v2",)
        assert identity.weights_hash == identify(f"{base}+{lora}").weights_hash
        assert [(repo, revision) for repo, revision, _ in asked] == (
            [("org/m", "v1")] * 2 + [("org/lora", "v2")] * 2
        )
        patterns = [pattern for *_, patterns in asked for pattern in patterns]
        assert not any(p.endswith((".bin", ".py", ".pt")) for p in patterns)

    @staticmethod
    def _without_network(monkeypatch: pytest.MonkeyPatch) -> None:
        import socket

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", refuse)


class TestBundled:
    @pytest.fixture(autouse=True)
    def _fake(
        self, base: Path, tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = tmp_path / "data"
        for seed, (name, below) in enumerate(
            [("aligned", "smollm2-135m"), ("tuned", "smollm2-135m+aligned")]
        ):
            tensors = tiny.lora_tensors(tiny.hf(), ("q_proj", "down_proj"), seed=seed)
            tiny.save_adapter(data / name, tensors, base=below)
        monkeypatch.setattr(resolve, "BUNDLED_DATA", data)
        monkeypatch.setattr(embedded, "embedded_model", lambda: base)

    def test_names(self, base: Path) -> None:
        assert identify("smollm2-135m").weights_hash == identify(str(base)).weights_hash
        assert load_model("smollm2-135m+aligned").identity.name == "smollm2-135m+aligned"
        assert len({identify(f"smollm2-135m{x}").weights_hash
                    for x in ("", "+aligned", "+tuned", "+aligned+tuned")}) == 4  # fmt: skip

    def test_an_adapter_alone_brings_its_base(self) -> None:
        whole = load_model("smollm2-135m+aligned+tuned")
        alone = load_model("tuned")
        assert alone.identity.adapters == whole.identity.adapters == ("aligned", "tuned")
        assert alone.identity.weights_hash == whole.identity.weights_hash
        for one, other in zip(alone.hf.parameters(), whole.hf.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_names_are_reserved(self, lora: Path) -> None:
        """A directory of the same name does not change what a bundled name means."""
        expected = identify("smollm2-135m+aligned").weights_hash
        shutil.copytree(lora, "aligned")
        assert identify("smollm2-135m+aligned").weights_hash == expected
        assert identify("smollm2-135m+./aligned").weights_hash != expected

    def test_lacking(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(resolve, "BUNDLED_DATA", tmp_path / "nothing")
        with pytest.raises(ModelSpecError, match="lacks the bundled adapter"):
            identify("smollm2-135m+aligned")
