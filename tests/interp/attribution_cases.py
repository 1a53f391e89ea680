"""Models with pairs of prompts, and what attribution must give: nodes patched one by one.

Axis letters: l layers, b batch, s positions, h heads, g key/value heads, q query, t key.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jmi
from jmi.metrics import log_prob
from tests.core.conftest import lively, tiny
from tests.oracles import grid
from tests.support import random_rwkv
from tests.support.committed import load
from tests.support.tolerances import assert_agree

LINEAR = ["gemma2/capped", "phi/qk_norm_grouped"]
"""Sandwich norms, soft-caps, windows; parallel blocks. Both have grouped heads."""

PATTERN = "blocks.*.attn.hook_pattern"


@dataclasses.dataclass(frozen=True)
class Case:
    """A model in float64 with two batches of prompts."""

    lm: jmi.LanguageModel
    base: np.ndarray
    source: np.ndarray

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The base is the run that is changed by default, the corrupted one."""
        return self.lm, self.source, self.base

    def sites(self) -> list[str]:
        return [point for point, site in self.lm.arch.sites().items() if not site.derived]


@functools.cache
def case(name: str) -> Case:
    if name.startswith("rwkv"):
        return Case(random_rwkv.load(int(name[4])), random_rwkv.TOKENS, random_rwkv.TOKENS[::-1, ::-1])
    if name == "tiny":
        with jax.enable_x64(True):
            lm = jmi.LanguageModel(tiny(3), lively(tiny(3), jnp.float64))
        base = np.random.default_rng(0).integers(0, 29, (2, 6)).astype(np.int32)
        return Case(lm, base, base[::-1, ::-1])
    base = grid.committed(name).tokens[:, :7]
    return Case(load(name, "float64"), base, base[::-1, ::-1])


@functools.cache
def small() -> tuple[jmi.LanguageModel, Any]:
    """A tiny model in float32 and prompts."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 29, (2, 7)), jnp.int32)
    return jmi.LanguageModel(tiny(), lively(tiny())), tokens


def metric(out: jmi.Output) -> jax.Array:
    """Log-probability of token 3 at the end: not linear in anything."""
    return log_prob(out.logits[:, -1], 3)


def linear_metric(out: jmi.Output) -> jax.Array:
    """What the final stream has along a direction, at two positions."""
    stream = out["blocks.-1.hook_resid_post"]
    along = np.random.default_rng(0).normal(size=stream.shape[-1])
    return (stream[:, -1] + 2 * stream[:, 2]) @ along


assert_close = functools.partial(assert_agree, kind="gradients")


def captured(out: jmi.Output) -> dict[str, np.ndarray]:
    return {point: np.asarray(value) for point, value in out.captures.items()}


def nodes(case: Case, point: str) -> np.ndarray:
    """Layer, position and head (0 without heads) of every node, ``[n, 3]``."""
    site = case.lm.arch.sites()[point]
    shape = (case.lm.arch.n_layers, case.base.shape[1], site.sizes[2] if len(site.axes) == 4 else 1)
    return np.indices(shape).reshape(3, -1).T


def by_node(case: Case, point: str, found: Any) -> np.ndarray:
    """Numbers of each node ``[n, b]`` as ``[l, b, s, h]``, or ``[l, b, s]`` without heads."""
    size, with_heads = nodes(case, point).max(0) + 1, len(case.lm.arch.sites()[point].axes) == 4
    found = np.moveaxis(np.asarray(found).reshape(*size, -1), -1, 1)
    return found if with_heads else found[..., 0]


def with_patch(point: str, there: Any, node: jax.Array, with_heads: bool) -> dict[str, Any]:
    patch = jmi.Patch(there, positions=node[1], heads=node[2] if with_heads else None)
    return {point: jmi.At(node[0], jmi.PerLayer(patch))}


def changes_one_by_one(case: Case, point: str, hooks: Any, there: Any) -> np.ndarray:
    """Change of the linear metric when a node gets its value of ``there``, a run for each node."""
    capture, with_heads = ["blocks.-1.hook_resid_post"], len(case.lm.arch.sites()[point].axes) == 4

    @jax.jit
    def run(params: Any, base: Any, hooks: Any, there: Any) -> Any:
        def measured(edit: Any) -> jax.Array:
            run = jmi.forward(case.lm.arch, params, base, hooks={**hooks, **edit}, capture=capture)
            return linear_metric(run)

        change = lambda node: measured(with_patch(point, there, node, with_heads)) - measured({})
        return jax.lax.map(change, jnp.asarray(nodes(case, point)))

    return by_node(case, point, run(case.lm.params, case.base, hooks, there))


SILENT = {"blocks.*.hook_mlp_out": jmi.Zero()}


def held_at_base(case: Case, points: list[str]) -> dict[str, Any]:
    """Hooks that put what the base run has at ``points`` there: frozen, and patching goes on."""
    out = case.lm.run(case.base, SILENT, points)
    return {p: jmi.PerLayer(jmi.Replace(out[p])) if "*" in p else jmi.Replace(out[p]) for p in points}


def complete(scores: dict[int, jmi.Output], change: np.ndarray) -> None:
    """The scores of a row sum to ``change``, with an error that falls with the square of the steps."""
    sums = {}
    for steps, scored in scores.items():
        parts = [
            np.moveaxis(np.asarray(x), int("*" in p), 0).reshape(len(change), -1).sum(1)
            for p, x in scored.captures.items()
        ]
        sums[steps] = np.abs(sum(parts) - change)
    few, many = sorted(sums)
    assert many == 4 * few
    assert (sums[many] < 1e-3 * np.abs(change)).all()
    np.testing.assert_allclose(sums[few] / sums[many], 16, rtol=0.1)
