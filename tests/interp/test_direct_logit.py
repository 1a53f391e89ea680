"""Parts of the stream and of logits: they sum to what the model computes, and each is what it says."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, HookError, InterventionError
from jmi.interp.decompose.decomposition import accumulated_resid, decompose
from jmi.interp.decompose.direct_logit import direct_logit_attribution
from jmi.model.architecture import require
from tests.core.conftest import lively, tiny
from tests.oracles import grid
from tests.support.committed import arch_of, each, every_site, listed, load
from tests.support.tolerances import assert_agree

BARS = {"float32": 2e-5, "float64": 1e-10}
KINDS = ("gpt2/plain", "gemma2/capped", "olmo2/grouped", "granite/multipliers", "falcon/new_decoder")
"""Learned positions and biases; caps and norms on both sides; post-norms; multipliers; parallel blocks."""
SUMS = [name for name in grid.COMMITTED if arch_of(name).norms.where != "stream" and name not in KINDS]
TARGETS = np.array([3, 5], np.int32), np.array([[7], [2]], np.int32)


@functools.cache
def attribute(name: str, dtype: str = "float64", **kwargs: Any) -> tuple[dict[str, Any], np.ndarray]:
    """Parts and total of the logit difference of `TARGETS`."""
    lm = load(name, dtype)
    with jax.enable_x64(dtype == "float64"):
        given = direct_logit_attribution(lm, grid.committed(name).tokens, *TARGETS, **kwargs)
        return jax.tree.map(np.asarray, (given.parts, given.total()))


def logit_difference(name: str) -> np.ndarray:
    """Of `TARGETS` at the last token, before any soft-cap, as Hugging Face computes it in float64."""
    logits, cap = grid.committed(name).sites["hook_logits"][:, -1], arch_of(name).logit_softcap
    logits = logits if cap is None else cap * np.arctanh(logits / cap)
    return logits[[0, 1], TARGETS[0]] - logits[[0, 1], TARGETS[1][:, 0]]


def of_tiny(**kwargs: Any) -> Any:
    arch = tiny()
    given = functools.partial(
        direct_logit_attribution,
        jmi.LanguageModel(arch, lively(arch)),
        np.arange(14, dtype=np.int32).reshape(2, 7),
    )
    return given(4, **kwargs)


@each(SUMS)
def test_heads_sum_to_the_logit_on_every_other_family(name: str) -> None:
    parts, total = attribute(name, by="head")
    assert parts["heads"].shape == (load(name).arch.n_layers, load(name).arch.n_heads, 2)
    assert_agree(total, logit_difference(name).astype(total.dtype), "oracle")


@pytest.mark.parametrize(
    ("by", "dtype"), [("head", "float32"), *((by, "float64") for by in ("layer", "head", "neuron"))]
)
@each(KINDS)
def test_parts_sum_to_the_logit(name: str, by: Any, dtype: str) -> None:
    parts, total = attribute(name, dtype, by=by)
    assert_agree(total, logit_difference(name).astype(total.dtype), "oracle")
    assert_agree(sum(x.reshape(-1, 2).sum(0) for x in parts.values()), total)


@each(KINDS)
def test_each_part_is_read_by_the_final_norm_and_unembedding(name: str) -> None:
    x, lm = every_site(name, "float64"), load(name, "float64")
    p = jax.tree.map(np.asarray, lm.params)
    unembedding = p["embed"]["W_E"].T if lm.arch.tied else p["unembed"]["W_U"]
    column = (unembedding[:, TARGETS[0]] - unembedding[:, TARGETS[1][:, 0]]) * lm.arch.logit_scale
    gain = p["ln_final"]["w"] + (lm.arch.norms.norm.gain == "1 + w")

    def read(vectors: np.ndarray) -> np.ndarray:
        centred = vectors - vectors.mean(-1, keepdims=True) if lm.arch.norms.norm.kind == "layer" else vectors
        return np.einsum("...bd,d,db->...b", centred / x["ln_final.hook_scale"][:, -1], gain, column)

    parts, _ = attribute(name, by="layer")
    for part in parts.keys() - {"constant"}:
        site = x[f"hook_{part}"] if "embed" in part else x[f"blocks.*.hook_{part}"]
        assert_agree(parts[part], read(site[..., -1, :]))
    if lm.arch.norms.where == "pre":
        heads = np.moveaxis(x["blocks.*.attn.hook_result"][:, :, -1], 1, 2) * lm.arch.residual_scale
        assert_agree(attribute(name, by="head")[0]["heads"], read(heads))
        neurons = np.einsum(
            "lbm,lmd->lmbd", x["blocks.*.mlp.hook_post"][:, :, -1], p["blocks"]["mlp"]["W_out"]
        )
        neurons = neurons * lm.arch.residual_scale
        assert_agree(attribute(name, by="neuron")[0]["neurons"], read(neurons))


@each(KINDS)
def test_the_stream_is_the_sum_of_its_parts(name: str) -> None:
    x, lm = every_site(name, "float64"), load(name, "float64")
    with jax.enable_x64(True):
        parts = decompose(lm, grid.committed(name).tokens, by="head", positions=None)
        total, parts = np.asarray(parts.total()), jax.tree.map(np.asarray, parts.parts)
    assert_agree(total, x["blocks.*.hook_resid_post"][-1])
    assert_agree(parts["mlp_out"], x["blocks.*.hook_mlp_out"])
    whole = parts["heads"].sum((0, 1)) + parts["bias"]
    assert_agree(whole, x["blocks.*.hook_attn_out"].sum(0))


def test_the_stream_accumulates() -> None:
    lm, tokens = load("gpt2/plain"), grid.committed("gpt2/plain").tokens
    x = every_site("gpt2/plain", "float32")
    stream = accumulated_resid(lm, tokens, positions=[0, -1])
    assert_agree(stream[:-1], x["blocks.*.hook_resid_pre"][:, :, [0, -1]])
    assert_agree(stream[-1], x["blocks.*.hook_resid_post"][-1, :, [0, -1]].swapaxes(0, 1))


def test_a_recurrent_stream_and_its_logits_are_sums_of_parts() -> None:
    ranks = (("rank_decay", 5), ("rank_a", 4), ("rank_v", 3), ("rank_gate", 6))
    arch = jmi_models.Rwkv(7, 3, 24, 2, 12, 40, 31, ranks)
    tokens = np.arange(16, dtype=np.int32).reshape(2, 8)
    with jax.enable_x64(True):
        lm = jmi.LanguageModel(arch, lively(arch, jnp.float64))
        parts, given = decompose(lm, tokens), direct_logit_attribution(lm, tokens, 3)
        out = lm.run(tokens, capture=["blocks.-1.hook_resid_post"])
        stream = np.asarray(out.stack("hook_resid_post")[0, :, -1])
        assert_agree(parts.total(), stream)
        assert_agree(given.total(), out.logits[:, -1, 3])
    assert parts.labels()[:3] == ["embed", "0_attn_out", "0_mlp_out"]
    with pytest.raises(ArgumentError, match=r"blocks\.\*\.attn\.hook_z"):
        decompose(lm, tokens, by="head")


def test_labels_follow_the_order_of_the_stack() -> None:
    parts = of_tiny(by="head")
    labels = parts.labels()
    assert labels[:6] == ["embed", "L0H0", "L0H1", "L0H2", "L0H3", "0_mlp_out"]
    assert labels[-2:] == ["bias", "constant"]
    assert len(labels) == len(set(labels)) == len(parts.stack())
    by_label = dict(zip(labels, np.asarray(parts.stack()), strict=True))
    np.testing.assert_array_equal(by_label["L2H3"], parts.parts["heads"][2, 3])
    np.testing.assert_array_equal(by_label["3_mlp_out"], parts.parts["mlp_out"][3])
    np.testing.assert_array_equal(by_label["bias"], parts.parts["bias"])
    neurons = of_tiny(by="neuron")
    by_label = dict(zip(neurons.labels(), np.asarray(neurons.stack()), strict=True))
    np.testing.assert_array_equal(by_label["L3N23"], neurons.parts["neurons"][3, 23])
    np.testing.assert_array_equal(by_label["1_attn_out"], neurons.parts["attn_out"][1])


def test_hooks_change_their_parts_and_are_a_part_where_they_add_to_the_stream() -> None:
    lm = load("gpt2/plain")
    tokens, vector = grid.committed("gpt2/plain").tokens, np.full(lm.arch.d_model, 0.5, np.float32)
    run = functools.partial(decompose, lm, tokens, by="head")
    plain = run().parts
    steered = run(hooks={"blocks.0.hook_resid_post": jmi.Add(vector)})
    assert_agree(steered.parts["hooks"], np.tile(vector, (2, 1)), scale=plain["heads"])
    ablated = run(hooks={"blocks.1.attn.hook_z": jmi.Zero(heads=2)}).parts
    assert not np.asarray(ablated["heads"][1, 2]).any()
    assert_agree(ablated["hooks"], np.zeros_like(ablated["hooks"]), scale=plain["heads"])
    removed = run(hooks={"blocks.0.attn.hook_result": jmi.Zero(heads=2)}).parts
    assert_agree(removed["hooks"], -plain["heads"][0, 2])
    hooks = {"blocks.0.hook_resid_mid": jmi.Scale(1.5), "ln_final.hook_scale": jmi.Scale(2.0)}
    given = direct_logit_attribution(lm, tokens, 3, hooks=hooks, by="neuron")
    assert_agree(given.total(), lm.run(tokens, hooks).logits[:, -1, 3])


def test_positions_are_one_several_all_or_those_of_each_prompt() -> None:
    every = of_tiny(positions=None).parts
    for positions, index in ((-2, np.s_[:, 5]), ([0, -1], np.s_[:, [0, 6]])):
        some = of_tiny(positions=positions).parts
        assert_agree(some, jax.tree.map(lambda x, i=index: x[(..., *i)], every))
    rows = of_tiny(positions=np.array([[2], [-1]]))
    assert_agree(rows.parts["mlp_out"][:, 0, 0], every["mlp_out"][:, 0, 2])
    assert_agree(rows.parts["mlp_out"][:, 1, 0], every["mlp_out"][:, 1, 6])


def test_padding_changes_nothing() -> None:
    arch = tiny()
    tokens = np.arange(7, dtype=np.int32)[None]
    padded, mask = np.pad(tokens, ((0, 0), (3, 0))), np.arange(10)[None] >= 3
    given = functools.partial(direct_logit_attribution, jmi.LanguageModel(arch, lively(arch)))
    one, other = (given(prompts, 4, by="head").stack() for prompts in (tokens, (padded, mask)))
    assert_agree(other, one)


def test_stacked_and_listed_layers_agree_under_jit_and_vmap() -> None:
    lm = load("gpt2/plain")
    tokens = grid.committed("gpt2/plain").tokens
    traces = []

    @jax.jit
    def given(params: Any, target: Any) -> Any:
        traces.append(target)
        return direct_logit_attribution(dataclasses.replace(lm, params=params), tokens, target, by="head")

    stacked, in_list = given(lm.params, jnp.int32(4)), given(listed(lm).params, jnp.int32(4))
    assert_agree(in_list, stacked)
    many = jax.vmap(given, (None, 0))(lm.params, jnp.asarray([4, 5], jnp.int32))
    other = given(lm.params, jnp.int32(5))
    assert_agree(jax.tree.map(lambda x: x[1], many), other)
    assert len(traces) == 2


def jaxprs(tree: Any) -> Any:
    """Every jaxpr inside a jaxpr."""
    inner = getattr(tree, "jaxpr", tree)
    if hasattr(inner, "eqns"):
        yield inner
        yield from (found for eqn in inner.eqns for x in jax.tree.leaves(eqn.params) for found in jaxprs(x))


@pytest.mark.parametrize("by", ["layer", "head", "neuron"])
def test_no_vector_of_a_part_is_made_nor_its_product_with_the_vocabulary(by: Any) -> None:
    arch = tiny()
    tokens = jnp.zeros((2, 7), jnp.int32)
    attribute = lambda p: direct_logit_attribution(
        jmi.LanguageModel(arch, p), tokens, 4, by=by, positions=None
    )
    made = jax.make_jaxpr(attribute)(lively(arch))
    largest = max(v.aval.size for inner in jaxprs(made) for eqn in inner.eqns for v in eqn.outvars)
    # 14 positions: parts of 4 layers x vocabulary of 29, vectors of 4 heads or 24 neurons in 4 layers.
    assert largest < 14 * 4 * min(29, 4 * 16, 24 * 16)


def test_what_cannot_be_attributed_says_why() -> None:
    with pytest.raises(ArgumentError, match="after each module"):
        attribute("opt/post_norm", "float32")
    with pytest.raises(ArgumentError, match=r"mlp\.hook_post"):
        attribute("mixtral/full", "float32", by="neuron")
    with pytest.raises(ArgumentError, match="direct_logit_attribution"):
        decompose(jmi.LanguageModel(tiny(), lively(tiny())), np.zeros((1, 3), np.int32), by="neuron")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="one of 'layer'"):
        of_tiny(by="token")
    with pytest.raises(ArgumentError, match=r"direction\(\)"):
        require(object(), "direction")
    after = ("ln_final.hook_normalized", "hook_final_norm", "unembed.hook_in", "unembed.hook_out")
    for point in (*after, "hook_logits"):
        with pytest.raises(HookError, match=f"^{point}: acts after"):
            of_tiny(hooks={point: jmi.Scale(2.0)})
    with pytest.raises(InterventionError, match="out of range"):
        of_tiny(positions=7)
    with pytest.raises(ArgumentError, match="0 to 28"):
        of_tiny(other=29)
    with pytest.raises(ArgumentError, match=r"\[2\]"):
        of_tiny(other=[1, 2, 3])
