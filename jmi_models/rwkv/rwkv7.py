"""RWKV-7 "Goose" (arXiv:2503.14456): a state that removes what it holds under a key before it writes.

Axis letters: b batch, s sequence, d model width, h heads, k head width, m MLP width.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jmi.model.tap import Tap
from jmi_models.params import Param
from jmi_models.rwkv.time_mix import Padding, head_norm, low_rank, recur, shifted, widened
from jmi_models.rwkv.wkv import Inputs

LACKS = ("mlp.hook_gate",)
RANKS = {"w": "rank_decay", "a": "rank_a", "v": "rank_v", "g": "rank_gate"}
"""Low-rank part -> parameter axis of its width."""
_STEEPEST_DECAY = math.exp(-0.5)


def params(make: Any) -> dict[str, Any]:
    """Abstract parameters of the two mixes."""
    channels, heads = "n_layers d_model", "n_layers n_heads d_head"
    tree: dict[str, Param] = {f"mix_{name}": make(channels, 0.5) for name in "rwkvag"}
    for name, rank in RANKS.items():
        tree[f"{name}1"] = make(f"{channels} {rank}")
        tree[f"{name}2"] = make(f"n_layers {rank} n_heads d_head")
        if name != "g":
            tree[f"{name}0"] = make(heads, 1.0)
    for name in ("k_k", "k_a", "r_k"):
        tree[name] = make(heads, "ones" if name != "r_k" else 0.02)
    return {"rwkv": tree, "mlp": {"mix_k": make(channels, 0.5)}}


def first_values(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Room for the values ``[b, s, h, k]`` of the first layer, which all others mix into theirs."""
    return jnp.zeros(shape, dtype)


def time_mix(
    arch: Any, p: Any, x: jax.Array, first: jax.Array, padding: Padding, *, layer: Any, tap: Tap
) -> tuple[jax.Array, jax.Array]:
    """What the time mix adds to the stream, and the values of the first layer ``[b, s, h, k]``."""
    delta = shifted("rwkv", x, padding, tap) - x
    mixed = {name: x + delta * p[f"mix_{name}"][None, None] for name in "rwkvag"}
    project = lambda name: jnp.einsum("bsd,dhk->bshk", mixed[name], p[f"W_{name.upper()}"])  # noqa: E731
    offset = lambda name: p[f"{name}0"][None, None]  # noqa: E731

    r, k, v = tap("rwkv.hook_r", project("r")), project("k"), project("v")
    w = tap("rwkv.hook_w", low_rank(mixed["w"], p, "w", jnp.tanh) + offset("w"))
    keep = jax.nn.sigmoid(low_rank(mixed["v"], p, "v") + offset("v"))
    v = tap("rwkv.hook_v", jnp.where(layer == 0, v, v + (first - v) * keep))
    first = jnp.where(layer == 0, v, first)
    a = tap("rwkv.hook_a", jax.nn.sigmoid(low_rank(mixed["a"], p, "a") + offset("a")))
    gate = tap("rwkv.hook_g", low_rank(mixed["g"], p, "g", jax.nn.sigmoid))
    kk = tap("rwkv.hook_kk", _unit(k * p["k_k"][None, None]))
    k = tap("rwkv.hook_k", k * (1 + (a - 1) * p["k_a"][None, None]))

    r, w, k, v, a, kk, r_k = widened(r, w, k, v, a, kk, p["r_k"])
    decay = tap("rwkv.hook_decay", jnp.exp(jax.nn.sigmoid(w) * jnp.asarray(-_STEEPEST_DECAY, w.dtype)))
    inputs = Inputs(r, k, decay, v, jnp.ones_like(k[..., 0]), remove=-kk, add=kk * a)
    y = recur(inputs, padding, arch.implementation, tap)
    own = (r * k * r_k[None, None]).sum(-1, keepdims=True) * v
    z = tap("rwkv.hook_z", (head_norm(p["ln_x"], y, arch.group_eps) + own).astype(x.dtype) * gate)
    return jnp.einsum("bshk,hkd->bsd", z, p["W_O"]), first


def channel_mix(p: Any, x: jax.Array, padding: Padding, tap: Tap) -> jax.Array:
    """What the channel mix adds to the stream."""
    read = x + (shifted("mlp", x, padding, tap) - x) * p["mix_k"][None, None]
    pre = tap("mlp.hook_pre", jnp.einsum("bsd,dm->bsm", read, p["W_in"]))
    post = tap("mlp.hook_post", jnp.square(jax.nn.relu(pre)))
    return jnp.einsum("bsm,md->bsd", post, p["W_out"])


def _unit(x: jax.Array) -> jax.Array:
    """``x`` ``[b, s, h, k]`` with heads of length one; a zero one stays zero, with finite gradients."""
    (x_wide,) = widened(x)
    square = jnp.square(x_wide).sum(-1, keepdims=True)
    return (x_wide * jax.lax.rsqrt(jnp.maximum(square, jnp.asarray(1e-24, square.dtype)))).astype(x.dtype)
