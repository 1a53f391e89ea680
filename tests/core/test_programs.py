"""Compiled programs do not pile up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.engine import programs
from jmi.errors import RetraceWarning
from jmi.sweeps import work as sweep_work
from tests.core.conftest import lively, tiny


def test_programs_are_made_once_and_forgotten_when_there_are_many(monkeypatch):
    monkeypatch.setattr(programs, "KEPT", 3)
    traces = []

    @programs.compiled(static=0)
    def scaled(factor, x):
        traces.append((factor, x.shape))
        return factor * x

    for size in (1, 2, 3, 1, 2, 3):
        np.testing.assert_array_equal(scaled(2, jnp.ones(size)), 2 * np.ones(size))
    assert len(traces) == 3
    for size in range(4, 30):
        scaled(2, jnp.ones(size))
    assert len(traces) == 29
    scaled(2, jnp.ones(4))
    assert len(traces) == 30, "an early one was forgotten"


def test_a_fresh_lambda_makes_cells_compile_anew_but_not_the_base_run(monkeypatch):
    arch = tiny(2)
    params, tokens = lively(arch, jnp.float32), np.arange(10, dtype=np.int32).reshape(2, 5)
    grid = jmi.Grid(layer=range(2))
    hooks = {"blocks.*.hook_mlp_out": jmi.At(grid["layer"], jmi.Zero())}
    traces = []
    block = type(arch).block

    def counted(self, *args):
        traces.append(1)
        return block(self, *args)

    monkeypatch.setattr(type(arch), "block", counted)
    counts = []
    for _ in range(3):
        jmi.sweep(jmi.LanguageModel(arch, params), tokens, hooks, lambda out: out.logits, progress=False)
        counts.append(len(traces))
    first, second = counts[1] - counts[0], counts[2] - counts[1]
    assert first == second < counts[0]
    assert sweep_work._program.cache_info().maxsize <= 16


@pytest.mark.filterwarnings("error::jmi.errors.RetraceWarning")
def test_code_that_comes_as_a_new_function_each_time_is_named_once(lm, tokens):
    site, grid = "blocks.1.hook_mlp_out", jmi.Grid(layer=range(2))

    def hooked(factor):
        lm.run(tokens, {site: lambda value, site: value * factor})

    def measured(row):
        hooks = {"blocks.*.hook_mlp_out": jmi.At(grid["layer"], jmi.Zero())}
        jmi.sweep(lm, tokens, hooks, lambda out: out.logits[row, 0], progress=False)

    for use, code in ((hooked, "hooked.<locals>.<lambda>"), (measured, "measured.<locals>.<lambda>")):
        use(0)
        with pytest.raises(RetraceWarning, match=f"{code} comes as a new function.*tree_util.Partial"):
            use(1)
        use(0)  # Once is enough.

    def doubled(value, site):
        return value * 2

    def scaled(factor, value, site):
        return value * factor

    for length in (3, 4):  # A new shape is no new function.
        lm.run(tokens[:, :length], {site: doubled})
        lm.run(tokens[:, :length], {site: jax.tree_util.Partial(scaled, np.float32(length))})
    several = {f"blocks.{i}.hook_mlp_out": (lambda value, site, i=i: value * i) for i in range(2)}
    lm.run(tokens, several)  # Nor are several functions of one trace.
