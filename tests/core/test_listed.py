"""Generation that lists the layers: what new tokens read is not copied out of the stack, and is the same."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jmi
import jmi_models
from jmi import lm as language_model
from jmi.engine import listed
from jmi.engine.listed import PAYS, for_tokens
from jmi.generation import plan_generation
from jmi.lm import LanguageModel
from jmi.sampling.options import Sampling
from jmi_models.decoder.experts import Experts
from jmi_models.decoder.mlp import Mlp
from jmi_models.decoder.positions import Positions
from jmi_models.decoder.rope import Rope
from tests.core.conftest import lively, tiny
from tests.core.test_kinds import RWKV
from tests.support.tolerances import assert_agree

N = 4
DECODER = dataclasses.replace(tiny(), d_head=8, d_mlp=48, positions=Positions((Rope(1e4, 8),)))
"""Rows of all its parameters are whole lines of memory."""


def weights(*shape: int) -> dict[str, Any]:
    return {"embed": {}, "blocks": {"W": jax.device_put(np.zeros(shape, np.float32))}}


def test_layers_are_listed_where_the_tokens_of_a_call_pay_for_compiling_them() -> None:
    params = weights(2, 512, 1024)
    enough = math.ceil(PAYS / (512 * 1024 * 4))
    assert for_tokens(params, enough - 1, 2) is None
    layers = for_tokens(params, enough, 2)
    assert layers is not None
    stack = params["blocks"]["W"]
    for i, layer in enumerate(layers):
        assert layer["W"].unsafe_buffer_pointer() == stack.unsafe_buffer_pointer() + i * stack[0].nbytes


def test_what_would_have_to_be_copied_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed, "PAYS", 0)
    params = weights(2, 16, 64)
    assert for_tokens(params, N, 2) is not None
    assert for_tokens(weights(2, 3, 5), N, 2) is None  # JAX shares no memory that begins within a line
    assert for_tokens(jmi_models.listed(params), N, 2) is None
    assert for_tokens(jax.tree.map(np.asarray, params), N, 2) is None
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    assert for_tokens(jax.device_put(params, NamedSharding(mesh, PartitionSpec())), N, 2) is None
    traced: list[Any] = []
    jax.jit(lambda params: traced.append(for_tokens(params, N, 2)))(params)
    assert traced == [None]


def program(lm: LanguageModel, blocks: Any) -> str:
    """The compiled generation of a few tokens."""
    given = {"hooks": None, "prompt_hooks": None, "step_hooks": None, "capture": (), "memory": False}
    work = plan_generation(lm.arch, jmi.Prompts(np.zeros((1, 8), np.int32)), N, **given)
    greedy = Sampling(do_sample=False)
    text: str = language_model._generate.lower(work, lm.params, None, greedy, blocks).compile().as_text()
    return text


def test_new_tokens_copy_no_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed, "PAYS", 0)
    lm = LanguageModel(DECODER, lively(DECODER))
    stacked = program(lm, None)
    chosen = program(lm, for_tokens(lm.params, N, lm.arch.n_layers))
    for stack in jax.tree.leaves(lm.params["blocks"]):
        sizes = ",".join(map(str, stack.shape[1:]))
        if stack.ndim > 2 and stack.shape[1:] != (4, 8):  # a bias has the shape of what it is added to
            count = lambda made, text: len(re.findall(made, text))
            taken = rf"\[1,{sizes}\]\S* dynamic-slice\("
            moved = rf"\[(1,)?{sizes}\]\S* (copy|transpose|slice|fusion)\("
            # What is left is of the prompt, which reads the stack.
            assert count(taken, stacked) == 2 * count(taken, chosen) > 0
            assert count(moved, stacked) >= 2 * count(moved, chosen)


MODELS = {
    "attention": DECODER,
    "mixtures in two layers": dataclasses.replace(
        DECODER, mlp=Mlp("silu"), experts=Experts(4, 2, 16, True, dense_layers=(0, 3))
    ),
    "recurrent": dataclasses.replace(RWKV, ranks=tuple((name, 8) for name, _ in RWKV.ranks)),
}


@pytest.mark.parametrize("name", MODELS)
def test_listed_and_stacked_layers_generate_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    monkeypatch.setattr(
        language_model, "for_tokens", lambda *given: used.append(for_tokens(*given)) or used[-1]
    )
    hooks = {"blocks.*.hook_mlp_out": jmi.At(2, jmi.Scale(0.5)), "blocks.1.hook_resid_post": jmi.Scale(1.5)}
    capture = ["hook_logits", "blocks.*.hook_resid_post", "blocks.3.hook_mlp_out"]
    tokens = np.random.default_rng(0).integers(0, 29, (2, 6)).astype(np.int32)
    with jax.enable_x64(True):
        arch = MODELS[name]
        lm = LanguageModel(arch, lively(arch, jnp.float64))
        for given in ({"seed": 3}, {"memory": True, "hooks": hooks, "capture": capture}):
            found = []
            for pays in (math.inf, 0):
                monkeypatch.setattr(listed, "PAYS", pays)
                found.append(lm.generate(tokens, N, **given))
            assert used[-2] is None
            assert len(used[-1]) == arch.n_layers
            assert_agree(found[1], found[0])
