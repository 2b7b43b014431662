"""Models whose residual stream can be read and written.

`open_model` loads a spec and hooks it; `hook_model` hooks a model that is loaded already. Two
backends give the same tensors: TransformerLens (the default), and plain torch hooks where it
does not know the architecture.

When a model is hooked, a forward pass over a few tokens checks that what the hook points show
adds up: ``resid_pre + attn_out = resid_mid`` and ``resid_mid + mlp_out = resid_post`` in every
block. A hook point that does not is left out of ``hook_names``, so that a figure is missing
rather than wrong.
"""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from refusaldir.errors import ModelLoadError, ModelSpecError
from refusaldir.models.hooked import HookedCausalLM
from refusaldir.models.hookpoints import HookFn, TorchPoints
from refusaldir.models.lens import LensPoints, UnsupportedError
from refusaldir.models.load import LoadedModel, load_model
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.records import ModelIdentity

BACKENDS = ("auto", "transformer_lens", "torch_hooks")

_log = logging.getLogger(__name__)


@runtime_checkable
class HookedModel(Protocol):
    """A model with hook points on its residual stream.

    Attributes:
        identity: What it is.
        tokenizer: Its tokenizer.
        hf: The Hugging Face model; ``hf.generate`` runs under the hooks as well.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        device: Where token ids must be.
        max_length: Longest sequence the model was made for, in tokens.
        hook_names: Hook points it has, from `refusaldir.records.HOOKS`, in that order.
    """

    identity: ModelIdentity
    tokenizer: Any
    hf: PreTrainedModel
    n_layers: int
    d_model: int
    device: torch.device
    max_length: int
    hook_names: tuple[str, ...]

    def hooked(self, hooks: Mapping[tuple[str, int], HookFn]) -> AbstractContextManager[None]:
        """Call functions at hook points, see `refusaldir.models.hooked.HookedCausalLM.hooked`."""
        ...

    def run(
        self,
        input_ids: Int[Tensor, "batch seq"],
        *,
        past_key_values: Any = None,
        use_cache: bool = False,
        attention_mask: Int[Tensor, "batch past_and_seq"] | None = None,
        position_ids: Int[Tensor, "batch_or_1 seq"] | None = None,
        stop_after: tuple[str, int] | None = None,
    ) -> Any:
        """Run the blocks, see `refusaldir.models.hooked.HookedCausalLM.run`."""
        ...

    def logits(
        self,
        input_ids: Int[Tensor, "batch seq"],
        *,
        past_key_values: Any = None,
        use_cache: bool = False,
        attention_mask: Int[Tensor, "batch past_and_seq"] | None = None,
        position_ids: Int[Tensor, "batch_or_1 seq"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch vocab"]:
        """Logits after the last token, see `refusaldir.models.hooked.HookedCausalLM.logits`."""
        ...


def open_model(
    spec: ModelSpec | str, options: LoadOptions | None = None, *, backend: str = "auto"
) -> HookedModel:
    """Load a model and hook it.

    Args:
        spec: What to open, see `refusaldir.models.spec`.
        options: How to load it.
        backend: ``"auto"`` (TransformerLens where it knows the architecture, else torch hooks),
            ``"transformer_lens"`` or ``"torch_hooks"``.

    Raises:
        ModelSpecError: The spec names nothing usable, or the backend is unknown.
        ModelLoadError: The model cannot be loaded or hooked.
        MissingExtraError: Quantisation was asked for without bitsandbytes.
    """
    _check_backend(backend)
    return hook_model(load_model(spec, options), backend)


def hook_model(loaded: LoadedModel, backend: str = "auto") -> HookedModel:
    """Hook a loaded model.

    Args:
        loaded: The model. TransformerLens wraps its submodules in place: compare or save weights
            before.
        backend: See `open_model`.

    Raises:
        ModelSpecError: The backend is unknown.
        ModelLoadError: The model has no residual stream that can be hooked, or TransformerLens
            was asked for and does not know the architecture.
    """
    _check_backend(backend)
    native = HookedCausalLM(loaded, TorchPoints(loaded.hf))
    if backend == "torch_hooks":
        return native
    try:
        return _bridged(loaded, native, backend)
    except UnsupportedError as error:
        if backend == "auto":
            _log.info("%s; falling back to torch hooks", error)
            return native
        raise ModelLoadError(
            "TransformerLens cannot hook this model",
            got=error,
            where=loaded.identity.name,
            next_step="Leave the backend at auto, or choose torch_hooks",
        ) from error


def _bridged(loaded: LoadedModel, native: HookedCausalLM, backend: str) -> HookedCausalLM:
    """Hook with TransformerLens, and undo it where torch hooks do better.

    Raises:
        UnsupportedError: TransformerLens does not know the model, changes what it computes, or
            (for ``"auto"``) finds fewer hook points in it. The model is as it was.
    """
    points = LensPoints(loaded.hf)
    try:
        bridged = HookedCausalLM(loaded, points)
    except Exception as error:
        points.unwrap()
        raise UnsupportedError(f"transformer_lens: {type(error).__name__}: {error}") from error
    reason = None
    if not torch.allclose(bridged.sample.float(), native.sample.float(), rtol=1e-3, atol=1e-5):
        reason = "the bridged model computes something else"
    elif backend == "auto" and set(bridged.hook_names) < set(native.hook_names):
        reason = f"only {', '.join(bridged.hook_names)} through transformer_lens"
    if reason is not None:
        points.unwrap()
        raise UnsupportedError(reason)
    return bridged


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ModelSpecError(
            "Unknown backend", expected=" | ".join(BACKENDS), got=repr(backend), where="backend"
        )
