"""The recurrences of RWKV-6 and RWKV-7 against their formulas, and chunks of tokens against single ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmi_models.rwkv.wkv import Inputs, attention, scan
from jmi_models.rwkv.wkv_chunked import chunked
from tests.support.tolerances import assert_agree

BATCH, HEADS, KEYS, VALUES = 2, 2, 4, 3
VERSIONS = pytest.mark.parametrize("version", [6, 7])
EXTREMES = [0.0, 1e-300, 1e-45, 1e-30, 1e-6, 0.5, 1.0, 1.0, 1.0]


def example(version: int, length: int, extreme: bool = False) -> tuple[Any, Any]:
    """Random inputs, in float64, and a state to start from; one write in four is 0."""
    rng = np.random.default_rng(length)
    normal: Any = lambda *shape: rng.standard_normal(shape)
    token = (BATCH, length, HEADS, KEYS)
    decay: Any = rng.choice(EXTREMES, token) if extreme else np.exp(-rng.uniform(0, 2, token))
    write = normal(*token[:3]) * (rng.random(token[:3]) > 0.25)
    x: Any = Inputs(normal(*token), normal(*token), decay, normal(*token[:3], VALUES), write)
    if version == 6:
        x = x._replace(bonus=normal(HEADS, KEYS))
    else:
        x = x._replace(remove=normal(*token) / 2, add=normal(*token) / 2)
    return x, normal(BATCH, HEADS, KEYS, VALUES)


def loop(x: Inputs, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``y`` and the final state, one head and one token after another, as the papers write it."""
    y, final = np.empty(x.value.shape), state.copy()
    for b in range(BATCH):
        for h in range(HEADS):
            S = state[b, h]
            for t in range(y.shape[1]):
                r, k, w, v = (np.asarray(a[b, t, h]) for a in (x.receptance, x.key, x.decay, x.value))
                written = float(x.write[b, t, h]) * np.outer(k, v)
                if x.bonus is not None:
                    y[b, t, h] = r @ (np.diag(np.asarray(x.bonus[h])) @ np.outer(k, v) + S)
                    S = np.diag(w) @ S + written
                elif x.add is not None and x.remove is not None:
                    S = np.diag(w) @ S + np.outer(x.add[b, t, h], x.remove[b, t, h] @ S) + written
                    y[b, t, h] = r @ S
            final[b, h] = S
    return y, final


def run(function: Any, x: Inputs, state: np.ndarray, dtype: str = "float64") -> Any:
    return jax.jit(function)(*jax.tree.map(lambda a: jnp.asarray(a, dtype), (x, state)))


def assert_formulas(function: Any, version: int, length: int, dtype: str) -> None:
    for extreme in (False, True):
        x, state = example(version, length, extreme)
        with jax.enable_x64(dtype == "float64"):
            got = run(function, x, state, dtype)
        assert got.y.dtype == got.state.dtype == dtype
        for part, want in zip((got.y, got.state), loop(x, state), strict=True):
            assert_agree(part, want.astype(dtype), "oracle")


DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])


@VERSIONS
@DTYPES
def test_single_tokens_equal_the_formulas(version: int, dtype: str) -> None:
    assert_formulas(scan, version, 33, dtype)


@pytest.mark.parametrize(
    ("version", "length", "size"), [(7, 1, 16), (7, 5, 4), (7, 16, 16), (7, 33, 8), (6, 5, 16), (6, 33, 8)]
)
def test_chunks_equal_the_formulas(version: int, length: int, size: int) -> None:
    assert_formulas(lambda x, S: chunked(x, S, size), version, length, "float64")


@VERSIONS
def test_chunks_in_float32_equal_the_formulas(version: int) -> None:
    assert_formulas(chunked, version, 33, "float32")


@VERSIONS
def test_chunks_have_the_gradients_of_single_tokens(version: int) -> None:
    """Of a random readout, by every input and the state; a decay of 0 has a gradient, too."""
    rng = np.random.default_rng(0)
    readouts = (
        rng.standard_normal((BATCH, 6, HEADS, VALUES)),
        rng.standard_normal((BATCH, HEADS, KEYS, VALUES)),
    )

    def gradients(function: Any) -> Any:
        def readout(inputs: tuple[Inputs, jax.Array]) -> jax.Array:
            parts = function(*inputs)[:2]
            return sum((part * weight).sum() for part, weight in zip(parts, readouts, strict=True))

        return lambda x, state: jax.grad(readout)((x, state))

    single, chunks = gradients(scan), gradients(lambda x, S: chunked(x, S, 4))
    for extreme in (False, True):
        x, state = example(version, 6, extreme)
        with jax.enable_x64(True):
            got, want = (run(function, x, state) for function in (chunks, single))
        assert_agree(got, want, "gradients")
        assert np.abs(np.asarray(got[0].decay)[x.decay == x.decay.min()]).min() > 0


@VERSIONS
def test_attention_times_values_is_y(version: int) -> None:
    for extreme in (False, True):
        x, state = example(version, 9, extreme)
        with jax.enable_x64(True):
            weights = np.asarray(run(lambda x, _: attention(x), x, state))
        assert_agree(np.einsum("bhst,bthv->bshv", weights, x.value), loop(x, 0 * state)[0])
        np.testing.assert_array_equal(weights, np.tril(weights))


@VERSIONS
@pytest.mark.parametrize("function", [scan, chunked])
def test_padding_leaves_the_state_as_it_was(version: int, function: Any) -> None:
    x, state = example(version, 3)
    x = x._replace(decay=np.ones_like(x.decay), write=np.zeros_like(x.write))
    if version == 7:
        x = x._replace(add=np.zeros_like(x.key))
    got = run(function, x, state, "float32")
    np.testing.assert_array_equal(got.state, state.astype(np.float32))
