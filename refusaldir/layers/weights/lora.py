"""LoRA adapters as factors, straight from their files.

Hu et al. 2021 (arXiv:2106.09685): ``W + s·B A`` with ``s = alpha / r``, or ``alpha / √r`` for
rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732). Whatever is not such a sum is refused:
DoRA rescales W, and some initialisations (PiSSA, OLoRA, CorDA, LoftQ) change the base.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from refusaldir.errors import ModelSpecError
from refusaldir.layers.weights.matrix_names import TensorKey, tensor_key
from refusaldir.layers.weights.stored import StoredTensor, stored_tensors
from refusaldir.models.weights import ADAPTER_CONFIG, adapter_file, read_json

FloatArray = NDArray[np.float64]

_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?:embedding_)?(?P<matrix>[AB])(?:\.weight)?")
_WRAPPER = re.compile(r"\.(?:modules_to_save|base_layer)(?=\.)")
#: Ways to start LoRA that leave the base as it is, besides True and False.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")
#: Size, relative to its factors, below which a product of them is rounding.
_ROUNDING = 1e-13


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """A matrix ``b @ a`` that is not formed.

    Attributes:
        b: Left factors side by side, with the adapters' scaling.
        a: Right factors, one below the other.
    """

    b: Float[np.ndarray, "out rank"]
    a: Float[np.ndarray, "rank in_"]

    def dense(self) -> Float[np.ndarray, "out in_"]:
        """The matrix itself."""
        product: FloatArray = self.b @ self.a
        return product

    def core(self) -> Float[np.ndarray, "small small_too"]:
        """A small matrix with the same singular values other than 0.

        From QR factors of both sides, so that what cancels between adapters cancels before
        anything is squared.
        """
        core: FloatArray = np.linalg.qr(self.b).R @ np.linalg.qr(self.a.T).R.T
        return core

    @property
    def vanishes(self) -> bool:
        """Whether the product is 0 up to rounding."""
        scale = np.linalg.norm(self.b) * np.linalg.norm(self.a)
        return bool(np.linalg.norm(self.core()) <= _ROUNDING * scale)


@dataclass(frozen=True, kw_only=True)
class Factor:
    """One adapter's change of one matrix.

    Attributes:
        a: ``[r, in]`` on disk.
        b: ``[out, r]`` on disk.
        scaling: What ``B A`` is multiplied by.
        adapter: Name of the adapter, for errors.
    """

    a: StoredTensor
    b: StoredTensor
    scaling: float
    adapter: str

    @property
    def source(self) -> str:
        """Digest of the adapter."""
        return self.a.source

    def read(
        self, shape: tuple[int, ...]
    ) -> tuple[Float[np.ndarray, "out rank"], Float[np.ndarray, "rank in_"]]:
        """Both factors, the scaling folded into the left one.

        Args:
            shape: ``(out, in)`` of the matrix.

        Raises:
            ModelSpecError: The factors do not fit it.
        """
        product = (self.b.shape[0], self.a.shape[1])
        if product != tuple(shape) or self.a.shape[0] != self.b.shape[1]:
            raise ModelSpecError(
                "The adapter does not fit this model",
                expected=f"a change of shape {list(shape)}",
                got=f"lora_B {list(self.b.shape)} and lora_A {list(self.a.shape)}",
                where=f"{self.adapter}, {self.a.name}",
                next_step="It was trained on another base; its adapter_config.json names it",
            )
        return self.scaling * self.b.float64(), self.a.float64()


def read_adapter(
    directory: Path, name: str, *, source: str
) -> tuple[dict[TensorKey, StoredTensor], dict[TensorKey, Factor]]:
    """What an adapter replaces and what it adds, without reading a tensor.

    Args:
        directory: Of the PEFT adapter.
        name: Its name, for errors.
        source: Its digest.

    Returns:
        Tensors that take the place of the model's (``modules_to_save``, trained biases), and the
        factors per weight.

    Raises:
        ModelSpecError: It is not plain LoRA.
        ModelLoadError: Its file is damaged.
    """
    config = read_json(directory / ADAPTER_CONFIG)
    _require_plain(config, name)
    replaced: dict[TensorKey, StoredTensor] = {}
    halves: dict[str, dict[str, StoredTensor]] = {}
    for stored in stored_tensors(adapter_file(directory), source=source):
        path = _WRAPPER.sub("", stored.name.removeprefix(_PREFIX))
        match = _LORA.fullmatch(path)
        if match is not None and len(stored.shape) == 2:
            halves.setdefault(match["module"], {})[match["matrix"]] = stored
        elif "lora_" in path:
            raise _not_plain(name, stored.name)
        else:
            replaced[tensor_key(path)] = stored
    factors: dict[TensorKey, Factor] = {}
    for module, pair in halves.items():
        if set(pair) != {"A", "B"}:
            raise _not_plain(name, f"lora_{next(iter(pair))} alone for {module}")
        factors[tensor_key(f"{module}.weight")] = Factor(
            a=pair["A"],
            b=pair["B"],
            scaling=_scaling(config, module, rank=pair["A"].shape[0]),
            adapter=name,
        )
    return replaced, factors


def _scaling(config: dict[str, Any], module: str, *, rank: int) -> float:
    from peft.utils.other import get_pattern_key

    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), config.get("lora_alpha", 8))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _require_plain(config: dict[str, Any], name: str) -> None:
    start = config.get("init_lora_weights", True)
    if config.get("peft_type") != "LORA":
        raise _not_plain(name, config.get("peft_type"))
    if isinstance(start, str) and start not in _PLAIN_STARTS:
        raise _not_plain(name, f"init_lora_weights={start!r}")
    for option in ("use_dora", "use_qalora", "layer_replication", "target_parameters"):
        if config.get(option):
            raise _not_plain(name, option)


def _not_plain(name: str, got: object) -> ModelSpecError:
    return ModelSpecError(
        "The change of this adapter is not a sum of plain LoRA factors",
        expected="LoRA",
        got=got,
        where=name,
        next_step="Merge it with PEFT and save a whole model",
    )
