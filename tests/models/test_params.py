"""Parameters: layers as a list lie where the stack lies, and constant ones are drawn by no program."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jmi_models
from jmi_models import params
from jmi_models.params import flat
from tests.support.checkpoints import assert_same, compiled
from tests.support.committed import load

NAME = "llama/longrope_beyond"


def rows(tree: Any, n_layers: int) -> list[Any]:
    return [jax.tree.map(lambda w, i=i: np.asarray(w)[i], tree["blocks"]) for i in range(n_layers)]


def test_listed_layers_lie_in_the_stack_and_need_no_program() -> None:
    stack = jax.device_put(np.random.default_rng(0).standard_normal((3, 16, 64), np.float32))
    tree, listed = {"blocks": {"W": stack}, "embed": {}}, []
    assert compiled(lambda: listed.append(jmi_models.listed(tree))) == []
    for i, layer in enumerate(listed[0]["blocks"]):
        assert layer["W"].unsafe_buffer_pointer() == stack.unsafe_buffer_pointer() + i * stack[0].nbytes
        np.testing.assert_array_equal(layer["W"], stack[i])


def test_a_listed_layer_given_away_leaves_the_stack_and_the_stack_the_layer() -> None:
    values = np.random.default_rng(0).standard_normal((3, 16, 64), np.float32)
    tree = {"blocks": {"W": jax.device_put(values)}, "embed": {}}
    layers = [layer["W"] for layer in jmi_models.listed(tree)["blocks"]]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    np.testing.assert_array_equal(add(layers[1]), values[1] + 1)
    np.testing.assert_array_equal(tree["blocks"]["W"], values)
    np.testing.assert_array_equal(add(tree["blocks"]["W"]), values + 1)
    np.testing.assert_array_equal(layers[2], values[2])


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_listed_layers_are_those_of_the_stack_wherever_it_is(dtype: str) -> None:
    lm = load(NAME, dtype)
    n_layers = lm.arch.n_layers
    assert_same(jmi_models.listed(lm.params)["blocks"], rows(lm.params, n_layers))  # float64 without x64, too
    moved = jax.device_put(lm.params, jax.devices()[1])
    listed = jmi_models.listed(moved)["blocks"]
    assert_same(listed, rows(lm.params, n_layers))
    assert all(leaf.devices() == {jax.devices()[1]} for leaf in jax.tree.leaves(listed))
    assert all(leaf.committed for leaf in jax.tree.leaves(listed))


def test_layers_of_a_mesh_and_inside_a_program_are_copies_with_their_placement() -> None:
    lm = load(NAME)
    mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.device_put(lm.params, NamedSharding(mesh, PartitionSpec()))
    listed = jmi_models.listed(everywhere)["blocks"]
    assert_same(listed, rows(lm.params, lm.arch.n_layers))
    assert all(len(leaf.devices()) == 4 for leaf in jax.tree.leaves(listed))
    traced = jax.jit(lambda tree: jmi_models.listed(tree)["blocks"])(lm.params)
    assert_same(traced, rows(lm.params, lm.arch.n_layers))


def test_each_shape_is_drawn_by_one_program_and_constants_by_none() -> None:
    arch = load(NAME).arch
    random = {param.shape for param in flat(arch.param_tree()).values() if not isinstance(param.init, str)}
    params._normal.clear_cache()
    for seed in (0, 1):
        drawn = jmi_models.init(arch, seed, dtype="bfloat16")
    assert params._normal._cache_size() == len(random)
    norms = drawn["blocks"]["ln1"]["w"]
    assert norms.dtype == "bfloat16"
    np.testing.assert_array_equal(norms, np.ones_like(norms))
