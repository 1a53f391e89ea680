"""Sweeps that differ from each other in one thing: what a kept sweep must tell apart.

``VARIANTS`` maps what differs to a function of 0 or 1, which returns arguments of `jmi.sweep` other than the
usual ones.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import jmi
from jmi_models.decoder.norms import Norms
from tests.core.sweeps.experiments import (
    ARCH,
    EMBED,
    LENGTH,
    OUT,
    TOKENS,
    VOCAB,
    D,
    array,
    cells,
    hooks,
    model,
    weights,
)
from tests.core.sweeps.variant_parts import (
    Static,
    based,
    bits,
    capturing,
    changed,
    constant,
    custom_jvp,
    custom_vjp,
    default_argument,
    derivative,
    embedded,
    environment,
    jitted_hook,
    jitted_reducer,
    layered,
    matrix_behind,
    negative_zero,
    nudged,
    one_bit,
    reading,
    setting,
    two_neighbours,
    two_rows,
    two_signs,
    within,
    zero,
)

KNOWN = np.ones((1, LENGTH), bool)
VARIANTS = {
    # The base run.
    "a static field": within(lambda i: jmi.Project(array(0, D), keep=bool(i))),
    "a static number": within(lambda i: Static(0.5 + i)),
    "an array": within(lambda i: jmi.Add(array(i, D))),
    "positions": within(lambda i: jmi.Add(array(0, D), positions=i)),
    "integers or booleans": within(
        lambda i: jmi.Scale(0.5, positions=bits(i, np.eye(LENGTH, dtype=bool)[1], [1]))
    ),
    "an array in the layers": lambda i: {"base": {OUT: jmi.Add(array(i, D))}},
    "the layer of a hook": lambda i: {"base": {OUT: jmi.At([i], jmi.Scale(0.5))}},
    "a plain function": within(
        lambda i: bits(i, lambda value, site: value * 2, lambda value, site: value * 3)
    ),
    "a default argument": within(default_argument),
    "a jitted hook": within(jitted_hook),
    "a Partial": within(lambda i: jax.tree_util.Partial(lambda w, value, site: value + w, array(i, 1, 1, D))),
    "a partial": within(lambda i: functools.partial(lambda w, value, site: value + w, array(i, 1, 1, D))),
    "the order of hooks": within(lambda i: [jmi.Scale(2.0), jmi.Add(array(0, D))][:: 1 - 2 * i]),
    "any base": lambda i: {"base": bits(i, None, {EMBED: jmi.Scale(0.5)})},
    "the point of a base": lambda i: {"base": {bits(i, OUT, "blocks.*.hook_attn_out"): jmi.Scale(0.5)}},
    "values of the base": based(lambda values: jmi.Add(*values), lambda i: array(i, 2, D)),
    "a seed of each": based(lambda seeds: jmi.Noise(0.5, seed=seeds[0]), lambda i: [0, 1 + i]),
    "which cell has which seed": based(lambda seeds: jmi.Noise(0.5, seed=seeds[0]), lambda i: [i, 1 - i]),
    "a seed of each, or of all": based(lambda seeds: jmi.Noise(0.5, seed=seeds[0]), lambda i: [0, i]),
    "a position of the base": based(lambda at: jmi.Scale(0.5, positions=at[0]), lambda i: [1, 2 + i]),
    "a layer of the base": based(lambda at: jmi.At(at[0], jmi.Scale(0.5)), lambda i: [0, i], OUT),
    # The metric.
    "a matrix": matrix_behind(lambda w: lambda x: x @ w),
    "a matrix on the device": matrix_behind(lambda w: (lambda v: lambda x: x @ v)(jnp.asarray(w))),
    "in jit": matrix_behind(lambda w: jax.jit(lambda x: x @ w)),
    "in jit of jit": matrix_behind(lambda w: jax.jit(lambda x: jax.jit(lambda y: y @ w)(x))),
    "in a branch": matrix_behind(
        lambda w: lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: y @ w, lambda y: y[:, :3], x)
    ),
    "in a scan": matrix_behind(
        lambda w: lambda x: jax.lax.scan(lambda c, _: (c + x @ w, None), jnp.zeros((1, 3)), length=2)[0]
    ),
    "in a loop": matrix_behind(
        lambda w: (
            lambda x: jax.lax.while_loop(
                lambda c: jnp.asarray(w).sum() + c.sum() < 0, lambda c: c + x @ w + 9, jnp.zeros((1, 3))
            )
        )
    ),
    "in jit in a scan": matrix_behind(
        lambda w: (
            lambda x: jax.lax.scan(
                lambda c, _: (jax.jit(lambda y: y + x @ w)(c), None), jnp.zeros((1, 3)), length=2
            )[0]
        )
    ),
    "in custom_jvp": matrix_behind(custom_jvp),
    "in custom_vjp": matrix_behind(custom_vjp),
    "in a derivative": matrix_behind(derivative),
    "in checkpoint": matrix_behind(lambda w: jax.checkpoint(lambda x: x @ w)),
    "in vmap": matrix_behind(lambda w: jax.vmap(jax.jit(lambda x: x @ w))),
    "in map": matrix_behind(lambda w: lambda x: jax.lax.map(lambda row: row @ w, x)),
    "in grad of jit": matrix_behind(lambda w: jax.grad(lambda x: jax.jit(lambda y: jnp.sin(y @ w).sum())(x))),
    "in a Partial": lambda i: {"metric": jax.tree_util.Partial(lambda w, out: out.logits * w, array(i))},
    "a static argument": reading(lambda i: lambda x: jax.jit(lambda y, n: y * n, static_argnums=1)(x, 2 + i)),
    "a default": reading(lambda i: lambda x, n=2 + i: x * n),
    "the last bit of one number of many": constant(*nudged()),
    "two numbers swapped": constant(array(0, 500), array(0, 500)[np.r_[:400, 401, 400, 402:500]]),
    "the sign of zero": constant(np.zeros(3, np.float32), -np.zeros(3, np.float32)),
    "the sign of one zero": reading(lambda i: lambda x: jnp.where(x > 0, bits(i, 0.0, -0.0), x)),
    "a shape": constant(np.ones((2, 1), np.float32), np.ones((1, 1), np.float32)),
    "a dtype": constant(np.ones(3, np.float16), np.ones(3, np.float32)),
    "what is computed": reading(lambda i: bits(i, jnp.max, jnp.min)),
    "an axis": reading(lambda i: lambda x: jnp.sort(x[:, :1] + jnp.ones((1, 2)), axis=i)),
    "a random seed": reading(lambda i: lambda x: x + jax.random.normal(jax.random.key(i), (1, VOCAB))),
    # Captures.
    "what is captured": lambda i: {
        "capture": [bits(i, "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")],
        "metric": lambda out: out.captures["blocks.*.hook_mlp_out"],
    },
    "when it is captured": lambda i: {
        "capture": [jmi.Capture(OUT, when=bits(i, "before", "after"), label="seen")],
        "metric": lambda out: out.captures["seen"],
    },
    "a reducer in the layers": capturing(OUT, jitted_reducer),
    "a reducer at the embedding": capturing(EMBED, jitted_reducer),
    "an array of a reducer": capturing(EMBED, lambda i: jmi.Dot(array(i, D))),
    "an index of a reducer": capturing(EMBED, lambda i: jmi.Select(position=i)),
    "a number of a reducer": capturing(OUT, lambda i: jmi.Top(2 + i)),
    "what a reducer keeps of two things": capturing(OUT, lambda i: lambda x, site: jmi.Top(2)(x, site)[i]),
    "a layer's array of a reducer": capturing(OUT, lambda i: jmi.PerLayer(jmi.Dot(layered(i)))),
    # The cells.
    "values": lambda i: hooks(factor=[0.5, 2.0 + i]),
    "the order of cells": lambda i: hooks(factor=[[0.5, 2.0], [2.0, 0.5]][i]),
    "a layer": lambda i: hooks(layers=[0, i]),
    "layers": lambda i: hooks(layers=[i, 1 - i]),
    "a position": lambda i: embedded(jmi.Scale(*cells([0.5, 2.0]), positions=i)),
    "a position of each": lambda i: hooks(positions=[1, 2 + i]),
    "the point": lambda i: hooks(point=bits(i, OUT, "blocks.*.hook_attn_out")),
    "a shared array": lambda i: embedded(jmi.Add(array(i, D), *cells([1.0, 2.0]))),
    "a static field of cells": lambda i: embedded(jmi.Project(*cells(array(0, 2, D)), keep=bool(i))),
    "a function of cells": lambda i: embedded(
        jax.tree_util.Partial(
            lambda w, value, site: value + w * jax.jit(lambda: array(i, 1, 1, D))(), *cells(array(0, 2))
        )
    ),
    "how many": lambda i: hooks(layers=[0, 1, 1][: 2 + i], factor=[0.5, 2.0, 3.0][: 2 + i]),
    # The run.
    "tokens": lambda i: {"prompts": TOKENS.at[0, 5].add(i)},
    "a mask": lambda i: {"prompts": (TOKENS, bits(i, KNOWN, np.arange(LENGTH)[None] > 0))},
    "any mask": lambda i: {"prompts": jmi.Prompts(TOKENS, bits(i, None, KNOWN)), "exact": True},
    "the positions of tokens": lambda i: {
        "prompts": jmi.Prompts(TOKENS, positions=np.arange(LENGTH)[None] + i)
    },
    "whose logits": lambda i: {"logits_at": -1 - i},
    "sharing": lambda i: {"share": bool(i)},
    "how cells are divided": lambda i: {**hooks(factor=np.arange(4.0)), "memory": 2 + 2 * i},
    "several models": lambda i: {
        "lm": jmi.Models(model(), jax.tree.map(lambda x: jnp.stack([x, x * (2 + i)]), weights()))
    },
    "a mesh": lambda i: {
        "mesh": bits(i, None, jax.make_mesh((1,), ("cells",), axis_types=(jax.sharding.AxisType.Auto,)))
    },
    # The model.
    "the architecture": lambda i: {
        "lm": model(
            arch=dataclasses.replace(
                ARCH, norms=Norms(dataclasses.replace(ARCH.norms.norm, eps=bits(i, 1e-5, 1e-6)))
            )
        )
    },
    "its precision": lambda i: {
        "lm": model(jax.tree.map(lambda x: x.astype(bits(i, jnp.bfloat16, jnp.float32)), weights()))
    },
    "one bit of a weight": changed(one_bit),
    "the signs of two weights": changed(two_signs),
    "two rows of weights": changed(two_rows),
    "two neighbouring weights": changed(two_neighbours),
    "the sign of a weight that is zero": lambda i: changed(bits(i, zero, negative_zero))(1),
    # Settings of JAX and of what it runs on.
    "the precision of products": setting(
        lambda i: jax.default_matmul_precision(bits(i, "default", "highest"))
    ),
    "64 bits": lambda i: {
        "context": jax.enable_x64(bool(i)),
        "metric": lambda out: out.logits * jnp.asarray(0.1),
    },
    "the generator of random numbers": lambda i: {
        "context": jax.default_prng_impl(bits(i, "threefry2x32", "rbg")),
        "metric": lambda out: out.logits + jax.random.normal(jax.random.key(0), (1, VOCAB)),
    },
    "options of the compiler": environment("XLA_FLAGS", "", "--xla_cpu_enable_fast_math=true"),
}
