"""A model that is not open yet: what it is, and how it is opened and let go of."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.records import ModelIdentity

if TYPE_CHECKING:
    from refusaldir.models.bridge import HookedModel


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A model and how to open it.

    Attributes:
        spec: What to open.
        options: Dtype, device and so on.
        backend: ``auto``, ``transformer_lens`` or ``torch_hooks``.
    """

    spec: ModelSpec
    options: LoadOptions
    backend: str

    def identity(self) -> ModelIdentity:
        """Say what would be opened, without loading weights."""
        from refusaldir.models.load import identify

        return identify(self.spec, self.options)

    @contextmanager
    def model(self) -> "Iterator[HookedModel]":
        """Open the model and let go of it afterwards.

        Delete your own reference before the next model is opened: one is in memory at a time.
        """
        from refusaldir.models.bridge import open_model

        hooked = open_model(self.spec, self.options, backend=self.backend)
        try:
            yield hooked
        finally:
            del hooked
            release()


def release() -> None:
    """Give back the memory of models that nobody refers to any more."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
