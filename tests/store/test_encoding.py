import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusaldir.errors import CaptureError, StoreError
from refusaldir.store import Capture
from refusaldir.store.encoding import (
    checksums,
    encode,
    first_damaged,
    first_nonfinite,
    to_bfloat16,
    to_float32,
)

torch = pytest.importorskip("torch")


def torch_bits(values: np.ndarray) -> np.ndarray:
    bits = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16)
    return bits.numpy().view(np.uint16)


def test_rounding_equals_torch_on_every_exponent_and_on_ties():
    high = np.arange(0x10000, dtype=np.uint32) << 16
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    values = (high[:, None] | low).reshape(-1).view(np.float32)
    values = values[np.isfinite(values)]
    np.testing.assert_array_equal(to_bfloat16(values), torch_bits(values))
    truncated = (values.view(np.uint32) >> 16).astype(np.uint16)
    assert (to_bfloat16(values) != truncated).any()  # Truncation would have failed above.


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_rounding_equals_torch(values):
    array = np.array(values, dtype=np.float32)
    np.testing.assert_array_equal(to_bfloat16(array), torch_bits(array))


def test_widening_is_exact_and_rounding_it_back_changes_nothing():
    bits = np.arange(0x10000, dtype=np.uint16)
    finite = bits[(bits & 0x7F80) != 0x7F80]
    wide = to_float32(finite)
    np.testing.assert_array_equal(
        wide, torch.from_numpy(finite.view(np.int16)).view(torch.bfloat16).float().numpy()
    )
    np.testing.assert_array_equal(to_bfloat16(wide), finite)


def test_the_argument_is_not_changed():
    values = np.array([1.00001], dtype=np.float32)
    to_bfloat16(values)
    assert values[0] == np.float32(1.00001)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_first_nonfinite_finds_the_vector(bad):
    values = np.zeros((3, 2, 2, 4), dtype=np.float32)
    assert first_nonfinite(values) is None
    assert first_nonfinite(values.astype(np.uint16)) is None
    values[1, 0, 1, 2] = bad
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    assert first_nonfinite(values) == first_nonfinite(bits) == (1, 0, 1)


def test_checksums_are_crc32_of_each_vector():
    values = np.random.default_rng(0).standard_normal((2, 3, 2, 5)).astype(np.float32)
    sums = checksums(values)
    assert sums[1, 2, 0] == zlib.crc32(values[1, 2, 0].tobytes())
    assert first_damaged(values, sums) is None
    values[1, 0, 1, 4] = 0
    assert first_damaged(values, sums) == (1, 0, 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(StoreError, match="float32, or the bits of bfloat16"):
        encode(np.zeros((1, 1, 1, 1), dtype=dtype), np.dtype("<f4"))


def test_float32_is_stored_as_bfloat16_when_asked(case, tmp_path):
    path = case.write(tmp_path / "b.h5", storage_dtype="bfloat16")
    values = case.values["resid_pre"]
    rounded = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert not np.array_equal(rounded, values)
    with Capture.open(path) as capture:
        assert capture.storage_dtype == "bfloat16"
        np.testing.assert_array_equal(capture.read("resid_pre", layer=4), rounded[:, 1])
        harmful = np.array(case.prompts.labels) == 1
        wide = rounded.astype(np.float64)
        expected = (wide[harmful].mean(0) - wide[~harmful].mean(0)).astype(np.float32)
        np.testing.assert_array_equal(capture.mean_diff("resid_pre"), expected)


def test_bfloat16_bits_can_be_stored_as_float32(case, tmp_path):
    bits = {hook: to_bfloat16(values) for hook, values in case.values.items()}
    path = tmp_path / "c.h5"
    with case.writer(path) as writer:
        writer.write(range(10), bits)
        writer.finish()
    with Capture.open(path) as capture:
        np.testing.assert_array_equal(
            capture.read("mlp_out", layer=5), to_float32(bits["mlp_out"])[:, 2]
        )


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_writing_refuses_values_that_are_not_finite(case, tmp_path, storage, bad):
    values = case.values["mlp_out"].copy()
    values[7, 2, 0, 3] = bad
    with case.with_values("mlp_out", values).writer(
        tmp_path / "c.h5", storage_dtype=storage
    ) as writer:
        batch = {"resid_pre": case.values["resid_pre"][[2, 7]], "mlp_out": values[[2, 7]]}
        with pytest.raises(CaptureError, match="'p7', mlp_out, layer 5, position -5, tiny"):
            writer.write([2, 7], batch)
        assert writer.done == frozenset()


def test_writing_refuses_what_overflows_bfloat16(case, tmp_path):
    values = case.values["mlp_out"].copy()
    values[0, 1, 2, 0] = np.finfo(np.float32).max
    case = case.with_values("mlp_out", values)
    with case.writer(tmp_path / "b.h5", storage_dtype="bfloat16") as writer:
        with pytest.raises(CaptureError, match=r"bfloat16.*got inf"):
            writer.write([0], case.batch([0]))
    case.write(tmp_path / "f.h5")  # float32 holds it.
