"""What hooks and captures cost, as ratios to a forward pass without an engine."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

import jmi
import jmi_models
from benchmarks.models import GPT2_SMALL, TINY, plain_forward
from benchmarks.timing import compare
from jmi.engine.forward import plan_run, run_compiled

SITES = {
    "run, no hooks": ({}, []),
    "one capture": ({}, ["blocks.5.hook_resid_post"]),
    "one pattern": ({}, ["blocks.5.attn.hook_pattern"]),
    "all residuals": ({}, ["blocks.*.hook_resid_post"]),
    "all sites": ({}, ["*"]),
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
    memory = {"plain forward": _memory(plain_forward.lower(GPT2_SMALL, params, tokens))}
    for name, (hooks, capture) in SITES.items():
        edited = {site: edits[edit] for site, edit in hooks.items()}
        runs[name] = lambda h=edited, c=capture: lm.run(tokens, h, c, exact=True)
        run, _ = plan_run(GPT2_SMALL, tokens, edited, capture)
        memory[name] = _memory(run_compiled.lower(run, params))
    times = compare(runs, repeats)
    base = times["plain forward"]
    return [
        {
            "case": name,
            "cpu_s": took.cpu,
            "wall_s": took.wall,
            "cpu_ratio": took.cpu / base.cpu,
            "wall_ratio": took.wall / base.wall,
            "temp_mib": memory[name][0] / 2**20,
            "output_mib": memory[name][1] / 2**20,
        }
        for name, took in times.items()
    ]


def _memory(lowered: Any) -> tuple[int, int]:
    """Bytes of temporaries and outputs of a compiled program."""
    stats = lowered.compile().memory_analysis()
    return stats.temp_size_in_bytes, stats.output_size_in_bytes


class Counted(jmi_models.Transformer):
    """A decoder that counts how often its block is traced."""

    traced: ClassVar[int] = 0

    def block(self, *args: Any) -> jax.Array:
        Counted.traced += 1
        return super().block(*args)


def traces() -> list[dict[str, Any]]:
    """Traces of a sweep over every layer, position and head with new vectors each time."""
    arch = Counted(**{f.name: getattr(TINY, f.name) for f in dataclasses.fields(TINY)})
    lm = jmi.LanguageModel(arch, jmi_models.init(arch, 0))
    tokens = jnp.zeros((1, 8), jnp.int32)
    add = lambda i: {f"blocks.{i}.hook_resid_pre": jmi.Add(jnp.full(32, i), positions=i % 8)}  # noqa: E731
    cut = lambda i: {  # noqa: E731
        f"blocks.{i}.attn.hook_scores": jmi.Knockout(queries=-1, keys=i % 8, heads=i % 4)
    }
    rows = []
    for name, hooks in (("add a vector at a position", add), ("knock out a key in a head", cut)):
        Counted.traced = 0
        for i in range(arch.n_layers):
            lm.run(tokens, hooks(i), exact=True)
        rows.append({"case": name, "runs, another layer each": arch.n_layers, "traces": Counted.traced})
    return rows


def dispatch(repeats: int) -> list[dict[str, Any]]:
    """Time of a 12-layer width-32 model on 8 tokens: what is not computation is overhead."""
    params = jmi_models.init(TINY, 0)
    tokens = jnp.zeros((1, 8), jnp.int32)
    run = functools.partial(jmi.LanguageModel(TINY, params).run, tokens, exact=True)
    compiled = plain_forward.lower(TINY, params, tokens).compile()
    knockout = lambda: {"blocks.5.attn.hook_attn_scores": jmi.Knockout(queries=-1, keys=0)}  # noqa: E731
    times = compare(
        {
            "computation alone": lambda: compiled(params, tokens),
            "lm.run": run,
            "lm.run, one knockout": lambda: run(knockout()),
            "lm.run, one capture": lambda: run(capture=["blocks.5.attn.hook_pattern"]),
            "lm.run, all sites": lambda: run(capture=["*"]),
        },
        repeats,
    )
    base = times["computation alone"].wall
    return [
        {"case": name, "wall_ms": took.wall * 1e3, "above_computation_ms": (took.wall - base) * 1e3}
        for name, took in times.items()
    ]
