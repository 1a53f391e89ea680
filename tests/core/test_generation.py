"""Generation with a cache of keys and values: every token as a whole forward pass would have it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.errors import ArgumentError, InterventionError
from jmi_models.decoder.positions import Positions
from jmi_models.decoder.rope import Dynamic, Rope
from tests.core.conftest import lively, tiny
from tests.oracles import grid
from tests.support import committed
from tests.support.committed import each
from tests.support.tolerances import assert_agree
from tests.support.trees import listed

N = 4
FAMILIES = ("gemma2", "gptj", "bloom", "gpt_oss", "opt", "smollm3", "mixtral")
"""Soft-caps and windows, parallel blocks, alibi, sinks, learned positions, layers without rotary, experts."""


@pytest.fixture(scope="module")
def model():
    with jax.enable_x64(True):
        tokens = jnp.asarray(np.random.default_rng(3).integers(0, 29, (2, 6)), jnp.int32)
        yield tiny(), lively(tiny(), jnp.float64), tokens


def assert_whole(arch: Any, params: Any, tokens: Any, found: Any, mask: Any = None, **options: Any) -> None:
    """Logits of every step, and what they make likeliest, are those of one run of the whole text."""
    length = tokens.shape[1]
    text = jnp.concatenate([tokens, found.tokens], 1)
    if mask is not None:
        mask = np.pad(mask, ((0, 0), (0, N)), constant_values=True)
    logits = np.asarray(jmi.forward(arch, params, jmi.Prompts(text, mask), **options).logits)
    assert_agree(np.moveaxis(found.captures["hook_logits"][:, :, 0], 0, 1), logits[:, length:])
    np.testing.assert_array_equal(found.tokens[:, 1:], logits[:, length:-1].argmax(-1))


@each(name for name in grid.COMMITTED if name.split("/")[0] in FAMILIES)
def test_every_kind_of_attention_decodes_as_it_runs(name: str) -> None:
    lm = committed.load(name, "float64")
    with jax.enable_x64(True):
        tokens = jnp.asarray(grid.committed(name).tokens)[:, :5]
        found = jmi.generate(lm.arch, lm.params, tokens, N, capture=["hook_logits"])
        assert_whole(lm.arch, lm.params, tokens, found)
        first = jmi.forward(lm.arch, lm.params, tokens).logits[:, -1].argmax(-1)
    np.testing.assert_array_equal(found.tokens[:, 0], first)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, side, window):
    arch, params, tokens = model
    arch = dataclasses.replace(arch, attn=dataclasses.replace(arch.attn, windows=(window,)))
    mask = np.ones((2, 6), bool)
    mask[1, slice(0, 3) if side == "left" else slice(-3, None)] = False
    found = jmi.generate(arch, params, jmi.Prompts(tokens, mask.tolist()), N, capture=["hook_logits"])
    assert_whole(arch, params, tokens, found, mask)
    alone = jmi.generate(arch, params, tokens[1:, mask[1]], N, capture=["hook_logits"])
    np.testing.assert_array_equal(found.tokens[1:], alone.tokens)
    assert_agree(found.captures["hook_logits"][:, 1:], alone.captures["hook_logits"])


AFTER = ("ln_final.hook_normalized", "hook_final_norm", "unembed.hook_in", "unembed.hook_out")
"""Points between the layers and the logits."""

SHIFT = np.random.default_rng(0).normal(size=16)
BY_PLACE = {
    "blocks.1.hook_resid_post": [jmi.Scale(2.0, positions=[3, 7]), jmi.Add(SHIFT, positions=[6, 8])],
    "blocks.0.attn.hook_v": jmi.Zero(positions=0),
    "blocks.*.mlp.hook_post": jmi.At([2, 3], jmi.Noise(0.3, seed=5)),
    "blocks.2.hook_mlp_out": jmi.Replace(
        np.random.default_rng(1).normal(size=(2, 6 + N, 16)), positions=[5, 9]
    ),
    "blocks.1.attn.hook_attn_scores": jmi.Knockout(edges=[(4, 1), (7, 2), (8, 7)], heads=1),
    "blocks.3.attn.hook_pattern": jmi.Scale(0.5, positions=[2, 8], heads=0),
    "hook_embed": jmi.Scale(1.5, positions=9),
}
"""Edits of values, scores and patterns at places of the prompt and of what is generated."""

OF_TOKENS = {
    "blocks.2.hook_mlp_out": jmi.Scale(0.5, positions=[1, 7]),
    "blocks.1.attn.hook_attn_scores": jmi.Knockout(queries=[3, 6], keys=[0, 5]),
    "hook_embed": jmi.Zero(positions=5),
}
"""The same where one row has two tokens fewer, which are padding in front of it."""


@pytest.mark.parametrize("padded", [False, True])
def test_a_text_is_generated_under_the_hooks_it_would_be_run_under(model, padded):
    arch, params, tokens = model
    mask = np.arange(6) >= np.array([[0], [2]]) if padded else None
    hooks, prompts = OF_TOKENS if padded else BY_PLACE, jmi.Prompts(tokens, mask)
    found = jmi.generate(arch, params, prompts, N, hooks=hooks, capture=["hook_logits"])
    assert_whole(arch, params, tokens, found, mask, hooks=hooks)
    plain = jmi.generate(arch, params, prompts, N, capture=["hook_logits"])
    differs = np.abs(found.captures["hook_logits"] - plain.captures["hook_logits"])
    assert (differs.max((1, 2, 3)) > 1e-3).all()


def test_the_last_position_is_that_of_the_token_that_is_read(model):
    arch, params, tokens = model
    site = "blocks.1.hook_resid_post"
    found = jmi.generate(
        arch, params, tokens, N, hooks={site: jmi.Add(SHIFT, positions=-1)}, capture=["hook_logits"]
    )
    whole = {site: jmi.Add(SHIFT, positions=list(range(5, 6 + N)))}
    assert_whole(arch, params, tokens, found, hooks=whole)


def test_a_function_sees_what_is_run_alone(model):
    arch, params, tokens = model
    seen = []

    def double(value, site):
        seen.append(value.shape)
        return 2 * value

    hooks = {"blocks.1.hook_mlp_out": double}
    found = jmi.generate(arch, params, tokens, N, hooks=hooks, capture=["hook_logits"])
    assert_whole(arch, params, tokens, found, hooks={"blocks.1.hook_mlp_out": jmi.Scale(2.0)})
    assert {(2, 6, 16), (2, 1, 16)} <= set(seen)


def test_hooks_of_prompt_and_of_steps_are_hooks_at_their_positions(model):
    arch, params, tokens = model
    site, shift = "blocks.1.hook_resid_post", SHIFT
    found = jmi.generate(
        arch,
        params,
        tokens,
        N,
        prompt_hooks={site: jmi.Scale(2.0, positions=3), "blocks.0.attn.hook_v": jmi.Zero(positions=0)},
        step_hooks={site: jmi.Add(shift)},
        capture=["hook_logits", "blocks.*.attn.hook_pattern", "blocks.2.attn.hook_k", *AFTER],
    )
    whole = {
        site: [jmi.Scale(2.0, positions=3), jmi.Add(shift, positions=list(range(6, 6 + N)))],
        "blocks.0.attn.hook_v": jmi.Zero(positions=0),
    }
    capture = ["blocks.*.attn.hook_pattern", "blocks.2.attn.hook_k", *AFTER]
    assert_whole(arch, params, tokens, found, hooks=whole)
    text = jnp.concatenate([tokens, found.tokens], 1)
    out = jmi.forward(arch, params, text, hooks=whole, capture=capture)
    pattern = found.captures["blocks.*.attn.hook_pattern"][..., 0, :]
    assert_agree(np.moveaxis(pattern, 0, 3), out[capture[0]][..., 6:, :])
    for point in capture[1:]:
        values = np.asarray(found.captures[point])[:, :, 0]
        assert_agree(np.moveaxis(values, 0, 1), out[point][:, 6:])


@pytest.mark.parametrize("site", ["unembed.hook_out", "hook_logits"])
def test_edits_of_the_logits_choose_the_token(model, site):
    arch, params, tokens = model
    force = jmi.Add(np.eye(29)[7] * 1e3)
    found = jmi.generate(arch, params, tokens, N, hooks={site: force})
    assert (np.asarray(found.tokens) == 7).all()


def test_seeds_and_steering_are_axes(model):
    arch, params, tokens = model
    traces = []

    @jax.jit
    def sampled(keys, scales):
        def one(key, scale):
            traces.append(1)
            steer = {"blocks.2.hook_resid_post": jmi.Scale(scale)}
            return jmi.generate(arch, params, tokens, N, key=key, step_hooks=steer).tokens

        return jax.vmap(jax.vmap(one, (0, None)), (None, 0))(keys, scales)

    keys, scales = jax.random.split(jax.random.key(0), 5), jnp.asarray([1.0, 3.0])
    got = np.asarray(sampled(keys, scales))
    assert got.shape == (2, 5, 2, N)
    assert len({row.tobytes() for row in got[0]}) > 1
    for i, scale in enumerate(scales):
        steer = {"blocks.2.hook_resid_post": jmi.Scale(scale)}
        alone = jmi.generate(arch, params, tokens, N, key=keys[3], step_hooks=steer).tokens
        np.testing.assert_array_equal(got[i, 3], alone)
    sampled(keys[::-1], scales + 1)
    assert len(traces) == 1


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_samples_have_the_frequencies_of_the_softmax(model, dtype):
    """Of the first token, and of the second one behind the most frequent first."""
    arch, params, tokens = model
    params, tokens = jax.tree.map(lambda x: x.astype(dtype), params), tokens[:1]
    keys, temperature = jax.random.split(jax.random.key(1), 20_000), 3.0
    draw = lambda key: jmi.generate(arch, params, tokens, 2, key=key, temperature=temperature).tokens[0]
    drawn = np.asarray(jax.jit(jax.vmap(draw))(keys))
    common = np.bincount(drawn[:, 0]).argmax()
    behind = jnp.concatenate([tokens, jnp.full((1, 1), common, jnp.int32)], 1)
    for samples, text in ((drawn[:, 0], tokens), (drawn[drawn[:, 0] == common, 1], behind)):
        logits = np.asarray(jmi.forward(arch, params, text).logits[0, -1], np.float64)
        want = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        found = np.bincount(samples, minlength=29) / len(samples)
        assert len(samples) > 1000
        # Five standard deviations of a frequency; in bfloat16 the probabilities themselves are rounded.
        bar = 5 * np.sqrt(want * (1 - want) / len(samples)) + 1e-4
        assert (np.abs(found - want) < bar + (0.02 * want if dtype == "bfloat16" else 0)).all()


def test_shards_of_the_seeds_and_of_the_steering_are_the_whole(model):
    arch, params, tokens = model
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    keys, scales = jax.random.split(jax.random.key(0), 4), jnp.asarray([1.0, 2.0, 3.0, 4.0])

    def sampled(keys, scales):
        def one(key, scale):
            steer = {"blocks.2.hook_resid_post": jmi.Scale(scale)}
            return jmi.generate(arch, params, tokens, N, key=key, step_hooks=steer).tokens

        return jax.vmap(one)(keys, scales)

    got = jax.jit(jax.shard_map(sampled, mesh=mesh, in_specs=jax.P("x"), out_specs=jax.P("x")))(keys, scales)
    np.testing.assert_array_equal(got, sampled(keys, scales))


def test_a_text_goes_on_from_the_memory_of_its_beginning(model):
    arch, params, tokens = model
    whole = jmi.generate(arch, params, tokens, 5, capture=["hook_logits"])
    first = jmi.generate(arch, params, tokens, 2, memory=True)
    np.testing.assert_array_equal(first.tokens, whole.tokens[:, :2])
    assert first.memory.prompts.shape == (2, 8)
    rest = jmi.generate(arch, params, whole.tokens[:, 2:3], 2, capture=["hook_logits"], memory=first.memory)
    np.testing.assert_array_equal(rest.tokens, whole.tokens[:, 3:])
    assert_agree(rest.captures["hook_logits"], whole.captures["hook_logits"][3:])


@pytest.mark.parametrize("padded", [False, True])
def test_a_run_in_pieces_is_one_run(model, padded):
    arch, params, tokens = model
    mask = np.arange(6) >= np.array([[0], [2]]) if padded else None
    begin, end = (
        jmi.Prompts(tokens[:, at], None if mask is None else mask[:, at]) for at in (slice(4), slice(4, 6))
    )
    site, capture = "blocks.1.hook_resid_post", ["blocks.*.hook_resid_post"]
    # Positions are those of the whole text: 3 is in the first piece, or in a padded row in the second.
    hooks = {
        site: jmi.Add(SHIFT, positions=3),
        "blocks.2.attn.hook_v": jmi.Scale(0.5, positions=[0, -1], heads=1),
    }
    here = {
        site: jmi.Add(SHIFT, positions=3, rows=[0] if padded else [0, 1]),
        "blocks.2.attn.hook_v": jmi.Scale(0.5, positions=0, heads=1),
    }
    whole = jmi.forward(arch, params, jmi.Prompts(tokens, mask), hooks, capture, memory=True)
    first = jmi.forward(arch, params, begin, here, capture, memory=True)
    second = jmi.forward(arch, params, end, hooks, capture, memory=first.memory)
    assert_agree(second.logits, whole.logits[:, 4:])
    assert_agree(second.stack("hook_resid_post"), whole.stack("hook_resid_post")[:, :, 4:])
    jax.tree.map(assert_agree, second.memory.parts, whole.memory.parts)


def test_listed_layers_and_the_language_model_give_the_same_tokens(model):
    arch, params, tokens = model
    want = jmi.generate(arch, params, tokens, N).tokens
    in_list = jmi.generate(arch, listed(params), tokens, N).tokens
    lm = jmi.LanguageModel(arch, params)
    np.testing.assert_array_equal(in_list, want)
    np.testing.assert_array_equal(lm.generate(tokens, N).tokens, want)


def test_the_cache_is_all_that_grows_with_the_text(model):
    arch, params, _ = model

    def temporaries(length: int) -> int:
        tokens = jnp.zeros((2, 4), jnp.int32)
        run = jax.jit(lambda p: jmi.generate(arch, p, tokens, length - 4).tokens)
        return run.lower(params).compile().memory_analysis().temp_size_in_bytes

    short, long = temporaries(16), temporaries(64)
    # Keys and values of 4 layers, 2 rows and 2 heads of width 6, in float64; as input and output of the loop.
    cache = 2 * 4 * 2 * (64 - 16) * 2 * 6 * 8
    assert long - short < 3 * cache


def test_neither_length_nor_captures_change_what_is_drawn(model):
    key = jax.random.key(5)
    short, captured, long = (
        jmi.generate(*model, n, key=key, capture=capture).tokens
        for n, capture in ((3, ()), (3, ["hook_embed"]), (N + 2, ()))
    )
    np.testing.assert_array_equal(short, captured)
    np.testing.assert_array_equal(short, long[:, :3])


def test_the_last_token_is_read_for_captures_only(model):
    arch, params, tokens = model
    assert jmi.generate(arch, params, tokens, 59).tokens.shape == (2, 59)
    with pytest.raises(ArgumentError, match="65 tokens in all; the context of this model holds 64"):
        jmi.generate(arch, params, tokens, 59, capture="hook_logits")


class Unknown:
    """An architecture that runs, and no more."""

    def __init__(self, arch):
        for name in ("n_layers", "sites", "context", "embed", "block", "unembed"):
            setattr(self, name, getattr(arch, name))


def test_what_cannot_be_generated_is_refused(model):
    arch, params, tokens = model
    run = lambda arch=arch, n=3, **options: jmi.generate(arch, params, tokens, n, **options)
    with pytest.raises(ArgumentError, match=r"give True, or out\.memory"):
        run(memory={})
    narrow = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    with pytest.raises(ArgumentError, match="is float64, in this run float32"):
        jmi.generate(arch, narrow, tokens, 3, memory=jmi.forward(arch, params, tokens, memory=True).memory)
    with pytest.raises(ArgumentError, match="cannot go on from what earlier"):
        run(Unknown(arch))
    for prompt in (tokens[0], tokens[:, :0]):
        with pytest.raises(ArgumentError, match=r"tokens must be|prompt is empty"):
            jmi.generate(arch, params, prompt, 3)
    with pytest.raises(ArgumentError, match="mask= has shape"):
        jmi.generate(arch, params, jmi.Prompts(tokens, np.ones((2, 5), bool)), 3)
    with pytest.raises(ArgumentError, match="counted by the model"):
        jmi.generate(arch, params, jmi.Prompts(tokens, None, np.zeros((2, 6), int)), 3)
    with pytest.raises(InterventionError, match="out of range"):
        run(hooks={"hook_embed": jmi.Zero(positions=8)})
    stretched = dataclasses.replace(arch, positions=Positions((Rope(1e4, 6, Dynamic(2.0, 8)),)))
    with pytest.raises(ArgumentError, match="stay within 8"):
        run(stretched, n=4)
    with pytest.raises(ArgumentError, match="1 or more"):
        run(n=0)
    with pytest.raises(ArgumentError, match="above 0"):
        run(temperature=0.0)
