"""Modules between two points of a layer: each is a few lines, and everything else goes on working."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi import tree
from jmi.errors import ArgumentError, HookError, InterventionError
from tests.core.conftest import lively, tiny
from tests.support import random_rwkv
from tests.support.tolerances import assert_agree
from tests.support.trees import listed

FEATURES = 9


@pytest.fixture(scope="module")
def lm():
    with jax.enable_x64(True):
        yield jmi.LanguageModel(tiny(), lively(tiny(), jnp.float64), name="tiny")


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(3).integers(0, 29, (2, 7)).astype(np.int32)


@tree.dataclass
class Transcoder:
    """In place of an MLP: ``relu(x W_in + b) W_out``, with what it misses where ``error`` is true."""

    params: Any
    per_layer: bool = tree.static(default=True)
    error: bool = tree.static(default=False)

    def sites(self, reads, writes):
        size = self.params["W_out"].shape[-2]
        return {"mlp.hook_features": {"batch": None, "pos": None, "feature": size}}

    def __call__(self, read, written, carry, here):
        active = here.tap(
            "mlp.hook_features", jax.nn.relu(read @ self.params["W_in"] + self.params["b"][None, None])
        )
        missed = written - self.reconstructed(read, self.params) if self.error else 0
        return active @ self.params["W_out"] + missed, carry

    @staticmethod
    def reconstructed(x, p):
        return (
            np.maximum(x @ p["W_in"] + p["b"], 0) @ p["W_out"]
            if isinstance(x, np.ndarray)
            else (jax.nn.relu(x @ p["W_in"] + p["b"][None, None]) @ p["W_out"])
        )


def weights(*lead: int, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed).normal
    shapes = {"W_in": (16, FEATURES), "b": (FEATURES,), "W_out": (FEATURES, 16)}
    return {name: draw(size=(*lead, *shape)) for name, shape in shapes.items()}


IN, OUT = "blocks.*.mlp.hook_in", "blocks.*.mlp.hook_out"


def by_hooks(lm: Any, tokens: Any, params: Any, layers: Any) -> Any:
    """The same by a loop over layers: what the transcoder makes of each MLP's input replaces its output."""
    hooks: dict[str, Any] = {}
    for row, layer in enumerate(layers):
        read = lm.run(tokens, hooks, [f"blocks.{layer}.mlp.hook_in"])[f"blocks.{layer}.mlp.hook_in"]
        out = Transcoder.reconstructed(np.asarray(read), {k: v[row] for k, v in params.items()})
        hooks[f"blocks.{layer}.mlp.hook_out"] = jmi.Replace(out)
    return lm.run(tokens, hooks, ["blocks.*.hook_resid_post", OUT])


@pytest.mark.parametrize("layers", [[2], [0, 1, 2, 3]])
def test_a_transcoder_stands_in_place_of_one_mlp_or_of_all(lm, tokens, layers):
    params = weights(len(layers))
    names = {(IN, OUT): Transcoder(params)}
    if len(layers) == 1:
        names = {(IN.replace("*", "2"), OUT.replace("*", "2")): Transcoder(params)}
    spliced = jmi.rewire(lm, names)
    capture = ["blocks.*.hook_resid_post", OUT, "blocks.*.mlp.hook_features"]
    out, want = spliced.run(tokens, capture=capture), by_hooks(lm, tokens, params, layers)
    assert_agree(out.logits, want.logits)
    assert_agree(out.stack("mlp.hook_out"), want.stack("mlp.hook_out"))
    assert out.layers("mlp.hook_features") == tuple(layers)
    assert out[f"blocks.{layers[-1]}.mlp.hook_features"].shape == (2, 7, FEATURES)
    if len(layers) == 1:
        with pytest.raises(HookError, match="layer 0 has no such point; of this model layers 2 have it"):
            spliced.run(tokens, capture=["blocks.0.mlp.hook_features"])
        with pytest.raises(HookError, match=r"layers \[1\] have no such point"):
            spliced.run(tokens, {"blocks.*.mlp.hook_features": jmi.At([1, 2], jmi.Zero())})


def test_features_are_hooked_swept_differentiated_and_generated_with_like_anything_else(lm, tokens):
    params = weights(2)
    stands = {(f"blocks.{i}.mlp.hook_in", f"blocks.{i}.mlp.hook_out"): None for i in (1, 3)}
    module = Transcoder(params)
    spliced = jmi.rewire(lm, dict.fromkeys(stands, module))
    site = "blocks.*.mlp.hook_features"
    assert spliced.sites(2, 7)["blocks.3.mlp.hook_features"].shape == (2, 7, FEATURES)
    assert "blocks.2.mlp.hook_features" not in spliced.sites()
    # One feature switched off is its decoder row taken out of what is written.
    plain = spliced.run(tokens, capture=[site, OUT])
    off = spliced.run(tokens, {"blocks.1.mlp.hook_features": jmi.Zero(units=4)}, capture=[OUT])
    active = np.asarray(plain["blocks.1.mlp.hook_features"])[..., 4:5]
    assert_agree(
        off["blocks.1.mlp.hook_out"], plain["blocks.1.mlp.hook_out"] - active * params["W_out"][0, 4]
    )
    # A sweep over layers, features and strengths is a loop of runs, whatever it shares.
    grid = jmi.Grid(layer=[1, 3], feature=[0, 4], position=[2, 5])
    hooks = {site: jmi.At(grid["layer"], jmi.Scale(3.0, units=grid["feature"], positions=grid["position"]))}
    metric = jmi.metrics.LogProb(5)
    want = [
        metric(spliced.run(tokens, {f"blocks.{i}.mlp.hook_features": jmi.Scale(3.0, units=f, positions=p)}))
        for i in (1, 3)
        for f in (0, 4)
        for p in (2, 5)
    ]
    got = jmi.sweep(spliced, tokens, hooks, metric, logits_at=-1, progress=False)
    assert_agree(got.reshape(8, 2), np.asarray(want))
    assert {part.first for part in jmi.plan(spliced, tokens, hooks, metric, logits_at=-1).programs} != {0}
    # The gradient at features is the slope of the metric along any direction.
    feature = "blocks.1.mlp.hook_features"
    found = jax.jit(lambda lm: jmi.value_and_grad_at(lm, tokens, metric, feature))(spliced)
    slope = found.grads[feature]
    step = np.random.default_rng(3).normal(size=slope.shape) * 1e-6
    ahead, behind = (metric(spliced.run(tokens, {feature: jmi.Add(s * step)})) for s in (1, -1))
    np.testing.assert_allclose((ahead - behind) / 2, (slope * step).sum((1, 2)), rtol=1e-6)
    # Generation with a feature turned up is one run of the text it makes.
    hooks = {"blocks.1.mlp.hook_features": jmi.Scale(4.0, units=2)}
    text = spliced.generate(tokens, 4, hooks=hooks, capture=["hook_logits"])
    whole = spliced.run(np.concatenate([tokens, text.tokens], 1), hooks).logits
    assert_agree(np.moveaxis(np.asarray(text.captures["hook_logits"])[:, :, 0], 0, 1), whole[:, 7:])


def test_with_its_error_a_transcoder_changes_nothing(lm, tokens):
    spliced = jmi.rewire(lm, {(IN, OUT): Transcoder(weights(4), error=True)})
    assert_agree(spliced.run(tokens).logits, lm.run(tokens).logits)


@tree.dataclass
class CrossLayer:
    """A cross-layer transcoder: layer i reads, and writes into itself and every later layer."""

    params: Any  # W_in [d, f] of this layer, W_out [layers, f, d]: into every layer
    per_layer: bool = tree.static(default=True)

    def start(self, carry, prompts):
        return jnp.zeros((*carry.shape[:2], self.params["W_out"].shape[1], carry.shape[2]), carry.dtype)

    def __call__(self, read, written, carry, here):
        active = jax.nn.relu(read @ self.params["W_in"])
        carry = carry + jnp.einsum("bsf,lfd->bsld", active, self.params["W_out"])
        return carry[:, :, here.site.layer], carry


def test_a_module_writes_in_later_layers(lm, tokens):
    draw = np.random.default_rng(5).normal
    ahead = np.triu(np.ones((4, 4)))[:, :, None, None]
    params = {"W_in": draw(size=(4, 16, FEATURES)), "W_out": 0.3 * draw(size=(4, 4, FEATURES, 16)) * ahead}
    spliced = jmi.rewire(lm, {(IN, OUT): CrossLayer(params)})
    hooks, active = {}, []
    for layer in range(4):
        read = lm.run(tokens, hooks, [f"blocks.{layer}.mlp.hook_in"])[f"blocks.{layer}.mlp.hook_in"]
        active.append(np.maximum(np.asarray(read) @ params["W_in"][layer], 0))
        written = sum(a @ params["W_out"][i, layer] for i, a in enumerate(active))
        hooks[f"blocks.{layer}.mlp.hook_out"] = jmi.Replace(written)
    assert_agree(spliced.run(tokens).logits, lm.run(tokens, hooks).logits)
    # What it carries is carried into what is shared, generated and stopped at.
    grid = jmi.Grid(layer=range(4), position=[1, 6])
    edit = {"blocks.*.hook_resid_mid": jmi.At(grid["layer"], jmi.Scale(2.0, positions=grid["position"]))}
    got = jmi.sweep(spliced, tokens, edit, lambda out: out.logits, logits_at=-1, progress=False)
    want = [
        spliced.run(tokens, {f"blocks.{i}.hook_resid_mid": jmi.Scale(2.0, positions=p)}, logits_at=-1).logits
        for i in range(4)
        for p in (1, 6)
    ]
    assert_agree(got.reshape(8, 2, 29), np.asarray(want))
    text = spliced.generate(tokens, 3, capture=["hook_logits"])
    whole = spliced.run(np.concatenate([tokens, text.tokens], 1)).logits
    assert_agree(np.moveaxis(np.asarray(text.captures["hook_logits"])[:, :, 0], 0, 1), whole[:, 7:])
    stopped = spliced.run(tokens, stop_at_layer=2)
    assert_agree(
        spliced.run(tokens, start_at_layer=2, carry=stopped.carry).logits, spliced.run(tokens).logits
    )


@tree.dataclass
class Shift:
    """Adds its vector, and says what it saw."""

    params: Any
    per_layer: bool = tree.static(default=False)

    def __call__(self, read, written, carry, here):
        return written + self.params[None, None], carry


@tree.dataclass
class Named(Shift):
    """With a point of its own."""

    def sites(self, reads, writes):
        return {"hook_named": dict(zip(writes.axes, writes.sizes, strict=True))}


@tree.dataclass
class Returning(Shift):
    """Returns what it is told to."""

    returned: Any = tree.static(default=None)

    def __call__(self, read, written, carry, here):
        return self.returned(written, carry)


def test_hooks_act_before_a_module_that_reads_what_it_writes_and_else_on_what_it_wrote(lm, tokens):
    vector = np.random.default_rng(0).normal(size=16)
    name = "blocks.1.hook_resid_post"
    same = jmi.rewire(lm, {(name, name): Shift(vector)})
    behind = jmi.rewire(lm, {((), name): Shift(vector)})
    zero = {name: jmi.Zero()}
    assert_agree(same.run(tokens, zero).logits, lm.run(tokens, {name: jmi.Replace(vector)}).logits)
    assert_agree(behind.run(tokens, zero).logits, lm.run(tokens, zero).logits)
    both = jmi.rewire(same, {(name, name): Shift(2 * vector)})
    assert_agree(both.run(tokens).logits, lm.run(tokens, {name: jmi.Add(3 * vector)}).logits)


def test_a_module_is_data(lm, tokens):
    traces = []

    @jax.jit
    def logits(spliced):
        traces.append(1)
        return spliced.run(tokens).logits

    one, two = (jmi.rewire(lm, {(IN, OUT): Transcoder(weights(4, seed=seed))}) for seed in (0, 1))
    assert np.abs(logits(one) - logits(two)).max() > 1e-3
    assert len(traces) == 1
    in_list = dataclasses.replace(one, params=listed(one.params))
    assert_agree(in_list.run(tokens).logits, logits(one))
    slope = jax.jit(jax.grad(lambda lm: lm.run(tokens).logits[..., 3].sum()))
    slopes = slope(one).params["modules"][0].params
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(slopes))


@pytest.mark.parametrize(
    ("modules", "error", "words"),
    [
        ({}, ArgumentError, "give a dict"),
        ({"blocks.1.mlp.hook_in": Shift(np.zeros(16))}, ArgumentError, "between two points"),
        ({(IN, OUT): Transcoder(weights(3))}, ArgumentError, "a row for each of 4 layers"),
        ({(IN, OUT): np.zeros(3)}, ArgumentError, "no module"),
        ({(OUT, IN): Shift(np.zeros(16))}, HookError, "comes after"),
        ({("blocks.1.mlp.hook_in", OUT): Shift(np.zeros(16))}, HookError, "same layers"),
        ({("hook_embed", "hook_embed"): Shift(np.zeros(16))}, HookError, "inside the layers"),
        ({("blocks.*.mlp.hook_inn", OUT): Shift(np.zeros(16))}, HookError, "Nearest"),
        (
            {(IN, OUT): Transcoder(weights(4)), (IN, IN): Transcoder(weights(4))},
            HookError,
            "of two modules in layer 0",
        ),
    ],
)
def test_what_cannot_be_wired_is_refused(lm, modules, error, words):
    with pytest.raises(error, match=words):
        jmi.rewire(lm, modules)


def test_a_module_stands_where_it_acts_or_is_refused(lm, tokens):
    """The point of another module, and one that is computed step by step, would leave it out of the run."""
    spliced = jmi.rewire(lm, {(IN, OUT): Transcoder(weights(4))})
    features = "blocks.*.mlp.hook_features"
    for ends in (((), features), (features, OUT)):
        with pytest.raises(HookError, match="a point of a module"):
            jmi.rewire(spliced, {ends: Shift(np.zeros(FEATURES))})
    with jax.enable_x64(True):
        recurrent, states = random_rwkv.load(7), "blocks.*.rwkv.hook_states"
        with pytest.raises(HookError, match="step by step"):
            jmi.rewire(recurrent, {((), states): Shift(np.zeros(4))}).run(random_rwkv.TOKENS)


def test_points_of_modules_stand_before_what_these_write(lm):
    named = Named(np.zeros(16))
    spliced = jmi.rewire(lm, {(IN, OUT): Transcoder(weights(4)), ((), "blocks.1.hook_resid_mid"): named})
    order = list(spliced.arch.sites())
    for own, writes in (("mlp.hook_features", "mlp.hook_out"), ("hook_named", "hook_resid_mid")):
        assert order.index(f"blocks.*.{own}") + 1 == order.index(f"blocks.*.{writes}")


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda written, carry: (written.astype(jnp.float32), carry), "the module returned float32"),
        (lambda written, carry: (written[:, :1], carry), r"the module returned float64\[2, 1, 16\]"),
        (lambda written, carry: written, "a module returns two things"),
        (lambda written, carry: (written, written), "the module carries"),
    ],
)
def test_what_a_module_returns_is_what_it_was_given(lm, tokens, returned, words):
    with pytest.raises(InterventionError, match=words):
        jmi.rewire(lm, {(IN, OUT): Returning(np.zeros(1), returned=returned)}).run(tokens)


@tree.dataclass
class Widened:
    """Adds a map of what attention reads to its queries, and closes the point that it does not read."""

    params: Any
    per_layer: bool = tree.static(default=False)

    def closes(self, writes):
        return ("hook_q_input",)

    def __call__(self, read, written, carry, here):
        return written + (read @ self.params).reshape(written.shape), carry


def test_what_is_read_of_all_positions_is_cut_to_the_one_that_is_written(lm, tokens):
    size = lm.arch.n_heads * lm.arch.d_head
    module = Widened(np.random.default_rng(0).normal(size=(lm.arch.d_model, size)))
    ends = (
        ("blocks.2.attn.hook_in", "blocks.2.attn.hook_q"),
        ("blocks.3.attn.hook_in", "blocks.3.attn.hook_q"),
    )
    spliced = jmi.rewire(lm, dict.fromkeys(ends, module))
    grid = jmi.Grid(layer=[0, 1])
    hooks = {"blocks.*.hook_mlp_out": jmi.At(grid["layer"], jmi.Zero())}
    got = jmi.sweep(spliced, tokens, hooks, lambda out: out.logits, logits_at=-1, progress=False)
    want = [spliced.run(tokens, {f"blocks.{i}.hook_mlp_out": jmi.Zero()}).logits[:, -1] for i in (0, 1)]
    assert_agree(got, np.asarray(want))
    assert np.abs(np.asarray(want[0]) - lm.run(tokens).logits[:, -1]).max() > 1e-3


def test_points_that_a_module_closes_are_gone_where_it_stands(lm, tokens):
    size = lm.arch.n_heads * lm.arch.d_head
    module = Widened(np.zeros((lm.arch.d_model, size)))
    spliced = jmi.rewire(lm, {("blocks.2.attn.hook_in", "blocks.2.attn.hook_q"): module})
    assert spliced.arch.sites()["blocks.*.hook_q_input"].layers == (0, 1, 3)
    with pytest.raises(HookError, match="layer 2 has no such point"):
        spliced.run(tokens, capture=["blocks.2.hook_q_input"])
    assert spliced.run(tokens, capture=["blocks.1.hook_q_input"])["blocks.1.hook_q_input"].ndim == 4


def test_what_a_module_writes_is_not_said_of_the_weights(lm, tokens):
    spliced = jmi.rewire(lm, {(IN, OUT): Transcoder(weights(4))})
    assert jmi.interp.direct_logit_attribution(spliced, tokens, 5, by="head")
    with pytest.raises(ArgumentError, match=r"needs an architecture with neuron_effects\(\)"):
        jmi.interp.direct_logit_attribution(spliced, tokens, 5, by="neuron")
