"""From a spec to a model in memory, its tokenizer, and an identity that does not need either.

Weights are loaded from safetensors only. A weight that is missing, of another shape, or left
over in a way that shows an unmerged adapter, is an error: a model with a random matrix in it
would give figures like any other.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from refusaldir.errors import ModelLoadError, ModelSpecError, RefusaldirError
from refusaldir.models.adapters import apply_adapters, stored_vocab_size
from refusaldir.models.config import (
    architecture_of,
    dtype_of,
    pick_device,
    read_config,
    text_config,
)
from refusaldir.models.options import LoadOptions
from refusaldir.models.quantization import keep_gradients, quantization_of, quantizing
from refusaldir.models.quiet import quiet
from refusaldir.models.resolve import Resolved, resolve
from refusaldir.models.spec import ModelSpec
from refusaldir.models.weights import weights_hash
from refusaldir.records import ModelIdentity

_log = logging.getLogger(__name__)
#: Value of `ModelIdentity.backend` before `refusaldir.models.bridge` has chosen one.
NO_BACKEND = "none"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in memory, adapters applied, not hooked yet.

    Attributes:
        hf: The Hugging Face model, in evaluation mode, without gradients on its weights.
        tokenizer: Its tokenizer: that of the last adapter that brings one, else the model's.
        identity: What was loaded; `ModelIdentity.backend` is still ``"none"``.
    """

    hf: PreTrainedModel
    tokenizer: Any
    identity: ModelIdentity


def identify(spec: ModelSpec | str, options: LoadOptions | None = None) -> ModelIdentity:
    """Say what a spec names without loading its weights into memory.

    Equal to the identity of the loaded model, so that captures can be found again. Files are
    downloaded if they are not there, and hashed once (see `refusaldir.models.cache`).

    Args:
        spec: What to open.
        options: How it would be loaded; the dtype depends on the device.

    Raises:
        ModelSpecError: It does not exist, cannot be reached, is not a chat model, or is stored in
            another quantisation than is asked for.
        ModelLoadError: Its files are damaged.
    """
    options = options or LoadOptions()
    return _identity(_resolve(spec, options), options)


def load_model(spec: ModelSpec | str, options: LoadOptions | None = None) -> LoadedModel:
    """Load a model with its adapters.

    Args:
        spec: What to open.
        options: How to load it.

    Raises:
        ModelSpecError: It does not exist, cannot be reached, is no chat model, or an adapter
            does not fit.
        ModelLoadError: Its files are damaged, weights are missing, or the device is not there.
        MissingExtraError: It is to be quantised, or is, and bitsandbytes is not installed.
    """
    options = options or LoadOptions()
    resolved = _resolve(spec, options)
    identity = _identity(resolved, options)
    with quiet():
        tokenizer = _tokenizer(resolved, options)
        hf = _weights(resolved, options)
        hf = apply_adapters(
            hf,
            list(zip(resolved.adapters, resolved.adapter_names, strict=True)),
            merge=identity.quantization is None,
        )
    hf.eval().requires_grad_(False)
    _check_vocabulary(tokenizer, hf, resolved)
    return LoadedModel(hf=hf, tokenizer=tokenizer, identity=identity)


def load_tokenizer(spec: ModelSpec | str, options: LoadOptions | None = None) -> Any:
    """Load the tokenizer that `load_model` would give, without any weights.

    Args:
        spec: What it belongs to.
        options: How the model would be loaded.

    Raises:
        ModelSpecError: The spec names nothing usable.
    """
    options = options or LoadOptions()
    resolved = _resolve(spec, options)
    with quiet():
        return _tokenizer(resolved, options)


def _resolve(spec: ModelSpec | str, options: LoadOptions) -> Resolved:
    return resolve(ModelSpec.parse(spec), trust_remote_code=options.trust_remote_code)


def _identity(resolved: Resolved, options: LoadOptions) -> ModelIdentity:
    config = read_config(resolved.model, options)
    text = text_config(config)
    vocab_size = text.vocab_size
    for adapter in resolved.adapters:
        vocab_size = stored_vocab_size(adapter) or vocab_size
    return ModelIdentity(
        spec=str(resolved.spec),
        name=resolved.spec.name,
        revision=resolved.spec.revision,
        adapters=resolved.adapter_names,
        weights_hash=weights_hash(resolved.model, resolved.adapters),
        architecture=architecture_of(config),
        n_layers=text.num_hidden_layers,
        d_model=text.hidden_size,
        vocab_size=vocab_size,
        dtype=str(dtype_of(resolved.model, config, options)).removeprefix("torch."),
        quantization=quantization_of(config, options),
        backend=NO_BACKEND,
    )


def _tokenizer_directory(resolved: Resolved) -> Path:
    files = ("tokenizer_config.json", "tokenizer.json")
    for path in reversed(resolved.adapters):
        if any((path / file).is_file() for file in files):
            return path
    return resolved.model


def _check_vocabulary(tokenizer: Any, hf: PreTrainedModel, resolved: Resolved) -> None:
    """Refuse an adapter whose tokenizer has new tokens without embeddings for them.

    A padding token is let pass: it is never looked up where padding is masked or on the right.
    """
    rows = hf.get_input_embeddings().weight.shape[0]
    if len(tokenizer) <= rows or _tokenizer_directory(resolved) == resolved.model:
        return
    new = {token: at for token, at in tokenizer.get_vocab().items() if at >= rows}
    new.pop(tokenizer.pad_token, None)
    if new:
        raise ModelSpecError(
            "The adapter's tokenizer has tokens that the model has no embeddings for",
            expected=f"at most {rows} tokens",
            got=f"{len(tokenizer)}, among them {min(new, key=new.__getitem__)!r}",
            where=resolved.spec,
            next_step="Save the resized embeddings with the fine-tune "
            "(PEFT: modules_to_save or save_embedding_layers)",
        )


def _tokenizer(resolved: Resolved, options: LoadOptions) -> Any:
    """The tokenizer of the last adapter that has one, else the model's."""
    from transformers import AutoTokenizer

    directory = _tokenizer_directory(resolved)
    try:
        return AutoTokenizer.from_pretrained(
            str(directory), trust_remote_code=options.trust_remote_code
        )
    except Exception as error:
        raise ModelLoadError(
            "The tokenizer cannot be loaded",
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            where=directory,
            next_step="Save it beside the model: tokenizer.save_pretrained(PATH)",
        ) from error


def _weights(resolved: Resolved, options: LoadOptions) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    config = read_config(resolved.model, options)
    dtype = dtype_of(resolved.model, config, options)
    arguments = _placement(options) | quantizing(config, options, dtype)
    try:
        hf, info = AutoModelForCausalLM.from_pretrained(
            str(resolved.model),
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=options.trust_remote_code,
            output_loading_info=True,
            **arguments,
        )
    except RefusaldirError:
        raise
    except Exception as error:
        raise ModelLoadError(
            "The model cannot be loaded",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            where=resolved.model,
        ) from error
    _check_complete(info, resolved.model, text_config(config).num_hidden_layers)
    keep_gradients(hf)
    return hf


def _placement(options: LoadOptions) -> dict[str, Any]:
    """Arguments that say where the weights go."""
    if options.device_map is not None:
        return {"device_map": options.device_map}
    device = pick_device(options)
    return {} if device.type == "cpu" else {"device_map": {"": device}}


def _check_complete(info: Mapping[str, Any], directory: Path, n_layers: int) -> None:
    """Raise for weights that transformers would fill in at random or leave out."""
    mismatched = [str(entry[0]) for entry in info["mismatched_keys"]]
    for what, keys in (
        ("The checkpoint lacks weights of the model", sorted(info["missing_keys"])),
        ("Weights of the checkpoint have another shape than the model's", sorted(mismatched)),
        ("Weights of the checkpoint have no place in the model", _telling(info, n_layers)),
    ):
        if keys:
            raise ModelLoadError(
                what,
                got=", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if keys[3:] else ""),
                where=directory,
                next_step="The checkpoint belongs to another class of model, or was saved with an "
                "adapter unmerged; save it anew from the class that trained it",
            )
    rest = sorted(info["unexpected_keys"])
    if rest:
        _log.warning("%s: %d tensors are not used: %s", directory, len(rest), ", ".join(rest[:3]))


def _telling(info: Mapping[str, Any], n_layers: int) -> list[str]:
    """Left-over weights that belong to an adapter or to one of the model's own blocks."""
    own = []
    for key in sorted(info["unexpected_keys"]):
        block = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", key)
        text = "vision" not in key and "audio" not in key
        if "lora_" in key or (block and text and int(block[1]) < n_layers):
            own.append(key)
    return own


def with_backend(loaded: LoadedModel, backend: str) -> ModelIdentity:
    """The identity of a loaded model once a backend hooks it."""
    return replace(loaded.identity, backend=backend)
