"""Padding changes nothing: any amount, on either side, in any mix of lengths."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jmi
from jmi_models.decoder.rope import Dynamic, LongRope
from tests.oracles import grid
from tests.support.committed import arch_of, each, every_site, load, run
from tests.support.mechanisms import each_covering
from tests.support.tolerances import WIDER, assert_agree

LENGTHS, BUFFER = (10, 6), 14
DEEP = ("gemma3_text/linear",)
"""Six layers, and two norms in each divide what a module adds: float32 is off by as much without padding."""


@functools.cache
def unpadded(name: str, dtype: str) -> list[dict[str, np.ndarray]]:
    """Every site of each row by itself, without the batch axis."""
    rows = enumerate(zip(grid.tokens(grid.GRID[name]), LENGTHS, strict=True))
    if any(isinstance(rope.scaling, (Dynamic, LongRope)) for rope in arch_of(name).positions.ropes if rope):
        # Frequencies depend on the length: each row needs a run of its own.
        return [row_of(run(load(name, dtype), row[None, :n]), 0, slice(n), name) for _, (row, n) in rows]
    # No token depends on later ones: a shorter prompt is the start of a longer one.
    return [row_of(every_site(name, dtype), i, slice(n), name) for i, (_, n) in rows]


def row_of(got: dict[str, np.ndarray], row: int, real: slice, name: str) -> dict[str, np.ndarray]:
    """Every site of one row of the batch, at the positions ``real``."""
    values = {}
    for point, site in arch_of(name).sites().items():
        inside = point.startswith("blocks.")
        value = got[point][:, row] if inside else got[point][row]
        both = (..., real, real)
        values[point] = value[both if "key" in site.axes else ((slice(None), real) if inside else real)]
    return values


def padded_rows(name: str, dtype: str, offsets: tuple[int, ...], filler: int) -> list[dict[str, np.ndarray]]:
    """Every site of each row at its real positions, from one padded batch."""
    tokens, mask = padded(name, offsets, filler)
    got = run(load(name, dtype), jmi.Prompts(tokens, mask))
    spans = enumerate(zip(offsets, LENGTHS, strict=True))
    return [row_of(got, row, slice(start, start + n), name) for row, (start, n) in spans]


@each(grid.COMMITTED)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offsets=st.tuples(*(st.integers(0, BUFFER - n) for n in LENGTHS)), filler=st.integers(0, 60))
def test_padding_on_either_side_changes_nothing(name: str, offsets: tuple[int, ...], filler: int) -> None:
    for got, want in zip(
        padded_rows(name, "float64", offsets, filler), unpadded(name, "float64"), strict=True
    ):
        assert_agree(got, want)


@each_covering(grid.COMMITTED, ("norm", "norms", "positions", "windows", "scores"))
def test_padding_adds_no_error_in_float32(name: str) -> None:
    """Sums of other lengths round differently: what counts is the distance to float64.

    Relatively, a weight of attention is as far off as its score is absolutely, and so is what it reads.
    """
    rows = padded_rows(name, "float32", (3, 5), 7), unpadded(name, "float64")
    for got, exact in zip(*rows, strict=True):
        scores = exact["blocks.*.attn.hook_attn_scores"]
        largest = np.abs(scores[np.isfinite(scores)]).max()
        want = {site: value.astype(np.float32) for site, value in exact.items()}
        assert_agree(got, want, times=max(WIDER if name in DEEP else 1.0, largest))


def padded(name: str, offsets: tuple[int, ...], filler: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.full((2, BUFFER), filler, np.int32)
    mask = np.zeros((2, BUFFER), bool)
    for row, (start, n) in enumerate(zip(offsets, LENGTHS, strict=True)):
        tokens[row, start : start + n] = grid.tokens(grid.GRID[name])[row, :n]
        mask[row, start : start + n] = True
    return tokens, mask


GRADIENTS = (
    *("llama/longrope_beyond", "gemma2/capped", "gpt2/plain", "gptj/plain", "bloom/six_heads_untied"),
    *("cohere2/pattern", "opt/post_norm", "gpt_oss/alternating"),
)


@each(GRADIENTS)
def test_padding_changes_no_gradient(name: str) -> None:
    lm, tokens, offsets = load(name, "float64"), grid.tokens(grid.GRID[name]), (3, 5)
    with jax.enable_x64(True):
        readout = jnp.asarray(np.random.default_rng(0).normal(size=(BUFFER, lm.arch.d_vocab)))

        @jax.jit
        @jax.grad
        def gradient(params: Any, tokens: Any, mask: Any, start: Any) -> Any:
            logits = jmi.forward(lm.arch, params, jmi.Prompts(tokens, mask)).logits
            wanted = jnp.roll(readout, start, axis=0)[None, : tokens.shape[1]]
            return jnp.where(mask[..., None], logits * wanted, 0).sum()

        both, mask = padded(name, offsets, 7)
        got = [gradient(lm.params, both[[i]], mask[[i]], offsets[i]) for i in (0, 1)]
        want = [gradient(lm.params, tokens[[i], :n], np.ones((1, n), bool), 0) for i, n in enumerate(LENGTHS)]
    for padded_row, single in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # A bias of keys moves all scores of a query alike: its gradient is nothing but rounding.
        assert_agree(padded_row, single, "gradients", scale=0.01)
