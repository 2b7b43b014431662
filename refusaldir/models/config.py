"""What a model's configuration says: architecture, sizes, dtype, and whether it can chat."""

import re
from pathlib import Path
from typing import Any

import torch

from refusaldir.errors import ModelLoadError, ModelSpecError
from refusaldir.models.options import LoadOptions
from refusaldir.models.quiet import quiet
from refusaldir.models.weights import MODEL_CONFIG, read_header, read_json, weight_files

_GENERATIVE = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)\w*$")


def pick_device(options: LoadOptions) -> torch.device:
    """The device that the options mean on this machine.

    Raises:
        ModelLoadError: It is not there.
    """
    wanted = options.device
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": 1}
    if not torch.backends.mps.is_available():
        there["mps"] = 0
    device = torch.device(wanted)
    if (device.index or 0) >= there[device.type]:
        available = ["cpu"] + ["mps"] * there["mps"]
        available += [f"cuda:{index}" for index in range(there["cuda"])]
        raise ModelLoadError(
            "This device is not available",
            expected=" | ".join(available),
            got=wanted,
            where="device",
        )
    return torch.device("cuda:0") if wanted == "cuda" else device


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the language model."""
    return config.get_text_config(decoder=True)


def read_config(directory: Path, options: LoadOptions) -> Any:
    """Read the configuration and refuse what is not a decoder that generates text."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    raw = read_json(directory / MODEL_CONFIG)
    if "auto_map" in raw and not options.trust_remote_code:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        if raw.get("model_type") not in CONFIG_MAPPING:
            raise ModelSpecError(
                "This model runs Python code from its own repository, which is off by default",
                where=directory,
                next_step="Read that code; if you trust it, pass --trust-remote-code",
            )
    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                str(directory), trust_remote_code=options.trust_remote_code
            )
    except Exception as error:
        raise ModelSpecError(
            "The model's configuration cannot be read",
            got=str(error).splitlines()[0],
            where=directory / MODEL_CONFIG,
            next_step="A newer transformers may know it",
        ) from error
    declared = raw.get("architectures") or []
    generative = not declared or any(_GENERATIVE.search(name) for name in declared)
    headless = bool(declared) and any(name.endswith("Model") for name in declared)
    mapped = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "auto_map" in raw
    encoder = getattr(config, "is_encoder_decoder", False)
    if not (generative or headless) or not mapped or encoder or _is_bidirectional(config):
        raise ModelSpecError(
            "This is not a chat model",
            expected="a decoder that generates text (…ForCausalLM)",
            got=", ".join(declared) or type(config).__name__,
            where=directory,
        )
    return config


def _is_bidirectional(config: Any) -> bool:
    """Whether an encoder family is configured as an encoder (its causal class exists too)."""
    return getattr(config, "is_decoder", None) is False and config.model_type in {
        "bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie", "data2vec-text",
        "megatron-bert", "rembert", "roformer", "roberta-prelayernorm", "xlm-roberta-xl", "xmod",
        "bert-generation",
    }  # fmt: skip


def architecture_of(config: Any) -> str:
    """Name of the class that a configuration is opened with."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        return str((found[0] if isinstance(found, tuple) else found).__name__)
    return str((config.architectures or [type(config).__name__])[0])


def dtype_of(directory: Path, config: Any, options: LoadOptions) -> torch.dtype:
    """The dtype to load in; see `LoadOptions.dtype`."""
    if options.dtype != "auto":
        return getattr(torch, options.dtype)  # type: ignore[no-any-return]
    if options.device_map is None and pick_device(options).type == "cpu":
        return torch.float32
    stated = getattr(text_config(config), "dtype", None) or getattr(config, "dtype", None)
    if isinstance(stated, torch.dtype) and stated.is_floating_point and stated.itemsize >= 2:
        return stated
    names = {"BF16": torch.bfloat16, "F16": torch.float16}
    first = next(iter(read_header(weight_files(directory)[0]).values()), None)
    return names.get(first.dtype if first else "", torch.float32)
