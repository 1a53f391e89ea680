"""Operations of a decoder as pure functions: norm, activation, attention weights.

Axis letters: b batch, s/q/t sequence (q queries, t keys), d model width, h query heads, g key/value
heads, r = h/g queries per key head, k head width, m MLP width.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from jmi.numerics import wide

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}
"""Hugging Face activation names."""


def rms(x: jax.Array, eps: float) -> jax.Array:
    """Root mean square over the last axis, ``[..., 1]``, in at least float32."""
    x = x.astype(wide(x.dtype))
    return jnp.sqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + jnp.asarray(eps, x.dtype))


def attention_scores(q: jax.Array, k: jax.Array, scale: float) -> jax.Array:
    """Scaled products ``[b, h, q, t]`` of ``q`` ``[b, q, h, k]`` and ``k`` ``[b, t, g, k]``."""
    b, s, h, width = q.shape
    groups = k.shape[2]
    grouped = q.reshape(b, s, groups, h // groups, width)
    # Grouped, so that shared keys are never copied out to every query head.
    scores = jnp.einsum("bqgrk,btgk->bgrqt", grouped, k) * jnp.asarray(scale, q.dtype)
    return scores.reshape(b, h, s, k.shape[1])


def causal_mask(length: int, key_mask: jax.Array | None) -> jax.Array:
    """True where a query may look: at real tokens up to itself. ``[1 or b, 1, q, t]``."""
    index = jnp.arange(length)
    mask = (index[:, None] >= index[None, :])[None, None]
    return mask if key_mask is None else mask & key_mask[:, None, None, :].astype(bool)


def softmax(scores: jax.Array) -> jax.Array:
    """Softmax over keys in at least float32; a row of -inf alone gives zeros, not NaN."""
    x = scores.astype(wide(scores.dtype))
    top = jnp.max(x, -1, keepdims=True)
    weights = jnp.exp(x - jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0)))
    total = weights.sum(-1, keepdims=True)
    return (weights / jnp.where(total == 0, 1, total)).astype(scores.dtype)


def attend(pattern: jax.Array, v: jax.Array) -> jax.Array:
    """``pattern @ v``: ``[b, q, h, k]`` from ``[b, h, q, t]`` and ``[b, t, g, k]``."""
    b, h, s, t = pattern.shape
    groups = v.shape[2]
    grouped = pattern.reshape(b, groups, h // groups, s, t)
    return jnp.einsum("bgrqt,btgk->bqgrk", grouped, v).reshape(b, s, h, v.shape[3])
