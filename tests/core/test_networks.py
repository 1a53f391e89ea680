"""Networks that are no language models, a few lines each: what they read, and everything that runs on them.

The weights are those of AlgZoo (ARC): a recurrent network that reads real numbers, and a transformer without
masks or norms that reads integers. Both are compared with the authors' own in PyTorch, as recorded.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jmi
from jmi.errors import ArgumentError
from jmi.model.architecture import State
from jmi.model.sites import Site
from tests.support.tolerances import assert_agree

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
FOLDER = SHARED / "models" / "algzoo"
pytestmark = pytest.mark.skipif(
    not FOLDER.exists(), reason="algzoo is not here; set JMI_SHARED to its folder"
)


def site(point: str, layers: Any = None, **sizes: int | None) -> tuple[str, Site]:
    return point, Site(point, ("batch", "pos", *sizes), (None, None, *sizes.values()), layers)


@dataclasses.dataclass(frozen=True)
class Rnn:
    """``h <- relu(W x + U h)`` over real numbers ``[b, s]``, read out at every position."""

    width: int
    n_layers: int = 1

    def check(self, prompts):
        if not jnp.issubdtype(prompts.tokens.dtype, jnp.floating) or prompts.tokens.ndim != 2:
            raise ArgumentError("this network reads real numbers [batch, pos]")

    def sites(self):
        one = {"layers": (0,), "hidden": self.width}
        last = Site("blocks.*.hook_state", ("batch", "hidden"), (None, self.width), (0,))
        start = dataclasses.replace(last, point="blocks.*.hook_state_in")
        points = [site("hook_embed", hidden=self.width), site("blocks.*.hook_hidden", **one)]
        return dict(
            [points[0], (start.point, start), points[1], (last.point, last), site("hook_logits", out=2)]
        )

    def context(self, params, prompts):
        return None

    def embed(self, params, prompts, context, tap):
        return tap("hook_embed", prompts.tokens[..., None] @ params["embed"]["W"].T)

    def block(self, p, carry, context, layer, tap):
        start = tap.recall("hook_state_in", jnp.zeros((carry.shape[0], self.width), carry.dtype))
        step = lambda h, x: (lambda new: (new, new))(jax.nn.relu(x + h @ p["U"].T))
        _, hidden = jax.lax.scan(step, start, jnp.moveaxis(carry, 1, 0))
        hidden = tap("hook_hidden", jnp.moveaxis(hidden, 0, 1))
        tap("hook_state", hidden[:, -1])
        return hidden

    def unembed(self, params, carry, tap):
        return tap("hook_logits", carry @ params["unembed"]["W"].T)

    def memory(self):
        return {"hidden": State("blocks.*.hook_state_in", "blocks.*.hook_state")}

    def within(self, context, first, length):
        return None

    def check_continued(self, length):
        return None


@dataclasses.dataclass(frozen=True)
class Attention:
    """Layers of attention with one head, without mask, norm or MLP, on integers."""

    d_model: int
    d_vocab: int
    n_layers: int

    def sites(self):
        every, d = tuple(range(self.n_layers)), {"d_model": self.d_model}
        pattern = Site("blocks.*.attn.hook_pattern", ("batch", "query", "key"), (None, None, None), every)
        inside = [site("blocks.*.hook_resid_pre", every, **d), (pattern.point, pattern)]
        return dict([site("hook_embed", **d), *inside, site("hook_logits", vocab=self.d_vocab)])

    def context(self, params, prompts):
        return None

    def embed(self, params, prompts, context, tap):
        return tap("hook_embed", params["embed"][prompts.tokens] + params["pos"][None, : prompts.shape[1]])

    def block(self, p, carry, context, layer, tap):
        x = tap("hook_resid_pre", carry)
        q, k, v = jnp.split(x @ p["in"].T, 3, axis=-1)
        pattern = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / self.d_model**0.5, axis=-1)
        return x + tap("attn.hook_pattern", pattern) @ v @ p["out"].T

    def unembed(self, params, carry, tap):
        return tap("hook_logits", carry @ params["unembed"].T)


def rnn() -> tuple[jmi.LanguageModel, Any]:
    w = load_file(FOLDER / "rnn_2nd_argmax_h2_n2.safetensors")
    w = {name: x.astype(np.float64) for name, x in w.items()}
    params = {
        "embed": {"W": w["rnn.weight_ih_l0"]},
        "blocks": {"U": w["rnn.weight_hh_l0"][None]},
        "unembed": {"W": w["linear.weight"]},
    }
    return jmi.LanguageModel(Rnn(2), params), np.load(FOLDER / "rnn_2nd_argmax_h2_n2.reference.npz")


def transformer() -> tuple[jmi.LanguageModel, Any]:
    w = load_file(FOLDER / "transformer_longest_cycle_h2_n3.safetensors")
    w = {name: x.astype(np.float64) for name, x in w.items()}
    stack = lambda name: np.stack([w[f"attns.{i}.{name}"] for i in range(2)])
    params = {
        "embed": w["embed.weight"],
        "pos": w["pos_embed.weight"],
        "blocks": {"in": stack("in_proj_weight"), "out": stack("out_proj.weight")},
        "unembed": w["unembed.weight"],
    }
    held = np.load(FOLDER / "transformer_longest_cycle_h2_n3.reference.npz")
    return jmi.LanguageModel(Attention(2, 3, 2), params), held


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_a_recurrent_network_on_real_numbers():
    lm, held = rnn()
    inputs = held["inputs"].astype(np.float64)
    out = lm.run(inputs, capture=["blocks.0.hook_hidden"])
    assert_agree(out.logits[:, -1], held["logits_f64"])
    assert_agree(out["blocks.0.hook_hidden"], held["hidden_states_f64"])
    # In pieces, hooked, swept and differentiated.
    first = lm.run(inputs[:, :1], memory=True)
    assert_agree(lm.run(inputs[:, 1:], memory=first.memory).logits[:, -1], held["logits_f64"])
    grid = jmi.Grid(position=[0, 1], unit=[0, 1])
    hooks = {"hook_embed": jmi.Scale(2.0, positions=grid["position"], units=grid["unit"])}
    last = lambda out: out.logits[:, -1]
    got = jmi.sweep(lm, inputs, hooks, last, progress=False)
    for p, u in np.ndindex(2, 2):
        scaled = inputs[..., None] @ lm.params["embed"]["W"].T
        scaled[:, p, u] *= 2
        assert_agree(got[p, u], loop(lm.params, scaled))
    logit = lambda out: out.logits[:, -1, 0]
    found = jax.jit(lambda lm: jmi.value_and_grad_at(lm, inputs, logit, "hook_embed"))(lm)
    slopes = found.grads["hook_embed"]
    step = np.zeros(slopes.shape)
    step[:, 0, 1] = 1e-6
    embedded = inputs[..., None] @ lm.params["embed"]["W"].T
    ahead, behind = (loop(lm.params, embedded + s * step)[:, 0] for s in (1, -1))
    np.testing.assert_allclose((ahead - behind) / 2e-6, slopes[:, 0, 1], atol=1e-7)
    with pytest.raises(ArgumentError, match="reads real numbers"):
        lm.run(np.zeros((1, 2), np.int32))


def loop(params: Any, embedded: np.ndarray) -> np.ndarray:
    h = np.zeros((len(embedded), 2))
    for x in np.moveaxis(embedded, 1, 0):
        h = np.maximum(x + h @ params["blocks"]["U"][0].T, 0)
    return h @ params["unembed"]["W"].T


def test_a_transformer_without_masks_on_integers():
    lm, held = transformer()
    tokens = held["inputs"].astype(np.int32)
    assert_agree(lm.run(tokens).logits[:, -1], held["logits_f64"])
    grid = jmi.Grid(layer=[0, 1], query=[0, 1, 2])
    hooks = {"blocks.*.attn.hook_pattern": jmi.At(grid["layer"], jmi.Zero(positions=grid["query"]))}
    got = jmi.sweep(lm, tokens, hooks, lambda out: out.logits, logits_at=-1, progress=False)
    want = [
        lm.run(tokens, {f"blocks.{i}.attn.hook_pattern": jmi.Zero(positions=q)}).logits[:, -1]
        for i in range(2)
        for q in range(3)
    ]
    assert_agree(got.reshape(6, *got.shape[2:]), np.stack(want))
    assert np.abs(got[0, 0] - held["logits_f64"]).max() > 1e-3
    with pytest.raises(ArgumentError, match="must be 0 to 2"):
        lm.run(tokens + 1)
    with pytest.raises(ArgumentError, match="cannot go on from what earlier positions left"):
        lm.generate(tokens, 2)
