"""Parts of the stream on every committed family, against numpy and against what the model adds and reads."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmi.errors import ArgumentError
from jmi_models.decoder import residual
from tests.oracles import grid
from tests.support.committed import arch_of, each, every_site, load
from tests.support.tolerances import assert_agree

NEURONS = [name for name in grid.COMMITTED if not arch_of(name).experts]
POST = [name for name in grid.COMMITTED if arch_of(name).norms.written]


@functools.cache
def model(name: str) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """Architecture, parameters in numpy and sites (without ``blocks.*.``) of a config in float64."""
    lm = load(name, "float64")
    sites = {site.removeprefix("blocks.*."): value for site, value in every_site(name, "float64").items()}
    return lm.arch, jax.tree.map(np.asarray, lm.params), sites


def in_float64(function: Any, *arrays: Any) -> Any:
    """What ``function`` makes of ``arrays``, in one program."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(function)(*arrays))


def written(arch: Any, p: Any, scale: np.ndarray | None, parts: np.ndarray) -> np.ndarray:
    """By the formulas of the norms: what parts ``[l, b, s, n, d]`` of a module's output add."""
    if arch.norms.written:
        centred = parts - parts.mean(-1, keepdims=True) if arch.norms.norm.kind == "layer" else parts
        gain = p["w"] + (arch.norms.norm.gain == "1 + w")
        parts = gain[:, None, None, None] * centred / scale[:, :, :, None]
    return arch.residual_scale * parts


@each(grid.COMMITTED)
def test_heads_and_constant_sum_to_what_attention_adds(name: str) -> None:
    arch, params, x = model(name)
    blocks, scale = params["blocks"], x.get("ln1_post.hook_scale")
    direction = np.random.default_rng(0).normal(size=x["hook_attn_out"].shape)

    @jax.vmap
    def parts(p: Any, z: Any, direction: Any, scale: Any) -> Any:
        heads = residual.head_outputs(arch, p, z, scale)
        constant = residual.attn_constant(arch, p, scale)
        return heads, constant, residual.head_effects(arch, p, z, direction, scale)

    heads, constant, effects = in_float64(parts, blocks, x["attn.hook_z"], direction, scale)
    assert_agree(heads, written(arch, blocks.get("ln1_post"), scale, x["attn.hook_result"]))
    assert_agree(heads.sum(3) + constant, x["hook_attn_out"])
    assert_agree(effects, np.einsum("lbshd,lbsd->lbsh", heads, direction))


@each(NEURONS)
def test_neurons_and_constant_sum_to_what_the_mlp_adds(name: str) -> None:
    arch, params, x = model(name)
    blocks, scale, post = params["blocks"], x.get("ln2_post.hook_scale"), x["mlp.hook_post"]
    chosen = np.stack([np.random.default_rng(i).permutation(arch.d_mlp)[:5] for i in range(arch.n_layers)])
    direction = np.random.default_rng(0).normal(size=x["hook_mlp_out"].shape)

    @jax.vmap
    def parts(p: Any, post: Any, chosen: Any, direction: Any, scale: Any) -> Any:
        some = residual.neuron_outputs(arch, p, post, chosen, scale)
        constant = residual.mlp_constant(arch, p, scale)
        return some, constant, residual.neuron_effects(arch, p, post, direction, scale)

    some, constant, effects = in_float64(parts, blocks, post, chosen, direction, scale)
    each_neuron = np.einsum("lbsm,lmd->lbsmd", post, blocks["mlp"]["W_out"])
    each_neuron = written(arch, blocks.get("ln2_post"), scale, each_neuron)
    assert_agree(some, np.take_along_axis(each_neuron, chosen[:, None, None, :, None], 3))
    assert_agree(each_neuron.sum(3) + constant, x["hook_mlp_out"])
    assert_agree(effects, np.einsum("lbsmd,lbsd->lbsm", each_neuron, direction))


def uncapped(arch: Any, params: Any, x: dict[str, np.ndarray]) -> np.ndarray:
    """Logits before any soft-cap, from the final norm's output."""
    final, head = x.get("hook_final_norm", x["hook_resid_post"][-1]), params.get("unembed", {})
    final = final @ head["W_out"] if "W_out" in head else final
    unembedding = params["embed"]["W_E"].T if arch.tied else head["W_U"]
    return arch.logit_scale * (final @ unembedding + head.get("b_U", 0))


@each(grid.COMMITTED)
def test_logits_of_parts_sum_to_the_logits(name: str) -> None:
    arch, params, x = model(name)
    stream, scale, logits = x["hook_resid_post"][-1], x.get("ln_final.hook_scale"), uncapped(*model(name))
    rng = np.random.default_rng(0)
    part = rng.normal(size=stream.shape)
    tokens, others = rng.integers(0, arch.d_vocab, (2, *stream.shape[:2]))

    def read(p: Any, parts: Any, scale: Any, a: Any, b: Any) -> Any:
        read_by = arch.direction(p, a), arch.direction(p, b), arch.direction(p, a, b)
        return [arch.to_logits(p, part, scale) for part in parts], arch.logit_constant(p), read_by

    of_parts, constant, (one, other, difference) = in_float64(
        read, params, [part, stream - part], scale, tokens, others
    )
    assert_agree(sum(of_parts) + constant, logits)
    normalised = stream if scale is None else stream / scale
    wanted = np.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    assert one.vector.shape == (*tokens.shape, arch.d_model)
    assert_agree(np.einsum("bsd,bsd->bs", normalised, one.vector) + one.constant, wanted)
    for d, a, b in zip(difference, one, other, strict=True):
        assert_agree(d, a - b)


@each(POST)
def test_a_missing_denominator_is_named(name: str) -> None:
    arch, params, x = model(name)
    layer = jax.tree.map(lambda w: w[0], params["blocks"])
    with pytest.raises(ArgumentError, match=r"ln1_post\.hook_scale"):
        arch.head_outputs(layer, x["attn.hook_z"][0])


def test_a_mixture_has_no_neurons() -> None:
    arch, params, _ = model("mixtral/full")
    with pytest.raises(ArgumentError, match="mixture"):
        arch.mlp_constant(jax.tree.map(lambda w: w[0], params["blocks"]))


def test_sums_of_bfloat16_are_float32() -> None:
    lm = load("gemma2/capped", "bfloat16")
    layer = jax.tree.map(lambda w: w[0], lm.params["blocks"])
    z = jnp.ones((1, 2, lm.arch.n_heads, lm.arch.d_head), jnp.bfloat16)
    scale = jnp.ones((1, 2, 1), jnp.float32)
    assert lm.arch.head_outputs(layer, z, scale).dtype == jnp.float32
    assert lm.arch.direction(lm.params, 3).vector.dtype == jnp.float32
    assert lm.arch.to_logits(lm.params, z[..., 0, :1].repeat(lm.arch.d_model, -1), scale).dtype == jnp.float32
