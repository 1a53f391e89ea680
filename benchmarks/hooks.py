"""What hooks and captures cost, as ratios to a forward pass without an engine."""

from typing import Any

import jax
import jax.numpy as jnp

import jmi
import jmi_models
from benchmarks.models import GPT2_SMALL, TINY, plain_forward
from benchmarks.timing import compare
from jmi.engine import plan_run, run_compiled

SITES = {
    "run, no hooks": ({}, []),
    "one capture": ({}, ["blocks.5.hook_resid_post"]),
    "one pattern": ({}, ["blocks.5.attn.hook_pattern"]),
    "all residuals": ({}, ["blocks.*.hook_resid_post"]),
    "all 29 sites": ({}, ["*"]),
    "one edit": ({"blocks.5.hook_resid_post": "add"}, []),
    "one knockout": ({"blocks.5.attn.hook_attn_scores": "knockout"}, []),
}


def overhead(repeats: int) -> list[dict[str, Any]]:
    """Hook overhead on GPT-2-small shapes, batch 8 x 15 tokens, float32."""
    params = jmi_models.init(GPT2_SMALL, 0)
    tokens = jax.random.randint(jax.random.key(1), (8, 15), 0, GPT2_SMALL.d_vocab)
    lm = jmi.LanguageModel(GPT2_SMALL, params)
    edits = {"add": jmi.Add(jnp.ones(768)), "knockout": jmi.Knockout(queries=-1, keys=0)}
    runs: dict[str, Any] = {"plain forward": lambda: plain_forward(GPT2_SMALL, params, tokens)}
    memory = {"plain forward": plain_forward.lower(GPT2_SMALL, params, tokens).compile().memory_analysis()}
    for name, (hooks, capture) in SITES.items():
        edited = {site: edits[edit] for site, edit in hooks.items()}
        runs[name] = lambda h=edited, c=capture: lm.run(tokens, h, c)
        static, data, _ = plan_run(GPT2_SMALL, tokens, edited, capture, None, None, None, None, None, True)
        memory[name] = run_compiled.lower(static, params, *data).compile().memory_analysis()
    times = compare(runs, repeats)
    base = times["plain forward"]
    return [
        {
            "case": name,
            "cpu_s": took.cpu,
            "wall_s": took.wall,
            "cpu_ratio": took.cpu / base.cpu,
            "wall_ratio": took.wall / base.wall,
            "temp_mib": memory[name].temp_size_in_bytes / 2**20,
            "output_mib": memory[name].output_size_in_bytes / 2**20,
        }
        for name, took in times.items()
    ]


def traces() -> list[dict[str, Any]]:
    """Traces of a sweep over every layer, position and head with new vectors each time."""
    params = jmi_models.init(TINY, 0)
    tokens = jnp.zeros((1, 8), jnp.int32)
    lm = jmi.LanguageModel(TINY, params)
    before = run_compiled._cache_size()
    for i in range(TINY.n_layers):
        lm.run(tokens, {f"blocks.{i}.hook_resid_pre": jmi.Add(jnp.full(32, i), positions=i % 8)})
    adds = run_compiled._cache_size() - before
    for i in range(TINY.n_layers):
        lm.run(tokens, {f"blocks.{i}.attn.hook_scores": jmi.Knockout(queries=-1, keys=i % 8, heads=i % 4)})
    knockouts = run_compiled._cache_size() - before - adds
    return [
        {"case": "add: 12 layers, positions, vectors", "compiles": adds},
        {"case": "knockout: 12 layers, keys, heads", "compiles": knockouts},
    ]


def dispatch(repeats: int) -> list[dict[str, Any]]:
    """Time of a 12-layer width-32 model on 8 tokens: what is not computation is overhead."""
    params = jmi_models.init(TINY, 0)
    tokens = jnp.zeros((1, 8), jnp.int32)
    lm = jmi.LanguageModel(TINY, params)
    compiled = plain_forward.lower(TINY, params, tokens).compile()
    knockout = lambda: {"blocks.5.attn.hook_attn_scores": jmi.Knockout(queries=-1, keys=0)}  # noqa: E731
    times = compare(
        {
            "computation alone": lambda: compiled(params, tokens),
            "lm.run": lambda: lm.run(tokens),
            "lm.run, one knockout": lambda: lm.run(tokens, knockout()),
            "lm.run, one capture": lambda: lm.run(tokens, capture=["blocks.5.attn.hook_pattern"]),
            "lm.run, all 29 sites": lambda: lm.run(tokens, capture=["*"]),
        },
        repeats,
    )
    base = times["computation alone"].wall
    return [
        {"case": name, "wall_ms": took.wall * 1e3, "above_computation_ms": (took.wall - base) * 1e3}
        for name, took in times.items()
    ]
