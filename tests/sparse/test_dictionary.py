"""Each form by its equation in numpy; what is done to inputs; transformations of JAX."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi_sparse
from jmi.errors import ArgumentError
from jmi_sparse.dictionaries import temporal as temporal_kind
from tests.sparse.made import D, F, dictionary, points, weights
from tests.support.tolerances import assert_agree

W = weights()
THRESHOLD = np.random.default_rng(3).uniform(-0.5, 1.5, F)
GATES = {
    name: np.random.default_rng(4 + i).normal(size=F) * 0.3
    for i, name in enumerate(("b_gate", "b_mag", "r_mag"))
}


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def relu(x):
    return np.maximum(x, 0)


def kept(values, keys, k):
    """The k entries of each row with the largest keys, the lower id first where they are equal."""
    order = np.argsort(-keys, axis=-1, kind="stable")[..., :k]
    mask = np.zeros(values.shape, bool)
    np.put_along_axis(mask, order, True, axis=-1)
    return np.where(mask, values, 0)


def gated(pre):
    return (pre + GATES["b_gate"] > 0) * relu(pre * np.exp(GATES["r_mag"]) + GATES["b_mag"])


def batch(pre, k=2.3):
    flat = relu(pre).ravel()
    return kept(flat, flat, int(k * len(pre))).reshape(pre.shape)


FORMS = {
    "relu": (jmi_sparse.ReLU, relu),
    "jumprelu": (lambda: jmi_sparse.JumpReLU(jnp.asarray(THRESHOLD)), lambda p: relu(p) * (p > THRESHOLD)),
    "gated": (lambda: jmi_sparse.Gated(**{k: jnp.asarray(v) for k, v in GATES.items()}), gated),
    "topk": (lambda: jmi_sparse.TopK(15), lambda p: relu(kept(p, p, 15))),
    "topk before": (lambda: jmi_sparse.TopK(15, "before"), lambda p: kept(relu(p), relu(p), 15)),
    "topk none": (lambda: jmi_sparse.TopK(15, "none"), lambda p: kept(p, p, 15)),
    "abstopk": (lambda: jmi_sparse.TopK(4, "magnitude"), lambda p: kept(p, np.abs(p), 4)),
    "batchtopk": (lambda: jmi_sparse.BatchTopK(jnp.float64(0.4), 2.3), batch),
}


@pytest.mark.parametrize("subtracted", [False, True])
@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_forms_by_their_equations(form, rescaled, subtracted):
    make, equation = FORMS[form]
    options = {"apply_b_dec_to_input": subtracted, "rescale_acts_by_decoder_norm": rescaled}
    skip = ("b_enc",) if form == "gated" else ()
    one, x = dictionary(make(), np.float64, skip, **options), points()
    linear = (x - subtracted * W["b_dec"]) @ W["W_enc"] + (form != "gated") * W["b_enc"]
    norms = np.linalg.norm(W["W_dec"], axis=1) if rescaled else np.ones(F)
    want = equation(linear * norms)
    assert (want != 0).any()
    assert (want == 0).any()
    assert_agree(one.encode(x), want)
    assert_agree(one.decode(want), want / norms @ W["W_dec"] + W["b_dec"])
    assert_agree(one.reconstruct(x), want / norms @ W["W_dec"] + W["b_dec"])
    assert_agree(one.error(x), x - np.asarray(one.reconstruct(x)))
    pre = linear * np.exp(GATES["r_mag"]) + GATES["b_mag"] if form == "gated" else linear
    assert_agree(one.encode_pre(x), pre)


def test_meanings_of_topk_differ_where_fewer_than_k_are_positive():
    pre = jnp.array([[3.0, -1.0, -2.0, 0.5, -0.1]])
    found = {
        relu: np.asarray(jmi_sparse.TopK(3, relu)(pre))[0].tolist()
        for relu in ("after", "before", "none", "magnitude")
    }
    assert found["after"] == found["before"] == [3, 0, 0, 0.5, 0]
    assert found["none"] == [3, 0, 0, 0.5, -0.1]
    assert found["magnitude"] == [3, -1, -2, 0, 0]


def test_ties_go_to_the_lower_id():
    assert jmi_sparse.TopK(2)(jnp.array([1.0, 2.0, 2.0, 2.0])).tolist() == [0, 2, 2, 0]
    one = jmi_sparse.BatchTopK(jnp.float64(1), 0.5)
    assert one(jnp.array([[1.0, 2.0], [2.0, 2.0]])).tolist() == [[0, 2], [0, 0]]


def test_a_threshold_is_strict_and_never_lets_negatives_through():
    one = jmi_sparse.JumpReLU(jnp.array([1.0, 1.0, -2.0, -2.0, jnp.inf, 0.0]))
    assert one(jnp.array([1.0, 1.5, -1.0, 1.0, 9.0, 0.0])).tolist() == [0, 1.5, 0, 1, 0, 0]


def test_transcoders_read_one_width_and_write_another():
    skip = np.random.default_rng(9).normal(size=(4, D))
    one = dictionary(dtype=np.float64, d_out=4, W_skip=jnp.asarray(skip), kind="transcoder")
    x, y, held = points(), points(5, 4), weights(d_out=4)
    decoded = relu(x @ held["W_enc"] + held["b_enc"]) @ held["W_dec"] + held["b_dec"]
    assert (one.d_in, one.n_features, one.d_out) == (D, F, 4)
    assert_agree(one.decode(one.encode(x)), decoded)
    assert_agree(one.reconstruct(x), decoded + x @ skip.T)
    assert_agree(one.error(x, y), y - decoded - x @ skip.T)
    with pytest.raises(ArgumentError, match="pass y="):
        one.error(x)
    with pytest.raises(ArgumentError, match=r"y=\[5, 6\]"):
        one.error(x, x)


def constant_norm(x):
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x * D**0.5 / norm, lambda y: y * norm / D**0.5


def layer_norm(x):
    mean, std = x.mean(-1, keepdims=True), x.std(-1, ddof=1, keepdims=True)
    return (x - mean) / (std + 1e-5), lambda y: y * std + mean


@pytest.mark.parametrize(
    ("made", "by_hand"),
    [
        (jmi_sparse.ConstantNorm(), constant_norm),
        (jmi_sparse.LayerNorm(), layer_norm),
        (jmi_sparse.Scalar(np.float64(0.7)), lambda x: (x * 0.7, lambda y: y / 0.7)),
        (jmi_sparse.Outside("expected_average_only_in"), lambda x: (x, lambda y: y)),
    ],
)
def test_normalisations(made, by_hand):
    one, x = dictionary(dtype=np.float64, normalisation=made, apply_b_dec_to_input=True), points()
    z, back = by_hand(x)
    features = relu((z - W["b_dec"]) @ W["W_enc"] + W["b_enc"])
    assert_agree(one.encode(x), features)
    assert_agree(one.reconstruct(x), back(features @ W["W_dec"] + W["b_dec"]))
    if made.by_vector:
        with pytest.raises(ArgumentError, match="pass x="):
            one.decode(features)
    else:
        assert_agree(one.decode(features), one.decode(features, x))


@pytest.mark.parametrize("made", [jmi_sparse.ConstantNorm(), jmi_sparse.LayerNorm()])
def test_a_zero_vector_gives_zero_and_finite_gradients(made):
    one, x = dictionary(dtype=np.float64, normalisation=made), np.zeros((2, D))
    assert not np.asarray(made.apply(x)).any()
    assert not np.asarray(one.reconstruct(x)).any()
    assert np.isfinite(jax.grad(lambda x: (one.reconstruct(x) ** 2).sum())(jnp.asarray(x))).all()


def test_heads_are_taken_as_one_axis():
    one, flat = (dictionary(dtype=np.float64, hook_z=heads) for heads in (True, False))
    x = points(4, 2, D)
    assert_agree(one.encode(x.reshape(4, 2, 3, 2)), flat.encode(x))
    assert_agree(one.reconstruct(x.reshape(4, 2, 3, 2)), flat.reconstruct(x).reshape(4, 2, 3, 2))
    assert one.decode(one.encode(x.reshape(4, 2, 3, 2))).shape == (4, 2, D)
    with pytest.raises(ArgumentError, match="heads and width"):
        one.encode(x[..., :4])


@pytest.mark.parametrize("given", [points(5, 7), "text", None, np.array(["a"]), np.ones((2, D), complex)])
def test_wrong_inputs_are_said(given):
    one = dictionary(dtype=np.float64)
    for call in (one.encode, one.encode_pre, one.decode, one.reconstruct, one.error):
        with pytest.raises(ArgumentError):
            call(given)


def test_wrong_activations_are_said():
    for wrong in (
        lambda: jmi_sparse.TopK(0),
        lambda: jmi_sparse.TopK(2, "abs"),
        lambda: jmi_sparse.BatchTopK(0.0, -1),
    ):
        with pytest.raises(ArgumentError):
            wrong()
    with pytest.raises(ArgumentError, match="k=21"):
        dictionary(jmi_sparse.TopK(21), np.float64).encode(points())


@pytest.mark.parametrize("form", [form for form in FORMS if form != "batchtopk"])
def test_jitted_mapped_and_listed_agree(form):
    skip = ("b_enc",) if form == "gated" else ()
    one, x = (
        dictionary(FORMS[form][0](), np.float64, skip, rescale_acts_by_decoder_norm=True),
        points(3, 4, D),
    )
    want = np.asarray(one.reconstruct(x))
    assert_agree(jax.jit(type(one).reconstruct)(one, x), want)
    assert_agree(jax.vmap(jax.vmap(one.reconstruct))(x), want)
    two = jax.tree.map(lambda a: jnp.stack([a, 1.5 * a]), one)
    other = jax.tree.map(lambda a: 1.5 * a, one)
    both = jax.vmap(lambda d, x: d.reconstruct(x), (0, None))(two, x)
    assert_agree(both, np.stack([want, other.reconstruct(x)]))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_slopes(form):
    skip = ("b_enc",) if form == "gated" else ()
    one = dictionary(
        FORMS[form][0](), np.float64, skip, apply_b_dec_to_input=True, normalisation=jmi_sparse.LayerNorm()
    )
    x, way = jnp.asarray(points()), jnp.asarray(points(seed=7))
    loss = jax.jit(lambda d, x: (jnp.sin(d.reconstruct(x))).sum())
    slope = jax.jit(jax.grad(loss, argnums=(0, 1)))(one, x)
    step = 1e-6
    along = (loss(one, x + step * way) - loss(one, x - step * way)) / (2 * step)
    assert_agree(along, (slope[1] * way).sum(), "slopes", scale=np.abs(slope[1]).max() * np.abs(way).sum())
    for name in ("W_enc", "W_dec", "b_dec"):
        value = getattr(one, name)
        turn = jnp.asarray(points(*value.shape, seed=8))
        moved = [dataclasses.replace(one, **{name: value + sign * step * turn}) for sign in (1, -1)]
        along = (loss(moved[0], x) - loss(moved[1], x)) / (2 * step)
        found = getattr(slope[0], name)
        assert_agree(along, (found * turn).sum(), "slopes", scale=np.abs(found).max() * np.abs(turn).sum())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_inputs_are_cast_to_the_weights(dtype):
    one = jax.tree.map(lambda a: a.astype(dtype), dictionary(jmi_sparse.TopK(5), np.float64))
    for made in (
        one,
        dataclasses.replace(one, normalisation=jmi_sparse.LayerNorm(), rescale_acts_by_decoder_norm=True),
    ):
        found = made.encode(points()), made.reconstruct(points())
        assert {str(each.dtype) for each in found} == {dtype}
    want = dictionary(jmi_sparse.TopK(5), np.float64).reconstruct(points())
    bar = {"bfloat16": 0.05, "float16": 0.005, "float32": 1e-6}[dtype]
    got = np.asarray(one.reconstruct(points())).astype(np.float64)
    assert np.abs(got - want).max() <= bar * np.abs(want).max()


def pursued(x, rows, threshold, most, duplicate):
    """Matching pursuit of one vector."""
    rest, found = x.copy(), np.zeros(len(rows))
    for _ in range(most):
        i = relu(rest @ rows.T).argmax()
        value, before = relu(rest @ rows[i]), found != 0
        found[i] += value
        rest = rest - value * rows[i]
        if (duplicate and (before == (found != 0)).all()) or np.linalg.norm(rest) < threshold:
            break
    return found


@pytest.mark.parametrize(("threshold", "duplicate"), [(0.0, True), (0.0, False), (0.8, True), (0.8, False)])
def test_matching_pursuit_by_a_loop(threshold, duplicate):
    rows = W["W_dec"] / np.linalg.norm(W["W_dec"], axis=1, keepdims=True)
    held = jnp.asarray(rows), jnp.asarray(W["b_dec"])
    one = jmi_sparse.MatchingPursuit(*held, threshold, 9, duplicate, apply_b_dec_to_input=True)
    x = points(2, 4, D)
    want = np.array([[pursued(v - W["b_dec"], rows, threshold, 9, duplicate) for v in row] for row in x])
    assert_agree(one.encode(x), want)
    assert_agree(one.reconstruct(x), want @ rows + W["b_dec"])
    assert_agree(jax.jit(jax.vmap(one.encode))(x), want)
    way, step = points(2, 4, D, seed=5), 1e-6
    loss = jax.jit(lambda x: jnp.sin(one.reconstruct(x)).sum())
    slope = jax.grad(loss)(jnp.asarray(x))
    along = (loss(x + step * way) - loss(x - step * way)) / (2 * step)
    assert_agree(along, (slope * way).sum(), "slopes", scale=np.abs(slope).max() * np.abs(way).sum())
    with pytest.raises(ArgumentError, match="pre-activation"):
        one.encode_pre(x)


@functools.cache
def temporal():
    rng = np.random.default_rng(11)
    part = lambda out: temporal_kind.Linear(rng.normal(size=(out, F)) * 0.3, rng.normal(size=out) * 0.1)
    with jax.enable_x64(True):
        layer = temporal_kind.FeatureAttention(part(4), part(4), part(F), part(F), heads=2)
        one = jmi_sparse.Temporal(W["W_dec"], W["b_dec"], (layer, layer), jmi_sparse.ReLU(), W["W_enc"])
        return jax.tree.map(jnp.asarray, one)


def test_temporal_looks_back_and_never_ahead():
    one, x = temporal(), points(2, 7, D)
    features, foretold = np.asarray(one.encode(x)), np.asarray(one.predict(x))
    assert foretold.any()
    assert_agree(one.reconstruct(x), (features + foretold) @ W["W_dec"] + W["b_dec"])
    # The last two positions changed: those before them stay as they are, and a shorter text is its start.
    changed = np.concatenate([x[:, :5], points(2, 2, D, seed=20)], axis=1)
    assert_agree(one.encode(changed)[:, :5], features[:, :5])
    assert_agree(one.encode(x[:, :5]), features[:, :5])
    assert np.abs(np.asarray(one.encode(changed)[:, 5:]) - features[:, 5:]).max() > 1e-3
    earlier = np.concatenate([points(2, 1, D, seed=21), x[:, 1:]], axis=1)
    assert np.abs(np.asarray(one.predict(earlier)[:, 1:]) - foretold[:, 1:]).max() > 1e-6
    assert np.isfinite(jax.grad(lambda x: one.reconstruct(x).sum())(jnp.zeros((1, 3, D)))).all()
    with pytest.raises(ArgumentError, match="whole sequences"):
        one.encode(x[0, 0])
