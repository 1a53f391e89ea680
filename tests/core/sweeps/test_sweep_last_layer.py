"""Where logits of one position are wanted, the last layer is run for that position alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.sweeps import chunks as sweep_plan
from jmi.sweeps import work as sweep_work
from jmi.sweeps.sharing import Part
from jmi_models.decoder.experts import Experts
from jmi_models.decoder.mlp import Mlp
from tests.core.conftest import lively, tiny
from tests.core.sweeps.cells import (
    LENGTH,
    assert_cells_differ,
    columns,
    everything,
    hooks_of,
)
from tests.support.tolerances import assert_agree as assert_equal
from tests.support.trees import listed, scaled, stacked

pytestmark = pytest.mark.usefixtures("small_chunks_count")


@pytest.mark.parametrize(
    ("options", "narrow"),
    [
        ({"logits_at": -1}, True),
        ({"logits_at": -1, "capture": ["blocks.*.hook_resid_pre"]}, False),
        ({"logits_at": -1, "capture": ["blocks.1.hook_resid_pre"]}, True),
        ({"logits_at": -1, "base": {"blocks.3.hook_mlp_out": jmi.Scale(0.5)}}, False),
        ({"logits_at": -1, "share": False}, False),
        ({}, False),
    ],
)
def test_one_position_alone_passes_through_a_last_layer_that_nobody_looks_into(model, options, narrow):
    work = sweep_work.prepare(*model, hooks_of("patch")[0], everything, **options)
    chunks, programs = work.compiled(2**30)
    assert {c.narrow for c in chunks if c.layer < 3} == {narrow}
    assert not any(c.narrow for c in chunks if c.layer == 3)
    assert len(programs) <= sweep_plan.STEPS + narrow


def test_no_other_position_is_computed_in_that_layer(model):
    work = sweep_work.prepare(*model, hooks_of("patch")[0], everything, logits_at=-1)
    wide, narrow = (work._compile(Part(0, False, flag), 4).lowered.as_text() for flag in (False, True))
    all_positions, one = f"tensor<4x2x{LENGTH}x24xf64>", "tensor<4x2x1x24xf64>"
    assert narrow.count(all_positions) == wide.count(all_positions) > 0
    assert one in narrow
    assert one not in wide


@pytest.mark.parametrize("what", ["mask", "base", "experts", "models", "mesh", "embedding"])
def test_the_last_layer_of_one_position_is_that_of_all(model, what):
    lm, tokens = model
    options = {}
    site = "hook_embed" if what == "embedding" else "blocks.*.hook_resid_mid"
    layers, factors, positions = columns([0, 1, 2], [0.5, 2.0, 3.0], [1, 4, 7])
    edit = jmi.Scale(factors, positions=positions)
    swept = {site: edit if what == "embedding" else jmi.At(layers, edit)}
    if what == "mask":
        tokens = jmi.Prompts(tokens, np.arange(LENGTH) >= np.array([[0], [2]]))
    elif what == "base":
        options["base"] = {"blocks.1.hook_mlp_out": jmi.Scale(1.5)}
    elif what == "experts":
        arch = dataclasses.replace(lm.arch, mlp=Mlp("silu"), experts=Experts(4, 2, 24, True))
        lm = jmi.LanguageModel(arch, lively(arch, jnp.float64))
    elif what == "models":
        lm = jmi.Models(lm, stacked(lm.params, scaled(lm.params, 0.9)))
    elif what == "mesh":
        options["mesh"] = jax.make_mesh((4,), ("cells",), axis_types=(jax.sharding.AxisType.Auto,))
    run = functools.partial(jmi.sweep, lm, tokens, swept, lambda out: out.logits, **options)
    got = run(logits_at=[-1, 8])
    assert_cells_differ(got if what != "models" else got[0])
    whole = run(share=False)
    place = 8 + 2 * (what == "mask")  # of the row's token 8, behind its padding
    assert_equal(got, np.stack([whole[..., 0, -1, :], whole[..., 1, place, :]], -2))


@pytest.mark.parametrize("n_layers", [1, 4])
def test_listed_layers_of_which_the_last_is_for_one_position(n_layers):
    with jax.enable_x64(True):
        arch = tiny(n_layers)
        lm = jmi.LanguageModel(arch, lively(arch, jnp.float64))
        in_list = jmi.LanguageModel(arch, listed(lm.params))
        tokens = jnp.asarray(np.random.default_rng(7).integers(0, 29, (2, LENGTH)), jnp.int32)
        read = lambda out: out.logits
        for site, layers in (("hook_embed", None), ("blocks.*.hook_mlp_out", [0, n_layers // 2])):
            factors, positions, where = columns([0.5, 2.0], [1, 7], layers or [0, 0])
            edit = jmi.Scale(factors, positions=positions)
            swept = {site: edit if layers is None else jmi.At(where, edit)}
            whole = jmi.sweep(lm, tokens, swept, read, share=False)
            got = jmi.sweep(in_list, tokens, swept, read, logits_at=-1)
            assert_equal(got, whole[:, :, -1])
