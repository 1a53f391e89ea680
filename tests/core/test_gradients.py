"""Gradients at sites: finite differences at every site of every family, plans, memory, frozen parts."""

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi import tree
from jmi.errors import ArgumentError, HookError
from jmi.gradients import value_and_grad_at
from jmi.hooks.freeze import Detach, frozen
from jmi.model.sites import table_of
from tests.core.conftest import lively, tiny
from tests.oracles import grid
from tests.support import random_rwkv
from tests.support.committed import each, load
from tests.support.tolerances import BARS, assert_agree
from tests.support.trees import listed

BAR = BARS["slopes"]["float64"]


@tree.dataclass
class Step:
    """A step along a direction that differs by layer."""

    size: Any
    direction: Any

    def __call__(self, value: jax.Array, site: jmi.Site) -> jax.Array:
        del site
        return value + self.size * self.direction


def direction(point: str, shape: tuple[int, ...]) -> np.ndarray:
    """A random direction for a site; where a score is -inf, a step along it changes nothing."""
    return np.random.default_rng(zlib.crc32(point.encode())).normal(size=shape)


def slope_errors(lm: jmi.LanguageModel, tokens: Any, dead_ends: tuple[str, ...] = ()) -> dict[str, float]:
    """Per site, how far the slope along a direction by gradients is from that by finite differences.

    Relative to the length of the products that sum to the slope, the size it has along a random direction.
    The metric weighs at random the logits, and the captures that nothing later reads.
    """
    points = [point for point, site in table_of(lm.arch).items() if not site.derived]
    step = 1e-6

    def metric(out: jmi.Output) -> jax.Array:
        parts = [out.logits, *(out[point] for point in dead_ends)]
        rng = np.random.default_rng(0)
        return sum((jnp.asarray(rng.normal(size=x.shape)) * x).sum() for x in parts)

    @jax.jit
    def both(lm: jmi.LanguageModel, tokens: Any) -> Any:
        found = value_and_grad_at(lm, tokens, metric, points, capture=dead_ends)
        along = {point: jnp.asarray(direction(point, found.grads[point].shape)) for point in points}

        def moved(sizes: jax.Array) -> jax.Array:
            steps = {p: Step(size, along[p]) for p, size in zip(points, sizes, strict=True)}
            hooks = {p: jmi.PerLayer(h) if p.startswith("blocks.") else h for p, h in steps.items()}
            return metric(jmi.forward(lm.arch, lm.params, tokens, hooks=hooks, capture=dead_ends))

        grids = jnp.concatenate([by * step * jnp.eye(len(points)) for by in (1, -1, 2, -2)])
        up, down, far_up, far_down = jax.lax.map(moved, grids).reshape(4, -1)
        slopes = (8 * (up - down) - (far_up - far_down)) / (12 * step)
        return slopes, {p: found.grads[p] * along[p] for p in points}, found.grads.captures

    with jax.enable_x64(True):
        slopes, products, grads = jax.device_get(both(lm, jnp.asarray(tokens)))
    assert all(np.isfinite(g).all() and g.any() for g in grads.values())
    return {
        p: abs(slope - products[p].sum()) / np.linalg.norm(products[p])
        for p, slope in zip(points, slopes, strict=True)
    }


@each(grid.COMMITTED)
def test_gradients_at_every_site_are_those_of_finite_differences(name: str) -> None:
    errors = slope_errors(load(name, "float64"), grid.committed(name).tokens)
    assert max(errors.values()) < BAR, errors


@random_rwkv.each
def test_gradients_at_every_site_of_a_recurrent_model(version: int) -> None:
    dead_ends = ("blocks.*.rwkv.hook_state", "blocks.*.rwkv.hook_shift", "blocks.*.mlp.hook_shift")
    errors = slope_errors(random_rwkv.load(version), random_rwkv.TOKENS, dead_ends)
    assert max(errors.values()) < BAR, errors


READS = ["blocks.*.attn.hook_pattern", "blocks.1.mlp.hook_post", "blocks.-1.mlp.hook_post", "hook_embed"]


def metric(out: jmi.Output) -> jax.Array:
    """Per row, of logits and a capture."""
    return jnp.tanh(out.logits[:, -1, 3]) * out["blocks.2.hook_resid_mid"][:, 1, 5]


def found(lm: jmi.LanguageModel, prompts: Any, sites: Any = READS, **options: Any) -> Any:
    capture = ["blocks.2.hook_resid_mid"]
    run = lambda lm, prompts: value_and_grad_at(lm, prompts, metric, sites, capture=capture, **options)
    return jax.jit(run)(lm, prompts)


assert_close = functools.partial(assert_agree, kind="gradients")


def test_gradients_are_addressed_like_captures(lm, tokens):
    got = found(lm, tokens)
    every = found(lm, tokens, "*")
    assert got.grads.layers("mlp.hook_post") == (1, 3)
    assert set(got.grads.captures) == {*READS[::3], "blocks.*.mlp.hook_post"}
    assert set(every.grads.captures) == set(lm.arch.sites())
    for name in got.grads.names():
        assert_close(got.grads[name], every.grads[name])
    out = jmi.forward(lm.arch, lm.params, tokens, capture=["blocks.2.hook_resid_mid"])
    assert_close((got.value, got.out.logits), (metric(out), out.logits))


def test_a_gradient_is_that_of_a_vector_added_behind_the_hooks_there(lm, tokens):
    """The hook doubles: what flows onward has half the gradient of what arrives."""
    site = "blocks.2.mlp.hook_post"

    @functools.partial(jax.jit, static_argnums=1)
    @jax.grad
    def by_hand(vector, place):
        edits = [jmi.Scale(2.0)]
        edits.insert(place, jmi.Add(vector))
        out = jmi.forward(
            lm.arch, lm.params, tokens, hooks={site: edits}, capture=["blocks.2.hook_resid_mid"]
        )
        return metric(out).sum()

    shape = lm.arch.sites()["blocks.*.mlp.hook_post"].shape(*tokens.shape)
    arriving, onward = (by_hand(jnp.zeros(shape), place) for place in (0, 1))
    got = found(lm, tokens, [site], hooks={site: jmi.Scale(2.0)}).grads
    assert_close(got[site], onward)
    assert_close(got.stack("mlp.hook_post")[0], arriving / 2)
    assert got.layers("mlp.hook_post") == (2,)


def test_rows_keep_their_own_gradients(lm, tokens):
    both = found(lm, tokens).grads.captures
    ones = [found(lm, tokens[row : row + 1]).grads.captures for row in range(2)]
    for point, gradient in both.items():
        axis = int(point.startswith("blocks."))
        assert_close(gradient, jnp.concatenate([one[point] for one in ones], axis))


def test_vmap_and_listed_layers_and_no_remat_agree(lm, tokens):
    want = found(lm, tokens).grads
    mapped = jax.vmap(lambda t: found(lm, t[None]).grads)(tokens)
    assert_close(mapped["hook_embed"][:, 0], want["hook_embed"])
    assert_close(mapped["blocks.-1.mlp.hook_post"][:, 0], want["blocks.3.mlp.hook_post"])
    in_list = jmi.LanguageModel(lm.arch, listed(lm.params))
    assert_close(found(in_list, tokens).grads.captures, want.captures)
    assert_close(found(lm, tokens, remat=False).grads.captures, want.captures)


def test_shards_of_the_batch_have_the_gradients_of_the_whole(lm, tokens):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    run = lambda tokens: found(lm, tokens).grads.captures
    specs = {p: jax.P(None, "x") if p.startswith("blocks.") else jax.P("x") for p in run(tokens)}
    sharded = jax.shard_map(run, mesh=mesh, in_specs=jax.P("x"), out_specs=specs)(tokens)
    assert_close(sharded, run(tokens))


def test_padding_and_its_mask_change_nothing(lm, tokens):
    padded, mask = jnp.pad(tokens, ((0, 0), (3, 0))), jnp.arange(10)[None] >= jnp.asarray([[3], [3]])
    capture = jmi.Capture("blocks.2.hook_resid_mid", reduce=jmi.Select(position=1))

    @jax.jit
    def of(lm, prompts):
        read = lambda out: out.logits[:, -1, 3] * out["blocks.2.hook_resid_mid"][:, 5]
        return value_and_grad_at(lm, prompts, read, ["hook_embed"], capture=[capture])

    got, want = of(lm, jmi.Prompts(padded, mask)), of(lm, jmi.Prompts(tokens))
    assert_close((got.value, got.grads["hook_embed"][:, 3:]), (want.value, want.grads["hook_embed"]))
    assert not np.asarray(got.grads["hook_embed"][:, :3]).any()


def test_gradients_have_the_dtype_of_their_site(tokens):
    arch = tiny()
    lm = jmi.LanguageModel(arch, lively(arch, jnp.bfloat16))
    shapes = jax.eval_shape(lambda lm: found(lm, tokens, "*"), lm)
    dtypes = {point: grad.dtype for point, grad in shapes.grads.captures.items()}
    inside = {p for p in dtypes if p.endswith(("hook_scale", "hook_normalized"))}
    assert {p for p, d in dtypes.items() if d != jnp.bfloat16} == inside


def compiled(n_layers: int, sites: Any) -> Any:
    arch = tiny(n_layers)
    lm, tokens = jmi.LanguageModel(arch, jmi_models.init(arch, 0)), jnp.zeros((4, 32), jnp.int32)
    return jax.jit(lambda lm: found(lm, tokens, sites)).lower(lm).compile().memory_analysis()


@pytest.mark.parametrize("sites", [["blocks.1.mlp.hook_post", "blocks.2.attn.hook_pattern"], ["blocks.*.*"]])
def test_memory_grows_by_the_residual_stream_and_the_gradients_alone(sites):
    shallow, deep = (compiled(n_layers, sites) for n_layers in (4, 16))
    residual = 4 * 32 * 16 * 4
    assert deep.temp_size_in_bytes - shallow.temp_size_in_bytes <= 12 * residual + 4096
    insides = 4 * 4 * 32 * 32 * 4
    assert residual < insides / 2


def test_one_forward_and_one_backward_scan(lm, tokens):
    jaxpr = str(jax.make_jaxpr(lambda lm: found(lm, tokens, "*"))(lm))
    assert jaxpr.count("= scan[") == 2


def test_detached_values_flow_on_without_their_gradient(lm, tokens):
    site = "blocks.1.attn.hook_z"
    plain = found(lm, tokens, [site, "blocks.1.attn.hook_v"])
    hooks = {site: Detach(positions=[2, 3], heads=0)}
    cut = found(lm, tokens, [site, "blocks.1.attn.hook_v"], hooks=hooks)
    assert_agree(cut.out.logits, plain.out.logits)
    # The gradient at the point is that behind the cut; what comes before it loses the cut part.
    assert_close(cut.grads[site], plain.grads[site])
    own = np.zeros((2, 7, 4, 1), np.float32)
    own[:, [2, 3], 0] = 1
    out = jmi.forward(lm.arch, lm.params, tokens, capture=["blocks.1.attn.hook_pattern"])
    pattern = np.asarray(out["blocks.1.attn.hook_pattern"])
    lost = np.einsum("bhqt,bqhk->bthk", pattern, np.asarray(plain.grads[site]) * own)
    lost = lost.reshape(2, 7, 2, 2, 6).sum(3)
    assert_close(
        np.asarray(plain.grads["blocks.1.attn.hook_v"]) - lost, np.asarray(cut.grads["blocks.1.attn.hook_v"])
    )


@each(["llama/longrope_beyond", "gemma2/capped", "gpt_neox/parallel", "gpt2/plain"])
def test_with_patterns_and_norms_frozen_the_direct_path_has_its_closed_form(name):
    """Without MLPs and values of other layers, a head's output reaches the final norm by fixed matrices."""
    lm = load(name, "float64")
    arch, tokens = lm.arch, jnp.asarray(grid.committed(name).tokens)
    last = arch.n_layers - 1
    z = f"blocks.{last}.attn.hook_z"
    scales = ["ln_final.hook_scale", *[p for p in arch.sites() if p.endswith("ln1_post.hook_scale")]]
    with jax.enable_x64(True):
        hooks = {**frozen(arch, patterns=True, norms=True), "blocks.*.hook_mlp_out": jmi.Zero()}
        weights = np.random.default_rng(0).normal(size=(*tokens.shape, arch.d_model))
        read = lambda out: (out["hook_final_norm"] * weights).sum((1, 2))
        capture = ["hook_final_norm", *scales]
        run = lambda lm: value_and_grad_at(lm, tokens, read, [z], hooks=hooks, capture=capture)
        got = jax.device_get(jax.jit(run)(lm))
        plain = jmi.forward(arch, lm.params, tokens, hooks={"blocks.*.hook_mlp_out": jmi.Zero()})
    assert_agree(got.out.logits, jax.device_get(plain.logits))

    def back(norm: Any, p: Any, gradient: np.ndarray, scale: np.ndarray) -> np.ndarray:
        gain = {"w": lambda: p["w"], "1 + w": lambda: 1 + p["w"], "none": lambda: 1.0}[norm.gain]()
        gradient = gradient * np.asarray(gain) / scale
        return gradient - gradient.mean(-1, keepdims=True) if norm.kind == "layer" else gradient

    params = jax.tree.map(np.asarray, lm.params)
    gradient = back(arch.norms.norm, params.get("ln_final"), weights, got.out["ln_final.hook_scale"])
    layer = jax.tree.map(lambda w: w[last], params["blocks"])
    if len(scales) > 1:
        gradient = back(arch.norms.norm, layer["ln1_post"], gradient, got.out[scales[1]][last])
    want = np.einsum("bsd,hkd->bshk", gradient, layer["attn"]["W_O"])
    assert_agree(got.grads.captures["blocks.*.attn.hook_z"][0], want)


def test_what_cannot_be_differentiated_is_refused(lm, tokens):
    rwkv = random_rwkv.load(7, "float32")
    derived = "blocks.0.rwkv.hook_effective_attn"
    with pytest.raises(HookError, match="derived"):
        value_and_grad_at(rwkv, tokens, lambda out: out.logits.sum(), [derived])
    with pytest.raises(HookError, match="this model has no such point"):
        found(lm, tokens, ["blocks.0.attn.hook_nothing"])
    with pytest.raises(ArgumentError, match="takes names"):
        found(lm, tokens, [jmi.Capture("hook_embed")])
    for read in (lambda out: out.logits, lambda out: out.logits[0, 0], lambda out: out.logits.argmax()):
        with pytest.raises(ArgumentError, match="one per row"):
            jax.eval_shape(lambda lm, r=read: value_and_grad_at(lm, tokens, r, "hook_embed"), lm)
    with pytest.raises(ArgumentError, match="no attention patterns"):
        frozen(rwkv.arch, patterns=True)
    with pytest.raises(ArgumentError, match="name what to freeze"):
        frozen(lm.arch)
