"""A LanguageModel is a pytree: an argument of jit, grad, vmap and shard_map, like any other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from tests.core.conftest import Programs, lively, tiny
from tests.support.tolerances import assert_agree
from tests.support.trees import scaled, stacked

SITE = "blocks.*.hook_resid_post"
METRIC = jmi.metrics.LogProb(5)


def other(lm: jmi.LanguageModel, factor: float = 0.9) -> jmi.LanguageModel:
    return scaled(lm, factor)


@pytest.fixture(scope="module")
def both(lm: jmi.LanguageModel) -> tuple[list[jmi.LanguageModel], jmi.LanguageModel]:
    """Two models, and the same with their weights stacked."""
    models = [lm, other(lm)]
    return models, stacked(*models)


def test_its_leaves_are_its_weights_and_the_rest_stays(lm: Any) -> None:
    atlas = jmi_models.load("atlas")
    for model in (lm, atlas):
        leaves, structure = jax.tree.flatten(model)
        assert len(leaves) == len(jax.tree.leaves(model.params))
        again = jax.tree.unflatten(structure, leaves)
        assert isinstance(again, jmi.LanguageModel)
        assert again.arch == model.arch
        assert (again.tokenizer, again.name, again.identity) == (model.tokenizer, model.name, model.identity)
        assert hash(structure) == hash(jax.tree.structure(again))
        assert structure == jax.tree.structure(again)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), atlas)
    assert half.dtype == jnp.bfloat16
    assert half.run("Paris is").logits.dtype == jnp.bfloat16
    # Structures of models may be asked for without weights.
    assert jax.tree.map(lambda x: None, lm).arch == lm.arch


def test_an_argument_of_jit_and_other_weights_are_the_same_program(
    lm: Any, tokens: Any, programs: Programs
) -> None:
    run = jax.jit(lambda lm, prompts: lm.run(prompts, {"hook_embed": jmi.Scale(2.0)}, [SITE]))
    models = lm, other(lm)
    want = [model.run(tokens, {"hook_embed": jmi.Scale(2.0)}, [SITE]) for model in models]
    programs()
    first = run(models[0], jmi.Prompts(tokens))
    assert programs()[1]
    second = run(models[1], jmi.Prompts(tokens))
    assert programs() == (0, 0)
    for got, wanted in zip((first, second), want, strict=True):
        assert got.names() == wanted.names()
        assert_agree((got.logits, got.captures), (wanted.logits, wanted.captures))
    shallow = tiny(2)
    run(jmi.LanguageModel(shallow, lively(shallow), name="tiny"), jmi.Prompts(tokens))
    assert min(programs()), "another architecture is another program"


def test_texts_are_read_inside_of_jit() -> None:
    lm = jmi_models.load("atlas")
    texts = ["Paris is in", "The capital of France is"]
    got = jax.jit(lambda lm: lm.run(texts, logits_at=-1).logits)(lm)
    assert_agree(got, lm.run(texts, logits_at=-1).logits)


def test_a_mapped_axis_of_models(both: Any, tokens: Any) -> None:
    models, stacked = both
    out = jax.vmap(lambda lm: lm.run(tokens, capture=[SITE]))(stacked)
    want = [model.run(tokens, capture=[SITE]) for model in models]
    assert_agree(out.logits, jnp.stack([one.logits for one in want]))
    assert_agree(
        out["blocks.2.hook_resid_post"], jnp.stack([one["blocks.2.hook_resid_post"] for one in want])
    )
    # Each with a text of its own.
    rows = jax.vmap(lambda lm, row: lm.run(row[None]).logits[0])(stacked, tokens)
    assert_agree(rows, jnp.stack([one.logits[i] for i, one in enumerate(want)]))


def test_a_derivative_is_a_model(lm: Any, tokens: Any) -> None:
    """Its weights are those derivatives, compared with those with respect to parameters."""
    found = jax.jit(jax.grad(lambda lm: METRIC(lm.run(tokens)).sum()))(lm)
    assert isinstance(found, jmi.LanguageModel)
    assert jax.tree.structure(found) == jax.tree.structure(lm)
    want = jax.jit(jax.grad(lambda p: METRIC(jmi.forward(lm.arch, p, tokens)).sum()))(lm.params)
    assert_agree(found.params, want, kind="gradients")
    # A step along it changes the value by its length.
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: x.astype(jnp.float64), lm)
        value = jax.jit(lambda lm: METRIC(lm.run(tokens)).sum())
        slope = jax.jit(jax.grad(value))(exact)
        length = sum(float((x**2).sum()) for x in jax.tree.leaves(slope))
        step = 1e-6 / length**0.5
        moved = [value(jax.tree.map(lambda x, g, s=s: x + s * step * g, exact, slope)) for s in (1, -1)]
        assert_agree((moved[0] - moved[1]) / (2 * step), jnp.asarray(length), kind="slopes")


def test_gradients_and_generation_of_a_model_that_is_an_argument(both: Any, tokens: Any) -> None:
    models, stacked = both

    def gradients(lm: jmi.LanguageModel, prompts: Any) -> Any:
        found = jmi.value_and_grad_at(lm, prompts, METRIC, SITE)
        return found.value, found.grads[SITE]

    want = [gradients(model, tokens) for model in models]
    assert_agree(jax.jit(gradients)(models[1], tokens), want[1], kind="gradients")
    mapped = jax.jit(jax.vmap(gradients, (0, None)))(stacked, tokens)
    assert_agree(mapped, jax.tree.map(lambda *x: jnp.stack(x), *want), kind="gradients")
    made = jax.jit(jax.vmap(lambda lm: lm.generate(tokens, 3).tokens))(stacked)
    np.testing.assert_array_equal(made, [model.generate(tokens, 3).tokens for model in models])


def test_many_cotangents_of_mapped_models(both: Any, tokens: Any) -> None:
    models, stacked = both
    last = "blocks.3.hook_resid_post"
    rows = jnp.asarray(np.random.default_rng(2).normal(size=(3, *tokens.shape, 16)), jnp.float32)

    def pulled(lm: jmi.LanguageModel) -> Any:
        _, pull = jmi.vjp_at(lm, tokens, last, "hook_embed")
        return pull({last: rows})["hook_embed"]

    want = jnp.stack([pulled(model) for model in models])
    assert_agree(jax.jit(jax.vmap(pulled))(stacked), want, kind="gradients")


def test_a_second_derivative_of_a_model_and_an_activation(lm: Any, tokens: Any) -> None:
    """How the slope at a point changes with the weights: a gradient of a gradient."""
    direction = np.random.default_rng(5).normal(size=(1, 1, 16))
    site = "blocks.1.hook_resid_post"

    def slope(lm: jmi.LanguageModel) -> jax.Array:
        grads = jmi.value_and_grad_at(lm, tokens, METRIC, site).grads[site]
        return (grads * direction.astype(grads.dtype)).sum()

    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: x.astype(jnp.float64), lm)
        found = jax.jit(jax.grad(slope))(exact)
        length = sum(float((x**2).sum()) for x in jax.tree.leaves(found))
        step = 1e-5 / length**0.5
        value = jax.jit(slope)
        moved = [value(jax.tree.map(lambda x, g, s=s: x + s * step * g, exact, found)) for s in (1, -1)]
        assert_agree((moved[0] - moved[1]) / (2 * step), jnp.asarray(length), kind="slopes")


def test_shards_of_models(both: Any, tokens: Any) -> None:
    _, stacked = both
    mesh = jax.make_mesh((2,), ("models",), axis_types=(jax.sharding.AxisType.Auto,))
    run = jax.vmap(lambda lm: lm.run(tokens, capture=[jmi.Capture(SITE, reduce=jmi.Norm())]).captures)
    got = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=jax.P("models"), out_specs=jax.P("models")))(stacked)
    assert_agree(got, run(stacked))
