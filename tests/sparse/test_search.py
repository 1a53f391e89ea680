"""Features found by what they write, and written: expected values are numpy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_sparse
from jmi.errors import ArgumentError
from tests.core.conftest import lively, tiny
from tests.sparse.test_splice import D, F, crosslayer, dictionary
from tests.support.tolerances import assert_agree

pytestmark = pytest.mark.programs


@pytest.fixture(scope="module", autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def lm(x64):
    return model()


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(3).integers(0, 29, (2, 7)).astype(np.int32)


def model():
    return jmi.LanguageModel(tiny(), lively(tiny(), jnp.float64), name="tiny")


def swept(values):
    return jmi.Grid(axis=values)["axis"]


def row(clt, source, target, feature):
    return np.asarray(clt.W_dec[clt.pairs.index((source, target))][feature])


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("target", [2, None])
def test_the_best_features_of_all_layers_that_write_into_one(cosine, target):
    clt, directions = crosslayer(False), np.random.default_rng(0).normal(size=(3, D))
    found = jmi_sparse.search_decoders(clt, directions, target=target, k=7, cosine=cosine)
    sources = range(target + 1) if target is not None else range(4)
    for n, direction in enumerate(directions):
        scores = {}
        for source in sources:
            for feature in range(F):
                vector = row(clt, source, source if target is None else target, feature)
                length = np.linalg.norm(vector) * np.linalg.norm(direction) if cosine else 1
                scores[source, feature] = vector @ direction / length
        best = sorted(scores, key=scores.get, reverse=True)[:7]
        assert list(zip(found.layers[n], found.ids[n], strict=True)) == best
        np.testing.assert_allclose(found.scores[n], [scores[each] for each in best], rtol=1e-12)


def test_fewer_features_than_asked_for_are_marked():
    sae = {"blocks.1.hook_resid_post": dictionary(features=3)}
    found = jmi_sparse.search_decoders(sae, np.ones(D), k=5)
    assert found.ids.shape == (5,)
    assert list(found.ids[3:]) == [-1, -1]
    assert np.isneginf(found.scores[3:]).all()


def test_a_vocabulary_is_scanned_in_chunks_and_steps():
    clt, words = crosslayer(False), np.random.default_rng(1).normal(size=(31, D))
    words[4] = 0
    unit = words / np.maximum(np.linalg.norm(words, axis=1, keepdims=True), 1e-10)
    scans = list(jmi_sparse.vocab_scan(clt, words, layers=[3, 0], step=3, k=4, chunk=4))
    assert [scan.layer for scan in scans] == [3, 0]
    for scan in scans:
        np.testing.assert_array_equal(scan.features, np.arange(0, F, 3))
        for i, feature in enumerate(scan.features):
            vector = row(clt, scan.layer, 3, feature)
            cosines = unit @ vector / np.linalg.norm(vector)
            best = np.argsort(-cosines)[:4]
            np.testing.assert_array_equal(scan.tokens[i], best)
            np.testing.assert_allclose(scan.cosines[i], cosines[best], rtol=1e-12)


def test_virtual_weights_are_rows_times_what_the_reader_reads_after_its_gain():
    writer, reader, gain = dictionary(0), dictionary(1, features=9), np.random.default_rng(2).normal(size=D)
    found = np.asarray(jmi_sparse.virtual_weights(writer, reader, gain=gain))
    for i in (0, 7):
        for j in (0, 8):
            want = sum(float(writer.W_dec[i, d]) * gain[d] * float(reader.W_enc[d, j]) for d in range(D))
            np.testing.assert_allclose(found[i, j], want, rtol=1e-12)
    assert_agree(jmi_sparse.virtual_weights(writer.W_dec[:3], reader), writer.W_dec[:3] @ reader.W_enc)


def test_suppressing_and_injecting_is_adding_rows_to_the_stream_of_every_later_layer(lm, tokens):
    clt, metric = crosslayer(False), jmi.metrics.LogProb(5)
    features, weights = [(1, 4), (0, 2), (1, 9)], [-1.0, -1.0, 1.5]
    grid = jmi.Grid(position=[2, 5], strength=[0.5, 4.0])
    hooks = jmi_sparse.inject(lm, clt, features, grid["position"], grid["strength"], weights=weights)
    got = jmi.sweep(lm, tokens, hooks, metric, logits_at=-1, progress=False)
    for i, position in enumerate((2, 5)):
        for j, strength in enumerate((0.5, 4.0)):
            by_hand = {}
            for target in range(4):
                pairs = zip(features, weights, strict=True)
                vector = sum(w * row(clt, s, target, f) for (s, f), w in pairs if s <= target)
                by_hand[f"blocks.{target}.hook_resid_post"] = jmi.Add(strength * vector, positions=position)
            assert_agree(got[i, j], np.asarray(metric(lm.run(tokens, by_hand))))
    one = jmi_sparse.inject(lm, clt, features, 5, 4.0, weights=weights)
    assert_agree(np.asarray(metric(lm.run(tokens, one))), got[1, 1])


def test_features_are_an_axis_and_several_positions_are_written_at_once(lm, tokens):
    saes = {f"blocks.{i}.hook_resid_post": dictionary(i) for i in (1, 2)}
    sets = np.array([[(1, 4), (2, 3)], [(2, 0), (2, 7)], [(1, 1), (1, 2)]])
    grid = jmi.Grid(feature=sets, strength=[1.0, 3.0])
    hooks = jmi_sparse.inject(lm, saes, grid["feature"], [1, 4], grid["strength"])
    metric = jmi.metrics.LogProb(5)
    got = jmi.sweep(lm, tokens, hooks, metric, logits_at=-1, progress=False)
    for i, pairs in enumerate(sets):
        for j, strength in enumerate((1.0, 3.0)):
            by_hand = {}
            for name, sae in saes.items():
                here = [f for layer, f in pairs if f"blocks.{layer}." in name]
                vector = strength * sum((np.asarray(sae.W_dec[f]) for f in here), np.zeros(D))
                by_hand[name] = jmi.Add(vector, positions=[1, 4])
            assert_agree(got[i, j], np.asarray(metric(lm.run(tokens, by_hand))))


def test_several_positions_as_many_as_there_are_layers(lm, tokens):
    clt, metric = crosslayer(False), jmi.metrics.LogProb(5)
    got = metric(lm.run(tokens, jmi_sparse.inject(lm, clt, (0, 2), [0, 2, 3, 5], 2.0)))
    by_hand = {
        f"blocks.{t}.hook_mlp_out": jmi.Add(2.0 * row(clt, 0, t, 2), positions=[0, 2, 3, 5]) for t in range(4)
    }
    assert_agree(np.asarray(got), np.asarray(metric(lm.run(tokens, by_hand))))


def test_norms_are_those_of_float32_in_half_precision():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(5, D)) * 300, jnp.float16)
    sae = jmi_sparse.Dictionary(
        rows.T, rows, jnp.zeros(D, jnp.float16), jmi_sparse.ReLU(), jnp.zeros(5, jnp.float16)
    )
    found = jmi_sparse.search_decoders({"blocks.1.hook_resid_post": sae}, rows[3], k=1)
    assert int(found.ids[0]) == 3
    assert abs(float(found.scores[0]) - 1) < 1e-2


def test_rows_are_written_where_their_dictionary_writes(lm, tokens):
    """An SAE of what enters a layer is not one of what leaves it."""
    metric = jmi.metrics.LogProb(5)
    for point in ("hook_resid_pre", "hook_mlp_out", "hook_attn_out"):
        name, sae = f"blocks.2.{point}", dictionary()
        got = metric(lm.run(tokens, jmi_sparse.inject(lm, {name: sae}, (2, 7), -1, 3.0)))
        by_hand = {name: jmi.Add(3.0 * np.asarray(sae.W_dec[7]), positions=-1)}
        assert_agree(np.asarray(got), np.asarray(metric(lm.run(tokens, by_hand))))
    heads = {"blocks.2.attn.hook_z": dictionary(d_in=24, d_out=24)}
    with pytest.raises(ArgumentError, match="no vectors of this model's stream"):
        jmi_sparse.inject(lm, heads, (2, 7), -1)
    with pytest.raises(ArgumentError, match="several points"):
        jmi_sparse.inject(
            lm, {"blocks.1.hook_mlp_out": dictionary(), "blocks.2.hook_resid_post": dictionary()}, (2, 7), -1
        )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda clt: jmi_sparse.inject(model(), clt, (9, 0), 1), "features of layers"),
        (lambda clt: jmi_sparse.inject(model(), clt, (1, F), 1), "ids from 0"),
        (lambda clt: jmi_sparse.inject(model(), clt, 3, 1), "pairs"),
        (lambda clt: jmi_sparse.inject(model(), clt, [(1, 2)], 1, weights=[1.0, 2.0]), "one for each"),
        (
            lambda clt: jmi_sparse.inject(model(), {"blocks.7.hook_resid_post": dictionary()}, (7, 1), 1),
            "4 layers",
        ),
        (lambda clt: jmi_sparse.inject(model(), clt, (1, 2), 1, np.nan), "strength"),
        (lambda clt: jmi_sparse.inject(model(), clt, (1, 2), 1, "10"), "strength"),
        (lambda clt: jmi_sparse.inject(model(), clt, (1, 2), 1, [2.0, 5.0]), "strength"),
        (lambda clt: jmi_sparse.inject(model(), clt, (1, 2), [[0], [2]]), "position"),
        (lambda clt: jmi_sparse.inject(model(), clt, (1, 2), swept([[0, 1], [2, 3]])), "position"),
        (lambda clt: jmi_sparse.inject(model(), clt, (1, 2), 1, swept([[0, 1], [2, 3]])), "strength"),
        (lambda clt: jmi_sparse.inject(model(), clt, (1, 2), 1, from_layer=-1), "from_layer"),
        (lambda clt: jmi_sparse.inject(model(), clt, (1, 2), "last"), "position"),
        (lambda clt: jmi_sparse.inject(model(), clt, (1, 2), 1, from_layer="x"), "from_layer"),
        (lambda clt: jmi_sparse.inject(model(), clt, (3, 2), 1, from_layer=4), "no such layer"),
        (lambda clt: jmi_sparse.best_rows(clt, np.ones(D), targets=4), "targets"),
        (lambda clt: jmi_sparse.best_rows(clt, np.ones((2, D))), "direction"),
        (lambda clt: jmi_sparse.search_decoders(clt, np.ones(D + 1)), "directions"),
        (lambda clt: jmi_sparse.search_decoders(clt, np.ones(D), target=7), "no feature writes"),
        (lambda clt: jmi_sparse.search_decoders(3, np.ones(D)), "give a dictionary"),
        (lambda clt: jmi_sparse.search_decoders(dictionary(), np.ones(D)), "which layer"),
        (lambda clt: jmi_sparse.vocab_scan(clt, np.ones((3, D))), "vocabulary"),
        (lambda clt: jmi_sparse.vocab_scan(clt, np.ones((30, D)), layers=[9]), "decoders of"),
        (lambda clt: jmi_sparse.virtual_weights(np.ones((2, 3)), np.ones((4, 2))), "shapes"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ArgumentError, match=words):
        call(crosslayer(False))
