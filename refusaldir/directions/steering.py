"""Directions as files for tools that steer: llama.cpp and the package steering-vectors.

There a direction is something to *add* to the stream. Every file holds the raw vector, so that
scale 1 is the addition that `refusaldir.directions.causal` measures, and −1 its opposite. These
tools name a layer by the *output* of a block: ``resid_pre.ℓ`` is the output of block ℓ − 1.
"""

import io
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from refusaldir.directions.mean_diff import Direction
from refusaldir.errors import DirectionError
from refusaldir.records import ModelIdentity


def control_vector_bytes(direction: Direction) -> bytes:
    """A direction as a llama.cpp control vector (GGUF), for ``--control-vector FILE``.

    llama.cpp adds the tensor ``direction.i`` (float32) to the output of block i, for i ≥ 1: block 0
    cannot be steered, nor can what enters it.

    Raises:
        DirectionError: The direction lives before the output of block 1, or not between blocks.
    """
    from gguf import GGUFWriter

    block = _block(direction, first=1, tool="A control vector of llama.cpp")
    model = None if direction.provenance is None else direction.provenance.model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "direction.gguf"
        writer = GGUFWriter(path, "controlvector")
        writer.add_name(f"{direction.estimator} direction at {direction.site}")
        writer.add_string("controlvector.model_hint", _hint(model))
        writer.add_uint32("controlvector.layer_count", 1)
        writer.add_tensor(f"direction.{block}", direction.vector.astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def _hint(model: ModelIdentity | None) -> str:
    """llama.cpp's name of an architecture or near it; its loader does not read the hint."""
    if model is None:
        return "unknown"
    return re.split("For|LMHead", model.architecture)[0].lower()


def steering_vector_bytes(direction: Direction) -> bytes:
    """A direction for the package steering-vectors, which has no file format of its own.

    The file holds the arguments of its ``SteeringVector``, as tensors and plain values alone::

        vector = SteeringVector(**torch.load(path, weights_only=True))

    That package adds to the output of a decoder block, and ``layer_activations`` names the block.

    Raises:
        DirectionError: The direction lives before block 0, or not between blocks.
    """
    import torch

    block = _block(direction, first=0, tool="A steering vector")
    vector = torch.from_numpy(direction.vector.astype(np.float32))
    stream = io.BytesIO()
    torch.save({"layer_activations": {block: vector}, "layer_type": "decoder_block"}, stream)
    return stream.getvalue()


def _block(direction: Direction, *, first: int, tool: str) -> int:
    """The block whose output is the direction's site."""
    site = direction.site
    block = {"resid_pre": site.layer - 1, "resid_post": site.layer}.get(site.hook, -1)
    if block < first:
        raise DirectionError(
            f"{tool} cannot be added there",
            expected=f"resid_pre of layer {first + 1} or later, or resid_post of {first} or later",
            got=site,
        )
    return block


#: What a direction can be exported as.
EXPORTS: dict[str, Callable[[Direction], bytes]] = {
    "gguf": control_vector_bytes,
    "steering-vectors": steering_vector_bytes,
}
