"""Casting copies: in any order of axes what numpy gives; what is not finite there is seen."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmi_models.weights import casting

DTYPES = [np.dtype(d) for d in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]


@st.composite
def views(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Values, some of them cut out of a larger array, and a place for them, each in an order of its own."""
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=4)))
    order, other = (draw(st.permutations(range(len(shape)))) for _ in range(2))
    wider = [size + draw(st.integers(0, 2)) for size in shape]
    values = np.random.default_rng(draw(st.integers(0, 99))).standard_normal([wider[axis] for axis in order])
    values = values.astype(draw(st.sampled_from(DTYPES))).transpose(np.argsort(order))
    out = np.zeros([shape[axis] for axis in other], draw(st.sampled_from(DTYPES)))
    return values[tuple(map(slice, shape))], out.transpose(np.argsort(other))


@given(case=views(), strip=st.sampled_from([1, 40, 300, 1 << 20]))
def test_every_value_arrives_rounded_as_numpy_rounds(case: tuple[np.ndarray, np.ndarray], strip: int) -> None:
    values, out = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(casting, "_STRIP", strip)
        assert casting.cast_into(out, values)
    np.testing.assert_array_equal(out, values.astype(out.dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_one_value_that_is_not_finite_is_seen(
    dtype: np.dtype, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(casting, "_STRIP", 64)
    values, out = np.zeros((9, 7)), np.empty((7, 9), dtype).T
    assert casting.cast_into(out, values)
    finite = dtype == np.float64 and bad == 1e300
    for place in ((0, 0), (4, 3), (8, 6)):
        spoilt = values.copy()
        spoilt[place] = bad
        assert casting.cast_into(out, spoilt) == finite, place
        assert np.isfinite(out[place]) == finite


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_and_the_smallest_numbers_are_finite_and_kept(dtype: np.dtype) -> None:
    limits = ml_dtypes.finfo(dtype)
    values = np.array([limits.max, limits.min, limits.tiny, limits.smallest_subnormal, -0.0], dtype)
    out = np.empty_like(values)
    assert casting.cast_into(out, values)
    assert out.tobytes() == values.tobytes()
