"""Operations of a decoder as pure functions: activations, soft-caps, attention weights.

Axis letters: b batch, s/q/t sequence (q queries, t keys), d model width, h query heads, g key/value
heads, r = h/g queries per key head, k head width, m MLP width.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jmi.numerics import wide
from jmi_models.decoder.rounding import once, product

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_fast": lambda x: jax.nn.gelu(x, approximate=True),
    # BLOOM's own gelu_new: its constant, sqrt(2 / pi), has eight digits.
    "bloom_gelu": lambda x: 0.5 * x * (1 + jnp.tanh(0.79788456 * x * (1 + 0.044715 * x * x))),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(x * jnp.asarray(1.702, x.dtype)),
}
"""Hugging Face activation names."""


def activated(act_fn: str, gate: jax.Array, linear: jax.Array | None = None) -> jax.Array:
    """The activation of ``gate``, times a ``linear`` branch where there is one."""
    act = ACTIVATIONS[act_fn]
    return once(act, gate) if linear is None else once(lambda g, x: act(g) * x, gate, linear)


def rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of ``table`` ``[n, d]``, ``[..., d]``; NaN for ids that it does not have, negative ones too."""
    return table.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """``x`` squeezed smoothly into (-cap, cap)."""
    limit = jnp.asarray(cap, x.dtype)
    return limit * jnp.tanh(x / limit)


def attention_scores(q: jax.Array, k: jax.Array, scale: jax.Array) -> jax.Array:
    """Scaled products ``[b, h, q, t]`` of ``q`` ``[b, q, h, k]`` and ``k`` ``[b, t, g, k]``, in float32."""
    b, s, h, width = q.shape
    groups = k.shape[2]
    grouped = q.reshape(b, s, groups, h // groups, width)
    # Grouped, so that shared keys are never copied out to every query head.
    scores = product("bqgrk,btgk->bgrqt", grouped, k) * scale
    return scores.reshape(b, h, s, k.shape[1])


def causal_mask(queries: jax.Array, n_keys: int, key_mask: jax.Array | None, window: Any = None) -> jax.Array:
    """True where a query may look: at real tokens up to itself. ``[1 or b, 1, q, t]``.

    Args:
      queries: places ``[1 or b, q]`` of the queries among the keys.
      window: how many of the latest real keys each sees, itself included; None for all.
    """
    keys = jnp.arange(n_keys, dtype=queries.dtype)[None]
    mask = keys[:, None, None, :] <= queries[:, None, :, None]
    if window is not None:
        # Counted in real tokens: padding between a prompt and what is generated uses up no window.
        counted = keys if key_mask is None else jnp.cumsum(key_mask, -1, dtype=queries.dtype)
        own = queries if key_mask is None else jnp.take_along_axis(counted, queries, 1, mode="clip")
        mask = mask & (own[:, None, :, None] - counted[:, None, None, :] < window)
    return mask if key_mask is None else mask & key_mask[:, None, None, :].astype(bool)


def softmax(scores: jax.Array, sinks: jax.Array | None = None) -> jax.Array:
    """Softmax over keys in at least float32; a row of -inf alone gives zeros, not NaN.

    Args:
      scores: ``[b, h, q, t]``.
      sinks: ``[h]``, the score of one more key per head that takes attention and gives nothing.
    """
    x = scores.astype(wide(scores.dtype))
    top = jnp.max(x, -1, keepdims=True)
    if sinks is not None:
        sink = sinks.astype(x.dtype)[None, :, None, None]
        top = jnp.maximum(top, sink)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    weights = jnp.exp(x - top)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(sink - top)
    return (weights / jnp.where(total == 0, 1, total)).astype(scores.dtype)


def attend(pattern: jax.Array, v: jax.Array) -> jax.Array:
    """``pattern @ v``: ``[b, q, h, k]`` from ``[b, h, q, t]`` and ``[b, t, g, k]``."""
    b, h, s, t = pattern.shape
    groups = v.shape[2]
    grouped = pattern.reshape(b, groups, h // groups, s, t)
    return jnp.einsum("bgrqt,btgk->bqgrk", grouped, v).reshape(b, s, h, v.shape[3])
