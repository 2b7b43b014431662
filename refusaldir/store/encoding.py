"""Values as they lie on disk: bfloat16 bits, finiteness, checksums."""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32, Num, UInt16, UInt32

from refusaldir.errors import StoreError

#: Index of one activation vector: prompt, layer, pos (positions along the axes, not labels).
Index = tuple[int, int, int]


def encode(
    values: Num[np.ndarray, "prompt layer pos d_model"], dtype: np.dtype[Any]
) -> Num[np.ndarray, "prompt layer pos d_model"]:
    """Turn float32 values or bfloat16 bits (uint16) into what is stored as ``dtype``.

    float32 to bfloat16 rounds to nearest, ties to even; the other way is exact.

    Raises:
        StoreError: The values are neither float32 nor uint16 (float16 overflows on the residual
            streams of some models, float64 is never what a model computes).
    """
    if values.dtype not in (np.dtype(np.float32), np.dtype(np.uint16)):
        raise StoreError(
            "Activations of this dtype cannot be stored",
            expected="float32, or the bits of bfloat16 as uint16",
            got=values.dtype,
        )
    if values.dtype.itemsize == dtype.itemsize:
        return np.ascontiguousarray(values, dtype=dtype)
    converted = to_float32(values) if dtype.itemsize == 4 else to_bfloat16(values)
    return converted.astype(dtype, copy=False)


def to_bfloat16(values: Float32[np.ndarray, "*axes"]) -> UInt16[np.ndarray, "*axes"]:
    """Round finite float32 values to bfloat16, ties to even, and return the 16 bits.

    Values that round beyond the largest finite bfloat16 become infinite. NaN is not handled.
    """
    bits = np.array(values, dtype=np.float32, order="C").view(np.uint32)
    bits += ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
    bits >>= np.uint32(16)
    return bits.astype(np.uint16)


def to_float32(stored: Num[np.ndarray, "*axes"]) -> Float32[np.ndarray, "*axes"]:
    """Widen stored values (float32, or bfloat16 bits) to float32; exact."""
    if stored.dtype.itemsize == 2:
        bits = stored.astype(np.uint32)
        bits <<= np.uint32(16)
        return bits.view(np.float32)
    return stored.astype(np.float32, copy=False)


def first_nonfinite(stored: Num[np.ndarray, "prompt layer pos d_model"]) -> Index | None:
    """Index of the first vector with a NaN or an infinity (float32, or bfloat16 bits)."""
    if stored.dtype.itemsize == 2:
        exponent = np.uint16(0x7F80)
        finite = (stored & exponent) != exponent
    else:
        finite = np.isfinite(stored)
    return None if finite.all() else _first(~finite.all(axis=-1))


def checksums(
    stored: Num[np.ndarray, "prompt layer pos d_model"],
) -> UInt32[np.ndarray, "prompt layer pos"]:
    """CRC-32 of the stored bytes of each vector."""
    flat = np.ascontiguousarray(stored).reshape(-1, stored.shape[-1])
    crc: Callable[[Any], int] = zlib.crc32
    sums = np.fromiter((crc(row) for row in flat), dtype=np.uint32, count=len(flat))
    return sums.reshape(stored.shape[:-1])


def first_damaged(
    stored: Num[np.ndarray, "prompt layer pos d_model"],
    expected: UInt32[np.ndarray, "prompt layer pos"],
) -> Index | None:
    """Index of the first vector whose bytes do not match their checksum."""
    wrong = checksums(stored) != expected
    return _first(wrong) if wrong.any() else None


def _first(mask: Any) -> Index:
    prompt, layer, pos = np.unravel_index(int(np.argmax(mask)), mask.shape)
    return int(prompt), int(layer), int(pos)
