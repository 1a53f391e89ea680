"""Attention of the generic decoder, from the normalised residual stream to what it adds.

Axis letters: b batch, s/q/t sequence (q queries, t keys), d model width, h query heads, g key/value
heads, k head width.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.model.tap import Tap
from jmi.numerics import wide
from jmi_models.decoder import ops, rounding
from jmi_models.decoder.context import Context, of_layer, tables_of
from jmi_models.decoder.norms import normalise_heads
from jmi_models.decoder.rope import rotate

if TYPE_CHECKING:
    from jmi_models.decoder.transformer import Transformer

OwnInput = Callable[[str, int, jax.Array, Tap], jax.Array]
"""(point, heads, module input, tap) -> what each head reads ``[b, s, h, d]``, where that is asked for."""

LONG = 1024
"""Up to so many tokens ``implementation="auto"`` is eager."""

_UNLIMITED = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Alibi:
    """Scores fall linearly with distance, by a slope per head (arXiv:2108.12409).

    Attributes:
      scaled: the bias is multiplied by the scale of the scores as well (Falcon).
      rounded: slopes and biases are rounded to bfloat16, as Hugging Face rounds Falcon's.
    """

    scaled: bool = False
    rounded: bool = False

    def bias(self, n_heads: int, positions: jax.Array, dtype: Any) -> jax.Array:
        """What is added to scores, ``[b, h, 1, t]``, for key ``positions`` ``[b, t]``."""
        slopes = jnp.asarray(_slopes(n_heads), dtype)[None, :, None, None]
        keys = positions[:, None, None, :].astype(dtype)
        if not self.rounded:
            return slopes * keys
        low = jnp.bfloat16
        return (slopes.astype(low) * keys.astype(low)).astype(dtype)


def _slopes(n_heads: int) -> np.ndarray:
    """Powers of ``2 ** (-8 / n)``; between two powers of two, every second one of the next is filled in."""
    whole = 2 ** math.floor(math.log2(n_heads))
    powers = 2.0 ** (-8.0 / whole * np.arange(1, whole + 1))
    between = 2.0 ** (-4.0 / whole * np.arange(1, 2 * whole, 2))
    return np.concatenate([powers, between])[:n_heads]


def attend(
    arch: "Transformer", p: Any, x: jax.Array, own: OwnInput, context: Context, *, layer: Any, tap: Tap
) -> jax.Array:
    """Wanted outputs ``[b, s, d]`` of the attention module on ``x`` ``[b, s, d]``."""
    q, k, v = _queries_keys_values(arch, p, x, own, context, tap)
    if arch.rotary:
        cos, sin = map(context.of_run, tables_of(arch.ropes, context, layer))
        turned = rotate(q, context.wanted(cos), context.wanted(sin), arch.rope_interleaved)
        q = tap("attn.hook_rot_q", turned)
        k = tap.recall("attn.hook_rot_k", rotate(k, cos, sin, arch.rope_interleaved))
    places = context.wanted(context.places(x.shape[1]))
    z = tap("attn.hook_z", _mixed(arch, p.get("sinks"), (q, k, v), places, context, layer=layer, tap=tap))
    out = tap.where_wanted(
        ("attn.hook_result",),
        lambda tap: _summed(p, tap("attn.hook_result", jnp.einsum("bshk,hkd->bshd", z, p["W_O"]))),
        lambda: rounding.project("bshk,hkd->bsd", z, p, "W_O", "b_O"),
    )
    return tap("attn.hook_out", out)


def _summed(p: Any, results: jax.Array) -> jax.Array:
    return rounding.biased(rounding.widened(results).sum(2), p, "b_O", results.dtype)


def _mixed(
    arch: "Transformer",
    sinks: jax.Array | None,
    qkv: tuple[jax.Array, jax.Array, jax.Array],
    places: jax.Array,
    context: Context,
    *,
    layer: Any,
    tap: Tap,
) -> jax.Array:
    """Values mixed by the pattern, ``[b, s, h, k]``, by the implementation that ``arch`` asks for."""
    q, k, v = qkv
    length = q.shape[1]

    def eager(tap: Tap) -> jax.Array:
        scores = _scores(arch, q, k, places, context, layer)
        scores = tap("attn.hook_attn_scores", scores)
        return ops.attend(tap("attn.hook_pattern", ops.softmax(scores, sinks)), v)

    def of_block(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        queries, places = block
        return ops.attend(ops.softmax(_scores(arch, queries, k, places, context, layer), sinks), v)

    def blockwise() -> jax.Array:
        # Each row of scores is whole, so the softmax is the eager one; only some rows exist at a time,
        # in the backward pass too.
        size = min(arch.query_block, length)
        n_blocks = -(-length // size)
        rest = n_blocks * size - length

        def cut(x: jax.Array) -> jax.Array:
            padded = jnp.pad(x, ((0, 0), (0, rest), *[(0, 0)] * (x.ndim - 2)))
            return jnp.moveaxis(padded.reshape(x.shape[0], n_blocks, size, *x.shape[2:]), 1, 0)

        z = jax.lax.map(jax.checkpoint(of_block), (cut(q), cut(places)))
        return jnp.moveaxis(z, 0, 1).reshape(q.shape[0], length + rest, *q.shape[2:])[:, :length]

    if arch.implementation == "eager" or (arch.implementation == "auto" and length <= LONG):
        return eager(tap)
    return tap.where_wanted(("attn.hook_attn_scores", "attn.hook_pattern"), eager, blockwise)


def _queries_keys_values(
    arch: "Transformer", p: Any, x: jax.Array, own: OwnInput, context: Context, tap: Tap
) -> tuple[jax.Array, jax.Array, jax.Array]:
    def project(name: str, x: jax.Array) -> jax.Array:
        point, weight, bias = f"hook_{name.lower()}_input", f"W_{name}", f"b_{name}"
        heads = p[weight].shape[1]
        return tap.where_wanted(
            (point,),
            lambda tap: rounding.project("bshd,dhk->bshk", own(point, heads, x, tap), p, weight, bias),
            lambda: rounding.project("bsd,dhk->bshk", x, p, weight, bias),
        )

    q, k, v = project("Q", context.wanted(x)), project("K", x), project("V", x)
    if arch.qk_norm is not None:
        q = normalise_heads(arch.qk_norm, p.get("q_norm"), q)
        k = normalise_heads(arch.qk_norm, p.get("k_norm"), k)
    if arch.clip_qkv is not None:
        limit = jnp.asarray(arch.clip_qkv, x.dtype)
        q, k, v = (jnp.clip(value, -limit, limit) for value in (q, k, v))
    keys = tap if arch.rotary else tap.recall
    return tap("attn.hook_q", q), keys("attn.hook_k", k), tap.recall("attn.hook_v", v)


def _scores(
    arch: "Transformer", q: jax.Array, k: jax.Array, places: jax.Array, context: Context, layer: Any
) -> jax.Array:
    """Scaled, capped, biased, masked scores ``[b, h, q, t]`` of queries at ``places`` ``[1 or b, q]``."""
    scale = jnp.asarray(arch.attn_scale, wide(q.dtype))
    if arch.scale_by_layer:
        scale = scale / (jnp.asarray(layer) + 1).astype(scale.dtype)
    scores = ops.attention_scores(q, k, scale)
    if arch.attn_softcap is not None:
        scores = ops.softcap(scores, arch.attn_softcap)
    if arch.alibi is not None:
        bias = arch.alibi.bias(arch.n_heads, context.positions, scores.dtype)
        scores = scores + (bias * scale if arch.alibi.scaled else bias)
    window = None
    if any(arch.windows):
        window = of_layer(tuple(width or _UNLIMITED for width in arch.windows), layer)
    visible = ops.causal_mask(places, k.shape[1], context.key_mask, window)
    return jnp.where(visible, scores, -jnp.inf).astype(q.dtype)
