"""Active features of prompts, from one run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_sparse
from jmi.errors import ArgumentError, HookError
from tests.core.conftest import lively, tiny
from tests.sparse.test_splice import crosslayer, dictionary
from tests.support.tolerances import assert_agree

pytestmark = pytest.mark.programs


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


def dense(found, n_features):
    """Features ``[n, b, s, features]`` of what was kept of them."""
    back = np.zeros((*found.ids.shape[:3], n_features))
    for index, feature in np.ndenumerate(found.ids):
        if feature >= 0:
            assert back[(*index[:3], feature)] == 0
            back[(*index[:3], feature)] = found.values[index]
    return back


def test_of_a_set_a_cross_layer_transcoder_and_dictionaries_of_their_own(lm, tokens):
    reads = [f"blocks.{i}.hook_resid_mid" for i in range(4)]
    out = lm.run(tokens, capture=reads)
    x = jnp.stack([out[name] for name in reads])
    clt = crosslayer(False)
    found = jmi_sparse.features(lm, tokens, clt, capacity=20)
    assert (found.sites, found.layers) == (tuple(reads), (0, 1, 2, 3))
    assert_agree(dense(found, 20), np.asarray(clt.encode(x)))
    each = {0: dictionary(0), 2: dictionary(1)}
    want = np.stack([each[i].encode(x[i]) for i in each])
    as_set = jmi_sparse.features(lm, tokens, {"blocks.*.hook_resid_mid": jmi_sparse.stack(each)}, capacity=20)
    alone = jmi_sparse.features(lm, tokens, {reads[2]: each[2], reads[0]: each[0]}, capacity=20)
    for found in (as_set, alone):
        assert found.layers == (0, 2)
        assert_agree(dense(found, 20), want)
        assert not found.overflowed.any()
    values = np.where(want > 0, want, -1)[:, 0].max(1)
    layer, feature = np.unravel_index(values.argmax(), values.shape)
    assert alone.strongest(1) == [(f"blocks.{(0, 2)[layer]}.hook_resid_mid", feature)]


def test_what_does_not_fit_into_the_places_is_told(lm, tokens):
    name, sae = "blocks.1.hook_resid_post", dictionary()
    features = np.asarray(sae.encode(lm.run(tokens, capture=[name])[name]))
    found = jmi_sparse.features(lm, tokens, {name: sae}, capacity=3)
    np.testing.assert_array_equal(found.overflowed[0], (features > 0).sum(-1) > 3)
    assert found.overflowed.any()
    assert_agree(found.values[0], -np.sort(-features, axis=-1)[..., :3])
    off = jmi_sparse.features(lm, tokens, {name: sae}, capacity=3, hooks={name: jmi.Zero()})
    assert_agree(off.values[0, 0, 0], -np.sort(-np.asarray(sae.encode(np.zeros(16))))[:3])


def test_what_would_be_mixed_up_is_refused(lm, tokens):
    name = "blocks.1.hook_resid_post"
    batch = dictionary(activation=jmi_sparse.BatchTopK(jnp.ones(()), 2))
    some = {
        "blocks.*.hook_resid_post": jmi_sparse.stack({1: dictionary(), 2: dictionary()}),
        name: dictionary(),
    }
    for given, words in (
        ({name: batch}, "at_threshold"),
        ({"blocks.*.hook_resid_post": dictionary()}, "one site"),
        ({name: jmi_sparse.stack({1: dictionary()})}, "several layers"),
        (some, "two dictionaries read here"),
    ):
        with pytest.raises(ArgumentError, match=words):
            jmi_sparse.features(lm, tokens, given)


def test_what_looks_at_other_positions_takes_no_padding(lm, tokens):
    from tests.sparse.test_dictionary import temporal

    batch = dictionary(activation=jmi_sparse.BatchTopK(jnp.ones(()), 2))
    for one, takes in ((dictionary(), True), (batch, False), (temporal(), False)):
        assert jmi_sparse.Encode(one, 3).takes_padding == takes
    padded = (tokens, np.arange(7)[None] >= np.array([[0], [2]]))
    with pytest.raises(ArgumentError, match="one length"):
        jmi_sparse.features(lm, padded, {"blocks.1.hook_resid_post": temporal()})
    with pytest.raises(HookError):
        jmi_sparse.features(lm, tokens, {"blocks.*.hook_resid_post": jmi_sparse.stack({9: dictionary()})})


def test_bad_input_is_named(lm, tokens):
    for given, words in (
        ({}, "give"),
        ({"blocks.1.hook_resid_post": 3}, "dictionaries"),
        (dictionary(), "site"),
    ):
        with pytest.raises(ArgumentError, match=words):
            jmi_sparse.features(lm, tokens, given)
    with pytest.raises(HookError, match="Nearest"):
        jmi_sparse.features(lm, tokens, {"blocks.1.hook_resid_pots": dictionary()})
    with pytest.raises(ArgumentError, match="capacity"):
        jmi_sparse.features(lm, tokens, {"blocks.1.hook_resid_post": dictionary()}, capacity=0)
