"""Mixtures of experts: a router gives each token a few experts, whose outputs are summed by weight.

Axis letters: b batch, s sequence, d model width, e experts, m width of an expert, o one.

The weights are a dense ``[b, s, e]`` tensor, zero for experts not chosen, so that an intervention may
switch any expert on or off. Each expert then runs on every token, one after another.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jmi.model.tap import Tap
from jmi_models.decoder import ops
from jmi_models.decoder.rounding import once, product, project, widened


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture in place of the MLP.

    Attributes:
      n_experts: how many there are.
      top_k: how many a token is given.
      d_expert: width of one expert.
      normalise: the chosen weights are made to sum to 1.
      bias: the router has a bias, and so have the experts.
      d_shared: width of an expert that every token is given, weighed by a sigmoid gate; or None.
      limit: clamp of gate and linear branch (gpt-oss); None for the plain gated unit.
      dense_layers: the layers that have the MLP all the same.
    """

    n_experts: int
    top_k: int
    d_expert: int
    normalise: bool
    bias: bool = False
    d_shared: int | None = None
    limit: float | None = None
    dense_layers: tuple[int, ...] = ()


def mixture(spec: Experts, act_fn: str, p: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """Output ``[b, s, d]`` of the mixture on ``x`` ``[b, s, d]``."""
    weights = route(spec, p, x, tap)

    def add(total: jax.Array, expert: Any) -> tuple[jax.Array, None]:
        params, weight = expert
        return total + widened(weight)[..., None] * widened(_expert(spec, act_fn, params, x)), None

    names = [n for n in ("W_gate", "W_in", "W_out", "b_gate", "b_in", "b_out") if n in p]
    experts = ({name: p[name] for name in names}, jnp.moveaxis(weights, -1, 0))
    out, _ = jax.lax.scan(add, jnp.zeros_like(widened(x)), experts)
    if spec.d_shared is not None:
        gate = jax.nn.sigmoid(product("bsd,do->bso", x, p["shared"]["W_sigmoid"]))
        out = out + gate * widened(_expert(spec, act_fn, p["shared"], x))
    return out.astype(x.dtype)


def route(spec: Experts, p: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """Weight of every expert for every token, ``[b, s, e]``, zero where not chosen."""
    logits = tap("mlp.hook_router_logits", project("bsd,de->bse", x, p, "W_router", "b_router"))
    probs = jax.nn.softmax(widened(logits), axis=-1)
    chosen, index = jax.lax.top_k(probs, spec.top_k)
    if spec.normalise:
        chosen = chosen / chosen.sum(-1, keepdims=True)
    placed = jax.nn.one_hot(index, spec.n_experts, dtype=chosen.dtype) * chosen[..., None]
    return tap("mlp.hook_expert_weights", placed.sum(-2).astype(x.dtype))


def _expert(spec: Experts, act_fn: str, p: Any, x: jax.Array) -> jax.Array:
    gate = project("bsd,dm->bsm", x, p, "W_gate", "b_gate")
    linear = project("bsd,dm->bsm", x, p, "W_in", "b_in")
    unit = (
        ops.activated(act_fn, gate, linear)
        if spec.limit is None
        else once(partial(_clamped, spec.limit), gate, linear)
    )
    return project("bsm,md->bsd", unit, p, "W_out", "b_out")


def _clamped(bound: float, gate: jax.Array, linear: jax.Array) -> jax.Array:
    limit = jnp.asarray(bound, gate.dtype)
    gate, linear = jnp.minimum(gate, limit), jnp.clip(linear, -limit, limit)
    return (linear + 1) * gate * jax.nn.sigmoid(gate * jnp.asarray(1.702, gate.dtype))
