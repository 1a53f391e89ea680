"""Scores of dictionaries: recorded ones of trained dictionaries, and loops written from the definitions."""

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
import jmi_sparse
from jmi.errors import ArgumentError, HookError
from tests.sparse.by_loops import (
    LENGTHS,
    SITE,
    D,
    F,
    agree,
    atlas,
    clt,
    cross_entropy,
    forward,
    groups_of,
    loop,
    of_features,
    of_outputs,
    padded,
    random_weights,
    sae,
    special,
    values,
)

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
TRAINED = SHARED / "oracles" / "sparse" / "trained"
RECORDED = {
    "blocks.1.hook_mlp_out": "stories260k-mlp1-topk",
    "blocks.2.hook_resid_post": "stories260k-resid2-batchtopk",
}
recorded = pytest.mark.skipif(not TRAINED.is_dir(), reason="oracles/sparse/trained is not here")

score = functools.partial(jmi_sparse.score, batch_size=5, progress=False)


CONVENTIONS = {
    False: lambda t: (False, t >= 0, t >= 0),
    True: lambda t: (True, ~special(t), t >= 0),
    "saelens": lambda t: (True, t >= 0, ~special(t)),
}


@pytest.mark.parametrize("skip", CONVENTIONS)
def test_an_sae_scores_as_a_loop_does(skip):
    tokens, mask = padded()
    kept, ablated, counted = CONVENTIONS[skip](tokens)
    # A residual stream moved by what is added at random would say little: layer 2's is overwritten whole.
    found = score(atlas(), padded(), {SITE: sae()}, skip_special=skip)
    tokens_in = mask & ~(special(tokens) & kept)
    rows = np.nonzero(tokens_in)[0]
    (x,) = values(SITE)
    f, z = forward(random_weights(0), x)
    assert found.outputs[SITE].n == found.features[SITE].n == tokens_in.sum()
    agree(found.outputs[SITE], of_outputs(x[tokens_in], z[tokens_in], groups_of(rows, 5)))
    agree(found.features[SITE], of_features(f[tokens_in], rows))
    assert found.losses[SITE].n == (counted[:, :-1] & mask[:, :-1] & mask[:, 1:]).sum()
    agree(found.losses[SITE], loop(SITE, random_weights(0), SITE, kept, ablated, counted), 1e-4)


def test_a_transcoder_is_compared_with_what_it_stands_for():
    reads, writes = "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"
    transcoder = sae(5, kind="transcoder", hook_in=reads, hook_out=writes)
    found = score(atlas(), padded(), {reads: transcoder})
    tokens, mask = padded()
    (x, y), rows = values(reads, writes), np.nonzero(mask)[0]
    f, z = forward(random_weights(5), x)
    agree(found.outputs[reads], of_outputs(y[mask], z[mask], groups_of(rows, 5)))
    agree(found.features[reads], of_features(f[mask], rows))
    every = tokens >= 0
    agree(found.losses[reads], loop(reads, random_weights(5), writes, False, every, every), 1e-4)
    alone = score(atlas(), padded(), transcoder)
    assert alone.to_json() == found.to_json()


def test_a_dense_layer_of_features_says_which_are_dead_and_dense():
    weights = random_weights(0)
    weights["b_enc"][:3] = -1e3
    weights["b_enc"][3:5] = 1e3
    dictionary = dataclasses.replace(sae(), b_enc=jnp.asarray(weights["b_enc"]))
    found = score(atlas(), padded(), {SITE: dictionary}, losses=False).features[SITE]
    assert found.dead[:3].all()
    assert found.dense[3:5].all()
    np.testing.assert_array_equal(found.density[:5], [0, 0, 0, 1, 1])
    np.testing.assert_allclose(found.log10_density, np.log10(found.density + 1e-10))
    assert found.alive == 1 - found.dead.mean() < 1
    assert np.isnan(found.mean_activation[:3]).all()
    assert found.to_dict()["mean_activation"]["values"][0] is None


def test_chunks_do_not_matter_but_where_it_is_said():
    given = {SITE: [sae(), sae(1)]}
    one, whole = (score(atlas(), padded(), given, batch_size=size).to_dict() for size in (2, 5))
    names = [f"{SITE}[0]", f"{SITE}[1]"]
    assert list(one["outputs"]) == list(one["features"]) == list(one["losses"]) == names
    for part in ("outputs", "features", "losses"):
        for name in names:
            for key, value in one[part][name].items():
                if key in ("fvu_sparsify", "fvu_saelens_legacy"):
                    assert value != whole[part][name][key]
                elif not isinstance(value, str) and "recovered" not in key:
                    np.testing.assert_allclose(*map(numbers, (value, whole[part][name][key])), rtol=3e-5)
    assert one["outputs"][names[0]]["mse"] != one["outputs"][names[1]]["mse"]
    assert one["losses"][names[0]]["ce_spliced"] != one["losses"][names[1]]["ce_spliced"]


def numbers(value):
    return np.array(value["values"] if isinstance(value, dict) else value, float)


def test_padding_and_how_prompts_come_do_not_matter():
    tokens, mask = padded()
    other = np.where(mask, tokens, 77)
    right = np.zeros_like(tokens), np.zeros_like(mask)
    for i, length in enumerate(LENGTHS):
        right[0][i, :length], right[1][i, :length] = tokens[i, mask[i]], True
    first, *others = (
        score(atlas(), given, {SITE: sae()}).to_json()
        for given in (padded(), (other, mask), jmi.Prompts(*right))
    )
    assert first == others[0] == others[1]


def test_a_set_scores_as_its_dictionaries_do():
    layers = {1: sae(3), 4: sae(4)}
    hooked = {
        i: dataclasses.replace(
            d, hook_in=f"blocks.{i}.hook_resid_post", hook_out=f"blocks.{i}.hook_resid_post"
        )
        for i, d in layers.items()
    }
    given = {f"blocks.{i}.hook_resid_post": d for i, d in layers.items()}
    apart = score(atlas(), padded(), given)
    assert score(atlas(), padded(), jmi_sparse.stack(hooked)).to_json() == apart.to_json()
    # A model computes the same beside another dictionary: each is spliced by itself.
    alone = score(atlas(), padded(), {"blocks.4.hook_resid_post": layers[4]})
    assert alone.losses["blocks.4.hook_resid_post"] == apart.losses["blocks.4.hook_resid_post"]


def test_a_cross_layer_transcoder():
    found = score(atlas(), padded(), clt())
    _, mask = padded()
    reads, writes = ([f"blocks.{i}.{end}" for i in (1, 3)] for end in ("hook_resid_mid", "hook_mlp_out"))
    assert (list(found.features), list(found.outputs), list(found.losses)) == (reads, writes, ["clt"])
    x, y, rows = values(*reads), values(*writes), np.nonzero(mask)[0]
    f, z = zip(*(forward(random_weights(seed), v) for seed, v in zip((6, 7), x, strict=True)), strict=True)
    z = [z[0], z[1] + f[0] @ random_weights(8)["W_dec"].astype(np.float64)]
    for i in range(2):
        agree(found.features[reads[i]], of_features(f[i][mask], rows))
        agree(found.outputs[writes[i]], of_outputs(y[i][mask], z[i][mask], groups_of(rows, 5)))
    # All layers at once, with activations that follow: the model with it in place says what that gives.
    logits = jmi_sparse.splice(atlas(), clt(), error=False).run(padded(), exact=True).logits
    zeros = {site: jmi.Zero() for site in writes}
    zero = atlas().run(padded(), zeros, exact=True).logits
    wanted = {"ce_spliced": cross_entropy(logits, mask), "ce_zero": cross_entropy(zero, mask)}
    agree(found.losses["clt"], wanted, 1e-4)


def test_heads_are_read_as_one_vector():
    site = "blocks.2.attn.hook_z"
    found = score(atlas(), padded(), {site: sae(hook_z=True)})
    _, mask = padded()
    x = values(site)[0].reshape(*mask.shape, D)
    _, z = forward(random_weights(0), x)
    agree(found.outputs[site], of_outputs(x[mask], z[mask], groups_of(np.nonzero(mask)[0], 5)))
    assert found.losses[site].ce_spliced != found.losses[site].ce_clean


def test_a_temporal_dictionary_scores_without_losses():
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.normal(size=(F, D)) / D**0.5, jnp.float32)
    temporal = jmi_sparse.Temporal(rows, jnp.zeros(D), (), jmi_sparse.ReLU())
    found = score(atlas(), padded(), {SITE: temporal}, losses=False)
    assert found.losses == {}
    assert 0 < found.features[SITE].l0 < F
    with pytest.raises(ArgumentError, match="temporal"):
        score(atlas(), padded(), {SITE: temporal})


def test_results_are_plain(tmp_path):
    found = score(atlas(), padded(), {SITE: sae()})
    held = json.loads(found.to_json())
    assert held["kind"] == "Scores"
    assert held["features"][SITE]["density"]["axes"] == ["feature"]
    assert held["losses"][SITE]["loss_recovered_mean"] == found.losses[SITE].loss_recovered_mean
    assert repr(found).startswith(f"Scores({SITE}: l0 ")
    found.plot("a title").savefig(tmp_path / "densities.png")
    assert (tmp_path / "densities.png").stat().st_size > 1000


REFUSED = {
    "selects over all": lambda: {SITE: sae(activation=jmi_sparse.BatchTopK(jnp.float32(1), k=3))},
    r"has vectors \[512\]": lambda: {"blocks.2.mlp.hook_post": sae()},
    "reads vectors of tokens": lambda: {"blocks.2.attn.hook_z": sae()},
    "does not say its hook_out": lambda: {SITE: sae(kind="transcoder")},
    "does not say its hook_in": lambda: sae(),
    "no dictionary of one site": lambda: {SITE: clt()},
    "give a dict, {site: dictionary}": lambda: {},
    "is no name of a site": lambda: {3: sae()},
    "several layers": lambda: {SITE: jmi_sparse.stack({2: sae()})},
    "named twice": lambda: {SITE: sae(), "blocks.-4.hook_resid_post": sae()},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused(message):
    with pytest.raises(ArgumentError, match=message):
        score(atlas(), padded(), REFUSED[message]())


def test_other_arguments_are_refused():
    given = {SITE: sae()}
    for message, options in {
        "skip_special='all'": {"skip_special": "all"},
        "skip_special=2": {"skip_special": 2},
        "batch_size=0": {"batch_size": 0},
        "losses='no'": {"losses": "no"},
    }.items():
        with pytest.raises(ArgumentError, match=message):
            score(atlas(), padded(), given, **options)
    with pytest.raises(ArgumentError, match="losses=False"):
        score(atlas(), np.array([[5], [6]]), given)
    with pytest.raises(ArgumentError, match="no token that counts"):
        score(atlas(), np.array([[0, 1]]), given, skip_special=True)
    with pytest.raises(ArgumentError, match="positions="):
        score(atlas(), jmi.Prompts(np.array([[5, 6]]), positions=np.array([[3, 4]])), given)
    with pytest.raises(ArgumentError, match="no tokenizer"):
        score(dataclasses.replace(atlas(), tokenizer=None), padded(), given, skip_special=True)
    with pytest.raises(HookError, match="blocks"):
        score(atlas(), padded(), {"blocks.2.hook_resid": sae()})
    with pytest.raises(HookError, match="several sites"):
        score(atlas(), padded(), {"blocks.*.hook_resid_post": sae()})


@recorded
def test_trained_dictionaries_score_as_their_training_said():
    lm = jmi_models.load(SHARED / "models" / "llama-stories260k")
    tokens = np.load(TRAINED / "tokens.npz")["tokens"][-32:].astype(np.int32)
    given = {site: jmi_sparse.load(TRAINED / folder) for site, folder in RECORDED.items()}
    found = score(lm, tokens, given, batch_size=32, skip_special=True)
    theirs = score(lm, tokens, given, batch_size=32, skip_special="saelens")
    for site, folder in RECORDED.items():
        stats = json.loads((TRAINED / folder / "stats.json").read_text())
        outputs, features, losses = found.outputs[site], found.features[site], found.losses[site]
        got = {
            "fvu": outputs.fvu_saelens,
            "l0": features.l0,
            "alive": features.alive,
            "ce": losses.ce_clean,
            "ce_with_sae": losses.ce_spliced,
            "ce_zero_ablation": losses.ce_zero,
            "loss_recovered": losses.loss_recovered_zero,
        }
        for name, value in got.items():
            assert value == pytest.approx(stats[name], rel=2e-6), (site, name)
        # SAELens's own rule leaves the activations' scores as they are, and ablates the first token, too.
        assert theirs.outputs[site] == outputs
        assert theirs.losses[site].ce_zero != pytest.approx(stats["ce_zero_ablation"], rel=1e-2)


@recorded
def test_trained_dictionaries_read_and_write_what_was_recorded():
    lm = jmi_models.load(SHARED / "models" / "llama-stories260k")
    for site, folder in RECORDED.items():
        held, dictionary = np.load(TRAINED / folder / "io.npz"), jmi_sparse.load(TRAINED / folder)
        x = lm.run(held["tokens"][:1], capture=[site])[site][:, 1:]
        found = {"x": x, "acts": dictionary.encode(x), "forward": dictionary.reconstruct(x)}
        for name, value in found.items():
            away = np.abs(np.asarray(value) - held[name]).max()
            assert away <= 1e-5 * max(1, np.abs(held[name]).max()), (site, name)
