"""Pairs of prompts on committed models in float64, and what writers add, by the formulas and not by jmi."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jmi
from jmi.gradients import value_and_grad_at
from jmi.interp.edges.graph import READS, EdgeGraph, edge_graph
from tests.support.committed import load, relative

__all__ = ["LAST", "POINTS", "Case", "case", "relative", "writer_outputs"]

POINTS = ("hook_embed", "hook_pos_embed", "attn.hook_result", "ln1_post.hook_scale", "hook_mlp_out")
LAST = "blocks.-1.hook_resid_post"


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with pairs of prompts ``[2, 6]`` and a metric ``[b]``."""

    arch: Any
    params: Any
    clean: Any
    corrupted: Any
    graph: EdgeGraph

    @staticmethod
    def metric(out: Any) -> jax.Array:
        return out.logits[:, -1, 3] - out.logits[:, -1, 5] * out.logits[:, -2, 4]

    @property
    def lm(self) -> jmi.LanguageModel:
        return jmi.LanguageModel(self.arch, self.params)

    def run(self, prompts: Any, **kwargs: Any) -> Any:
        return self.lm.run(prompts, **kwargs)


@functools.cache
def case(name: str) -> Case:
    """To be used under ``jax.enable_x64(True)``."""
    lm = load(name, "float64")
    clean, corrupted = np.random.default_rng(0).integers(0, lm.arch.d_vocab, (2, 2, 6), np.int32)
    return Case(lm.arch, lm.params, clean, corrupted, edge_graph(lm))


def writer_outputs(given: Case, tokens: Any, hooks: Any = None) -> jax.Array:
    """What each writer adds, ``[b, s, w, d]``, of heads from ``attn.hook_result``."""
    return _writer_outputs(given.arch, given.params, tokens, hooks)


@functools.partial(jax.jit, static_argnums=0)
def _writer_outputs(arch: Any, params: Any, tokens: Any, hooks: Any) -> jax.Array:
    has = [point for point in arch.sites() if point.removeprefix("blocks.*.") in POINTS]
    out = jmi.forward(arch, params, tokens, hooks=hooks, capture=has)
    start = sum(out[name] for name in POINTS[:2] if name in has)
    heads, mlps = out.stack("attn.hook_result"), out.stack("hook_mlp_out")
    if arch.norms.written:
        assert arch.norms.norm.kind == "rms"
        gain = params["blocks"]["ln1_post"]["w"] + float(arch.norms.norm.gain == "1 + w")
        heads = heads / out.stack("ln1_post.hook_scale")[..., None] * gain[:, None, None, None]
    heads = heads * arch.residual_scale
    each = [[*jnp.moveaxis(heads[i], 2, 0), mlps[i]] for i in range(arch.n_layers)]
    return jnp.stack([start, *(x for layer in each for x in layer)], axis=2)


def reader_gradients(given: Case, hooks: Any = None) -> jax.Array:
    """Gradients at what each reader reads, ``[b, s, r, d]``, by autodiff at the points themselves."""
    return _reader_gradients(given.arch, given.params, given.clean, hooks)


@functools.partial(jax.jit, static_argnums=0)
def _reader_gradients(arch: Any, params: Any, tokens: Any, hooks: Any) -> jax.Array:
    points = [*(f"blocks.*.{name}" for name in READS), LAST]
    found = value_and_grad_at(jmi.LanguageModel(arch, params), tokens, Case.metric, points, hooks=hooks).grads
    heads = [[found.stack(name)[i] for name in READS[:3]] for i in range(arch.n_layers)]
    mlps = found.stack(READS[3])[:, :, :, None]
    inside = [x for i, layer in enumerate(heads) for x in (*layer, mlps[i])]
    return jnp.concatenate([*inside, found[LAST][:, :, None]], axis=2)
