"""Dictionaries of several layers by loops in numpy, written from their definitions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi_sparse
from jmi.errors import ArgumentError
from tests.sparse.made import D, F, points
from tests.support.tolerances import assert_agree

RNG = np.random.default_rng(31)
LAYERS, OUT = 3, 5
PAIRS = tuple((i, t) for i in range(LAYERS) for t in range(i, LAYERS))
HELD = {
    "W_enc": RNG.normal(size=(LAYERS, D, F)),
    "W_dec": RNG.normal(size=(len(PAIRS), F, OUT)) * RNG.uniform(0.3, 3, (len(PAIRS), F, 1)),
    "b_dec": RNG.normal(size=(LAYERS, OUT)),
    "b_enc": RNG.normal(size=(LAYERS, F)) * 0.3,
}
SKIP, THRESHOLD = RNG.normal(size=(LAYERS, OUT, D)), RNG.uniform(-0.5, 1.5, (LAYERS, F))
X = RNG.normal(size=(LAYERS, 2, 4, D))


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def clt(activation=None, **options):
    arrays = {name: jnp.asarray(array) for name, array in HELD.items()}
    given = {"pairs": PAIRS, "layers": (0, 1, 2)} | options
    activation = jmi_sparse.ReLU() if activation is None else activation
    return jmi_sparse.CrossLayerTranscoder(**(arrays | {"activation": activation} | given))


def jump():
    return jmi_sparse.JumpReLU(jnp.asarray(THRESHOLD))


def encoded(x, activate):
    """Features of each layer, one vector after the other."""
    found = np.zeros((*x.shape[:-1], F))
    for layer in range(len(x)):
        for place in np.ndindex(x.shape[1:-1]):
            pre = HELD["b_enc"][layer].copy()
            for i in range(D):
                pre += x[layer][place][i] * HELD["W_enc"][layer, i]
            found[layer][place] = activate(pre, layer)
    return found


def decoded(features, pairs=PAIRS, bias=None, rows=None):
    """What features write into each layer, one feature after the other."""
    bias, rows = HELD["b_dec"] if bias is None else bias, HELD["W_dec"] if rows is None else rows
    lead = features.shape[1:-1]
    y = np.stack([np.broadcast_to(b, (*lead, OUT)) for b in bias]).copy()
    for number, (source, target) in enumerate(pairs):
        for f in range(features.shape[-1]):
            y[target] += features[source][..., f : f + 1] * rows[number, f]
    return y


ACTIVATIONS = {
    "relu": (jmi_sparse.ReLU, lambda pre, layer: np.where(pre > 0, pre, 0)),
    "jumprelu": (jump, lambda pre, layer: np.where((pre > THRESHOLD[layer]) & (pre > 0), pre, 0)),
    "topk": (
        lambda: jmi_sparse.TopK(4, "none"),
        lambda pre, layer: np.where(pre >= np.sort(pre)[-4], pre, 0),
    ),
}


@pytest.mark.parametrize("form", ACTIVATIONS)
def test_cross_layer_by_a_loop(form):
    make, activate = ACTIVATIONS[form]
    one = clt(make(), W_skip=jnp.asarray(SKIP))
    features = encoded(X, activate)
    assert 0 < (features != 0).mean() < 0.9
    assert_agree(one.encode(X), features)
    pre = encoded(X, lambda pre, layer: pre)
    assert_agree(one.encode_pre(X), pre)
    y = decoded(features)
    assert_agree(one.decode(features), y)
    skipped = np.stack([X[t] @ SKIP[t].T for t in range(LAYERS)])
    assert_agree(one.reconstruct(X), y + skipped)
    assert_agree(one.error(X, np.zeros_like(y)), -y - skipped)
    assert_agree(dataclasses.replace(one, W_skip=None).reconstruct(X), y)
    ids, values, overflowed = one.encode_sparse(X, F)
    assert ids.shape == (*X.shape[:-1], F)
    assert not overflowed.any()
    assert_agree(one.decode_sparse((ids, values, overflowed)), y)
    few = one.encode_sparse(X, 2)
    np.testing.assert_array_equal(few.overflowed, (features != 0).sum(-1) > 2)
    order = np.argsort(-np.abs(features), axis=-1, kind="stable")
    largest = np.where(np.argsort(order, axis=-1) < 2, features, 0)
    assert_agree(one.decode_sparse(few), decoded(largest))
    assert_agree(jax.jit(type(one).reconstruct)(one, X), y + skipped)


def test_features_write_into_their_layer_and_later_ones_alone():
    one = clt()
    for layer in range(LAYERS):
        features = np.zeros((LAYERS, F))
        features[layer] = 1.0
        moved = np.abs(np.asarray(one.decode(features)) - HELD["b_dec"]).max(-1) > 0
        np.testing.assert_array_equal(moved, np.arange(LAYERS) >= layer)


def test_silent_positions_have_the_full_shape():
    never = jmi_sparse.JumpReLU(jnp.full((LAYERS, F), np.inf))
    one = clt(never)
    assert_agree(one.reconstruct(X), np.broadcast_to(HELD["b_dec"][:, None, None], (LAYERS, 2, 4, OUT)))
    sparse = one.encode_sparse(X, 3)
    assert (np.asarray(sparse.ids) == -1).all()
    assert_agree(one.decode_sparse(sparse), one.reconstruct(X))
    # Only the last position is silent.
    features = np.asarray(clt(jump()).encode(X)).copy()
    features[:, :, -1] = 0
    assert_agree(clt(jump()).decode(features), decoded(features))
    assert clt().reconstruct(X[:, :, :0]).shape == (LAYERS, 2, 0, OUT)


@pytest.mark.parametrize("form", ["relu", "jumprelu"])
def test_folded_norms_change_no_reconstruction(form):
    one = clt(ACTIVATIONS[form][0](), W_skip=jnp.asarray(SKIP))
    norms = np.zeros((LAYERS, F))
    for number, (source, _) in enumerate(PAIRS):
        norms[source] += (HELD["W_dec"][number] ** 2).sum(-1)
    norms = np.sqrt(norms)
    assert_agree(one.decoder_norms, norms)
    folded = one.fold_norms()
    assert_agree(folded.decoder_norms, np.ones((LAYERS, F)))
    assert_agree(folded.encode(X), np.asarray(one.encode(X)) * norms[:, None, None])
    assert_agree(folded.reconstruct(X), one.reconstruct(X))
    assert_agree(folded.unfold_norms(norms), one)
    for wrong in (norms[:2], norms[0], "x"):
        with pytest.raises(ArgumentError, match="norms="):
            folded.unfold_norms(wrong)


def test_folding_is_refused_where_other_features_would_be_kept():
    with pytest.raises(ArgumentError, match="would keep others"):
        clt(jmi_sparse.TopK(4, "none")).fold_norms()


def test_some_layers_that_write_further_than_they_read():
    pairs = ((0, 0), (0, 1), (0, 2), (1, 2))
    rows, bias = HELD["W_dec"][:4], RNG.normal(size=(3, OUT))
    one = clt(
        pairs=pairs,
        layers=(2, 5),
        targets=(2, 4, 5),
        W_enc=jnp.asarray(HELD["W_enc"][:2]),
        b_enc=jnp.asarray(HELD["b_enc"][:2]),
        W_dec=jnp.asarray(rows),
        b_dec=jnp.asarray(bias),
        W_skip=jnp.asarray(SKIP[:2]),
    )
    features = encoded(X[:2], ACTIVATIONS["relu"][1])
    y = decoded(features, pairs, bias, rows)
    assert_agree(one.decode(features), y)
    y[0] += X[0] @ SKIP[0].T
    y[2] += X[1] @ SKIP[1].T
    assert_agree(one.reconstruct(X[:2]), y)
    for row, (layer, place) in enumerate(((2, 0), (5, 2))):
        assert_agree(one.encoder(layer).encode(X[row]), features[row])
        assert_agree(one.encoder(layer).b_dec, bias[place])
    with pytest.raises(ArgumentError, match="layer=9"):
        one.encoder(9)
    with pytest.raises(ArgumentError, match="must be among"):
        dataclasses.replace(one, targets=(2, 4, 9))
    with pytest.raises(ArgumentError, match="not all written"):
        _ = dataclasses.replace(one, targets=(2, 4, 9), W_skip=None).encoders


@pytest.mark.parametrize("pairs", [((0, 3),), ((-1, 0),), ((3, 2),), ((0, 1), (0, 1))])
def test_pairs_that_are_none_are_said(pairs):
    with pytest.raises(ArgumentError, match="pairs="):
        clt(pairs=pairs)


@pytest.mark.parametrize("given", [X[:2], X[..., :4], X[0, 0], np.zeros(D), "x", None, X.astype(complex)])
def test_wrong_inputs_are_said(given):
    one = clt(W_skip=jnp.asarray(SKIP))
    for call in (one.encode, one.encode_pre, one.decode, one.reconstruct):
        with pytest.raises(ArgumentError):
            call(given)
    with pytest.raises(ArgumentError, match="pass y="):
        one.error(X)
    with pytest.raises(ArgumentError, match="y="):
        one.error(X, X)


def test_a_crosscoder_by_a_loop():
    held = {
        "W_enc": RNG.normal(size=(2, D, F)),
        "W_dec": RNG.normal(size=(2, F, OUT)),
        "b_dec": RNG.normal(size=(2, OUT)),
        "b_enc": RNG.normal(size=F),
    }
    for activation, activate in (
        (jmi_sparse.ReLU(), lambda pre: np.where(pre > 0, pre, 0)),
        (jmi_sparse.JumpReLU(jnp.full(F, 0.7)), lambda pre: np.where(pre > 0.7, pre, 0)),
    ):
        arrays = {name: jnp.asarray(array) for name, array in held.items()}
        one = jmi_sparse.Crosscoder(activation=activation, points=("a", "b"), **arrays)
        x = points(2, 3, 4, D)
        pre = np.zeros((3, 4, F)) + held["b_enc"]
        for head in range(2):
            for i in range(D):
                pre += x[head, ..., i : i + 1] * held["W_enc"][head, i]
        features = activate(pre)
        y = np.zeros((2, 3, 4, OUT))
        for head in range(2):
            y[head] = held["b_dec"][head]
            for f in range(F):
                y[head] += features[..., f : f + 1] * held["W_dec"][head, f]
        assert_agree(one.encode_pre(x), pre)
        assert_agree(one.encode(x), features)
        assert_agree(one.decode(features), y)
        assert_agree(one.decode_sparse(one.encode_sparse(x, F)), y)
        assert_agree(one.reconstruct(x), y)
        assert_agree(one.error(x, np.zeros_like(y)), -y)
        for wrong in (x[:1], x[..., :3], x[0, 0, 0], "x", None):
            for call in (one.encode, one.encode_pre, one.decode, one.reconstruct):
                with pytest.raises(ArgumentError):
                    call(wrong)
