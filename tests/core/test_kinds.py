"""Layers of several kinds: a hybrid of attention and RWKV, and mixtures of experts in some layers only."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, HookError
from jmi.model.architecture import runs_of, stack_name
from jmi_models.decoder.experts import Experts
from jmi_models.decoder.mlp import Mlp
from jmi_models.rwkv.architecture import Rwkv
from tests.core.conftest import lively, tiny
from tests.support import trees
from tests.support.tolerances import assert_agree

KINDS = ("rwkv", "attention", "attention", "rwkv", "attention")


RWKV = Rwkv(7, 5, 16, 4, 4, 24, 29, tuple((f"rank_{name}", 3) for name in ("decay", "a", "v", "gate")))


@dataclasses.dataclass(frozen=True)
class Hybrid:
    """Layers of RWKV-7 and of a transformer on one stream: what each of them says of its own layers."""

    decoder: Any = dataclasses.field(default_factory=tiny)
    rwkv: Any = RWKV
    kinds: tuple[str, ...] = KINDS
    n_layers: int = len(KINDS)

    def layers(self, kind):
        return tuple(i for i, each in enumerate(self.kinds) if each == kind)

    def sites(self):
        attention, rwkv = self.decoder.sites(), self.rwkv.sites()
        every, found = tuple(range(self.n_layers)), {}
        for point, site in {**rwkv, **attention}.items():
            here = self.layers("attention") * (point in attention) + self.layers("rwkv") * (point in rwkv)
            layers = (
                None if site.layers is None else every if len(here) == len(every) else tuple(sorted(here))
            )
            found[point] = dataclasses.replace(site, layers=layers)
        first, *last = (point for point in rwkv if not point.startswith("blocks."))
        inside = [point for point in found if point not in (first, *last)]
        return {point: found[point] for point in (first, *inside, *last)}

    def context(self, params, prompts):
        given = params["attention"]
        return {"attention": self.decoder.context(given, prompts), "rwkv": self.rwkv.context(params, prompts)}

    def embed(self, params, prompts, context, tap):
        return self.rwkv.embed(params["rwkv"], prompts, context["rwkv"], tap)

    def block(self, p, carry, context, layer, tap):
        if "rwkv" in p:
            return self.rwkv.block(p, carry, context["rwkv"], layer, tap)
        return {**carry, "stream": self.decoder.block(p, carry["stream"], context["attention"], layer, tap)}

    def unembed(self, params, carry, tap):
        return self.rwkv.unembed(params["rwkv"], carry, tap)

    def memory(self):
        return {**self.rwkv.memory(), **self.decoder.memory()}

    def within(self, context, first, length):
        archs = {"attention": self.decoder, "rwkv": self.rwkv}
        return {kind: arch.within(context[kind], first, length) for kind, arch in archs.items()}

    def check_continued(self, length):
        self.decoder.check_continued(length)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def lm():
    with jax.enable_x64(True):
        arch = Hybrid()
        parts = {"attention": lively(arch.decoder, jnp.float64), "rwkv": lively(arch.rwkv, jnp.float64)}
        # In numpy, which compiles nothing.
        host = jax.tree.map(np.asarray, parts)
        rows = {kind: jmi_models.listed(params)["blocks"] for kind, params in host.items()}
        each = [rows[kind][i % len(rows[kind])] for i, kind in enumerate(arch.kinds)]
        stacks = {
            stack_name(run): jax.tree.map(lambda *x: np.stack(x), *each[run.start : run.stop])
            for run in runs_of(arch)
        }
        yield jmi.LanguageModel(arch, {**parts, "blocks": jax.device_put(stacks)}, name="hybrid")


TOKENS = np.random.default_rng(0).integers(0, 29, (2, 6)).astype(np.int32)
MASK = np.arange(6) >= np.array([[0], [2]])


def test_runs_of_like_layers_give_what_one_layer_after_another_gives(lm):
    assert list(lm.params["blocks"]) == ["0:1", "1:3", "3:4", "4:5"]
    rows = [
        jax.tree.map(lambda w, i=i: np.asarray(w)[i], stack)
        for stack in lm.params["blocks"].values()
        for i in range(len(jax.tree.leaves(stack)[0]))
    ]
    listed = dataclasses.replace(lm, params={**lm.params, "blocks": jax.device_put(rows)})
    vectors = np.random.default_rng(1).normal(size=(3, 16))
    hooks = {
        "blocks.*.hook_resid_post": [
            jmi.At([1, 3], jmi.Scale(0.5)),
            jmi.PerLayer(jmi.Add(np.arange(5.0)[:, None])),
        ],
        "blocks.*.attn.hook_out": jmi.PerLayer(jmi.Add(vectors)),
        "blocks.3.rwkv.hook_v": jmi.Scale(2.0, heads=1),
    }
    capture = [
        "blocks.*.hook_resid_pre",
        "blocks.*.attn.hook_pattern",
        "blocks.*.rwkv.hook_state",
        "blocks.2.attn.hook_z",
        jmi.Capture("blocks.*.attn.hook_out", reduce=jmi.PerLayer(jmi.Dot(vectors)), label="along"),
    ]
    got, want = (each.run(TOKENS, hooks, capture) for each in (lm, listed))
    assert_agree(got, want)
    assert got.layers("attn.hook_pattern") == (1, 2, 4)
    assert got.layers("rwkv.hook_state") == (0, 3)
    assert got.stack("attn.hook_pattern").shape == (3, 2, 4, 6, 6)
    along = np.einsum(
        "lbsd,ld->lbs", lm.run(TOKENS, hooks, ["blocks.*.attn.hook_out"]).stack("attn.hook_out"), vectors
    )
    assert_agree(got["along"], along)
    # By hand: each layer's block, one after the other.
    stops = [lm.run(TOKENS, stop_at_layer=i).carry["stream"] for i in range(6 - 1)]
    assert_agree(np.stack(stops), lm.run(TOKENS, capture=["blocks.*.hook_resid_pre"]).stack("hook_resid_pre"))
    middle = lm.run(TOKENS, stop_at_layer=2)
    assert_agree(lm.run(TOKENS, start_at_layer=2, carry=middle.carry).logits, lm.run(TOKENS).logits)


@pytest.mark.parametrize("mask", [None, MASK])
def test_a_hybrid_generates_what_its_whole_run_gives(lm, mask):
    hooks = {
        "blocks.1.attn.hook_attn_scores": jmi.Knockout(queries=[3], keys=0),
        "blocks.3.rwkv.hook_v": jmi.Scale(0.5),
    }
    found = lm.generate(jmi.Prompts(TOKENS, mask), 5, hooks=hooks, capture=["hook_logits"])
    text = np.concatenate([TOKENS, found.tokens], 1)
    whole = None if mask is None else np.pad(mask, ((0, 0), (0, 5)), constant_values=True)
    logits = lm.run(jmi.Prompts(text, whole), hooks).logits
    assert_agree(np.moveaxis(np.asarray(found.captures["hook_logits"])[:, :, 0], 0, 1), logits[:, 6:])
    np.testing.assert_array_equal(found.tokens[:, 1:], np.asarray(logits)[:, 6:-1].argmax(-1))


def test_a_hybrid_goes_on_from_its_memory(lm):
    first = lm.run(TOKENS[:, :4], memory=True)
    assert {name: x.shape[0] for name, x in first.memory.parts.items()} == {
        "wkv": 2,
        "shift": 2,
        "mlp_shift": 2,
        "keys": 3,
        "values": 3,
    }
    assert_agree(lm.run(TOKENS[:, 4:], memory=first.memory).logits, lm.run(TOKENS).logits[:, 4:])


def test_sweeps_and_gradients_of_a_hybrid(lm):
    grid = jmi.Grid(layer=[1, 2, 4], head=[0, 3])
    hooks = {"blocks.*.attn.hook_z": jmi.At(grid["layer"], jmi.Zero(heads=grid["head"]))}
    got = jmi.sweep(lm, TOKENS, hooks, lambda out: out.logits, logits_at=-1, progress=False)
    want = [
        lm.run(TOKENS, {f"blocks.{i}.attn.hook_z": jmi.Zero(heads=h)}, logits_at=-1).logits
        for i in (1, 2, 4)
        for h in (0, 3)
    ]
    assert_agree(got.reshape(6, 2, 29), np.stack(want))
    sites = ["blocks.*.attn.hook_z", "blocks.0.rwkv.hook_v"]
    found = jax.jit(lambda lm: jmi.value_and_grad_at(lm, TOKENS, jmi.metrics.LogProb(3), sites))(lm)
    slopes = found.grads["blocks.4.attn.hook_z"], found.grads["blocks.0.rwkv.hook_v"]
    for name, slope in zip(("blocks.4.attn.hook_z", "blocks.0.rwkv.hook_v"), slopes, strict=True):
        step = np.random.default_rng(2).normal(size=slope.shape) * 1e-6
        ahead, behind = (jmi.metrics.LogProb(3)(lm.run(TOKENS, {name: jmi.Add(s * step)})) for s in (1, -1))
        np.testing.assert_allclose((ahead - behind) / 2, (slope * step).sum((1, 2, 3)), rtol=1e-6)


def test_a_layer_that_lacks_a_point_is_named(lm):
    with pytest.raises(HookError, match="layer 3 has no such point; of this model layers 1-2, 4 have it"):
        lm.run(TOKENS, capture=["blocks.3.attn.hook_z"])
    with pytest.raises(HookError, match=r"layers \[0\] have no such point"):
        lm.run(TOKENS, {"blocks.*.attn.hook_z": jmi.At([0, 1], jmi.Zero())})
    blocks = {**lm.params["blocks"], "3:4": lm.params["blocks"]["1:3"]}
    wrong = dataclasses.replace(lm, params={**lm.params, "blocks": blocks})
    with pytest.raises(ArgumentError, match=r"has \[2\] layers where the architecture has 1"):
        wrong.run(TOKENS)


@pytest.fixture(scope="module")
def mixed():
    with jax.enable_x64(True):
        experts = Experts(4, 2, 12, True, dense_layers=(0, 3))
        arch = dataclasses.replace(tiny(n_layers=5), mlp=Mlp("silu"), experts=experts)
        yield jmi.LanguageModel(arch, lively(arch, jnp.float64))


def test_mixtures_in_some_layers_only(mixed):
    assert list(mixed.params["blocks"]) == ["0:1", "1:3", "3:4", "4:5"]
    out = mixed.run(
        TOKENS,
        capture=["blocks.*.mlp.hook_post", "blocks.*.mlp.hook_expert_weights", "blocks.*.mlp.hook_out"],
    )
    assert out.layers("mlp.hook_post") == (0, 3)
    assert out.layers("mlp.hook_expert_weights") == (1, 2, 4)
    assert_agree(out.stack("mlp.hook_expert_weights").sum(-1), np.ones((3, 2, 6)))
    # Identities of each kind of layer.
    dense = mixed.params["blocks"]["3:4"]["mlp"]
    assert_agree(out["blocks.3.mlp.hook_out"], out["blocks.3.mlp.hook_post"] @ dense["W_out"][0])
    listed = dataclasses.replace(mixed, params=trees.listed(mixed.params))
    assert_agree(listed.run(TOKENS).logits, out.logits)
    grid = jmi.Grid(expert=range(4), layer=[1, 4])
    hooks = {"blocks.*.mlp.hook_expert_weights": jmi.At(grid["layer"], jmi.Zero(units=grid["expert"]))}
    got = jmi.sweep(mixed, TOKENS, hooks, lambda out: out.logits, logits_at=-1, progress=False)
    want = [
        mixed.run(TOKENS, {f"blocks.{i}.mlp.hook_expert_weights": jmi.Zero(units=e)}, logits_at=-1).logits
        for e in range(4)
        for i in (1, 4)
    ]
    assert_agree(got.reshape(8, 2, 29), np.stack(want))
    text = mixed.generate(TOKENS, 3, capture=["hook_logits"])
    whole = mixed.run(np.concatenate([TOKENS, text.tokens], 1)).logits
    assert_agree(np.moveaxis(np.asarray(text.captures["hook_logits"])[:, :, 0], 0, 1), whole[:, 6:])
