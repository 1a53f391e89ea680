"""Reducers that return pytrees, or whose arrays differ by layer: of all layers at once, of some, mapped."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.captures.reducers import TopEntries
from jmi.errors import ArgumentError, HookError, InterventionError
from tests.core.conftest import Programs
from tests.core.test_rewire import FEATURES, IN, OUT, Transcoder, weights
from tests.support.tolerances import assert_agree

POST, RESID = "blocks.*.mlp.hook_post", "blocks.*.hook_resid_post"
WHOLE = jmi.Capture(POST, label="whole")
RNG = np.random.default_rng(6)
VECTORS = RNG.normal(size=(4, 3, 24))
"""Three for each layer, over the neurons of its MLP."""
OWN, TOP = jmi.PerLayer(jmi.Dot(VECTORS)), jmi.Top(3)


def largest(x: Any, k: int) -> TopEntries:
    """The largest entries of the last axis, by numpy."""
    x = np.asarray(x)
    ids = np.argsort(-x, axis=-1)[..., :k]
    return TopEntries(np.take_along_axis(x, ids, -1), ids.astype(np.int32))


def products(x: Any, vectors: Any = VECTORS) -> np.ndarray:
    """Inner products of each layer with its own vectors, by numpy."""
    x = np.asarray(x)
    return np.einsum("l...d,lnd->l...n", x.astype(np.float64), vectors).astype(x.dtype)


def assert_equal(got: Any, want: Any) -> None:
    """Bit by bit: of entries of one program, which are only picked."""
    jax.tree.map(np.testing.assert_array_equal, got, want)


def summary(value: jax.Array, site: jmi.Site) -> dict[str, Any]:
    """Arrays of several ranks and dtypes."""
    return {"last": value[:, -1], "largest": value.max(), "any": (value > 1).any(), "nested": (site.layer,)}


def test_values_and_ids_of_every_layer_in_one_run(tokens: Any, lm: Any) -> None:
    out = lm.run(tokens, capture=[WHOLE, jmi.Capture(POST, reduce=jmi.Top(8))])
    want = largest(out["whole"], 8)
    found = out.stack("mlp.hook_post")
    assert isinstance(found, TopEntries)
    assert found.ids.shape == (4, *tokens.shape, 8)
    assert_equal(found, want)
    assert_equal(out[POST], want)
    assert_equal(out["blocks.2.mlp.hook_post"], TopEntries(*(x[2] for x in want)))
    assert_equal(out["blocks.-1.mlp.hook_post"].ids, want.ids[3])
    assert out.layers("mlp.hook_post") == (0, 1, 2, 3)
    assert out.names() == ["whole", *(f"blocks.{i}.mlp.hook_post" for i in range(4))]


def test_values_and_ids_of_some_layers_and_outside_of_them(tokens: Any, lm: Any) -> None:
    names = ["blocks.3.mlp.hook_post", "blocks.1.mlp.hook_post"]
    captures = [jmi.Capture(name, reduce=TOP) for name in (*names, "hook_logits")]
    out = lm.run(tokens, capture=[WHOLE, *captures])
    want = largest(out["whole"], 3)
    assert out.layers("mlp.hook_post") == (1, 3)
    assert out.names() == ["whole", *names[::-1], "hook_logits"]
    assert_equal(out.stack("mlp.hook_post"), TopEntries(*(x[[1, 3]] for x in want)))
    assert_equal(out[names[0]], TopEntries(*(x[3] for x in want)))
    assert_equal(out["hook_logits"], largest(out.logits, 3))
    with pytest.raises(HookError, match=r"captured here: whole, blocks\.1"):
        out["blocks.2.mlp.hook_post"]
    with pytest.raises(HookError, match="no axis of positions"):
        out.at(names[0], 0)


def test_a_label_of_ones_own(tokens: Any, lm: Any) -> None:
    out = lm.run(tokens, capture=[WHOLE, jmi.Capture(POST, reduce=jmi.Top(2), label="top")])
    assert out.names() == ["whole", "top"]
    assert_equal(out["top"], largest(out["whole"], 2))
    assert out.layers("top") == (0, 1, 2, 3)


LAYERS = {"all": [0, 1, 2, 3], "some": [1, 3], "one": [2]}


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("layers", LAYERS)
def test_each_layer_has_its_own_vectors(tokens: Any, lm: Any, layers: str, listed: bool) -> None:
    rows = LAYERS[layers]
    names = [POST] if layers == "all" else [f"blocks.{i}.mlp.hook_post" for i in rows]
    model = jmi.LanguageModel(lm.arch, jmi_models.listed(lm.params)) if listed else lm
    out = model.run(tokens, capture=[WHOLE, *(jmi.Capture(name, reduce=OWN) for name in names)])
    want = products(out["whole"])
    assert_agree(out.stack("mlp.hook_post"), want[rows])
    assert_agree(out[f"blocks.{rows[-1]}.mlp.hook_post"], want[rows[-1]])
    # Rows for these layers alone, in an order of one's own.
    slots = np.full(4, -1, np.int32)
    slots[rows[::-1]] = np.arange(len(rows))
    few = jmi.PerLayer(jmi.Dot(VECTORS[rows[::-1]]), slots=slots)
    out = model.run(tokens, capture=[WHOLE, *(jmi.Capture(name, reduce=few) for name in names)])
    assert_agree(out.stack("mlp.hook_post"), products(out["whole"])[rows])


def test_each_layer_has_its_own_position_and_head(tokens: Any, lm: Any) -> None:
    site, positions, heads = "blocks.*.attn.hook_z", [4, 0, -1, 2], [3, 1, 0, 2]
    own = jmi.PerLayer(jmi.Select(position=np.array(positions), head=np.array(heads)))
    out = lm.run(tokens, capture=[jmi.Capture(site, label="whole"), jmi.Capture(site, reduce=own)])
    want = [out["whole"][i, :, p, h] for i, (p, h) in enumerate(zip(positions, heads, strict=True))]
    assert_equal(out.stack("attn.hook_z"), np.stack(want))


def test_a_point_that_some_layers_have_takes_rows_for_these(tokens: Any, lm: Any) -> None:
    module = Transcoder(jax.tree.map(np.float32, weights(2)))
    spliced = jmi.rewire(lm, {(IN.replace("*", i), OUT.replace("*", i)): module for i in "13"})
    site = "blocks.*.mlp.hook_features"
    vectors = RNG.normal(size=(2, 3, FEATURES))
    own = jmi.PerLayer(jmi.Dot(vectors))
    captures = [jmi.Capture(site, label="whole"), jmi.Capture(site, reduce=own, label="own")]
    out = spliced.run(tokens, capture=[*captures, jmi.Capture(site, reduce=jmi.Top(2), label="top")])
    assert out.layers("own") == out.layers("top") == (1, 3)
    assert_agree(out["own"], products(out["whole"], vectors))
    assert_equal(out["top"].values, largest(out["whole"], 2).values)
    with pytest.raises(InterventionError, match="axis of 2 layers"):
        spliced.run(tokens, capture=[jmi.Capture(site, reduce=jmi.PerLayer(jmi.Dot(vectors[[0, 1, 1, 0]])))])


def test_arrays_of_several_ranks_and_dtypes(tokens: Any, lm: Any) -> None:
    out = lm.run(tokens, capture=[jmi.Capture(RESID, label="whole"), jmi.Capture(RESID, reduce=summary)])
    x, found = np.asarray(out["whole"]), out.stack("hook_resid_post")
    want = {
        "last": x[:, :, -1],
        "largest": x.max((1, 2, 3)),
        "any": (x > 1).any((1, 2, 3)),
        "nested": (np.arange(4, dtype=np.int32),),
    }
    assert_equal(found, want)
    assert_equal(out["blocks.1.hook_resid_post"], jax.tree.map(lambda x: x[1], want))


def test_mapped_over_texts_and_over_vectors(tokens: Any, lm: Any) -> None:
    def run(tokens: Any, vectors: Any) -> jmi.Output:
        few = [f"blocks.{i}.mlp.hook_post" for i in (0, 2)]
        own = jmi.PerLayer(jmi.Dot(vectors))
        captures = [
            *(jmi.Capture(name, reduce=TOP, label="top") for name in few),
            jmi.Capture(POST, reduce=own),
            jmi.Capture(RESID, reduce=summary),
        ]
        return jmi.forward(lm.arch, lm.params, tokens, capture=[WHOLE, *captures])

    several = jnp.asarray([VECTORS, 2 * VECTORS, -VECTORS], jnp.float32)
    texts = jax.jit(jax.vmap(run, (0, None)))(tokens[:, None], several[0])
    whole = np.asarray(texts["whole"])
    assert_equal(texts["top"], largest(whole[:, [0, 2]], 3))
    assert_agree(texts["blocks.2.mlp.hook_post"], np.stack([products(x)[2] for x in whole]))
    assert texts.stack("hook_resid_post")["largest"].shape == (2, 4)
    assert_equal(
        texts["blocks.3.hook_resid_post"]["largest"], texts.stack("hook_resid_post")["largest"][:, 3]
    )
    vectors = jax.jit(jax.vmap(run, (None, 0)))(tokens, several)
    want = products(vectors["whole"][0])
    assert_agree(vectors.stack("mlp.hook_post"), np.stack([want, 2 * want, -want]))


def test_layers_that_did_not_run_have_nothing(tokens: Any, lm: Any) -> None:
    captures = [jmi.Capture(POST, reduce=jmi.Top(2)), jmi.Capture(RESID, reduce=summary)]
    out = lm.run(tokens, capture=captures, stop_at_layer=2)
    top, rest = out.stack("mlp.hook_post"), out.stack("hook_resid_post")
    assert np.isnan(top.values[2:]).all()
    assert (np.asarray(top.ids)[2:] == -1).all()
    assert np.isfinite(top.values[:2]).all()
    assert np.isnan(rest["largest"][2:]).all()
    assert not rest["any"][2:].any()


def test_shards_of_a_batch_have_what_the_whole_has(tokens: Any, lm: Any) -> None:
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    captures = [jmi.Capture(f"blocks.{i}.mlp.hook_post", reduce=TOP) for i in (1, 2)]
    captures += [jmi.Capture(POST, reduce=OWN, label="own")]
    run = lambda tokens: jmi.forward(lm.arch, lm.params, tokens, capture=captures).captures
    shards = jax.shard_map(run, mesh=mesh, in_specs=jax.P("x"), out_specs=jax.P(None, "x"))
    assert_agree(jax.jit(shards)(tokens), jax.jit(run)(tokens))


def test_other_vectors_are_no_other_program(tokens: Any, lm: Any, programs: Programs) -> None:
    run = lambda scale: lm.run(
        tokens, capture=[jmi.Capture(POST, reduce=jmi.PerLayer(jmi.Dot(scale * VECTORS)), label="own"), "*"]
    )
    first = np.asarray(run(1.0)["own"])
    programs()
    second = np.asarray(run(2.0)["own"])
    assert programs() == (0, 0)
    assert_agree(second, 2 * first)


def test_gradients_reach_the_largest_entries(tokens: Any, lm: Any) -> None:
    capture = [WHOLE, jmi.Capture(POST, reduce=jmi.Top(2), label="top")]
    read = lambda out: out["top"].values.sum((0, 2, 3))
    found = jax.jit(
        lambda lm, tokens: jmi.value_and_grad_at(
            lm, tokens, read, POST, capture=capture, hooks={RESID: jmi.Zero()}
        )
    )(lm, tokens)
    # Nothing leaves a layer: an entry counts in its own layer alone, once if it is among the largest.
    want = np.zeros(found.out["whole"].shape, np.float32)
    np.put_along_axis(want, largest(found.out["whole"], 2).ids, 1.0, -1)
    assert_equal(found.grads[POST], want)


def test_generated_tokens_have_them_too(tokens: Any, lm: Any) -> None:
    name = "blocks.*.mlp.hook_post"
    made = lm.generate(tokens, 3, capture=[jmi.Capture(name, reduce=jmi.Top(2))])
    whole = lm.run(np.concatenate([tokens, made.tokens], 1), capture=[WHOLE])["whole"]
    want = largest(whole[:, :, tokens.shape[1] :], 2)
    got = made.captures[name]
    assert got.ids.shape == (3, 4, 2, 1, 2)
    assert_agree(jax.tree.map(lambda x: jnp.moveaxis(x[:, :, :, 0], 0, 2), got), want)


def test_only_what_is_kept_takes_memory(arch: Any, params: Any) -> None:
    def bytes_of(*capture: Any) -> int:
        run = lambda params, tokens: jmi.forward(arch, params, tokens, capture=capture)
        analysis = jax.jit(run).lower(params, jnp.zeros((4, 64), jnp.int32)).compile().memory_analysis()
        return analysis.output_size_in_bytes + analysis.temp_size_in_bytes

    row = 4 * 64 * 24 * 4
    none = bytes_of()
    assert bytes_of(jmi.Capture(POST, reduce=jmi.Select(position=-1))) - none < row
    assert bytes_of(jmi.Capture(POST, reduce=jmi.PerLayer(jmi.Dot(VECTORS[:, 0])))) - none < row
    assert bytes_of(POST) - none > 3 * row


@pytest.mark.parametrize(
    ("name", "reduce", "error", "words"),
    [
        ("hook_embed", jmi.PerLayer(jmi.Dot(np.ones((4, 16)))), InterventionError, "inside the blocks only"),
        (POST, jmi.PerLayer(jmi.Dot(np.ones((3, 24)))), InterventionError, "axis of 4 layers"),
        (POST, jmi.PerLayer(jmi.Dot(np.ones((4, 2, 16)))), InterventionError, r"give \[24\] or \[n, 24\]"),
        (POST, jmi.PerLayer(jmi.Select(position=np.array([0, 1, 2, 9]))), InterventionError, "positions=9"),
        (POST, jmi.PerLayer(jmi.Dot(VECTORS), slots=[0, -1, 1, -1]), InterventionError, r"layers \[1, 3\]"),
        (POST, jmi.PerLayer(jmi.Dot(VECTORS), slots=[0, 1, 2, 4]), InterventionError, "of which there are 4"),
        (POST, jmi.PerLayer(jmi.Dot(VECTORS), slots=[0, 1, 2]), InterventionError, "each of 4 layers"),
        (POST, jmi.PerLayer(jmi.Dot(VECTORS), slots=[0.0] * 4), InterventionError, "of which there are 4"),
        (POST, jmi.Top(25), ArgumentError, "k"),
        (POST, jmi.Top(0), ArgumentError, "k"),
        (POST, lambda value, site: (value, 3), InterventionError, "must return arrays"),
        (POST, lambda value, site: {}, InterventionError, "must return arrays"),
        (POST, lambda value, site: (value, "name"), InterventionError, "must return arrays"),
    ],
)
def test_what_does_not_fit_is_refused(
    tokens: Any, lm: Any, name: str, reduce: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        lm.run(tokens, capture=[jmi.Capture(name, reduce=reduce)])
