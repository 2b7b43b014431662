"""Single tensors of safetensors files, read when they are asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from refusaldir.errors import ModelLoadError
from refusaldir.models.weights import read_header

FloatArray = NDArray[np.float64]
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor on disk.

    Attributes:
        file: The safetensors file.
        name: Its name there.
        shape: Length of every axis, as stored.
        dtype: As safetensors spells it.
        source: Digest of the model or adapter it belongs to; where it and the name are equal, so
            are the values.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    source: str

    def native(self) -> Any:
        """The torch tensor in its own dtype, mapped from the file.

        Raises:
            ModelLoadError: It is not floating-point, as in quantised checkpoints.
        """
        from safetensors import safe_open

        if self.dtype not in _FLOATS:
            raise ModelLoadError(
                "This tensor is not stored in floating point",
                expected=", ".join(_FLOATS),
                got=f"{self.name} in {self.dtype}",
                where=self.file,
                next_step="Compare the unquantised checkpoints",
            )
        # Opened anew for each tensor, so that pages of earlier ones do not stay mapped.
        with safe_open(str(self.file), framework="pt") as file:
            return file.get_tensor(self.name)

    def float64(self) -> Float[np.ndarray, "..."]:
        """A copy in float64, in the orientation in which it is stored."""
        import torch

        values: FloatArray = self.native().to(torch.float64, copy=True).numpy()
        return values


def stored_tensors(file: Path, *, source: str) -> list[StoredTensor]:
    """All tensors of a file, from its header alone.

    Args:
        file: The safetensors file.
        source: Digest of the model or adapter.

    Raises:
        ModelLoadError: The file is damaged.
    """
    return [
        StoredTensor(file=file, name=name, shape=info.shape, dtype=info.dtype, source=source)
        for name, info in read_header(file).items()
    ]
