"""Directions that the reference code of Arditi et al. (2024) wrote; reading them runs nothing."""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float

from refusaldir.directions.mean_diff import Direction
from refusaldir.errors import DirectionError, StoreError
from refusaldir.records import ModelIdentity, Site

#: Estimator of a direction that another program made.
IMPORTED = "imported"

#: What the reference code writes beside its ``direction.pt``.
METADATA = "direction_metadata.json"


def import_direction(
    path: str | Path,
    *,
    layer: int | None = None,
    position: int | None = None,
    metadata: str | Path | None = None,
    model: ModelIdentity | None = None,
) -> Direction:
    """Read a direction that the reference code of Arditi et al. (2024) wrote.

    Its ``direction.pt`` is one vector ``[d_model]`` (or ``[1, d_model]``), harmful minus harmless,
    raw; the ``direction_metadata.json`` beside it says where it lives and is read by itself. Of its
    ``mean_diffs.pt`` ``[position, layer, d_model]`` one entry is taken, so both must be named.
    That code reads and adds in forward *pre*-hooks of block ``layer``, at token offsets counted
    from the end: the same as our ``resid_pre`` of that layer and position.

    Only tensors are read: a pickle that would call anything is refused before it does.

    Args:
        path: The file.
        layer: Block whose input the direction was read at.
        position: Token offset from the end of the prompt, e.g. -1.
        metadata: JSON with ``layer`` and ``pos``, in place of the one beside the file.
        model: The model it is meant for, to check width and depth against.

    Returns:
        The direction at resid_pre. Its estimator is `IMPORTED` and its numbers of prompts are 0:
        the file says neither.

    Raises:
        StoreError: The file or its metadata cannot be read, or hold something else.
        DirectionError: Layer or position is missing or contradicted, or does not exist; the
            vector is zero or not finite, or not of the model's width.
    """
    path = Path(path)
    values = _tensor_values(path)
    one = values.ndim == 1 or (values.ndim == 2 and len(values) == 1)
    if not one and values.ndim != 3:
        raise StoreError(
            "The tensor is not a direction",
            expected="[d_model], [1, d_model] or [position, layer, d_model]",
            got=list(values.shape),
            where=path,
        )
    beside = path.with_name(METADATA)
    if metadata is None and one and beside.exists():
        metadata = beside
    said = {} if metadata is None else _metadata(Path(metadata))
    layer = _settled("layer", layer, said.get("layer"), path)
    position = _settled("position", position, said.get("pos"), path)
    depths = [] if one else [values.shape[1]]
    depths += [] if model is None else [model.n_layers]
    if layer < 0 or any(layer >= depth for depth in depths):
        raise DirectionError(
            "There is no such layer",
            expected=f"0 to {min(depths) - 1}" if depths else "0 or more",
            got=layer,
            where=path if model is None else f"{path} for {model.name}",
        )
    if position >= 0 or (not one and position < -len(values)):
        raise DirectionError(
            "There is no such position",
            expected="a negative offset" if one else f"{-len(values)} to -1",
            got=position,
            where=path,
        )
    vector = values.reshape(-1) if one else values[position, layer]
    if model is not None and len(vector) != model.d_model:
        raise DirectionError(
            "The direction is not of the model's width",
            expected=f"d_model {model.d_model} ({model.name})",
            got=len(vector),
            where=path,
        )
    if not np.all(np.isfinite(vector)) or not np.any(vector):
        raise DirectionError(
            "The file holds no direction",
            expected="a finite vector that is not zero",
            got="only zeros" if np.all(np.isfinite(vector)) else "values that are not finite",
            where=path,
        )
    return Direction(
        vector=vector,
        site=Site(hook="resid_pre", layer=layer, position=position),
        estimator=IMPORTED,
        n_harmful=0,
        n_harmless=0,
    )


def _tensor_values(path: Path) -> Float[np.ndarray, "*axes"]:
    """The one tensor of a file that ``torch.save`` wrote, in float64."""
    import torch

    if not path.is_file():
        raise StoreError("There is no such file", where=path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Whatever a damaged or hostile file provokes.
        raise StoreError(
            "The file cannot be read as tensors alone, so nothing in it was run",
            expected="one tensor written by torch.save",
            where=path,
        ) from error
    if not (
        isinstance(content, torch.Tensor)
        and content.is_floating_point()
        and content.layout == torch.strided
        and content.device.type == "cpu"
    ):
        raise StoreError(
            "The file holds something other than one tensor of real numbers",
            expected="one tensor written by torch.save",
            got=type(content).__name__,
            where=path,
        )
    values: Float[np.ndarray, "*axes"] = content.detach().double().numpy()
    return values


def _metadata(path: Path) -> dict[str, int]:
    """``layer`` and ``pos`` of a metadata file, as far as it has them."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            "The direction's metadata cannot be read", got=error, where=path
        ) from error
    found = content if isinstance(content, dict) else {}
    whole = {k: found[k] for k in ("layer", "pos") if type(found.get(k)) is int}
    if not whole:
        raise StoreError(
            "The direction's metadata names no site",
            expected='e.g. {"pos": -1, "layer": 12}',
            where=path,
        )
    return whole


def _settled(name: str, given: int | None, said: int | None, path: Path) -> int:
    """A coordinate from the option, the metadata, or both where they agree."""
    if given is not None and said is not None and given != said:
        raise DirectionError(
            f"The {name} given is not the one in the direction's metadata",
            expected=said,
            got=given,
            where=path,
            next_step=f"Leave out --{name}, or name another --metadata",
        )
    value = said if given is None else given
    if value is None:
        raise DirectionError(
            f"The file does not say at which {name} the direction lives",
            where=path,
            next_step=f"Give --{name}, or --metadata with its {METADATA}",
        )
    return value
