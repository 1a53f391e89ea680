"""Attention of the generic decoder, from the normalised residual stream to what it adds.

Axis letters: b batch, s/q/t sequence (q queries, t keys), d model width, h query heads, g key/value
heads, k head width.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jmi.model.tap import Tap
from jmi.numerics import wide
from jmi_models.decoder import ops, rounding
from jmi_models.decoder.context import Context, of_layer, tables_of
from jmi_models.decoder.norms import HeadNorm, normalise_heads
from jmi_models.decoder.positions import Positions
from jmi_models.decoder.rope import rotate

OwnInput = Callable[[str, int, jax.Array, Tap], jax.Array]
"""(point, heads, module input, tap) -> what each head reads ``[b, s, h, d]``, where that is asked for."""

LONG = 1024
"""Up to so many tokens ``implementation="auto"`` is eager."""

_UNLIMITED = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Attention:
    """How the attention of a decoder weighs keys, beyond its sizes and positions.

    Attributes:
      scale: what scores are multiplied by.
      scale_by_layer: it is divided by the number of the layer, counted from 1.
      softcap: of the scores.
      windows: number of keys a query sees: one for all layers, or one for each; None for a layer
        without a window. Empty: no layer has one.
      qk_norm, clip_qkv: normalisation and clamp of queries and keys (the clamp of values, too).
      sinks: each head has a learned score that takes attention and gives nothing.
      qkv_bias, out_bias: which projections have biases.
      implementation: ``eager`` makes the whole matrix of scores; ``blockwise`` only the rows of
        ``query_block`` queries at a time, so memory grows with the length and not its square, except
        in layers where a hook or capture asks for scores or pattern; ``auto``, the default, is eager
        up to 1,024 tokens and blockwise beyond. The results are the same.
    """

    scale: float = 1.0
    scale_by_layer: bool = False
    softcap: float | None = None
    windows: tuple[int | None, ...] = ()
    qk_norm: HeadNorm | None = None
    clip_qkv: float | None = None
    sinks: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    implementation: Literal["auto", "eager", "blockwise"] = "auto"
    query_block: int = 128


@dataclasses.dataclass(frozen=True)
class InLayer:
    """Attention of one layer: what it is, what positions do in it, what all layers read, and its number."""

    spec: Attention
    positions: Positions
    context: Context
    layer: Any


def attend(at: InLayer, p: Any, x: jax.Array, own: OwnInput, tap: Tap) -> jax.Array:
    """Wanted outputs ``[b, s, d]`` of the attention module on ``x`` ``[b, s, d]``."""
    context, positions = at.context, at.positions
    q, k, v = _queries_keys_values(at, p, x, own, tap)
    if positions.rotary:
        cos, sin = map(context.of_run, tables_of(positions.ropes, context, at.layer))
        turned = rotate(q, context.wanted(cos), context.wanted(sin), positions.interleaved)
        q = tap("attn.hook_rot_q", turned)
        k = tap.recall("attn.hook_rot_k", rotate(k, cos, sin, positions.interleaved))
    places = context.wanted(context.places(x.shape[1]))
    z = tap("attn.hook_z", _mixed(at, p.get("sinks"), (q, k, v), places, tap))
    out = tap.where_wanted(
        ("attn.hook_result",),
        lambda tap: _summed(p, tap("attn.hook_result", jnp.einsum("bshk,hkd->bshd", z, p["W_O"]))),
        lambda: rounding.project("bshk,hkd->bsd", z, p, "W_O", "b_O"),
    )
    return tap("attn.hook_out", out)


def _summed(p: Any, results: jax.Array) -> jax.Array:
    return rounding.biased(rounding.widened(results).sum(2), p, "b_O", results.dtype)


def _mixed(
    at: InLayer,
    sinks: jax.Array | None,
    qkv: tuple[jax.Array, jax.Array, jax.Array],
    places: jax.Array,
    tap: Tap,
) -> jax.Array:
    """Values mixed by the pattern, ``[b, s, h, k]``, by the implementation that is asked for."""
    q, k, v = qkv
    spec, length = at.spec, q.shape[1]

    def eager(tap: Tap) -> jax.Array:
        scores = _scores(at, q, k, places)
        scores = tap("attn.hook_attn_scores", scores)
        return ops.attend(tap("attn.hook_pattern", ops.softmax(scores, sinks)), v)

    def of_block(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        queries, places = block
        return ops.attend(ops.softmax(_scores(at, queries, k, places), sinks), v)

    def blockwise() -> jax.Array:
        # Each row of scores is whole, so the softmax is the eager one; only some rows exist at a time,
        # in the backward pass too.
        size = min(spec.query_block, length)
        n_blocks = -(-length // size)
        rest = n_blocks * size - length

        def cut(x: jax.Array) -> jax.Array:
            padded = jnp.pad(x, ((0, 0), (0, rest), *[(0, 0)] * (x.ndim - 2)))
            return jnp.moveaxis(padded.reshape(x.shape[0], n_blocks, size, *x.shape[2:]), 1, 0)

        z = jax.lax.map(jax.checkpoint(of_block), (cut(q), cut(places)))
        return jnp.moveaxis(z, 0, 1).reshape(q.shape[0], length + rest, *q.shape[2:])[:, :length]

    if spec.implementation == "eager" or (spec.implementation == "auto" and length <= LONG):
        return eager(tap)
    return tap.where_wanted(("attn.hook_attn_scores", "attn.hook_pattern"), eager, blockwise)


def _queries_keys_values(
    at: InLayer, p: Any, x: jax.Array, own: OwnInput, tap: Tap
) -> tuple[jax.Array, jax.Array, jax.Array]:
    spec = at.spec

    def project(name: str, x: jax.Array) -> jax.Array:
        point, weight, bias = f"hook_{name.lower()}_input", f"W_{name}", f"b_{name}"
        heads = p[weight].shape[1]
        return tap.where_wanted(
            (point,),
            lambda tap: rounding.project("bshd,dhk->bshk", own(point, heads, x, tap), p, weight, bias),
            lambda: rounding.project("bsd,dhk->bshk", x, p, weight, bias),
        )

    q, k, v = project("Q", at.context.wanted(x)), project("K", x), project("V", x)
    if spec.qk_norm is not None:
        q = normalise_heads(spec.qk_norm, p.get("q_norm"), q)
        k = normalise_heads(spec.qk_norm, p.get("k_norm"), k)
    if spec.clip_qkv is not None:
        limit = jnp.asarray(spec.clip_qkv, x.dtype)
        q, k, v = (jnp.clip(value, -limit, limit) for value in (q, k, v))
    keys = tap if at.positions.rotary else tap.recall
    return tap("attn.hook_q", q), keys("attn.hook_k", k), tap.recall("attn.hook_v", v)


def _scores(at: InLayer, q: jax.Array, k: jax.Array, places: jax.Array) -> jax.Array:
    """Scaled, capped, biased, masked scores ``[b, h, q, t]`` of queries at ``places`` ``[1 or b, q]``."""
    spec, context, alibi = at.spec, at.context, at.positions.alibi
    scale = jnp.asarray(spec.scale, wide(q.dtype))
    if spec.scale_by_layer:
        scale = scale / (jnp.asarray(at.layer) + 1).astype(scale.dtype)
    scores = ops.attention_scores(q, k, scale)
    if spec.softcap is not None:
        scores = ops.softcap(scores, spec.softcap)
    if alibi is not None:
        bias = alibi.bias(q.shape[2], context.positions, scores.dtype)
        scores = scores + (bias * scale if alibi.scaled else bias)
    window = None
    if any(spec.windows):
        window = of_layer(tuple(width or _UNLIMITED for width in spec.windows), at.layer)
    visible = ops.causal_mask(places, k.shape[1], context.key_mask, window)
    return jnp.where(visible, scores, -jnp.inf).astype(q.dtype)
