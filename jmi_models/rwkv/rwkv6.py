"""RWKV-6 "Finch" (arXiv:2404.05892): a decaying sum of keys times values, with decays read from the text.

Axis letters: b batch, s sequence, d model width, h heads, k head width, m MLP width, c the five mixes,
r rank.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jmi.model.tap import Tap
from jmi_models.params import Param
from jmi_models.rwkv.time_mix import Padding, head_norm, low_rank, recur, shifted, widened
from jmi_models.rwkv.wkv import Inputs

LACKS = ("rwkv.hook_a", "rwkv.hook_kk")
RANKS = {"mix": "rank_mix", "w": "rank_decay"}
"""Low-rank part -> parameter axis of its width."""
_MIXES = "wkvrg"
"""The order in which the low-rank part of the mixes is stored."""


def params(make: Any) -> dict[str, Any]:
    """Abstract parameters of the two mixes."""
    channels, heads = "n_layers d_model", "n_layers n_heads d_head"
    tree: dict[str, Param] = {f"mix_{name}": make(channels, 0.5) for name in f"x{_MIXES}"}
    tree["mix_1"] = make(f"{channels} n_mixes rank_mix")
    tree["mix_2"] = make("n_layers n_mixes rank_mix d_model")
    tree["w0"] = make(heads, 1.0)
    tree["w1"] = make(f"{channels} rank_decay")
    tree["w2"] = make("n_layers rank_decay n_heads d_head")
    tree["u"] = make(heads)
    tree["W_G"] = make(f"{channels} n_heads d_head")
    gate = make("n_layers d_model d_gate")
    return {"rwkv": tree, "mlp": {"mix_k": make(channels, 0.5), "mix_r": make(channels, 0.5), "W_R": gate}}


def first_values(shape: tuple[int, ...], dtype: Any) -> None:
    """Nothing: layers hand on the stream alone."""


def time_mix(
    arch: Any, p: Any, x: jax.Array, first: None, padding: Padding, *, layer: Any, tap: Tap
) -> tuple[jax.Array, None]:
    """What the time mix adds to the stream."""
    delta = shifted("rwkv", x, padding, tap) - x
    inner = jnp.tanh(jnp.einsum("bsd,dcr->bscr", x + delta * p["mix_x"][None, None], p["mix_1"]))
    shifts = jnp.einsum("bscr,crd->cbsd", inner, p["mix_2"])
    mixed = {
        name: x + delta * (p[f"mix_{name}"][None, None] + shift)
        for name, shift in zip(_MIXES, shifts, strict=True)
    }
    project = lambda name: jnp.einsum("bsd,dhk->bshk", mixed[name], p[f"W_{name.upper()}"])  # noqa: E731

    r, k, v = (tap(f"rwkv.hook_{name}", project(name)) for name in "rkv")
    w = tap("rwkv.hook_w", low_rank(mixed["w"], p, "w", jnp.tanh) + p["w0"][None, None])
    gate = tap("rwkv.hook_g", jax.nn.silu(project("g")))

    r, w, k, v, u = widened(r, w, k, v, p["u"])
    decay = tap("rwkv.hook_decay", jnp.exp(-jnp.exp(w)))
    inputs = Inputs(r, k, decay, v, jnp.ones_like(k[..., 0]), bonus=u)
    y = recur(inputs, padding, arch.implementation, tap)
    z = tap("rwkv.hook_z", head_norm(p["ln_x"], y, arch.group_eps).astype(x.dtype) * gate)
    return jnp.einsum("bshk,hkd->bsd", z, p["W_O"]), None


def channel_mix(p: Any, x: jax.Array, padding: Padding, tap: Tap) -> jax.Array:
    """What the channel mix adds to the stream."""
    delta = shifted("mlp", x, padding, tap) - x
    pre = jnp.einsum("bsd,dm->bsm", x + delta * p["mix_k"][None, None], p["W_in"])
    post = tap("mlp.hook_post", jnp.square(jax.nn.relu(tap("mlp.hook_pre", pre))))
    gate = jnp.einsum("bsd,de->bse", x + delta * p["mix_r"][None, None], p["W_R"])
    gate = tap("mlp.hook_gate", jax.nn.sigmoid(gate))
    return gate * jnp.einsum("bsm,md->bsd", post, p["W_out"])
