"""Attribution in networks that are no language models: several kinds of layers, inputs that are numbers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.errors import ArgumentError
from jmi.gradients import value_and_grad_at
from jmi.interp.attribution.atp_star import atp_star
from jmi.interp.attribution.attribution_patching import attribution_patching
from jmi.model.sites import Site
from tests.support.tolerances import assert_agree

HEADS, WIDTH = 2, 3
Q, K = "blocks.*.attn.hook_q", "blocks.*.attn.hook_k"


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Layers of attention without a mask and of units, in any order, over real numbers ``[b, s, d]``."""

    kinds: tuple[str, ...]
    d: int = HEADS * WIDTH

    @property
    def n_layers(self) -> int:
        return len(self.kinds)

    def check(self, prompts: jmi.Prompts) -> None:
        if prompts.tokens.ndim != 3:
            raise ArgumentError("this network reads [batch, pos, d]")

    def sites(self) -> dict[str, Site]:
        every = tuple(range(self.n_layers))
        attention, units = (
            tuple(i for i in every if self.kinds[i] == kind) for kind in ("attention", "units")
        )
        heads = (("batch", "pos", "head", "d_head"), (None, None, HEADS, WIDTH))
        stream = (("batch", "pos", "d_model"), (None, None, self.d))
        pattern = (("batch", "head", "query", "key"), (None, HEADS, None, None))
        found = {
            "hook_embed": (*stream, None),
            "blocks.*.hook_resid_pre": (*stream, every),
            Q: (*heads, attention),
            K: (*heads, attention),
            "blocks.*.attn.hook_pattern": (*pattern, attention),
            "blocks.*.hook_attn_out": (*stream, attention),
            "blocks.*.hook_units": (("batch", "pos", "unit"), (None, None, self.d), units),
            "blocks.*.hook_mlp_out": (*stream, units),
            "hook_logits": (("batch", "pos", "vocab"), (None, None, self.d), None),
        }
        return {point: Site(point, *rest) for point, rest in found.items()}

    def context(self, params: Any, prompts: Any) -> None:
        return None

    def embed(self, params: Any, prompts: Any, context: Any, tap: Any) -> Any:
        return tap("hook_embed", prompts.tokens)

    def block(self, p: Any, carry: Any, context: Any, layer: Any, tap: Any) -> Any:
        x = tap("hook_resid_pre", carry)
        if "units" in p:
            return x + tap("hook_mlp_out", tap("hook_units", jnp.tanh(x @ p["units"])) @ p["out"])
        split = lambda w: (x @ w).reshape(*x.shape[:2], HEADS, WIDTH)
        q, k = tap("attn.hook_q", split(p["q"])), tap("attn.hook_k", split(p["k"]))
        pattern = tap("attn.hook_pattern", jax.nn.softmax(jnp.einsum("bqhd,bthd->bhqt", q, k)))
        z = jnp.einsum("bhqt,bthd->bqhd", pattern, split(p["v"])).reshape(x.shape)
        return x + tap("hook_attn_out", z @ p["out"])

    def unembed(self, params: Any, carry: Any, tap: Any) -> Any:
        return tap("hook_logits", carry @ params["unembed"])


ATTENTION = (1, 2, 4)


def model() -> tuple[jmi.LanguageModel, Any, Any]:
    """Units, attention twice, units, attention; and two prompts."""
    arch, rng = Mixed(("units", "attention", "attention", "units", "attention")), np.random.default_rng(0)
    names = {"units": ("units", "out"), "attention": ("q", "k", "v", "out")}
    matrix = lambda: rng.normal(size=(arch.d, arch.d)) / 2
    blocks = [{name: matrix() for name in names[kind]} for kind in arch.kinds]
    lm = jmi.LanguageModel(arch, {"blocks": blocks, "unembed": matrix()})
    return lm, *rng.normal(size=(2, 2, 4, arch.d))


def metric(out: jmi.Output) -> jax.Array:
    return jnp.tanh(out.logits[:, -1, 0])


@pytest.fixture(autouse=True)
def float64() -> Any:
    with jax.enable_x64(True):
        yield


def gradients(lm: Any, prompts: Any, sites: Any, **options: Any) -> Any:
    run = jax.jit(lambda lm, prompts: value_and_grad_at(lm, prompts, metric, sites, **options))
    return jax.device_get(run(lm, prompts))


def test_scores_are_differences_times_gradients() -> None:
    lm, clean, corrupted = model()
    sites = ["hook_embed", "blocks.*.hook_units", Q]
    scores = attribution_patching(lm, clean, corrupted, sites, metric=metric, keep=("batch", "pos", "unit"))
    found = gradients(lm, corrupted, sites, capture=sites)
    source = jax.device_get(lm.run(clean, capture=sites))
    assert scores.layers(Q) == ATTENTION
    for name in scores.names():
        terms = (source[name] - found.out[name]) * found.grads[name]
        want = terms if "units" in name else terms.reshape(*terms.shape[:2], -1).sum(-1)
        assert_agree(np.asarray(scores[name]), np.asarray(want), "gradients")


@pytest.mark.parametrize("grad_drop", [False, True])
def test_the_qk_fix_finds_the_layers_that_attend(grad_drop: bool) -> None:
    lm, clean, corrupted = model()
    scores = atp_star(lm, clean, corrupted, [Q, K], metric=metric, grad_drop=grad_drop)
    drops = [{}]
    if grad_drop:
        out = {kind: f"blocks.{{}}.hook_{kind}_out" for kind in ("attn", "mlp")}
        added = [
            out["attn" if kind == "attention" else "mlp"].format(i) for i, kind in enumerate(lm.arch.kinds)
        ]
        drops = [{name: jmi.Detach()} for name in added]
    pattern = "blocks.*.attn.hook_pattern"
    slopes = [gradients(lm, corrupted, pattern, hooks=drop).grads[pattern] for drop in drops]
    before, there = (jax.device_get(lm.run(x, capture=[pattern, Q, K])) for x in (corrupted, clean))
    for point in (Q, K):
        for row, layer in enumerate(ATTENTION):
            name = point.replace("*", str(layer))
            for place, head in np.ndindex(4, HEADS):
                patch = {name: jmi.Patch(there[name], positions=place, heads=head)}
                change = np.asarray(lm.run(corrupted, patch, [pattern])[pattern])[row] - before[pattern][row]
                each = [(change * slope[row]).sum((1, 2, 3)) for slope in slopes]
                want = np.abs(each).sum(0) / (lm.arch.n_layers - 1) if grad_drop else np.asarray(each[0])
                got = np.asarray(scores[name][:, place, head])
                assert_agree(got, want, "gradients", scale=scores[point])


def test_axes_to_keep_are_those_of_the_network() -> None:
    lm, clean, corrupted = model()
    with pytest.raises(ArgumentError, match=r"keep='units': use one of .*'unit'"):
        attribution_patching(lm, clean, corrupted, "hook_embed", metric=metric, keep=["units"])
