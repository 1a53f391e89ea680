"""Attention by blocks of queries: the same results as all at once, and memory that does not grow with s^2."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi_models.decoder.attention import Attention
from jmi_models.decoder.mlp import Mlp
from jmi_models.decoder.norms import Norm, Norms
from jmi_models.decoder.positions import Positions
from jmi_models.decoder.rope import Rope
from tests.oracles import grid
from tests.support import committed
from tests.support.random_params import random_params
from tests.support.tolerances import assert_agree

# Windows that differ by layer, soft-caps, sinks, alibi, per-layer scales and rotary, grouped heads.
KINDS = (
    *("llama/longrope_beyond", "mistral/window", "gemma2/capped", "gemma3_text/linear", "gpt2/plain"),
    *("gpt_oss/alternating", "bloom/six_heads_untied", "falcon/alibi", "smollm3/tied"),
)
PATTERN = "blocks.{}.attn.hook_pattern"


def load(name: str, **fields: Any) -> jmi.LanguageModel:
    lm = committed.load(name, "float64")
    attn = dataclasses.replace(lm.arch.attn, **fields)
    return dataclasses.replace(lm, arch=dataclasses.replace(lm.arch, attn=attn))


@pytest.mark.parametrize("name", KINDS)
def test_blocks_of_queries_equal_all_at_once(name: str) -> None:
    """Blocks of four queries do not divide the ten tokens; the first row is padded."""
    tokens, mask = grid.committed(name).tokens, np.ones((2, grid.LENGTH), bool)
    mask[0, :3] = False
    last = load(name).arch.n_layers - 1
    runs = []
    for fields in ({"implementation": "eager"}, {"implementation": "blockwise", "query_block": 4}):
        lm = load(name, **fields)
        capture = [PATTERN.format(last), f"blocks.{last}.attn.hook_result", "blocks.*.attn.hook_z"]
        hooks = {f"blocks.{last}.attn.hook_attn_scores": jmi.Knockout(queries=-1, keys=5)}

        @jax.jit
        @functools.partial(jax.grad, has_aux=True)
        def edited(params: Any, lm: Any = lm, capture: Any = capture, hooks: Any = hooks) -> Any:
            prompts = jmi.Prompts(jnp.asarray(tokens), jnp.asarray(mask))
            out = jmi.forward(lm.arch, params, prompts, hooks, capture)
            return jnp.where(mask[..., None], jnp.tanh(out.logits), 0).sum(), (out.logits, out.captures)

        with jax.enable_x64(True):
            gradients, seen = edited(lm.params)
            runs.append(jax.device_get((lm.run(jmi.Prompts(tokens, mask)).logits, seen, gradients)))
    for kind, *both in zip(("plans", "plans", "gradients"), *runs, strict=True):
        for eager, blockwise in zip(*map(jax.tree.leaves, both), strict=True):
            real = np.isfinite(eager)
            # A bias of keys moves all scores of a query alike: its gradient is nothing but rounding.
            assert_agree(blockwise[real], eager[real], kind, scale=0.01)


def decoder(implementation: Any = "auto", **fields: Any) -> jmi_models.Transformer:
    return jmi_models.Transformer(
        **{
            "family": "llama",
            "n_layers": 4,
            "d_model": 32,
            "n_heads": 4,
            "n_kv_heads": 2,
            "d_head": 8,
            "d_mlp": 64,
            "d_vocab": 50,
            "n_ctx": 8192,
            "norms": Norms(Norm("rms", 1e-5)),
            "attn": Attention(
                8**-0.5, implementation=implementation, query_block=8 if fields.get("n_ctx") else 128
            ),
            "mlp": Mlp("silu"),
            "positions": Positions((Rope(1e4, 8),)),
            **fields,
        }
    )


def temporaries(arch: jmi_models.Transformer, length: int, capture: Any = (), gradient: bool = False) -> int:
    """Bytes of the largest set of intermediate results that live at once."""
    params = jax.eval_shape(lambda: jmi_models.init(arch, 0))
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def run(params: Any, tokens: Any) -> Any:
        out = jmi.forward(arch, params, tokens, capture=capture)
        return out.logits[0, -1, 0], out.captures

    traced = jax.grad(run, has_aux=True) if gradient else run
    return jax.jit(traced).lower(params, tokens).compile().memory_analysis().temp_size_in_bytes


def test_memory_of_8192_tokens_is_bounded_and_they_run() -> None:
    square = 4 * 8192 * 8192 * 4
    assert temporaries(decoder(implementation="eager"), 8192) > square
    assert temporaries(decoder(), 8192) < square / 16
    assert temporaries(decoder(), 8192, gradient=True) < square / 8
    one = decoder(n_layers=1, n_heads=2, n_kv_heads=1)
    lm = jmi.LanguageModel(one, random_params(one, 0, 0))
    tokens = np.random.default_rng(0).integers(0, 50, (1, 8192)).astype(np.int32)
    assert np.isfinite(np.asarray(lm.run(tokens).logits)).all()


def test_memory_grows_with_the_length_not_with_its_square() -> None:
    short, long = (temporaries(decoder(), length) for length in (2048, 8192))
    assert long < 5 * short


def test_a_captured_pattern_costs_its_own_layer_only() -> None:
    square = 4 * 2048 * 2048 * 4
    one = temporaries(decoder(), 2048, [PATTERN.format(2)])
    every = temporaries(decoder(), 2048, [PATTERN.format("*")])
    assert one < 4 * square
    # Captured everywhere, the patterns themselves are results, not temporaries.
    assert every < 4 * square


def count(jaxpr: Any, primitive: str) -> int:
    return str(jaxpr).count(primitive)


def test_layers_nobody_looks_into_take_the_lean_path() -> None:
    """One cond around the matrix of scores, one around the results of each head; none without hooks."""
    arch = decoder(n_ctx=64, implementation="blockwise")
    params, tokens = random_params(arch, 0, 0), jnp.zeros((1, 16), jnp.int32)
    traced = lambda capture: jax.make_jaxpr(lambda p: jmi.forward(arch, p, tokens, capture=capture).logits)(
        params
    )
    assert count(traced([]), " cond[") == 0
    assert count(traced([PATTERN.format(1)]), " cond[") == 1
    assert count(traced(["blocks.1.attn.hook_result"]), " cond[") == 1
    assert count(traced([PATTERN.format("*"), "blocks.*.attn.hook_result"]), " cond[") == 0


def test_a_dear_reducer_runs_in_the_layers_it_is_kept_of() -> None:
    arch = decoder(n_ctx=64)
    params, tokens = random_params(arch, 0, 0), jnp.zeros((1, 16), jnp.int32)
    ran = []

    def dear(value: Any, site: Any) -> Any:
        jax.debug.callback(lambda layer: ran.append(int(layer)), site.layer)
        return value.sum()

    lm = jmi.LanguageModel(arch, params)
    jax.block_until_ready(lm.run(tokens, capture=[jmi.Capture("blocks.2.hook_resid_post", reduce=dear)]))
    jax.effects_barrier()
    assert ran == [2]


@pytest.mark.parametrize("implementation", ["eager", "blockwise"])
def test_vmap_over_the_layer_of_an_edit_works_with_either(implementation: Any) -> None:
    arch = decoder(n_ctx=64, implementation=implementation)
    params, tokens = random_params(arch, 0, 0), jnp.arange(16, dtype=jnp.int32)[None]

    def without(layer: Any) -> Any:
        hooks = {"blocks.*.attn.hook_attn_scores": jmi.At(layer, jmi.Knockout(queries=-1, keys=0))}
        return jmi.forward(arch, params, tokens, hooks=hooks).logits

    layers = jnp.arange(4)
    swept = jax.jit(jax.vmap(without))(layers)
    assert_agree(swept, jnp.stack([without(i) for i in layers]))
