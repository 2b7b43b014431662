"""How to load a model. Nothing here imports torch."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from refusaldir.errors import ModelSpecError

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("4bit", "8bit")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to load a model; validated on creation.

    Attributes:
        dtype: ``"auto"`` (float32 on the CPU; on an accelerator the dtype of the checkpoint),
            ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: ``"auto"`` (the first CUDA device, else Apple's MPS, else the CPU), ``"cpu"``,
            ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        device_map: None, or how to spread the model over several devices: ``"auto"``,
            ``"balanced"``, ``"balanced_low_0"``, ``"sequential"``, or a mapping from module name
            to device (as a mapping or as JSON text). Excludes ``device``.
        quantize: None, ``"4bit"`` (NF4) or ``"8bit"``, by bitsandbytes; a checkpoint stored in
            few bits stays in them. Adapters then stay beside the quantised weights instead of
            being merged into them, because merging would quantise their sum anew.
        trust_remote_code: Whether Python code from the model's repository may run. Off unless
            asked for.
    """

    dtype: str = "auto"
    device: str = "auto"
    device_map: str | Mapping[str, str | int] | None = None
    quantize: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Check every field; JSON text in ``device_map`` is replaced by its value.

        Raises:
            ModelSpecError: A field has a value that is not accepted.
        """
        if self.dtype not in DTYPES:
            raise ModelSpecError(
                "Unknown dtype", expected=" | ".join(DTYPES), got=repr(self.dtype), where="dtype"
            )
        if not isinstance(self.device, str) or not _DEVICE.fullmatch(self.device):
            raise ModelSpecError(
                "Unknown device",
                expected="auto | cpu | cuda | cuda:N | mps",
                got=repr(self.device),
                where="device",
            )
        if self.quantize is not None and self.quantize not in QUANTIZATIONS:
            raise ModelSpecError(
                "Unknown quantisation",
                expected=" | ".join(QUANTIZATIONS),
                got=repr(self.quantize),
                where="quantize",
            )
        object.__setattr__(self, "device_map", _device_map(self.device_map))
        if self.device_map is not None and self.device != "auto":
            raise ModelSpecError(
                "A device and a device map exclude each other",
                got=f"device={self.device}, device_map={self.device_map}",
                next_step="Give one of them",
            )


def _device_map(value: object) -> str | dict[str, str | int] | None:
    """Validate a device map, reading it from JSON text where it is JSON."""
    if value is None or (isinstance(value, str) and value in _DEVICE_MAPS):
        return value
    parsed: object = value
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            parsed = None
    if (
        isinstance(parsed, Mapping)
        and parsed
        and all(
            isinstance(module, str) and isinstance(device, (str, int))
            for module, device in parsed.items()
        )
    ):
        return dict(parsed)
    raise ModelSpecError(
        "Unknown device map",
        expected=f"{' | '.join(_DEVICE_MAPS)}, or JSON such as "
        '{"model.embed_tokens": 0, "model.layers.0": 0, ...}',
        got=repr(value),
        where="device_map",
    )
