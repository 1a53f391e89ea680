"""RWKV-6 and RWKV-7 on random weights: identities, state and hooks, padding, gradients, generation."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, HookError, InterventionError, JmiError
from tests.support.committed import listed
from tests.support.random_rwkv import TOKENS, each, load
from tests.support.tolerances import assert_agree


def run(version: int, tokens: Any = TOKENS, hooks: Any = None, capture: Any = (), **kwargs: Any) -> Any:
    with jax.enable_x64(True):
        return jax.device_get(load(version).run(tokens, hooks, capture, **kwargs))


@functools.cache
def everything(version: int) -> dict[str, np.ndarray]:
    """Every site, those of the blocks stacked and without their prefix."""
    out = run(version, capture=["*"])
    return {name.removeprefix("blocks.*."): value for name, value in out.captures.items()}


close = functools.partial(assert_agree, scale=1.0)


def by_hand(version: int, x: dict[str, np.ndarray], layer: int, write: np.ndarray) -> tuple[Any, Any, Any]:
    """(y, states, final state) of one layer's recurrence: loops over rows, tokens and heads."""
    r, k, v, w = (x[f"rwkv.hook_{name}"][layer] for name in ("r", "k", "v", "decay"))
    y, states = np.zeros_like(v), np.zeros((*k.shape, v.shape[-1]))
    for b, h in np.ndindex(k.shape[0], k.shape[2]):
        S = np.zeros((k.shape[-1], v.shape[-1]))
        for t in range(k.shape[1]):
            new = write[b, t, h] * np.outer(k[b, t, h], v[b, t, h])
            if version == 6:
                u = np.asarray(load(6).params["blocks"]["rwkv"]["u"])[layer, h]
                y[b, t, h] = r[b, t, h] @ (np.diag(u) @ np.outer(k[b, t, h], v[b, t, h]) + S)
                S = np.diag(w[b, t, h]) @ S + new
            else:
                kk, a = x["rwkv.hook_kk"][layer, b, t, h], x["rwkv.hook_a"][layer, b, t, h]
                S = np.diag(w[b, t, h]) @ S + np.outer(kk * a, -kk @ S) + new
                y[b, t, h] = r[b, t, h] @ S
            states[b, t, h] = S
    return y, states, states[:, -1]


@each
def test_identities_between_sites(version: int) -> None:
    x = everything(version)
    close(x["hook_resid_pre"] + x["hook_attn_out"], x["hook_resid_mid"])
    close(x["hook_resid_mid"] + x["hook_mlp_out"], x["hook_resid_post"])
    close(x["hook_resid_post"][:-1], x["hook_resid_pre"][1:])
    close(x["hook_embed"], x["hook_resid_pre"][0])
    close(x["rwkv.hook_states"][:, :, -1], x["rwkv.hook_state"])
    close(x["rwkv.hook_shift"], x["rwkv.hook_in"][:, :, -1])
    close(x["mlp.hook_shift"], x["mlp.hook_in"][:, :, -1])
    close(np.square(np.maximum(x["mlp.hook_pre"], 0)), x["mlp.hook_post"])
    params = jax.tree.map(np.asarray, load(version).params)
    W_O = params["blocks"]["rwkv"]["W_O"]
    close(np.einsum("lbshk,lhkd->lbsd", x["rwkv.hook_z"], W_O), x["hook_attn_out"])
    stream, p = x["hook_resid_post"][-1], params["ln_final"]
    centred = stream - stream.mean(-1, keepdims=True)
    close(x["ln_final.hook_scale"], np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5))
    close(x["ln_final.hook_normalized"], centred / x["ln_final.hook_scale"])
    close(x["hook_final_norm"], x["ln_final.hook_normalized"] * p["w"] + p["b"])
    close(x["unembed.hook_in"], x["hook_final_norm"])
    close(x["unembed.hook_out"], x["unembed.hook_in"] @ params["unembed"]["W_U"])
    close(x["hook_logits"], x["unembed.hook_out"])
    assert ((x["rwkv.hook_decay"] > 0) & (x["rwkv.hook_decay"] < 1)).all()
    assert not x["rwkv.hook_state_in"].any()
    assert (x["rwkv.hook_write"] == 1).all()


@each
def test_the_recurrence_is_the_formula(version: int) -> None:
    x = everything(version)
    for layer in range(3):
        y, states, _ = by_hand(version, x, layer, np.ones((2, 8, 2)))
        close(x["rwkv.hook_y"][layer], y)
        close(x["rwkv.hook_states"][layer], states)


@each
def test_effective_attention_is_what_the_state_passes_on(version: int) -> None:
    x = everything(version)
    scores, normed = x["rwkv.hook_effective_scores"], x["rwkv.hook_effective_attn"]
    close(np.einsum("lbhqk,lbkhv->lbqhv", scores, x["rwkv.hook_v"]), x["rwkv.hook_y"])
    assert not np.triu(scores, 1).any()
    positive = np.maximum(scores, 0)
    close(normed, positive / (positive.sum(-1, keepdims=True) + 1e-10))


@each
def test_a_knocked_out_token_is_skipped_by_the_write_alone(version: int) -> None:
    write = np.ones((2, 8, 2))
    write[:, 2], write[:, 5, 1] = 0, 3.0
    hooks = {
        "blocks.1.rwkv.hook_write": [jmi.Zero(positions=2), jmi.Scale(3.0, positions=5, heads=1)],
    }
    points = [f"blocks.*.rwkv.hook_{name}" for name in ("y", "states", "state", "write")]
    got = run(version, hooks=hooks, capture=points)
    y, states, last = by_hand(version, everything(version), 1, write)
    close(got.stack("rwkv.hook_y")[1], y)
    close(got.stack("rwkv.hook_states")[1], states)
    close(got.stack("rwkv.hook_state")[1], last)
    close(got.stack("rwkv.hook_write")[1], write)
    close(got.stack("rwkv.hook_y")[0], everything(version)["rwkv.hook_y"][0])


@each
def test_the_state_can_be_changed_after_any_token(version: int) -> None:
    """Setting the state after token 3 to that of another prompt is to go on from that prompt's state."""
    other, cut = TOKENS[::-1, :4], 3
    before = run(version, other, memory=True).memory
    states = run(version, other, capture=["blocks.*.rwkv.hook_states"]).stack("rwkv.hook_states")
    own = run(version, TOKENS[:, :4], memory=True).memory
    onward = dataclasses.replace(own, parts={**own.parts, "wkv": before.parts["wkv"]})
    want = run(version, TOKENS[:, 4:], memory=onward).memory
    hooks = {"blocks.*.rwkv.hook_states": jmi.PerLayer(jmi.Replace(states[:, :, cut, None], positions=cut))}
    got = run(version, hooks=hooks, capture=["blocks.*.rwkv.hook_states", "blocks.*.rwkv.hook_state"])
    close(got.stack("rwkv.hook_states")[:, :, cut], before.parts["wkv"])
    # Token 3 itself reads the state of RWKV-7, which changes the layers above: compare the first.
    close(got.stack("rwkv.hook_state")[0], want.parts["wkv"][0])


def begun_with(parts: Any) -> jmi.Memory:
    """A memory of no token, as if ``parts`` had been left behind."""
    return jmi.Memory(jmi.Prompts(np.zeros((2, 0), np.int32)), parts)


@each
@pytest.mark.parametrize("cut", [1, 4])
def test_a_run_in_pieces_is_the_whole_run(version: int, cut: int) -> None:
    first = run(version, TOKENS[:, :cut], memory=True)
    second = run(version, TOKENS[:, cut:], memory=first.memory)
    whole = run(version, memory=True)
    close(np.concatenate([first.logits, second.logits], 1), everything(version)["hook_logits"])
    jax.tree.map(close, second.memory.parts, whole.memory.parts)
    nothing = begun_with(jax.tree.map(np.zeros_like, whole.memory.parts))
    jax.tree.map(close, run(version, memory=nothing).memory.parts, whole.memory.parts)
    close(whole.logits, everything(version)["hook_logits"])
    assert set(whole.captures) == set()


@each
def test_padding_on_either_side_changes_nothing(version: int) -> None:
    tokens, mask = np.full((2, 12), 9, np.int32), np.zeros((2, 12), bool)
    spans = ((slice(0, 8), TOKENS[0]), (slice(3, 9), TOKENS[1, :6]))
    for row, (span, ids) in enumerate(spans):
        tokens[row, span], mask[row, span] = ids, True
    got = run(version, jmi.Prompts(tokens, mask), memory=True)
    for row, (span, ids) in enumerate(spans):
        want = run(version, ids[None], memory=True)
        close(got.logits[row, span], want.logits[0])
        jax.tree.map(lambda a, b, row=row: close(a[:, row], b[:, 0]), got.memory.parts, want.memory.parts)


@each
def test_gradients_of_every_part_are_those_of_finite_differences(version: int) -> None:
    lm = load(version)
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        readout = rng.normal(size=(2, 8, 31))

        @jax.jit
        @jax.value_and_grad
        def loss(point: Any) -> Any:
            params, state = point
            memory = begun_with(state)
            return (jmi.forward(lm.arch, params, jnp.asarray(TOKENS), memory=memory).logits * readout).sum()

        left = run(version, memory=True).memory.parts
        states = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape), left)
        point = jax.tree.map(np.asarray, (lm.params, states))
        grads = jax.device_get(loss(point)[1])
        for direction in range(3):
            step = jax.tree.map(lambda x: rng.normal(size=x.shape), point)
            moved = [
                float(loss(jax.tree.map(lambda x, d, e=e: x + e * d, point, step))[0]) for e in (1e-6, -1e-6)
            ]
            slope = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads, step)), strict=True))
            assert (moved[0] - moved[1]) / 2e-6 == pytest.approx(float(slope), rel=1e-5), direction
        assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@each
def test_every_site_but_derived_ones_can_be_changed(version: int) -> None:
    """Each by itself, in one program; states in another: their hook makes the recurrence go by tokens."""
    arch, params = load(version).arch, load(version).params
    names = [point.replace("*", "1") for point in arch.sites()]
    derived = [name for name in names if "effective" in name]
    states = [name for name in names if name.endswith("hook_states")]
    for name in derived:
        with pytest.raises(HookError, match="derived for captures alone"):
            run(version, hooks={name: jmi.Zero()})

    @jax.jit
    @functools.partial(jax.vmap, in_axes=0)
    def changed(by: dict[str, Any]) -> Any:
        is_zero = lambda name: name.endswith(("state_in", "shift_in"))
        hooks = {name: (jmi.Add(x) if is_zero(name) else jmi.Scale(1 - x)) for name, x in by.items()}
        out = jmi.forward(arch, params, jnp.asarray(TOKENS), hooks, memory=True)
        return out.logits, out.memory.parts

    for group in (states, [name for name in names if name not in derived + states]):
        with jax.enable_x64(True):
            # Nothing is changed in the first row, one site in each other.
            by = dict(zip(group, 0.5 * np.eye(len(group), len(group) + 1, 1), strict=True))
            rows = np.concatenate(
                [np.reshape(x, (len(group) + 1, -1)) for x in jax.tree.leaves(changed(by))], axis=1
            )
        moved = dict(zip(group, np.abs(rows[1:] - rows[0]).max(1), strict=True))
        assert all(by > 1e-6 for by in moved.values()), moved


@each
def test_positions_and_layers_of_a_knockout_are_one_trace_and_vmap(version: int) -> None:
    arch, params, traces = load(version).arch, load(version).params, []
    with jax.enable_x64(True):

        @jax.jit
        @functools.partial(jax.vmap, in_axes=(0, 0))
        def swept(position: Any, layer: Any) -> Any:
            traces.append(1)
            here = jnp.arange(3) == layer
            hooks = {"blocks.*.rwkv.hook_write": jmi.At(here, jmi.Zero(positions=position))}
            return jmi.forward(arch, params, jnp.asarray(TOKENS), hooks=hooks).logits

        grid = np.stack(np.meshgrid(np.arange(8), np.arange(3)), -1).reshape(-1, 2)
        got = np.asarray(swept(grid[:, 0], grid[:, 1]))
    assert len(traces) == 1
    for cell in (0, 7, 13):
        position, layer = map(int, grid[cell])
        hooks = {f"blocks.{layer}.rwkv.hook_write": jmi.Zero(positions=position)}
        close(got[cell], run(version, hooks=hooks).logits)


@each
def test_generation_is_the_full_forward(version: int) -> None:
    lm = load(version)
    with jax.enable_x64(True):
        found = jmi.generate(lm.arch, lm.params, jnp.asarray(TOKENS), 5, capture=["hook_logits"])
        again = lm.generate(TOKENS, 5, memory=True)
        in_list = listed(lm).generate(TOKENS, 5, memory=True)
    whole = run(version, np.concatenate([TOKENS, found.tokens], 1), memory=True)
    close(np.moveaxis(found.captures["hook_logits"][:, :, 0], 0, 1), whole.logits[:, 8:])
    np.testing.assert_array_equal(found.tokens, whole.logits[:, 7:-1].argmax(-1))
    np.testing.assert_array_equal(found.tokens, again.tokens)
    np.testing.assert_array_equal(found.tokens, in_list.tokens)
    jax.tree.map(close, again.memory.parts, whole.memory.parts)
    jax.tree.map(close, in_list.memory.parts, whole.memory.parts)


@each
def test_generation_follows_from_its_seed_and_goes_on_from_its_state(version: int) -> None:
    lm = load(version)
    with jax.enable_x64(True):
        one, two, other = (lm.generate(TOKENS, 6, seed=seed).tokens for seed in (0, 0, 1))
        first = lm.generate(TOKENS, 3)
        read = np.concatenate([TOKENS, first.tokens[:, :-1]], 1)
        memory = run(version, read, memory=True).memory
        rest = lm.generate(np.asarray(first.tokens[:, -1:]), 2, memory=memory)
        whole = lm.generate(TOKENS, 5)
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
    np.testing.assert_array_equal(np.concatenate([first.tokens, rest.tokens], 1), whole.tokens)


def test_what_does_not_fit_is_refused() -> None:
    left = run(7, memory=True).memory
    bad = dataclasses.replace(left, parts={**left.parts, "wkv": np.zeros((3, 2, 2, 12, 11))})
    narrow = jax.tree.map(lambda x: x.astype(np.float32), left.parts)
    for kwargs, message in (
        ({"tokens": jmi.Prompts(TOKENS, None, np.zeros((2, 8), np.int32))}, "no positions"),
        ({"memory": {"wkv": 0}}, "give True, or out.memory"),
        ({"memory": bad}, r"this needs \(3, 2, 2, 12, 12\)"),
        ({"memory": dataclasses.replace(left, parts=narrow)}, "is float32, in this run float64"),
        ({"memory": left, "tokens": TOKENS[:1]}, "2 rows, the prompts have 1"),
        ({"memory": left, "stop_at_layer": 1}, "run through all layers"),
    ):
        with pytest.raises(ArgumentError, match=message):
            run(7, **kwargs)
    with pytest.raises(InterventionError, match="out of range"):
        run(7, hooks={"blocks.0.rwkv.hook_write": jmi.Zero(positions=8)})
    with pytest.raises(HookError, match="no such point"):
        run(6, hooks={"blocks.0.rwkv.hook_kk": jmi.Zero()})
    atlas = jmi_models.load("atlas")
    with pytest.raises(ArgumentError, match=r"with \['keys', 'values'\]"):
        atlas.run("Paris is", memory=left)
    for arguments, message in (
        ({"prompts": TOKENS[0]}, r"shape \[batch, pos\]"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ):
        with pytest.raises(JmiError, match=message):
            load(7, "float32").generate(**{"prompts": TOKENS, "max_new_tokens": 3, **arguments})
