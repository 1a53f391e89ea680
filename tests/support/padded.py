"""Two prompts of unlike lengths, padded on any side, and each of them alone."""

import functools
from typing import Any

import jax
import numpy as np

import jmi
from jmi import metrics
from tests.support import random_rwkv as rwkv
from tests.support.committed import load

LENGTHS, BUFFER, VOCAB = (4, 6), 8, 30
OFFSETS = {"left": (4, 2), "right": (0, 0), "between": (1, 2)}
CLEAN, SOURCE = np.random.default_rng(0).integers(1, VOCAB, (2, 2, 6), np.int32)
SPOTS = (0, 2, -1, -3, [0, -1], [[1], [4]], [[-4, 2], [-6, 5]])
"""Positions that both rows have: one, several, or those of each row."""
MODELS = ("gpt2/plain", "qwen3/tied", "bloom/six_heads_untied", "mistral/window", "rwkv7")


@functools.cache
def model(name: str) -> Any:
    return rwkv.load(7) if name == "rwkv7" else load(name, "float64")


def batch(side: str, ids: Any = CLEAN) -> tuple[np.ndarray, np.ndarray]:
    """Both rows in one padded batch, and its mask."""
    tokens, mask = np.full((2, BUFFER), 7, np.int32), np.zeros((2, BUFFER), bool)
    for row, (start, n) in enumerate(zip(OFFSETS[side], LENGTHS, strict=True)):
        tokens[row, start : start + n], mask[row, start : start + n] = ids[row, :n], True
    return tokens, mask


def of_row(row: int, spot: Any) -> Any:
    """A position, or positions, of one row by itself."""
    return [spot[row]] if np.ndim(spot) == 2 else spot


def alike(name: str, experiment: Any, sides: Any = OFFSETS) -> None:
    """``experiment(lm, rows, tokens, mask)`` gives ``[b, ...]`` arrays: those of each row alone."""
    lm = model(name)
    with jax.enable_x64(True):
        alone = [experiment(lm, [row], CLEAN[[row], :n], None) for row, n in enumerate(LENGTHS)]
        for side in sides:
            got = experiment(lm, [0, 1], *batch(side))
            for row, want in enumerate(alone):
                pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
                for i, (one, other) in enumerate(pairs):
                    close(np.asarray(one)[row], np.asarray(other)[0], (side, row, i))


def close(got: Any, want: Any, which: Any = "") -> None:
    assert got.shape == want.shape, which
    scale = np.abs(np.where(np.isfinite(want), want, 0)).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11 * scale + 1e-13, err_msg=str(which))


def real(x: Any, mask: Any, axis: int) -> Any:
    """Of an array on the padded axis, the sum over real tokens (which single rows have as they are)."""
    x = np.asarray(x)
    if mask is None:
        return x.sum(axis)
    shape = [x.shape[0], *(x.shape[axis] if i == axis else 1 for i in range(1, x.ndim))]
    return np.where(mask.reshape(shape), x, 0).sum(axis)


def last(lm: Any, tokens: Any, mask: Any, hooks: Any = None) -> Any:
    return metrics.final_logits(lm.run(jmi.Prompts(tokens, mask), hooks))


GOALS = {"diff": metrics.LogitDiff(3, 4), "rank": metrics.Rank(5)}
