"""Forward passes that keep what every attention and MLP adds to the projection on a direction.

One pass a prompt, the shared template prefix once, no layer past the readout. What is kept are
numbers, not vectors: two a layer and prompt, however wide the model is, and one more a head where
heads are asked for.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from transformers.cache_utils import DynamicCache

from refusaldir.batching import TokenBatch, run_batches
from refusaldir.capture import check_hooks
from refusaldir.errors import CaptureError, DirectionError
from refusaldir.layers.residual.components import Contributions, HeadContributions
from refusaldir.layers.residual.heads import HeadReader, at_tokens
from refusaldir.models.bridge import HookedModel
from refusaldir.records import Site, content_hash

#: Hook points of the stream itself, and whether their layer's attention and MLP come before.
_READOUTS = {"resid_pre": (0, 0), "resid_mid": (1, 0), "resid_post": (1, 1)}

#: How far a norm may be from 1: float32 rounding, and no raw difference of means.
_UNIT = 1e-4


def collect_contributions(
    model: HookedModel,
    sequences: Sequence[Sequence[int]],
    direction: Float[np.ndarray, " d_model"],
    site: Site,
    *,
    heads: bool = False,
    batch_size: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Contributions:
    """Project what each component adds to the stream on a direction, at one site's position.

    Attention and MLP outputs are taken as they enter the stream, after a norm or scale where the
    architecture has one there. Hooks that are active now act.

    Args:
        model: The model.
        sequences: Token ids of every rendered prompt.
        direction: The unit vector u; projections are in residual norm, in float64.
        site: The readout: a hook of the stream, the layer up to which components are taken, and
            the position.
        heads: Whether to take attention apart by head, see `refusaldir.layers.residual.heads`.
            Heads are read where their outputs are projected: a hook that changes attention outputs
            comes after them.
        batch_size: Rows a batch; None finds one by itself.
        on_batch: Called with the number of prompts after each batch.

    Returns:
        The projections, in the order of the sequences.

    Raises:
        DirectionError: The direction is not a unit vector of the model's width.
        CaptureError: No prompt, no such site, a model whose attention and MLP outputs cannot be
            told, a prompt shorter than the position reaches, or a value that is not finite.
        ModelSpecError: Heads are asked for and it is not known how this architecture names the
            matrix behind them.
    """
    u = _checked_direction(direction, model)
    layers = _checked_layers(model, site)
    if not sequences:
        raise CaptureError("Contributions need at least one prompt", got="none")
    points = [
        ("resid_pre", 0),
        *(("attn_out", layer) for layer in range(layers[0])),
        *(("mlp_out", layer) for layer in range(layers[1])),
    ]
    reader = HeadReader(model, torch.from_numpy(u), layers[0]) if heads else None
    step = _Step(model, points, torch.from_numpy(u), site, reader)
    # Columns: the points, the stream at the site, the scale of its rounding, the heads.
    width = len(points) + 2
    by_head = 0 if reader is None else layers[0] * (reader.n_heads + 2)
    table = np.full((len(sequences), width + by_head), np.nan)
    for batch, columns in run_batches(
        model,
        sequences,
        step,
        tail=-site.position,
        batch_size=batch_size,
        stop_after=(site.hook, site.layer),
    ):
        table[batch.indices] = columns.cpu().numpy()
        if on_batch is not None:
            on_batch(len(batch.indices))
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(bad):
        raise CaptureError(
            "A contribution is not finite",
            got=f"NaN or infinity in {len(bad)} of {len(table)} prompts, first in prompt {bad[0]}",
            where=model.identity.name,
            next_step="Load the model in bfloat16 or float32",
        )
    return Contributions(
        site=site,
        direction=u,
        rendered_hash=content_hash([[int(token) for token in ids] for ids in sequences]),
        embed=table[:, 0],
        attn=table[:, 1 : 1 + layers[0]],
        mlp=table[:, 1 + layers[0] : width - 2],
        resid=table[:, width - 2],
        rounding=table[:, width - 1],
        heads=None if reader is None else _heads(table[:, width:], layers[0], reader.n_heads),
    )


def _heads(columns: Float64[np.ndarray, "prompt column"], layers: int, n: int) -> HeadContributions:
    by_layer = columns.reshape(len(columns), layers, n + 2)
    return HeadContributions(
        values=by_layer[:, :, :n], bias=by_layer[:, :, n], rounding=by_layer[:, :, n + 1]
    )


def _checked_direction(
    direction: Float[np.ndarray, " d_model"], model: HookedModel
) -> Float64[np.ndarray, " d_model"]:
    u = np.asarray(direction, dtype=np.float64)
    if u.shape != (model.d_model,):
        raise DirectionError(
            "The direction does not fit the model",
            expected=f"{model.d_model} entries",
            got=f"shape {u.shape}",
            where=model.identity.name,
        )
    norm = float(np.linalg.norm(u))
    if not abs(norm - 1) <= _UNIT:
        raise DirectionError(
            "Contributions are projections on a unit vector",
            expected="norm 1",
            got=f"norm {norm:.4g}",
            next_step="Divide the direction by its norm",
        )
    return u


def _checked_layers(model: HookedModel, site: Site) -> tuple[int, int]:
    """Number of layers whose attention, and whose MLP, come before the site."""
    if site.hook not in _READOUTS:
        raise CaptureError(
            "Only the residual stream is a sum of contributions",
            expected=" | ".join(_READOUTS),
            got=site.hook,
            where=str(site),
        )
    if site.position >= 0:
        raise CaptureError(
            "A position is counted from the end of the prompt",
            expected="-1 or less",
            got=site.position,
        )
    check_hooks(model, (site.hook, "attn_out", "mlp_out"), (site.layer,))
    attn, mlp = _READOUTS[site.hook]
    return site.layer + attn, site.layer + mlp


class _Step:
    """One forward pass that projects the points and the site, at one position a row."""

    def __init__(
        self,
        model: HookedModel,
        points: list[tuple[str, int]],
        u: Tensor,
        site: Site,
        heads: HeadReader | None,
    ) -> None:
        self.model, self.points, self.u, self.site, self.heads = model, points, u, site, heads

    def __call__(
        self, batch: TokenBatch, prefix: DynamicCache | None
    ) -> Float64[Tensor, "batch column"]:
        rows = torch.arange(len(batch.indices), device=self.model.device)
        where = batch.lengths + self.site.position
        readout = (self.site.hook, self.site.layer)
        projected: dict[tuple[str, int], Tensor] = {}
        rounding: list[Tensor] = []

        def keep(point: tuple[str, int]) -> Callable[[Tensor], None]:
            def hook_fn(value: Tensor) -> None:
                x = at_tokens(value, rows, where)
                scaled = x * self.u.to(x.device)
                projected[point] = scaled.sum(dim=-1)
                if point == readout:
                    # Rounding moves an entry by up to eps/2 of it, uniformly, at every addition.
                    eps = torch.finfo(value.dtype).eps * math.sqrt(len(self.points) / 12)
                    rounding.append(eps * scaled.norm(dim=-1))

            return hook_fn

        with (
            torch.inference_mode(),
            self.model.hooked({point: keep(point) for point in {*self.points, readout}}),
            nullcontext() if self.heads is None else self.heads.reading(rows, where),
        ):
            self.model.run(
                batch.input_ids,
                past_key_values=prefix,
                use_cache=prefix is not None,
                stop_after=readout,
            )
        columns = [*(projected[point] for point in (*self.points, readout)), *rounding]
        parts = [column[:, None] for column in columns]
        if self.heads is not None:
            parts += self.heads.columns()
        return torch.cat([part.to(columns[0].device) for part in parts], dim=1)
