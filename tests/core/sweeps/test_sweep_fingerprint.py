"""What a kept sweep is told by: one that differs in anything has another fingerprint, the same has one."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.experimental import io_callback

import jmi
from jmi.errors import ArgumentError
from jmi.sweeps import fingerprint as sweep_fingerprint
from jmi.sweeps import work as sweep_work
from tests.core.sweeps import experiments
from tests.core.sweeps.experiments import EMBED, fingerprint
from tests.core.sweeps.variants import VARIANTS
from tests.support.processes import child, finish


@pytest.mark.parametrize("variant", VARIANTS)
def test_sweeps_that_differ_in_one_thing_are_told_apart(variant):
    assert fingerprint(VARIANTS[variant], 0) != fingerprint(VARIANTS[variant], 1)


PRINTED = """
import json, sys
from tests.core.sweeps.experiments import fingerprint
from tests.core.sweeps.variants import VARIANTS
print(json.dumps({name: fingerprint(VARIANTS[name], 1) for name in sys.argv[1:]}))
"""


def test_the_same_sweep_made_anew_is_the_same_sweep_in_another_process_too():
    """Of variants in which Python objects, or what JAX makes of them, have addresses or an order."""
    some = [
        "a static field", "a jitted hook", "a partial", "in jit of jit", "in jit in a scan", "in custom_vjp",
        "in a derivative", "a reducer at the embedding", "a function of cells", "several models", "a mesh",
    ]  # fmt: skip
    here = {name: fingerprint(VARIANTS[name], 1) for name in some}
    assert {name: fingerprint(VARIANTS[name], 1) for name in some} == here
    assert json.loads(finish(child(PRINTED, *some, PYTHONHASHSEED="7"))) == here


DTYPES = [
    "float32",
    "bfloat16",
    "float16",
    "float64",
    "float8_e4m3fn",
    "int8",
    "uint8",
    "int32",
    "bool",
    "int4",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_of_a_weight_counts_and_its_place(dtype):
    with jax.enable_x64(True):
        rng = np.random.default_rng(5)
        kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
        sums = set()
        made = 0
        x = rng.integers(0, 2 if dtype == "bool" else 8, (6, 5, 4)).astype(kind)
        for _ in range(60):
            sums.add(np.asarray(sweep_fingerprint._checksums([jnp.asarray(x)])[0]).tobytes())
            made += 1
            flat = x.reshape(-1)
            one, other = rng.choice(flat.size, 2, replace=False)
            change = rng.integers(3)
            if change == 0:
                flat[one] = 1 - flat[one] if dtype == "bool" else flat[one] + kind.type(1)
            elif change == 1 and flat[one] != flat[other]:
                flat[[one, other]] = flat[[other, one]]
            elif dtype.startswith(("float", "bfloat")):
                flat[[one, other]] = -flat[[one, other]]
            else:
                made -= 1
        # A walk of so few steps does not come back to where it was.
        assert made > 20
        assert len(sums) == made


def test_a_weight_counts_bit_by_bit():
    x = np.random.default_rng(6).normal(size=(3, 4)).astype(np.float32)
    sums = [sweep_fingerprint._checksums([jnp.asarray(x)])[0]]
    for place in range(12):
        for bit in range(32):
            y = x.copy()
            y.reshape(-1).view(np.uint32)[place] ^= np.uint32(1 << bit)
            sums.append(sweep_fingerprint._checksums([jnp.asarray(y)])[0])
    for half in np.array(sums).T:
        assert len(set(half)) == len(sums)


def identity(value):
    return np.asarray(value)


def called(how):
    def function(x):
        if how == "pure_callback":
            return jax.pure_callback(
                identity, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential"
            )
        if how == "io_callback":
            return io_callback(identity, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        jax.debug.callback(identity, x)
        return x

    return jax.jit(function)


@pytest.mark.parametrize("how", ["pure_callback", "io_callback", "debug"])
@pytest.mark.parametrize("where", ["metric", "base", "reducer", "cells"])
def test_what_calls_python_cannot_be_kept(how, where):
    call = called(how)
    hook = lambda value, site: call(value)
    given = {
        "metric": {"metric": lambda out: call(out.logits)},
        "base": {"base": {EMBED: hook}},
        "reducer": {"capture": [jmi.Capture(EMBED, reduce=hook, label="seen")]},
        "cells": {
            "hooks": {
                EMBED: jax.tree_util.Partial(
                    lambda w, value, site: call(value) * w, *experiments.cells([0.5, 2.0])
                )
            }
        },
    }[where]
    with pytest.raises(ArgumentError, match="call Python"):
        fingerprint(lambda _: given, 0)


HOISTED = """
import numpy as np
from tests.core.sweeps.experiments import fingerprint
from tests.core.sweeps.variants import VARIANTS
fingerprint(VARIANTS["in jit"], 0)
"""


def test_a_program_without_its_arrays_cannot_be_kept():
    there = child(HOISTED, JAX_USE_SIMPLIFIED_JAXPR_CONSTANTS="1")
    assert "does not hold its arrays" in there.communicate(timeout=240)[1]
    assert there.returncode == 1


def test_another_precision_is_another_program_in_the_same_process_too():
    texts = []
    for precision in ("default", "highest", "default"):
        arguments = experiments.usual({})
        del arguments["memory"], arguments["context"]
        with experiments.uncompiled(), jax.default_matmul_precision(precision):
            _, programs = sweep_work.prepare(**arguments).compiled(100)
            texts.append([compiled.lowered.as_text() for compiled in programs.values()])
    assert texts[0] == texts[2] != texts[1]
