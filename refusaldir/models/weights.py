"""Safetensors on disk: which files a checkpoint has, whether they are whole, what they hash to.

Nothing here imports torch or reads a tensor into memory.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusaldir.errors import ModelLoadError, ModelSpecError
from refusaldir.models.cache import read_marker, sha256_file

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

#: Fields of a configuration that do not change what the model computes.
_VOLATILE = {
    "_name_or_path",
    "architectures",
    "auto_mapping",
    "base_model_name_or_path",
    "dtype",
    "inference_mode",
    "lora_dropout",
    "parent_library",
    "peft_version",
    "revision",
    "task_type",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor of a safetensors file, from the file's header.

    Attributes:
        dtype: As safetensors spells it, e.g. ``"BF16"``.
        shape: Length of every axis.
    """

    dtype: str
    shape: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelLoadError: The file is not one.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError("This file is not valid JSON", got=error, where=path) from error
    if not isinstance(data, dict):
        raise ModelLoadError("This file is not a JSON object", where=path)
    return data


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files that make up the model in a directory, in shard order.

    Raises:
        ModelSpecError: There are none, or only pickled ones.
        ModelLoadError: A shard that the index names is missing.
    """
    if (directory / _WEIGHTS).is_file():
        return (directory / _WEIGHTS,)
    if (directory / _INDEX).is_file():
        names = sorted(set(read_json(directory / _INDEX).get("weight_map", {}).values()))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing or not names:
            raise ModelLoadError(
                "The checkpoint is incomplete",
                expected=f"{len(names)} shards named in {_INDEX}",
                got=f"{len(names) - len(missing)}, without {', '.join(missing[:3])}",
                where=directory,
                next_step="Download or save it again",
            )
        return tuple(directory / name for name in names)
    raise ModelSpecError(
        "The model has no safetensors weights",
        expected=f"{_WEIGHTS} or {_INDEX}",
        got=_found(directory),
        where=directory,
        next_step="Pickled weights can run code when opened and are refused; convert them where "
        "you trust them: AutoModelForCausalLM.from_pretrained(PATH).save_pretrained(NEW_PATH)",
    )


def adapter_file(directory: Path) -> Path:
    """The safetensors file of the PEFT adapter in a directory.

    Raises:
        ModelSpecError: There is none, or only a pickled one.
    """
    if (directory / ADAPTER_WEIGHTS).is_file():
        return directory / ADAPTER_WEIGHTS
    raise ModelSpecError(
        "The adapter has no safetensors weights",
        expected=ADAPTER_WEIGHTS,
        got=_found(directory),
        where=directory,
        next_step="Pickled adapters can run code when opened and are refused; save it anew with "
        "peft_model.save_pretrained(NEW_PATH, safe_serialization=True)",
    )


def _found(directory: Path) -> str:
    """What weight files a directory has instead, in words."""
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in _PICKLES)
    if pickles:
        return f"only pickled files ({', '.join(pickles[:3])})"
    others = sorted(p.name for p in directory.glob("*.safetensors"))
    return f"only {', '.join(others[:3])}" if others else "no weight file"


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read the header of a safetensors file and check that the file is whole.

    Args:
        path: The file.

    Raises:
        ModelLoadError: The file is truncated or is not safetensors.
    """
    size = path.stat().st_size
    end = 0
    tensors: dict[str, TensorInfo] = {}
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError("no header")
            for name, entry in json.loads(file.read(length)).items():
                if name == "__metadata__":
                    continue
                tensors[name] = TensorInfo(dtype=entry["dtype"], shape=tuple(entry["shape"]))
                end = max(end, entry["data_offsets"][1])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(
            "This is not a safetensors file, or its start is damaged",
            got=f"{size} bytes",
            where=path,
            next_step="Download or save it again",
        ) from error
    if size != 8 + length + end:
        raise ModelLoadError(
            "This safetensors file is truncated or damaged",
            expected=f"{8 + length + end} bytes",
            got=f"{size} bytes",
            where=path,
            next_step="Download or save it again",
        )
    return tensors


def model_digest(directory: Path) -> str:
    """SHA-256 in hex of what decides a model's values: its weights and configuration.

    Equal for the same files under any path. A model converted from GGUF has the hash of the
    GGUF file.

    Raises:
        ModelSpecError: No safetensors weights.
        ModelLoadError: Damaged or missing files.
    """
    marker = read_marker(directory)
    if marker is not None:
        return _combine(["gguf", marker["source_sha256"]])
    files = [sha256_file(path) for path in weight_files(directory)]
    return _combine(["model", _config_digest(directory / MODEL_CONFIG), *sorted(files)])


def adapter_digest(directory: Path) -> str:
    """SHA-256 in hex of what decides an adapter's effect: its weights and configuration."""
    config = _config_digest(directory / ADAPTER_CONFIG)
    return _combine(["adapter", config, sha256_file(adapter_file(directory))])


def weights_hash(model: Path, adapters: Sequence[Path]) -> str:
    """One hash for a model with its adapters, whose order counts.

    Args:
        model: Directory of the model.
        adapters: Directories of the adapters, in order.

    Returns:
        SHA-256 in hex, of contents alone: the same under any path.
    """
    return _combine([model_digest(model), *(adapter_digest(path) for path in adapters)])


def _combine(digests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _config_digest(path: Path) -> str:
    config = {key: value for key, value in read_json(path).items() if key not in _VOLATILE}
    return _combine([json.dumps(config, sort_keys=True)])
