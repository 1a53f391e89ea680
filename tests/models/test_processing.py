"""Processed models compute what the original does; a model that cannot be processed says why."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from scipy.special import log_softmax

import jmi
import jmi_models
from jmi.errors import ArgumentError
from jmi_models import processing
from jmi_models.decoder.norms import Norm
from jmi_models.families import family_of
from jmi_models.params import flat
from tests.oracles import grid
from tests.support.committed import each, load, relative
from tests.support.mechanisms import each_covering
from tests.support.tolerances import WIDER, assert_agree

NAMES = ("fold_norm_gains", "centre_writing_weights", "centre_unembedding", "fold_value_biases")

EXPECTED = {
    "llama/longrope_beyond": "x-x=",
    "mistral/window": "x-x=",
    "qwen2/layer_types": "x-xx",
    "qwen3/tied": "x-x=",
    "gemma/multi_query": "x-x=",
    "gemma2/capped": "---=",
    "gemma3_text/linear": "--x=",
    "phi3/longrope_beyond": "x-x=",
    "starcoder2/window_tied": "xxxx",
    "gpt2/plain": "xxxx",
    "gpt_neox/parallel": "xxxx",
    "gpt_neox/sequential": "xxxx",
    "gptj/plain": "xxx=",
    "opt/pre_norm": "xxxx",
    "opt/post_norm": "--xx",
    "olmo/clipped": "=xx=",
    "olmo2/grouped": "--x=",
    "phi/qk_norm_grouped": "xxxx",
    "stablelm/parallel": "xxx=",
    "falcon/new_decoder": "xxx=",
    "falcon/alibi": "xxxx",
    "cohere/qk_norm_untied": "xxx=",
    "cohere2/pattern": "xxx=",
    "granite/multipliers": "x-x=",
    "smollm3/tied": "x-x=",
    "bloom/six_heads_untied": "--xx",
    "mixtral/full": "x-x=",
    "qwen2_moe/shared": "x-xx",
    "qwen3_moe/normalised": "x-x=",
    "olmoe/clipped": "x-x=",
    "gpt_oss/alternating": "x-x-",
}
"""What each of `NAMES` does: processes (x), leaves a model that is so already (=), refuses (-)."""

REASONS = {
    "fold_norm_gains": "post-norm|norms is the residual stream|normalised embedding",
    "centre_writing_weights": "RMSNorm|unnormalised|norm of its embedding",
    "centre_unembedding": "soft-cap",
    "fold_value_biases": "sinks",
}

ALONE = ("gpt2/plain", "qwen2_moe/shared")
"""Of these each processing is run by itself in float32 as well."""

LISTED = ("gpt2/plain", "falcon/new_decoder", "qwen2_moe/shared")
SHUFFLED = ("gpt2/plain", "gpt_oss/alternating")
"""Between them every kind of tensor: positions, biases of layers, experts and a router, sinks."""

Model = tuple[Any, Any]


def loaded(name: str, dtype: str = "float32") -> Model:
    lm = load(name, dtype)
    return lm.arch, lm.params


def listed(params: Any) -> Any:
    """Parameters with the layers as a list, without programs that cut them apart."""
    return jax.device_put(jmi_models.listed(jax.device_get(params)))


def processed(function: Callable[..., Model], arch: Any, params: Any, *args: Any) -> Model:
    """What ``function`` returns, found to fit together and to have left its arguments alone."""
    leaves, structure = jax.tree.flatten(params)
    values = [np.array(leaf) for leaf in leaves]
    new_arch, new_params = function(arch, params, *args)
    after, structure_after = jax.tree.flatten(params)
    assert structure == structure_after
    assert all(a is b for a, b in zip(leaves, after, strict=True))
    jax.tree.map(np.testing.assert_array_equal, after, values)
    shapes = {path: param.shape for path, param in flat(new_arch.param_tree()).items()}
    if isinstance(params["blocks"], dict):
        assert {path: value.shape for path, value in flat(new_params).items()} == shapes
    assert {leaf.dtype for leaf in jax.tree.leaves(new_params)} == {leaf.dtype for leaf in leaves}
    return new_arch, new_params


def all_that_apply(name: str, arch: Any, params: Any) -> Model:
    for function, outcome in zip(NAMES, EXPECTED[name], strict=True):
        if outcome != "-":
            arch, params = processed(getattr(processing, function), arch, params)
    return arch, params


def models(name: str, dtype: str) -> dict[str, Model]:
    """Every processed form of a model, refusals and models left as they were found to be as expected."""
    arch, params = loaded(name, dtype)
    found = {}
    for function, outcome in zip(NAMES, EXPECTED[name], strict=True):
        run = getattr(processing, function)
        if outcome == "-":
            with pytest.raises(ArgumentError, match=REASONS[function]):
                run(arch, params)
            continue
        new_arch, new_params = processed(run, arch, params)
        assert (new_arch == arch and new_params is params) == (outcome == "=")
        if outcome == "x":
            found[function] = new_arch, new_params
    return {**found, "all": all_that_apply(name, arch, params)}


@functools.partial(jax.jit, static_argnums=(0, 3))
def forward(arch: Any, params: Any, tokens: Any, hooked: bool) -> dict[str, jax.Array]:
    vector = np.random.default_rng(0).normal(size=arch.d_head)
    hooks = {
        "blocks.1.attn.hook_attn_scores": jmi.Knockout(queries=-1, keys=1),
        "blocks.1.attn.hook_z": jmi.Add(vector, positions=-1),
    }
    wanted = ["blocks.*.ln1.hook_normalized", "blocks.*.attn.hook_in", "blocks.*.hook_resid_pre"]
    wanted += ["ln_final.hook_normalized", "hook_final_norm"]
    capture = [point for point in wanted if point in arch.sites()]
    out = jmi.forward(arch, params, tokens, hooks=hooks if hooked else {}, capture=capture if hooked else ())
    return {"logits": out.logits, **out.captures}


def run(model: Model, tokens: np.ndarray, hooked: bool = False) -> dict[str, np.ndarray]:
    """Logits; with the hooks, which act on the last token, what `assert_promise` looks at as well."""
    return {name: np.asarray(value) for name, value in forward(*model, tokens, hooked).items()}


def assert_unchanged(form: str, got: np.ndarray, want: np.ndarray) -> None:
    """Logits; log-probabilities, where logits are meant to be shifted."""
    if form in ("centre_unembedding", "all"):
        got, want = log_softmax(got, -1), log_softmax(want, -1)
    # Processed weights are products of weights, rounded to the dtype before anything runs.
    assert_agree({form: got}, {form: want}, times=WIDER if got.dtype == np.float32 else 1)


def test_the_expectations_name_every_committed_config() -> None:
    assert set(EXPECTED) == set(grid.COMMITTED)


@each_covering(grid.COMMITTED, ("norm", "norms", "mlp", "head"))
def test_logits_are_unchanged_in_float32(name: str) -> None:
    """All that apply, one after another; each by itself is tested in float64, where nothing hides."""
    arch, params = loaded(name)
    tokens = grid.committed(name).tokens
    forms = {"all": all_that_apply(name, arch, params)}
    if name in ALONE:
        forms |= models(name, "float32")
    want = run((arch, params), tokens)["logits"]
    for form, model in forms.items():
        assert_unchanged(form, run(model, tokens)["logits"], want)


@each(grid.COMMITTED)
def test_logits_are_unchanged_in_float64_also_where_a_hook_acts(name: str) -> None:
    """Before the last token, on which alone the hooks act, positions are those of a plain run."""
    tokens, oracle = grid.committed(name).tokens, grid.committed(name).sites["hook_logits"]
    with jax.enable_x64(True):
        want = run(loaded(name, "float64"), tokens, True)["logits"]
        assert relative(want[:, :-1], oracle[:, :-1]) <= 1e-9
        assert relative(want[:, -1], oracle[:, -1]) > 1e-3
        for form, model in models(name, "float64").items():
            got = run(model, tokens, True)
            assert_unchanged(form, got["logits"], want)
            assert_promise(form, EXPECTED[name], model, got)
            if form == "centre_unembedding":
                assert_agree(got["logits"], want - want.mean(-1, keepdims=True))


def assert_promise(form: str, expected: str, model: Model, x: dict[str, np.ndarray]) -> None:
    """The promise of a processing holds; that of all, of each of those which the model does not refuse."""
    done = {
        name
        for name, outcome in zip(NAMES, expected, strict=True)
        if name == form or (form == "all" and outcome != "-")
    }
    arch, params = model
    if "fold_norm_gains" in done:
        assert arch.norms.norm.gain == "none"
        assert not arch.norms.norm.bias
        np.testing.assert_array_equal(x["blocks.*.ln1.hook_normalized"], x["blocks.*.attn.hook_in"])
        np.testing.assert_array_equal(x["ln_final.hook_normalized"], x["hook_final_norm"])
    if "centre_writing_weights" in done:
        assert np.abs(x["blocks.*.hook_resid_pre"].mean(-1)).max() <= 1e-12
    if "centre_unembedding" in done:
        assert np.abs(np.asarray(params["unembed"]["W_U"]).mean(-1)).max() <= 1e-12
        assert np.abs(x["logits"].mean(-1)).max() <= 1e-12
    if "fold_value_biases" in done and arch.attn.qkv_bias:
        assert not np.asarray(params["blocks"]["attn"]["b_V"]).any()


def test_a_projected_embedding_is_processed_too() -> None:
    """OPT with an embedding narrower than the model and norms before its modules: in the grid only."""
    config = grid.GRID["opt/projected"]
    arch = family_of(config).from_config(config)
    rng = np.random.default_rng(0)
    shapes = {path: param.shape for path, param in flat(arch.param_tree()).items()}
    tokens = grid.tokens(config)
    assert arch.d_embed is not None
    assert (arch.norms.where, arch.tied) == ("pre", True)
    with jax.enable_x64(True):
        params = jmi_models.params.nested({k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()})
        want = run((arch, params), tokens)["logits"]
        for name in NAMES:
            model = processed(getattr(processing, name), arch, params)
            assert_unchanged(name, run(model, tokens)["logits"], want)
            assert model[0].tied == (name != "centre_unembedding")


def refused(processing_of: Callable[..., Any], name: str, match: str, **changes: dict[str, Any]) -> None:
    arch, params = loaded(name)
    specs = {spec: dataclasses.replace(getattr(arch, spec), **fields) for spec, fields in changes.items()}
    with pytest.raises(ArgumentError, match=match):
        processing_of(dataclasses.replace(arch, **specs), params)


def test_what_no_committed_config_asks_for_is_refused() -> None:
    refused(processing.fold_value_biases, "qwen2/layer_types", "clamped", attn={"clip_qkv": 1.0})
    biased = {"norm": Norm("rms", 1e-5, bias=True)}
    refused(processing.fold_norm_gains, "mixtral/full", "mixture", norms=biased)


def test_parameters_of_another_architecture_are_refused() -> None:
    """With the old architecture and untied parameters, the head would silently be the embedding's."""
    arch, params = loaded("gpt2/plain")
    _, untied = processing.centre_writing_weights(arch, params)
    changes = [(getattr(processing, name), ()) for name in NAMES]
    for function, seed in (*changes, (jmi_models.shuffled, (0,))):
        with pytest.raises(ArgumentError, match=r"not the parameters of arch: unembed\.W_U"):
            function(arch, untied, *seed)


@each(LISTED)
def test_listed_layers_are_processed_like_stacked_ones(name: str) -> None:
    arch, params = loaded(name)
    stacked_arch, stacked = all_that_apply(name, arch, params)
    listed_arch, got = all_that_apply(name, arch, listed(params))
    assert listed_arch == stacked_arch
    assert_agree(got, listed(stacked))


@each(["gpt_oss/alternating"])
def test_listed_layers_are_shuffled_like_stacked_ones(name: str) -> None:
    arch, params = loaded(name)
    _, got = processed(jmi_models.shuffled, arch, listed(params), 3)
    jax.tree.map(np.testing.assert_array_equal, got, listed(jmi_models.shuffled(arch, params, 3)[1]))


def test_bfloat16_weights_are_rounded_once() -> None:
    arch, params = loaded("gpt2/plain", "bfloat16")
    attn, ln1 = (
        jax.tree.map(lambda x: np.asarray(x, np.float32), params["blocks"][n]) for n in ("attn", "ln1")
    )
    _, folded = processed(processing.fold_norm_gains, arch, params)
    weight = attn["W_Q"] * ln1["w"][:, :, None, None]
    bias = attn["b_Q"] + np.einsum("ld,ldhk->lhk", ln1["b"], attn["W_Q"])
    for got, want in ((folded["blocks"]["attn"]["W_Q"], weight), (folded["blocks"]["attn"]["b_Q"], bias)):
        # Half of the last of eight bits, and what a sum in float32 may be off.
        half = np.ldexp(0.5, np.frexp(want)[1] - 8)
        assert got.dtype == jnp.bfloat16
        assert (np.abs(np.asarray(got, np.float32) - want) <= half + 2e-6 * np.abs(want).max()).all()


def rows(path: str, value: Any, arch: Any) -> np.ndarray:
    """Entries of each tensor that is shuffled by itself: ``[layers, experts or 1, entries]``."""
    axes = flat(arch.param_tree())[path].axes
    layers = arch.n_layers if axes[0] == "n_layers" else 1
    experts = arch.experts.n_experts if axes[1:2] == ("n_experts",) and len(axes) > 2 else 1
    return np.asarray(value).reshape(layers, experts, -1)


@each(SHUFFLED)
def test_shuffled_tensors_keep_their_entries_and_lose_their_order(name: str) -> None:
    arch, params = loaded(name)
    numbered = jax.device_put(
        jax.tree.map(lambda x: np.arange(x.size, dtype=x.dtype).reshape(x.shape), params)
    )
    shuffled = [flat(processed(jmi_models.shuffled, arch, numbered, seed)[1]) for seed in (0, 0, 1)]
    for path, value in flat(numbered).items():
        one, same, other = (rows(path, x[path], arch) for x in shuffled)
        value = rows(path, value, arch)
        np.testing.assert_array_equal(one, same)
        np.testing.assert_array_equal(np.sort(one), value)
        if value.shape[-1] > 8:
            assert (one != other).any(-1).all(), path
            orders = (one - value[..., :1]).reshape(-1, value.shape[-1])
            # Each layer and each expert in an order of its own.
            assert len({order.tobytes() for order in orders} | {np.sort(orders[0]).tobytes()}) > len(orders)


@each(["gpt2/plain"])
def test_devices_make_no_difference(name: str) -> None:
    arch, params = loaded(name)
    shape, axes = (2, 2), ("fsdp", "model")
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    place = lambda param, x: jax.device_put(x, jmi_models.weights.placement.sharding_of(param, mesh))
    is_param = lambda node: isinstance(node, jmi_models.params.Param)
    placed = jax.tree.map(place, arch.param_tree(), params, is_leaf=is_param)
    for function, args in ((processing.fold_norm_gains, ()), (jmi_models.shuffled, (5,))):
        got, want = flat(function(arch, placed, *args)[1]), flat(function(arch, params, *args)[1])
        for path, value in got.items():
            assert_agree(value, want[path])
            where = flat(placed).get(path, value).sharding
            assert value.sharding.is_equivalent_to(where, value.ndim), path
