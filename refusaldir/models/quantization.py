"""Weights in few bits: what a checkpoint holds, and what bitsandbytes is asked for.

In 4 bits (NF4) a matrix is stored as one of 16 levels a weight, times the largest magnitude of
its block of 64. In 8 bits (LLM.int8, Dettmers et al. 2022, arXiv 2208.07339) it is rounded by row,
and so are the activations that go into it, except in features that exceed 6 anywhere in the batch:
what a prompt gives in 8 bits therefore depends a little on the prompts beside it.
"""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from refusaldir.errors import MissingExtraError, ModelSpecError
from refusaldir.models.options import LoadOptions

# Where it is installed other libraries import it, and it then warns that an optional kernel is not
# there; it also says at every multiplication in eight bits that its input is cast.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quantization_of(config: Any, options: LoadOptions) -> str | None:
    """How the weights will be quantised once they are loaded.

    Args:
        config: The model's configuration.
        options: What was asked for.

    Returns:
        ``"4bit"`` or ``"8bit"`` by bitsandbytes, another method's name where the checkpoint is
        stored so (e.g. ``"gptq"``), or None.

    Raises:
        ModelSpecError: Another quantisation was asked for than the checkpoint is stored in.
    """
    stored = _stored(config)
    if None not in (stored, options.quantize) and stored != options.quantize:
        raise ModelSpecError(
            "The checkpoint is quantised already",
            expected=stored,
            got=options.quantize,
            where="quantize",
            next_step="Leave out --quantize, or open the checkpoint it was made from",
        )
    return stored or options.quantize


def quantizing(config: Any, options: LoadOptions, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` by which the weights become what `quantization_of` says.

    A checkpoint stored by bitsandbytes is told to compute in our dtype, as one quantised on
    loading does; its configuration is changed in place.

    Args:
        config: The model's configuration.
        options: What was asked for.
        dtype: Of everything that is not quantised.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    quantize, stored = quantization_of(config, options), _stored(config)
    if quantize not in ("4bit", "8bit"):
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(f"{quantize} loading", "quantize")
    if stored is not None:
        _entries(config)["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
        return {}
    from transformers import BitsAndBytesConfig

    if quantize == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    }


def keep_gradients(hf: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs that have bfloat16 units.

    Once repacked, at the first pass without gradients, a layer has no gradient any more, rounds
    to bfloat16 whatever the dtype, and cannot hold matrices that are no multiple of its blocks.
    """
    for module in hf.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def unrounded_inputs(hf: PreTrainedModel) -> Iterator[None]:
    """Multiply 8-bit weights by inputs as they are, not rounded to 8 bits, while it lasts.

    What is rounded has no gradient: a sum of slopes then misses part of a change.
    """
    replaced: list[nn.Module] = []
    try:
        for module in hf.modules() if getattr(hf, "is_loaded_in_8bit", False) else ():
            if type(module).__module__.startswith("bitsandbytes") and hasattr(module, "state"):
                module.forward = partial(_eight_bit, module)
                replaced.append(module)
        yield
    finally:
        for module in replaced:
            del module.forward


def _eight_bit(module: Any, x: Tensor) -> Tensor:
    if module.weight.CB is not None:
        module.init_8bit_state()
    weight = module.state.CB.to(x.dtype) * (module.state.SCB[:, None] / 127).to(x.dtype)
    return F.linear(x, weight, None if module.bias is None else module.bias.to(x.dtype))


def _stored(config: Any) -> str | None:
    """How the checkpoint itself is quantised."""
    entries = _entries(config)
    method = entries.get("quant_method")
    if method is None and not (entries.get("load_in_4bit") or entries.get("load_in_8bit")):
        return None
    if method not in (None, "bitsandbytes"):
        return str(getattr(method, "value", method))
    return "4bit" if entries.get("load_in_4bit") else "8bit"


def _entries(config: Any) -> dict[str, Any]:
    found = getattr(config, "quantization_config", None)
    return found if isinstance(found, dict) else {}
