"""Models in bfloat16: each site is rounded once, and logits are as near the truth as torch's."""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import jmi
import jmi_models
from jmi.model.tap import SILENT
from jmi_models.decoder.rounding import product
from tests.oracles import grid, rounding
from tests.support.committed import arch_of, each, every_site, load, relative
from tests.support.once import steps

UNIT = 2.0**-8
"""By how much rounding to bfloat16 changes a number, at most."""

FLOAT32 = ("hook_scale", "hook_normalized")
"""The insides of norms."""

STRICT = {"xla_allow_excess_precision": False}
"""XLA may leave out roundings inside a program; here it may not."""


@functools.cache
def every_site_strictly(name: str) -> dict[str, np.ndarray]:
    """Every site on the committed prompt in bfloat16; those inside blocks stacked over layers."""
    lm = load(name, "bfloat16")
    run = functools.partial(jmi.forward, lm.arch, capture=list(lm.arch.sites()))
    out = jax.jit(run, compiler_options=STRICT)(lm.params, grid.committed(name).tokens)
    return {site: np.asarray(value) for site, value in out.captures.items()}


of_family = functools.partial(pytest.mark.parametrize, "family")


@each(grid.COMMITTED)
def test_every_site_follows_from_those_before_it_with_one_rounding(name: str) -> None:
    lm, sites = load(name, "bfloat16"), every_site_strictly(name)
    x = {site.removeprefix("blocks.*."): np.asarray(sites[site], np.float64) for site in sites}
    params = jax.tree.map(lambda w: np.asarray(w).astype(np.float64), lm.params)
    found = steps(lm.arch, params, x)
    assert len(found) >= 9
    for step, (got, want) in found.items():
        assert got.shape == want.shape, step
        # What is added up in float32 may lie on the other side of the middle between two numbers.
        bound = UNIT * np.abs(want) + 1e-5 * np.abs(want).max()
        assert (np.abs(got - want) <= bound).all(), (step, np.max(np.abs(got - want) / bound))


@each(grid.COMMITTED)
def test_bfloat16_models_compute_in_bfloat16_and_stay_close(name: str) -> None:
    exact, rounded = every_site(name, "float32"), every_site_strictly(name)
    inside = {site for site in exact if site.endswith(FLOAT32)}
    assert {site for site, value in rounded.items() if value.dtype == np.float32} == inside
    assert all(rounded[site].dtype == jnp.bfloat16 for site in set(rounded) - inside)
    # In the first layer: later ones add up the rounding, and it may give a token other experts.
    for site in ("attn.hook_in", "attn.hook_pattern", "hook_attn_out", "mlp.hook_in"):
        assert relative(rounded[f"blocks.*.{site}"][0], exact[f"blocks.*.{site}"][0]) <= 0.04, site


def held_error(family: str, **kwargs: Any) -> float:
    """Our error over torch's, on what is held of a family."""
    shapes, truth, theirs = rounding.truth(family)
    tensors, tokens = rounding.tensors(family, shapes, 0), rounding.tokens(family, 0)
    logits = rounding.of_jmi(rounding.config(family), tensors, tokens, **kwargs)
    return rounding.rms(logits[:, -1], truth) / theirs


@of_family(rounding.HELD)
def test_logits_are_as_near_the_recorded_truth_as_those_of_torch(family: str) -> None:
    assert held_error(family) <= rounding.BAR


def test_looking_into_norms_keeps_logits_as_near_the_truth() -> None:
    hooks = {f"*.ln1.{point}": lambda value, site: value for point in FLOAT32}
    assert held_error("phi", hooks=hooks, capture=["*.ln1.hook_normalized"]) <= rounding.BAR


@of_family(grid.FAMILIES)
def test_recorded_errors_are_within_the_bar(family: str) -> None:
    errors = rounding.table()[family]
    assert len(errors["jmi"]) == len(errors["torch"]) == rounding.SEEDS
    assert rounding.ratio(errors) <= rounding.BAR


@pytest.mark.oracle
@of_family(grid.FAMILIES)
def test_logits_are_as_near_the_truth_as_those_of_torch_live(family: str) -> None:
    pytest.importorskip("torch", reason="the live oracle needs torch")
    pytest.importorskip("transformers", reason="the live oracle needs transformers")
    errors = importlib.import_module("tests.oracles.rounding_errors").errors(family)
    assert rounding.ratio(errors) <= rounding.BAR, errors


def _casts(name: str, dtype: Any) -> set[tuple[str, str]]:
    """From which float to which the layers of a model cast values."""
    arch = arch_of(name)
    params = jax.eval_shape(lambda: jmi_models.init(arch, 0))
    params = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, dtype), params)

    def forward(params: Any, tokens: jax.Array) -> jax.Array:
        context = arch.context(params, jmi.Prompts(tokens))
        x = arch.embed(params, jmi.Prompts(tokens), context, SILENT)
        first = jax.tree.map(lambda w: w[0], params["blocks"])
        return arch.unembed(params, arch.block(first, x, context, 0, SILENT), SILENT)

    found = set()
    jaxpr = jax.make_jaxpr(forward)(params, jax.ShapeDtypeStruct((1, 4), jnp.int32))
    for equation in _equations(jaxpr.jaxpr):
        if equation.primitive.name == "convert_element_type":
            types = [value.aval.dtype for value in (*equation.invars, *equation.outvars)]
            if all(jnp.issubdtype(dtype, jnp.floating) for dtype in types) and types[0] != types[1]:
                found.add(tuple(map(str, types)))
    return found


def _equations(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)


@pytest.mark.parametrize("name", ["phi/qk_norm_grouped", "gemma2/capped", "gpt_oss/alternating"])
def test_float32_models_cast_nothing(name: str) -> None:
    assert _casts(name, jnp.float32) == set()
    assert _casts(name, jnp.bfloat16) == {("bfloat16", "float32"), ("float32", "bfloat16")}


@pytest.mark.parametrize("wrt", [0, 1, (0, 1)])
def test_gradients_of_products_are_products_of_bfloat16(wrt: Any) -> None:
    a, b = (jnp.asarray(np.random.default_rng(i).normal(size=(3, 3)), jnp.bfloat16) for i in range(2))

    def total(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.square(product("ij,jk->ik", a, b)).sum()

    dots = [
        e for e in _equations(jax.make_jaxpr(jax.grad(total, wrt))(a, b).jaxpr) if "dot" in e.primitive.name
    ]
    assert {str(x.aval.dtype) for e in dots for x in e.invars} == {"bfloat16"}
    assert len(dots) == 1 + len(np.atleast_1d(wrt))
    got = jax.grad(total, wrt)(a, b)
    want = jax.grad(total, wrt)(a.astype(jnp.float32), b.astype(jnp.float32))
    for low, high in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert low.dtype == jnp.bfloat16
        assert relative(low, high) <= 2 * UNIT
    _, moved = jax.jvp(functools.partial(total, a), (b,), (jnp.ones_like(b),))
    assert moved.dtype == jnp.float32
