"""The layout of a capture file: names, shapes and storage dtypes.

The writer and the reader share this module, so that neither can drift from the other. Nothing
here touches a file.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from refusaldir.errors import StoreError

FORMAT = "refusaldir-capture"
#: Raised by one whenever a reader of the previous version could misread the file.
VERSION = 1
AXES = ("prompt", "layer", "pos", "d_model")

#: Storage dtype → NumPy dtype on disk. bfloat16 is kept as its 16 bits.
STORAGE_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "bfloat16": np.dtype("<u2")}

DIRECTIONS = ("mean_diff", "mean_harmful", "mean_harmless")

_CHUNK_BYTES = 1 << 20
_CHUNK_PROMPTS = 256


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Shape and storage of every activation dataset in one file.

    Attributes:
        n_prompts: Length of the prompt axis.
        n_layers: Number of layers captured.
        n_positions: Number of token positions captured.
        d_model: Width of the residual stream.
        storage_dtype: A key of `STORAGE_DTYPES`.
    """

    n_prompts: int
    n_layers: int
    n_positions: int
    d_model: int
    storage_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuse empty axes and unknown storage dtypes (float16 overflows on real residuals)."""
        if self.storage_dtype not in STORAGE_DTYPES:
            raise StoreError(
                "Activations cannot be stored in this dtype",
                expected=" or ".join(STORAGE_DTYPES),
                got=self.storage_dtype,
            )
        if min(self.shape) < 1:
            axes = ", ".join(f"{a}={n}" for a, n in zip(AXES, self.shape, strict=True))
            raise StoreError("A capture needs at least one element per axis", got=axes)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of each activation dataset: prompt, layer, pos, d_model."""
        return (self.n_prompts, self.n_layers, self.n_positions, self.d_model)

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy dtype on disk."""
        return STORAGE_DTYPES[self.storage_dtype]

    @property
    def chunks(self) -> tuple[int, int, int, int]:
        """One layer of as many prompts as fit 1 MiB, at most 256.

        A layer is then read in large pieces, and a prompt is written with one contiguous
        write per layer.
        """
        row = self.n_positions * self.d_model * self.dtype.itemsize
        prompts = max(1, min(_CHUNK_BYTES // row, _CHUNK_PROMPTS, self.n_prompts))
        return (prompts, 1, self.n_positions, self.d_model)

    @property
    def nbytes(self) -> int:
        """Bytes of one activation dataset on disk, edge chunks included."""
        rows = math.ceil(self.n_prompts / self.chunks[0]) * self.chunks[0]
        return rows * self.n_layers * self.n_positions * self.d_model * self.dtype.itemsize
