"""What the time mixes of RWKV-6 and RWKV-7 share: token shift, and the recurrence with its points.

Axis letters: b batch, s sequence, d model width, h heads, k head width, r rank.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.model.tap import Tap
from jmi.numerics import wide
from jmi_models.rwkv.wkv import Inputs, attention, scan
from jmi_models.rwkv.wkv_chunked import chunked

STATES = "rwkv.hook_states"
SCORES, ATTENTION = "rwkv.hook_effective_scores", "rwkv.hook_effective_attn"


@tree.dataclass
class Padding:
    """Where the real tokens are; all None when every one is.

    Attributes:
      mask: bool ``[b, s]``.
      previous: index ``[b, s]`` of the real token before each position, -1 for none.
      last: index ``[b]`` of the last real token, -1 for none.
    """

    mask: Any = None
    previous: Any = None
    last: Any = None


def padding(mask: jax.Array | None) -> Padding:
    """`Padding` of a mask of real tokens ``[b, s]``."""
    if mask is None:
        return Padding()
    at = jnp.where(mask, jnp.arange(mask.shape[1], dtype=jnp.int32)[None], -1)
    seen = jax.lax.cummax(at, axis=1)
    return Padding(mask, jnp.pad(seen[:, :-1], ((0, 0), (1, 0)), constant_values=-1), seen[:, -1])


def shifted(module: str, x: jax.Array, padding: Padding, tap: Tap) -> jax.Array:
    """For each token of ``x`` ``[b, s, d]`` the one before it; before the first, that of the run before."""
    before = tap.recall(f"{module}.hook_shift_in", jnp.zeros_like(x[:, 0]))
    if padding.mask is None:
        tap(f"{module}.hook_shift", x[:, -1])
        return jnp.concatenate([before[:, None], x[:, :-1]], 1)
    last = padding.last[:, None]
    tap(f"{module}.hook_shift", _rows(x, last, before)[:, 0])
    return _rows(x, padding.previous, before)


def _rows(x: jax.Array, index: jax.Array, before: jax.Array) -> jax.Array:
    """Rows ``index`` ``[b, n]`` of ``x`` ``[b, s, d]``; ``before`` ``[b, d]`` where it is -1."""
    found = jnp.take_along_axis(x, jnp.maximum(index, 0)[..., None], 1)
    return jnp.where((index < 0)[..., None], before[:, None], found)


def low_rank(x: jax.Array, p: Any, name: str, middle: Any = None) -> jax.Array:
    """``middle(x p[name1]) p[name2]`` ``[b, s, h, k]``: a projection of low rank."""
    inner = jnp.einsum("bsd,dr->bsr", x, p[f"{name}1"])
    return jnp.einsum("bsr,rhk->bshk", inner if middle is None else middle(inner), p[f"{name}2"])


def recur(x: Inputs, padding: Padding, implementation: Literal["scan", "chunked"], tap: Tap) -> jax.Array:
    """``y`` ``[b, s, h, v]`` of the recurrence, with the points of its state."""
    batch, _, heads, width = x.key.shape
    x = _without_padding(x._replace(write=tap("rwkv.hook_write", x.write)), padding)
    start = tap.recall("rwkv.hook_state_in", jnp.zeros((batch, heads, width, x.value.shape[-1]), x.key.dtype))
    if implementation == "chunked" and not tap.wants(STATES):
        found = chunked(x, start)
    else:
        edit = functools.partial(tap.at_step, STATES, length=x.key.shape[1])
        found = scan(x, start, edit if tap.hooked(STATES) else None, tap.captured(STATES))
    if found.arrived is not None and found.states is not None:
        tap.passed(STATES, found.arrived, found.states)
    tap("rwkv.hook_state", found.state)
    y = tap("rwkv.hook_y", found.y)

    def looked_into(tap: Tap) -> jax.Array:
        scores = tap(SCORES, attention(x))
        positive = jax.nn.relu(scores)
        # The reference system's normalisation; a row without positive entries stays zero.
        tap(ATTENTION, positive / (positive.sum(-1, keepdims=True) + jnp.asarray(1e-10, positive.dtype)))
        return y

    return tap.where_wanted((SCORES, ATTENTION), looked_into, lambda: y)


def _without_padding(x: Inputs, padding: Padding) -> Inputs:
    """Padding leaves the state as it was: it neither decays nor writes."""
    if padding.mask is None:
        return x
    real = padding.mask[..., None, None]
    return x._replace(
        decay=jnp.where(real, x.decay, 1),
        write=jnp.where(real[..., 0], x.write, 0),
        add=None if x.add is None else jnp.where(real, x.add, 0),
    )


def head_norm(p: Any, y: jax.Array, eps: float) -> jax.Array:
    """Each head of ``y`` ``[b, s, h, k]`` normalised, with gain and bias; in at least float32."""
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + jnp.asarray(eps, y.dtype))
    return y * p["w"].astype(y.dtype)[None, None] + p["b"].astype(y.dtype)[None, None]


def widened(*values: jax.Array) -> tuple[jax.Array, ...]:
    """``values`` in at least float32, in which the recurrence runs."""
    return tuple(value.astype(wide(value.dtype)) for value in values)
