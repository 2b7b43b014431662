"""PEFT adapters: merged into the weights one after the other, and never silently ignored.

PEFT itself warns about adapter weights that found no place and goes on; here a weight that is
missing, left over or of another shape is an error that names the adapter and the module.

On a quantised base nothing is merged, because the sum would be quantised anew: the adapters stay
active beside the quantised weights.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from refusaldir.errors import ModelSpecError
from refusaldir.models.weights import (
    ADAPTER_CONFIG,
    TensorInfo,
    adapter_file,
    read_header,
    read_json,
)

_log = logging.getLogger(__name__)

_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<matrix>A|B|embedding_A|embedding_B)(\.weight)?")
_PROMPT_LEARNING = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"}
_EMBEDDINGS = re.compile(
    r"(^|\.)(embed_tokens|embed_in|wte|lm_head|embed_out)(\.base_layer)?\.weight$"
)


def apply_adapters(
    hf: PreTrainedModel, adapters: Sequence[tuple[Path, str]], *, merge: bool
) -> PreTrainedModel:
    """Stack adapters on a model, in order.

    Args:
        hf: The model; changed in place.
        adapters: Directory and display name of each.
        merge: Whether to merge each into the weights before the next is loaded; else all stay
            active side by side.

    Returns:
        The model, without a PEFT wrapper around it.

    Raises:
        ModelSpecError: An adapter does not fit the model, or cannot be applied this way.
    """
    if merge:
        for directory, name in adapters:
            hf = _merge(hf, directory, name)
    elif adapters:
        hf = _activate(hf, adapters)
    return hf


def stored_vocab_size(directory: Path) -> int | None:
    """Rows of the embedding matrices that an adapter brings along, or None if it has none."""
    header = read_header(adapter_file(directory))
    for key, info in header.items():
        if _EMBEDDINGS.search(key) and "lora_" not in key and len(info.shape) == 2:
            return info.shape[0]
    return None


def _merge(hf: PreTrainedModel, directory: Path, name: str) -> PreTrainedModel:
    header = _prepare(hf, directory, name)
    peft_model = _load(hf, directory, name, header)
    _untie(hf)
    try:
        merged = peft_model.merge_and_unload(progressbar=False, safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise ModelSpecError(
            "The adapter cannot be merged into the model",
            got=_first_line(error),
            where=name,
            next_step="Merge it with PEFT and save a whole model",
        ) from error
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    return merged


def _activate(hf: PreTrainedModel, adapters: Sequence[tuple[Path, str]]) -> PreTrainedModel:
    """Leave adapters beside (quantised) weights."""
    if len(adapters) > 1:
        for directory, name in adapters:
            config = read_json(directory / ADAPTER_CONFIG)
            if config.get("peft_type") != "LORA" or config.get("use_dora"):
                raise ModelSpecError(
                    "Only plain LoRA adapters can be stacked on a quantised model",
                    got=config.get("peft_type"),
                    where=name,
                    next_step="Leave out the quantisation",
                )
    peft_model: Any = None
    names = [f"adapter_{index}" for index in range(len(adapters))]
    for key, (directory, name) in zip(names, adapters, strict=True):
        header = _prepare(hf, directory, name)
        peft_model = _load(hf, directory, name, header, key=key, into=peft_model)
    peft_model.base_model.set_adapter(names, inference_mode=True)
    return peft_model.get_base_model()


def _prepare(hf: PreTrainedModel, directory: Path, name: str) -> dict[str, TensorInfo]:
    """Refuse what cannot work, and resize the vocabulary if the adapter brings a larger one."""
    config = read_json(directory / ADAPTER_CONFIG)
    if config.get("peft_type") in _PROMPT_LEARNING:
        raise ModelSpecError(
            "Adapters that put learned tokens before the prompt have no weights to merge",
            expected="LoRA or another adapter of the model's weights",
            got=config.get("peft_type"),
            where=name,
        )
    _log.info("%s says that it belongs to %s", name, config.get("base_model_name_or_path"))
    header = read_header(adapter_file(directory))
    rows = stored_vocab_size(directory)
    if rows is not None and rows != hf.get_input_embeddings().weight.shape[0]:
        hf.resize_token_embeddings(rows, mean_resizing=False)
    return header


def _load(
    hf: PreTrainedModel,
    directory: Path,
    name: str,
    header: Mapping[str, TensorInfo],
    *,
    key: str = "default",
    into: Any = None,
) -> Any:
    """Put an adapter on the model and check that all its weights found their place."""
    from peft import PeftConfig, PeftModel

    before = _weight_shapes(hf)
    try:
        peft_model = into
        # On the meta device until loaded: no random numbers are drawn, nothing stays random.
        if peft_model is None:
            config = PeftConfig.from_pretrained(str(directory))
            config.inference_mode = True
            peft_model = PeftModel(hf, config, key, low_cpu_mem_usage=True)
        result = peft_model.load_adapter(
            str(directory),
            key,
            torch_device="cpu",
            low_cpu_mem_usage=True,
        )
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise _misfit(name, header, before, detail=_first_line(error)) from error
    if result.missing_keys or result.unexpected_keys:
        lacking, extra = sorted(result.missing_keys), sorted(result.unexpected_keys)
        detail = (
            f"no weights for {_module(lacking[0])}" if lacking else f"no place for {extra[0]}"
        ) + f" (and {len(lacking) + len(extra) - 1} more)" * (len(lacking) + len(extra) > 1)
        raise _misfit(name, header, before, detail=detail)
    return peft_model


def _misfit(
    name: str,
    header: Mapping[str, TensorInfo],
    before: Mapping[str, tuple[int, ...]],
    *,
    detail: str,
) -> ModelSpecError:
    """Say why an adapter does not fit, naming the first module that shows it."""
    expected: str | None = None
    got, where = detail, name
    for key, info in header.items():
        match = _LORA.fullmatch(key.removeprefix(_PREFIX))
        if match is None or len(info.shape) != 2:
            continue
        module, matrix = match["module"], match["matrix"]
        if module not in before:
            got = "no such module in the model"
        else:
            n_out, n_in = before[module][0], before[module][-1]
            size, have = {
                "A": (n_in, info.shape[1]),
                "B": (n_out, info.shape[0]),
                # An embedding's weight is [rows, width]; its adapter is [r, rows] x [width, r].
                "embedding_A": (n_out, info.shape[1]),
                "embedding_B": (n_in, info.shape[0]),
            }[matrix]
            if size == have:
                continue
            side = "output" if matrix in ("B", "embedding_B") else "input"
            expected, got = f"{side} size {size}", f"{have}, lora_{matrix} {list(info.shape)}"
        where = f"{name}, module {module}"
        break
    return ModelSpecError(
        "The adapter does not fit this model",
        expected=expected,
        got=got,
        where=where,
        next_step="It was trained on another base; its adapter_config.json names it",
    )


def _weight_shapes(hf: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """``(out, in)`` of every module with a weight matrix."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in hf.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear):  # a quantised one packs its weight
            shapes[name] = (module.out_features, module.in_features)
        elif isinstance(weight, torch.Tensor) and weight.ndim == 2:
            shape = tuple(weight.shape)
            # transformers' Conv1D keeps its weight transposed.
            shapes[name] = shape[::-1] if type(module).__name__ == "Conv1D" else shape
    return shapes


def _untie(hf: PreTrainedModel) -> None:
    """Give output and input embeddings weights of their own if either of them is adapted.

    Merging into a shared matrix would change both, and twice if both are adapted.
    """
    head: Any = hf.get_output_embeddings()
    embedding: Any = hf.get_input_embeddings()
    if not any(hasattr(module, "get_base_layer") for module in (head, embedding)):
        return
    head, embedding = _base_layer(head), _base_layer(embedding)
    if head is not None and embedding.weight is head.weight:
        own: Tensor = head.weight.detach().clone()
        head.weight = nn.Parameter(own, requires_grad=False)
        hf.config.tie_word_embeddings = False


def _base_layer(module: Any) -> Any:
    """The model's own layer under an adapted one."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _module(key: str) -> str:
    """The module's path within a parameter name of a PEFT model."""
    return re.sub(r"\.(lora_|modules_to_save).*", "", key.removeprefix(_PREFIX))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
