"""Dictionaries in a model: expected values are loops over layers, by hooks, in numpy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_sparse
from jmi.errors import ArgumentError, HookError
from jmi.hooks.freeze import Detach
from tests.core.conftest import lively, tiny
from tests.support.tolerances import assert_agree

pytestmark = pytest.mark.programs

D, F = 16, 20
RESID = "blocks.{}.hook_resid_post"


@pytest.fixture(scope="module", autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def lm(x64):
    return jmi.LanguageModel(tiny(), lively(tiny(), jnp.float64), name="tiny")


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(3).integers(0, 29, (2, 7)).astype(np.int32)


def dictionary(seed=0, activation=None, features=F, d_in=D, d_out=D, skip=False, **options):
    draw = np.random.default_rng(seed).normal
    activation = jmi_sparse.JumpReLU(jnp.full(features, 0.2)) if activation is None else activation
    return jmi_sparse.Dictionary(
        W_enc=jnp.asarray(draw(size=(d_in, features)) / 4),
        W_dec=jnp.asarray(draw(size=(features, d_out)) / 3),
        b_dec=jnp.asarray(draw(size=d_out) / 5),
        b_enc=None if isinstance(activation, jmi_sparse.Gated) else jnp.asarray(draw(size=features) / 5),
        W_skip=jnp.asarray(draw(size=(d_out, d_in)) / 9) if skip else None,
        activation=activation,
        **options,
    )


def gated():
    draw = np.random.default_rng(9).normal
    return jmi_sparse.Gated(*(jnp.asarray(draw(size=F) / 4) for _ in range(3)))


def pursuit():
    rows = np.random.default_rng(8).normal(size=(F, D))
    rows = jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return jmi_sparse.MatchingPursuit(rows, jnp.zeros(D), 0.0, 4)


ALL = {
    "relu": lambda: dictionary(activation=jmi_sparse.ReLU(), apply_b_dec_to_input=True),
    "jump": dictionary,
    "topk": lambda: dictionary(activation=jmi_sparse.TopK(1), rescale_acts_by_decoder_norm=True),
    "gated": lambda: dictionary(activation=gated()),
    "norm": lambda: dictionary(normalisation=jmi_sparse.ConstantNorm()),
    "pursuit": pursuit,
}


@pytest.mark.parametrize("kind", ALL)
def test_with_its_error_an_autoencoder_changes_nothing_and_without_it_is_its_reconstruction(lm, tokens, kind):
    sae, site = ALL[kind](), RESID.format(1)
    names = [f"{site}.hook_sae_{part}" for part in ("input", "acts_post", "recons", "error", "output")]
    whole = jmi_sparse.splice(lm, {site: sae}).run(tokens, capture=[site, *names])
    assert_agree(whole.logits, lm.run(tokens).logits)
    x = whole[site]
    assert_agree(whole[names[0]], x)
    assert_agree(whole[names[1]], sae.encode(x))
    assert_agree(whole[names[2]], sae.reconstruct(x))
    assert_agree(whole[names[3]], sae.error(x), scale=x)
    bare = jmi_sparse.splice(lm, {site: sae}, error=False)
    want = lm.run(tokens, {site: jmi.Replace(sae.reconstruct(lm.run(tokens, capture=[site])[site]))})
    assert_agree(bare.run(tokens).logits, want.logits)
    assert names[3] not in bare.sites()


def test_hooks_on_each_point_of_an_autoencoder_do_what_saelens_does(lm, tokens):
    sae, site = dictionary(), RESID.format(1)
    spliced = jmi_sparse.splice(lm, {site: sae})
    x = lm.run(tokens, capture=[site])[site]
    missed, pre = sae.error(x), np.asarray(sae.encode_pre(x))
    W_dec, b_dec = np.asarray(sae.W_dec), np.asarray(sae.b_dec)

    def output(part, hook, host=None):
        name = f"{site}.hook_sae_output"
        return spliced.run(tokens, {f"{site}.hook_sae_{part}": hook} | (host or {}), capture=[name])[name]

    features = np.asarray(sae.encode(x))
    assert (features[..., 3] > 0).any()
    off = np.where(np.arange(F) == 3, 0, features)
    assert_agree(output("acts_post", jmi.Zero(units=3)), off @ W_dec + b_dec + missed)
    # The error is that of what arrives, whatever hooks make of the encoder's input.
    pushed = np.where(pre + 1 > 0.2, pre + 1, 0) * (pre + 1 > 0)
    assert_agree(output("acts_pre", jmi.Add(1.0)), pushed @ W_dec + b_dec + missed)
    assert_agree(output("input", jmi.Scale(2.0)), sae.reconstruct(2 * x) + missed)
    assert_agree(output("recons", jmi.Zero()), missed, scale=x)
    assert_agree(output("error", jmi.Zero()), sae.reconstruct(x))
    # Hooks on the host's own point act before encoding.
    assert_agree(output("acts_post", jmi.Scale(1.0), {site: jmi.Scale(3.0)}), 3 * x)


def test_pre_activations_of_a_gated_one_are_magnitudes(lm, tokens):
    sae, site = dictionary(activation=gated()), RESID.format(2)
    spliced = jmi_sparse.splice(lm, {site: sae}, error=False)
    names = [f"{site}.hook_sae_{part}" for part in ("acts_pre", "acts_post")]
    out = spliced.run(tokens, {names[0]: jmi.Scale(2.0)}, capture=[site, *names])
    assert_agree(out[names[0]], 2 * sae.encode_pre(out[site]))
    active = np.asarray(sae.encode(out[site])) > 0
    assert active.any()
    gate = np.asarray(out[site]) @ np.asarray(sae.W_enc) + np.asarray(sae.activation.b_gate) > 0
    assert_agree(out[names[1]], np.where(gate, np.maximum(out[names[0]], 0), 0))


def test_features_are_swept_patched_differentiated_and_generated_with_like_heads(lm, tokens):
    sites = [RESID.format(i) for i in (1, 3)]
    spliced = jmi_sparse.splice(lm, {site: dictionary(seed) for seed, site in enumerate(sites)})
    point, metric = "blocks.*.hook_resid_post.hook_sae_acts_post", jmi.metrics.LogProb(5)
    grid = jmi.Grid(layer=[1, 3], feature=[2, 7, 11], strength=[0.0, 3.0])
    scaled = jmi.Scale(grid["strength"], units=grid["feature"], positions=4)
    got = jmi.sweep(
        spliced, tokens, {point: jmi.At(grid["layer"], scaled)}, metric, logits_at=-1, progress=False
    )
    want = [
        metric(spliced.run(tokens, {point.replace("*", str(i)): jmi.Scale(s, units=f, positions=4)}))
        for i in (1, 3)
        for f in (2, 7, 11)
        for s in (0.0, 3.0)
    ]
    assert_agree(got.reshape(12, 2), np.asarray(want))
    assert np.ptp(np.asarray(want)) > 1e-3
    # The gradient at features is the slope along them, through the error of the later dictionary, too.
    first = point.replace("*", "1")
    slope = jax.jit(lambda lm: jmi.value_and_grad_at(lm, tokens, metric, first))(spliced).grads[first]
    step = np.random.default_rng(3).normal(size=slope.shape) * 1e-6
    ahead, back = (metric(spliced.run(tokens, {first: jmi.Add(s * step)})) for s in (1, -1))
    np.testing.assert_allclose((ahead - back) / 2, (slope * step).sum((1, 2)), rtol=1e-6)
    text = spliced.generate(tokens, 3, hooks={first: jmi.Scale(4.0, units=2)}, capture=["hook_logits"])
    whole = spliced.run(np.concatenate([tokens, text.tokens], 1), {first: jmi.Scale(4.0, units=2)}).logits
    assert_agree(np.moveaxis(np.asarray(text.captures["hook_logits"])[:, :, 0], 0, 1), whole[:, 7:])


def test_with_the_error_gradients_of_the_model_stay_and_a_detached_one_leaves_those_of_features(lm, tokens):
    sae, site, start = dictionary(), RESID.format(2), "blocks.0.hook_resid_pre"
    spliced, metric = jmi_sparse.splice(lm, {site: sae}), jmi.metrics.LogProb(5)

    def slope(lm, hooks=None):
        return jmi.value_and_grad_at(lm, tokens, metric, start, hooks=hooks).grads[start]

    want = slope(lm)
    assert_agree(slope(spliced), want, "gradients")
    alone = jmi_sparse.splice(lm, {site: sae}, error=False)
    # At the values of the true model: without the error the reconstruction would be another point.
    missed = sae.error(lm.run(tokens, capture=[site])[site])
    through = slope(alone, {f"{site}.hook_sae_output": jmi.Add(missed)})
    assert_agree(slope(spliced, {f"{site}.hook_sae_error": Detach()}), through, "gradients")
    assert np.abs(through - want).max() > 1e-4


IN, OUT = "blocks.{}.mlp.hook_in", "blocks.{}.hook_mlp_out"


def transcoder(seed, layer, **options):
    hooks = {"hook_in": IN.format(layer), "hook_out": OUT.format(layer)}
    return dictionary(seed, kind="transcoder", skip=True, **hooks, **options)


def test_transcoders_stand_for_mlps(lm, tokens):
    layers = (0, 2)
    each = {IN.format(i): transcoder(i, i) for i in layers}
    hooks: dict[str, Any] = {}
    for i in layers:
        read = lm.run(tokens, hooks, [IN.format(i)])[IN.format(i)]
        hooks[OUT.format(i)] = jmi.Replace(each[IN.format(i)].reconstruct(read))
    bare = jmi_sparse.splice(lm, each, error=False)
    features = ["blocks.0.mlp.hook_features", "blocks.2.mlp.hook_features"]
    out = bare.run(tokens, capture=[*features, IN.format(2)])
    assert_agree(out.logits, lm.run(tokens, hooks).logits)
    assert_agree(out[features[1]], each[IN.format(2)].encode(out[IN.format(2)]))
    whole = jmi_sparse.splice(lm, each)
    assert_agree(whole.run(tokens).logits, lm.run(tokens).logits)
    # One feature off takes its row away, and no more.
    plain = whole.run(tokens, capture=[OUT.format(2), features[1], "blocks.2.mlp.hook_error"])
    off = whole.run(tokens, {features[1]: jmi.Zero(units=4)}, capture=[OUT.format(2)])[OUT.format(2)]
    active = np.asarray(plain[features[1]])[..., 4:5]
    assert (active > 0).any()
    assert_agree(off, plain[OUT.format(2)] - active * np.asarray(each[IN.format(2)].W_dec[4]))
    silent = whole.run(tokens, {"blocks.2.mlp.hook_error": jmi.Zero()}, capture=[OUT.format(2)])
    assert_agree(silent[OUT.format(2)], plain[OUT.format(2)] - plain["blocks.2.mlp.hook_error"])


def test_a_dictionary_where_nothing_reads_any_more_is_refused(lm, tokens):
    inside = dictionary(d_in=24, d_out=24)
    both = {IN.format(1): transcoder(1, 1), "blocks.1.mlp.hook_post": inside}
    with pytest.raises(ArgumentError, match="stands for what is here"):
        jmi_sparse.splice(lm, both, error=False)
    assert_agree(jmi_sparse.splice(lm, both).run(tokens).logits, lm.run(tokens).logits)


def test_points_that_nothing_reads_any_more_are_closed(lm, tokens):
    """A hook there would do nothing, without a word."""
    whole, bare = (jmi_sparse.splice(lm, {IN.format(1): transcoder(1, 1)}, error=e) for e in (True, False))
    for point in ("mlp.hook_pre", "mlp.hook_post", "mlp.hook_out"):
        with pytest.raises(HookError, match="layer 1 has no such point"):
            bare.run(tokens, {f"blocks.1.{point}": jmi.Zero()})
        changed = whole.run(tokens, {f"blocks.1.{point}": jmi.Zero()}).logits
        assert_agree(changed, lm.run(tokens, {f"blocks.1.{point}": jmi.Zero()}).logits)
    assert "blocks.1.mlp.hook_in" in bare.sites()
    mid = dataclasses.replace(transcoder(1, 1), hook_in="blocks.1.hook_resid_mid")
    names = {n for n in jmi_sparse.splice(lm, mid, error=False).sites() if n.startswith("blocks.1.")}
    inside = ("hook_mlp_in", "ln2.hook_scale", "ln2.hook_normalized", "mlp.hook_in")
    assert not names & {f"blocks.1.{point}" for point in inside}
    assert {"blocks.1.attn.hook_in", "blocks.1.ln1.hook_scale"} <= names


def crosslayer(skip):
    draw, n = np.random.default_rng(5).normal, 4
    pairs = tuple((s, t) for s in range(n) for t in range(s, n))
    return jmi_sparse.CrossLayerTranscoder(
        W_enc=jnp.asarray(draw(size=(n, D, F)) / 4),
        W_dec=jnp.asarray(draw(size=(len(pairs), F, D)) / 5),
        b_dec=jnp.asarray(draw(size=(n, D)) / 5),
        b_enc=jnp.asarray(draw(size=(n, F)) / 5),
        activation=jmi_sparse.JumpReLU(jnp.asarray(draw(size=(n, F)) / 9)),
        W_skip=jnp.asarray(draw(size=(n, D, D)) / 9) if skip else None,
        pairs=pairs,
        layers=tuple(range(n)),
        hook_in="blocks.*.hook_resid_mid",
        hook_out="blocks.*.hook_mlp_out",
    )


@pytest.mark.parametrize("skip", [False, True])
def test_a_cross_layer_transcoder_writes_in_later_layers(lm, tokens, skip):
    clt = crosslayer(skip)
    reads = [f"blocks.{i}.hook_resid_mid" for i in range(4)]
    hooks: dict[str, Any] = {}
    for i in range(4):
        x = jnp.stack([lm.run(tokens, hooks, reads)[name] for name in reads])
        hooks[OUT.format(i)] = jmi.Replace(clt.reconstruct(x)[i])
    assert_agree(jmi_sparse.splice(lm, clt, error=False).run(tokens).logits, lm.run(tokens, hooks).logits)
    whole = jmi_sparse.splice(lm, clt)
    outs, feature = [OUT.format(i) for i in range(4)], "blocks.1.mlp.hook_features"
    plain = whole.run(tokens, capture=[*outs, *reads, feature])
    assert_agree(plain.logits, lm.run(tokens).logits)
    assert_agree(plain[feature], clt.encode(jnp.stack([plain[name] for name in reads]))[1])
    # A feature that is off writes nothing into its own layer and later ones; all else is written as before.
    fixed = {name: jmi.Replace(plain[name]) for name in reads}
    off = whole.run(tokens, {feature: jmi.Zero(units=4), **fixed}, capture=outs)
    active = np.asarray(plain[feature])[..., 4:5]
    assert (active > 0).any()
    for i in range(4):
        row = np.asarray(clt.W_dec[clt.pairs.index((1, i))][4]) if i >= 1 else 0
        assert_agree(off[OUT.format(i)], np.asarray(plain[OUT.format(i)]) - active * row)
    text = whole.generate(tokens, 3, hooks={feature: jmi.Zero(units=4)}, capture=["hook_logits"])
    again = whole.run(np.concatenate([tokens, text.tokens], 1), {feature: jmi.Zero(units=4)}).logits
    assert_agree(np.moveaxis(np.asarray(text.captures["hook_logits"])[:, :, 0], 0, 1), again[:, 7:])


def test_sets_and_dictionaries_of_several_widths_share_their_points(lm, tokens):
    sizes = {0: 12, 1: F, 3: 15}
    each = {i: dictionary(i, jmi_sparse.TopK(3, "none"), features=n) for i, n in sizes.items()}
    point = "blocks.*.hook_resid_post"
    spliced = jmi_sparse.splice(lm, {point.replace("*", str(i)): d for i, d in each.items()}, error=False)
    as_set = jmi_sparse.splice(lm, {point: jmi_sparse.stack(each)}, error=False)
    name = f"{point}.hook_sae_acts_post"
    one, other = (model.run(tokens, capture=[name, point]) for model in (spliced, as_set))
    assert_agree(one.logits, other.logits)
    assert one.layers("hook_resid_post.hook_sae_acts_post") == (0, 1, 3)
    for i, n in sizes.items():
        found = np.asarray(one[name.replace("*", str(i))])
        assert found.shape == (2, 7, F)
        assert not found[..., n:].any()
        assert_agree(found[..., :n], each[i].encode(one[point.replace("*", str(i))]))


def test_dictionaries_of_one_structure_are_data(lm, tokens):
    site, traces = RESID.format(1), []

    @jax.jit
    def logits(spliced):
        traces.append(1)
        return spliced.run(tokens).logits

    one, two = (jmi_sparse.splice(lm, {site: dictionary(seed)}, error=False) for seed in (0, 1))
    assert np.abs(logits(one) - logits(two)).max() > 1e-3
    assert len(traces) == 1
    # Seeds are an axis: models with dictionaries, mapped.
    both = jax.tree.map(lambda *x: jnp.stack(x), one.params["modules"], two.params["modules"])
    run = lambda modules: (
        dataclasses.replace(one, params={**lm.params, "modules": modules}).run(tokens).logits
    )
    assert_agree(jax.vmap(run)(both)[1], logits(two))


def test_heads_and_their_width_are_one_vector(lm, tokens):
    site = "blocks.2.attn.hook_z"
    sae = dictionary(d_in=24, d_out=24)
    spliced = jmi_sparse.splice(lm, {site: sae}, error=False)
    z = lm.run(tokens, capture=[site])[site]
    new = sae.reconstruct(z.reshape(2, 7, 24)).reshape(z.shape)
    assert_agree(spliced.run(tokens).logits, lm.run(tokens, {site: jmi.Replace(new)}).logits)
    assert spliced.sites()[f"{site}.hook_sae_recons"].shape == (1, 1, 4, 6)


def test_special_tokens_are_left_out(lm, tokens):
    site, ids = RESID.format(1), [int(tokens[0, 0]), int(tokens[1, 3])]
    spliced = jmi_sparse.splice(lm, {site: dictionary()}, error=False, skip_special=ids)
    x = lm.run(tokens, capture=[site])[site]
    special = np.isin(tokens, ids)[..., None]
    want = lm.run(tokens, {site: jmi.Replace(np.where(special, x, dictionary().reconstruct(x)))})
    assert_agree(spliced.run(tokens).logits, want.logits)
    # Tokens that are generated are told apart like those of the prompt.
    text = spliced.generate(tokens, 4, capture=["hook_logits"])
    ids.append(int(text.tokens[0, 1]))
    spliced = jmi_sparse.splice(lm, {site: dictionary()}, error=False, skip_special=ids)
    text = spliced.generate(tokens, 4, capture=["hook_logits"])
    whole = spliced.run(np.concatenate([tokens, text.tokens], 1)).logits
    assert_agree(np.moveaxis(np.asarray(text.captures["hook_logits"])[:, :, 0], 0, 1), whole[:, 7:])
    clt = jmi_sparse.splice(lm, crosslayer(True), error=False, skip_special=ids)
    out = clt.run(tokens, capture=["blocks.0.hook_mlp_out"])["blocks.0.hook_mlp_out"]
    kept = lm.run(tokens, capture=["blocks.0.hook_mlp_out"])["blocks.0.hook_mlp_out"]
    special = np.isin(tokens, ids)
    assert_agree(np.asarray(out)[special], np.asarray(kept)[special])
    assert np.abs(np.asarray(out - kept)[~special]).min(-1).max() > 1e-3


def test_a_carry_of_a_run_with_other_hooks_keeps_what_these_did(lm, tokens):
    """The error is that of what is read, not of what was written along the way."""
    whole, feature = jmi_sparse.splice(lm, crosslayer(True)), "blocks.1.mlp.hook_features"
    hooks = {feature: jmi.Zero(units=4)}
    first = whole.run(tokens, hooks, stop_at_layer=2)
    then = whole.run(tokens, start_at_layer=2, carry=first.carry).logits
    assert_agree(then, whole.run(tokens, hooks).logits)


def test_a_skip_of_an_autoencoder_is_added(lm, tokens):
    site, sae = RESID.format(1), dictionary(skip=True)
    bare = jmi_sparse.splice(lm, {site: sae}, error=False)
    x = lm.run(tokens, capture=[site])[site]
    assert_agree(bare.run(tokens).logits, lm.run(tokens, {site: jmi.Replace(sae.reconstruct(x))}).logits)
    whole = jmi_sparse.splice(lm, {site: sae})
    same = {f"{site}.hook_sae_acts_post": jmi.Scale(1.0), f"{site}.hook_sae_acts_pre": jmi.Scale(1.0)}
    assert_agree(whole.run(tokens, same).logits, lm.run(tokens).logits)


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float32")])
def test_with_its_error_nothing_changes_in_any_dtype(lm, tokens, dtypes):
    model, own = map(jnp.dtype, dtypes)
    cast = lambda tree, dtype: jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
    small = dataclasses.replace(lm, params=cast(lm.params, model))
    site, sae = RESID.format(1), cast(dictionary(), own)
    out = jmi_sparse.splice(small, {site: sae}).run(tokens, capture=["blocks.2.hook_resid_pre"])
    got, want = (
        np.asarray(o["blocks.2.hook_resid_pre"], np.float64)
        for o in (out, small.run(tokens, capture=["blocks.2.hook_resid_pre"]))
    )
    bar = 2e-2 if model == jnp.bfloat16 else 1e-6
    assert np.abs(got - want).max() <= bar * np.abs(want).max()


def test_parts_of_a_stream_that_a_module_writes_are_refused(lm, tokens):
    spliced = jmi_sparse.splice(lm, {RESID.format(1): dictionary()}, error=False)
    with pytest.raises(ArgumentError, match="no sum of its parts"):
        jmi.interp.decompose(spliced, tokens)


def late(**changes):
    return dataclasses.replace(crosslayer(False), **changes)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({}, ArgumentError, "give a dict"),
        ({RESID.format(1): np.zeros(3)}, ArgumentError, "is no dictionary"),
        ({RESID.format(9): dictionary}, HookError, "layer"),
        ({"hook_embed": dictionary}, HookError, "in the layers"),
        ({"blocks.*.hook_resid_post": dictionary}, HookError, "one site"),
        ({"blocks.1.hook_resid_pots": dictionary}, HookError, "Nearest"),
        ({"blocks.1.mlp.hook_post": dictionary}, ArgumentError, "vectors of 16; .* has d_mlp 24"),
        ({"blocks.1.attn.hook_pattern": dictionary}, ArgumentError, "vectors of 16"),
        ({RESID.format(1): lambda: dictionary(kind="transcoder")}, ArgumentError, "where it writes"),
        ({IN.format(1): lambda: transcoder(0, 2)}, ArgumentError, "another layer"),
        (
            {RESID.format(1): lambda: dictionary(activation=jmi_sparse.BatchTopK(jnp.ones(()), 2))},
            ArgumentError,
            "at_threshold",
        ),
        ({RESID.format(3): dictionary, RESID.format(-1): dictionary}, ArgumentError, "two dictionaries"),
        (
            lambda: late(activation=jmi_sparse.BatchTopK(jnp.ones(4), 2)),
            ArgumentError,
            "cannot stand in a run",
        ),
        (dictionary, ArgumentError, "does not say where it reads"),
        ({"blocks.*.hook_resid_mid": lambda: crosslayer(False)}, ArgumentError, "alone"),
    ],
)
def test_what_cannot_be_spliced_is_refused(lm, given, error, words):
    made = given() if callable(given) else {k: v() if callable(v) else v for k, v in given.items()}
    with pytest.raises(error, match=words):
        jmi_sparse.splice(lm, made)
    with pytest.raises(ArgumentError, match="no tokenizer"):
        jmi_sparse.splice(lm, {RESID.format(1): dictionary()}, skip_special=True)
