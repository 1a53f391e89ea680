"""MXFP4: every code under every scale, against a table and against transformers' own decoder."""

import math
from typing import Any

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest

from jmi.errors import CheckpointError
from jmi_models.weights.quantised.mxfp4 import decode, decoded_shape

HALF = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
TABLE = np.array([*HALF, *(-value for value in HALF)], np.float64)
BITS = {"float32": np.uint32, "bfloat16": np.uint16, "float16": np.uint16}


def bits(value: Any) -> np.ndarray:
    value = np.asarray(value)
    return value.view(BITS[value.dtype.name])


def by_table(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The same weights in float64, which holds all of them: value by value, in the words of the spec."""
    values = np.empty((*blocks.shape, 2), np.float64)
    values[..., 0], values[..., 1] = TABLE[blocks % 16], TABLE[blocks // 16]
    power = np.where(scales == 255, np.nan, 2.0 ** (scales.astype(np.float64) - 127))
    return (values * power[..., None, None]).reshape(*scales.shape[:-1], scales.shape[-1] * 32)


def every_case() -> tuple[np.ndarray, np.ndarray]:
    """Each of 256 bytes under each of 256 scales: blocks [16, 16, 16, 16], scales [16, 16, 16]."""
    blocks = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (256, 16, 16))
    scales = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, 16))
    return blocks.reshape(16, 16, 16, 16), scales.reshape(16, 16, 16)


def test_the_sixteen_codes_low_nibble_first() -> None:
    pairs = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11), (12, 13), (14, 15)]
    block = np.array([low | high << 4 for low, high in pairs * 2], np.uint8)[None, None, None]
    decoded = decode(block, np.full((1, 1, 1), 127, np.uint8))
    assert decoded.shape == (1, 1, 32)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(bits(decoded)[0, 0], bits(np.tile(TABLE, 2).astype(np.float32)))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_every_byte_under_every_scale_is_exact(dtype: Any) -> None:
    blocks, scales = every_case()
    decoded = decode(blocks, scales).astype(dtype)
    exact = by_table(blocks, scales)
    nan = np.isnan(exact)
    np.testing.assert_array_equal(np.isnan(decoded), nan)
    # From 2 ** 128 on neither dtype has a number; below that, not one bit may be lost.
    exact[np.abs(exact) >= 2.0**128] *= math.inf
    widened = decoded.astype(np.float64)
    np.testing.assert_array_equal(widened[~nan].view(np.uint64), exact[~nan].view(np.uint64))


def test_extremes_of_the_scale() -> None:
    block = np.full((3, 1, 1, 16), 0x71, np.uint8)  # 0.5, then 6
    scales = np.array([0, 254, 255], np.uint8).reshape(3, 1, 1)
    smallest, largest, nan = decode(block, scales)[:, 0, :2].astype(np.float64)
    assert smallest.tolist() == [2.0**-128, 6 * 2.0**-127]
    assert largest.tolist() == [2.0**126, math.inf]
    assert np.isnan(nan).all()


stored = st.sampled_from([(1, 1, 1), (2, 3, 1), (3, 2, 4), (2, 0, 3)]).flatmap(
    lambda shape: st.tuples(
        arrays.arrays(np.uint8, (*shape, 16)), arrays.arrays(np.uint8, shape, elements=st.integers(0, 252))
    )
)


@hypothesis.given(stored)
def test_any_weights_match_the_table(case: tuple[np.ndarray, np.ndarray]) -> None:
    blocks, scales = case
    decoded = decode(blocks, scales)
    experts, rows, groups = scales.shape
    assert decoded.shape == decoded_shape(blocks.shape, scales.shape) == (experts, rows, groups * 32)
    np.testing.assert_array_equal(decoded.astype(np.float64), by_table(blocks, scales))


def test_fewer_and_more_axes_decode_alike() -> None:
    blocks, scales = every_case()
    whole = bits(decode(blocks, scales))
    for part in (3, (3, 2), None):
        np.testing.assert_array_equal(bits(decode(blocks[part], scales[part])), whole[part])


@pytest.mark.parametrize(
    ("blocks", "scales"),
    [((2, 3, 4, 16), (2, 3, 5)), ((2, 3, 4, 32), (2, 3, 4)), ((2, 3, 64), (2, 3, 4)), ((16,), ()), ((), ())],
)
def test_shapes_that_do_not_belong_together(blocks: tuple[int, ...], scales: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match=r"MXFP4 blocks \[.*\] do not fit scales \[.*\]"):
        decode(np.zeros(blocks, np.uint8), np.zeros(scales, np.uint8))


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bit_equal_to_transformers(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4", reason="the oracle needs transformers")
    blocks, scales = every_case()
    finite = scales < 255  # transformers reads 255 as 2 ** 128, where the specification has NaN
    scales = np.where(finite, scales, 0).astype(np.uint8)
    theirs = mxfp4.convert_moe_packed_tensors(
        torch.from_numpy(blocks.copy()), torch.from_numpy(scales), dtype=getattr(torch, dtype)
    )
    theirs = theirs.transpose(1, 2).contiguous()
    theirs = theirs.view(torch.int32 if dtype == "float32" else torch.int16).numpy()
    with np.errstate(over="ignore"):
        ours = bits(decode(blocks, scales).astype(np.dtype(dtype)))
    np.testing.assert_array_equal(ours, theirs.view(ours.dtype))
