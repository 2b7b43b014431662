"""Forward passes over rendered prompts that keep the residual stream at chosen positions.

No logits, no layer after the last one asked for, the shared template prefix once; values equal
those of each prompt run alone. Batches are yielded as they come, so memory does not depend on
the number of prompts.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Num
from torch import Tensor
from transformers.cache_utils import DynamicCache

from refusaldir.batching import TokenBatch, run_batches
from refusaldir.errors import CaptureError
from refusaldir.models.bridge import HookedModel
from refusaldir.records import HOOKS, Positions


@dataclass(frozen=True, kw_only=True)
class CaptureBatch:
    """Activations of some prompts.

    Attributes:
        indices: Index of each prompt in the rendered set.
        values: Per hook an array ``[batch, layer, pos, d_model]``: float32, or for a bfloat16
            model its 16 bits as uint16.
    """

    indices: Int[np.ndarray, " batch"]
    values: dict[str, Num[np.ndarray, "batch layer pos d_model"]]


def check_hooks(
    model: HookedModel, hooks: Sequence[str], layers: Sequence[int] | None
) -> tuple[int, ...]:
    """Check hooks and layers against the model and return the layers, ascending.

    Raises:
        CaptureError: The model has no such hook point or layer.
    """
    unknown = [hook for hook in hooks if hook not in model.hook_names]
    if unknown or not hooks:
        raise CaptureError(
            "This model has no such hook point",
            expected=", ".join(model.hook_names),
            got=", ".join(unknown) or "none",
            where=model.identity.name,
        )
    chosen = tuple(range(model.n_layers)) if layers is None else tuple(sorted(set(layers)))
    wrong = [layer for layer in chosen if not 0 <= layer < model.n_layers]
    if wrong or not chosen:
        raise CaptureError(
            "This model has no such layer",
            expected=f"0 to {model.n_layers - 1}",
            got=", ".join(map(str, wrong)) or "none",
            where=model.identity.name,
        )
    return chosen


def capture(
    model: HookedModel,
    sequences: Sequence[Sequence[int]],
    *,
    hooks: Sequence[str] = ("resid_pre",),
    layers: Sequence[int] | None = None,
    positions: Positions,
    skip: Collection[int] = frozenset(),
    batch_size: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[CaptureBatch]:
    """Capture activations of every sequence at the given sites, batch by batch.

    Args:
        model: The model, its hooks native (see `refusaldir.models.bridge`).
        sequences: Token ids of every rendered prompt.
        hooks: Hook points, from `refusaldir.records.HOOKS`.
        layers: Block indices; None for all.
        positions: Offsets from the end of each prompt.
        skip: Indices that need not be run (already stored).
        batch_size: Rows a batch; None finds one by itself. Halved when memory runs out.
        on_batch: Called with the number of prompts after each batch (for a progress bar).

    Yields:
        `CaptureBatch`, in order of descending length.

    Raises:
        CaptureError: No such hook or layer, a prompt shorter than the positions reach, or a
            prompt that does not fit in memory by itself.
    """
    chosen = check_hooks(model, hooks, layers)
    stop_after = (max(hooks, key=HOOKS.index), chosen[-1])
    step = _CaptureStep(model, tuple(hooks), chosen, positions, stop_after)
    pending: tuple[TokenBatch, _OnItsWay] | None = None
    for batch, arriving in run_batches(
        model,
        sequences,
        step,
        tail=-positions.offsets[0],
        skip=skip,
        batch_size=batch_size,
        stop_after=stop_after,
    ):
        # One batch behind: on a GPU the copy of the last one overlaps with this one's compute.
        if pending is not None:
            yield _arrived(*pending, on_batch)
        pending = (batch, arriving)
        if model.device.type == "cpu":
            yield _arrived(*pending, on_batch)
            pending = None
    if pending is not None:
        yield _arrived(*pending, on_batch)


class _OnItsWay:
    """Activations on the way from the device to the host."""

    def __init__(self, buffers: dict[str, Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = buffers
        device = next(iter(buffers.values())).device
        if device.type == "cuda":
            self._host = {
                hook: torch.empty(b.shape, dtype=b.dtype, pin_memory=True).copy_(
                    b, non_blocking=True
                )
                for hook, b in buffers.items()
            }
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))
        elif device.type != "cpu":
            self._host = {hook: b.cpu() for hook, b in buffers.items()}

    def wait(self) -> dict[str, Any]:
        if self._event is not None:
            self._event.synchronize()
        return {hook: _as_array(value) for hook, value in self._host.items()}


def _as_array(value: Tensor) -> Any:
    if value.dtype == torch.bfloat16:
        return value.view(torch.uint16).numpy()
    return value.float().numpy()


def _arrived(
    batch: TokenBatch, arriving: _OnItsWay, on_batch: Callable[[int], None] | None
) -> CaptureBatch:
    values = arriving.wait()
    if on_batch is not None:
        on_batch(len(batch.indices))
    return CaptureBatch(indices=batch.indices, values=values)


class _CaptureStep:
    """One forward pass that gathers the chosen positions at every hook."""

    def __init__(
        self,
        model: HookedModel,
        hooks: tuple[str, ...],
        layers: tuple[int, ...],
        positions: Positions,
        stop_after: tuple[str, int],
    ) -> None:
        self.model, self.hooks, self.layers = model, hooks, layers
        self.offsets = torch.tensor(positions.offsets, device=model.device)
        self.stop_after = stop_after

    def __call__(self, batch: TokenBatch, prefix: DynamicCache | None) -> _OnItsWay:
        rows = torch.arange(len(batch.indices), device=self.model.device)[:, None]
        where = batch.lengths[:, None] + self.offsets
        buffers: dict[str, Tensor] = {}

        def keep(hook: str, index: int) -> Callable[[Tensor], None]:
            def hook_fn(value: Tensor) -> None:
                if hook not in buffers:
                    shape = (where.shape[0], len(self.layers), where.shape[1], value.shape[-1])
                    buffers[hook] = torch.empty(shape, dtype=value.dtype, device=value.device)
                # With a device map the blocks live on several devices.
                at = (rows.to(value.device), where.to(value.device))
                buffers[hook][:, index] = value[at].to(buffers[hook].device)

            return hook_fn

        fns = {
            (hook, layer): keep(hook, index)
            for index, layer in enumerate(self.layers)
            for hook in self.hooks
        }
        with torch.inference_mode(), self.model.hooked(fns):
            self.model.run(
                batch.input_ids,
                past_key_values=prefix,
                use_cache=prefix is not None,
                stop_after=self.stop_after,
            )
        return _OnItsWay(buffers)
