"""Features kept sparse, and dictionaries whose features lie on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jmi_sparse
from jmi.errors import ArgumentError
from jmi_sparse.dictionaries.activations import largest
from tests.sparse.made import D, F, dictionary, folder, points
from tests.sparse.test_splice import ALL

MEANINGS = ("after", "before", "none", "magnitude")


@pytest.mark.parametrize("kind", [*ALL, *MEANINGS])
def test_the_active_ones_alone_make_up_the_dense_ones(kind):
    with jax.enable_x64(True):
        sae = ALL[kind]() if kind in ALL else dictionary(jmi_sparse.TopK(4, kind), np.float64)
        x = np.random.default_rng(2).normal(size=(3, 5, sae.d_in))
        dense = np.asarray(sae.encode(x))
        found = sae.encode_sparse(x, sae.n_features)
        ids, values = np.asarray(found.ids), np.asarray(found.values)
        back = np.zeros_like(dense)
        for place in np.ndindex(*ids.shape):
            if ids[place] >= 0:
                back[(*place[:-1], ids[place])] += values[place]
        np.testing.assert_array_equal(back, dense)
        assert found.ids.dtype == jnp.int32
        assert ((ids >= 0) == (values != 0)).all()
        assert (np.diff(np.abs(values)) <= 0).all()
        assert not found.overflowed.any()
        np.testing.assert_allclose(sae.decode_sparse(found, x), sae.decode(dense, x), rtol=1e-12, atol=1e-12)
        few = sae.encode_sparse(x, 2)
        np.testing.assert_array_equal(few.overflowed, (dense != 0).sum(-1) > 2)
        np.testing.assert_array_equal(few.values, values[..., :2])
        np.testing.assert_allclose(sae.reconstruct(x), sae.decode(dense, x), rtol=1e-12, atol=1e-12)


def test_a_pass_by_rows_is_that_by_products_with_the_same_gradients():
    """Of few active features among many the decoder is not multiplied by, and is differentiated like it."""
    with jax.enable_x64(True):
        draw = np.random.default_rng(0).normal
        sae = jmi_sparse.Dictionary(
            W_enc=jnp.asarray(draw(size=(D, 64))),
            W_dec=jnp.asarray(draw(size=(64, D))),
            b_dec=jnp.asarray(draw(size=D)),
            b_enc=jnp.zeros(64),
            activation=jmi_sparse.TopK(3),
            rescale_acts_by_decoder_norm=True,
        )
        x = jnp.asarray(points(7, D))
        assert str(jax.make_jaxpr(sae.reconstruct)(x)).count("dot_general") == 1
        loss = lambda way: jax.grad(lambda d: jnp.square(way(d) - x).sum())(sae)
        one, other = loss(lambda d: d.reconstruct(x)), loss(lambda d: d.decode(d.encode(x)))
        for got, want in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def test_the_largest_of_many_are_found_block_by_block_equal_ones_included():
    """Of numbers of which many are equal, in the order of `lax.top_k`."""
    draws = np.random.default_rng(0)
    for values in (
        draws.normal(size=(3, 5, 1024)),
        draws.integers(0, 4, (4, 2048)),
        np.zeros((2, 1024)),
        np.where(draws.random((6, 1024)) < 0.01, draws.integers(1, 3, (6, 1024)), 0),
    ):
        for k in (1, 3, 8):
            given = jnp.asarray(values, jnp.float32)
            for found, want in zip(largest(given, k), jax.lax.top_k(given, k)[::-1], strict=True):
                np.testing.assert_array_equal(found, want)
    bias = jnp.asarray(draws.integers(-3, 3, 1024), jnp.float32)
    for by_magnitude in (False, True):
        total = given + bias[None]
        ids = jax.lax.top_k(jnp.abs(total) if by_magnitude else total, 8)[1]
        found = largest(given, 8, bias, by_magnitude=by_magnitude)
        np.testing.assert_array_equal(found[0], ids)
        np.testing.assert_array_equal(found[1], jnp.take_along_axis(total, ids, axis=-1))
    assert str(jax.make_jaxpr(lambda v: largest(v, 8))(given)).count("top_k") == 2


def test_rows_are_summed_in_float32_and_the_largest_come_first_whatever_their_sign():
    draw = np.random.default_rng(0).normal
    arrays = {
        "W_enc": draw(size=(D, 640)),
        "W_dec": draw(size=(640, D)),
        "b_dec": draw(size=D),
        "b_enc": np.zeros(640),
    }
    half = jmi_sparse.Dictionary(
        **{name: jnp.asarray(x, jnp.bfloat16) for name, x in arrays.items()}, activation=jmi_sparse.TopK(40)
    )
    x = jnp.asarray(points(4, D), jnp.bfloat16)
    features = np.asarray(half.encode(x), np.float64)
    want = features @ np.asarray(half.W_dec, np.float64) + np.asarray(half.b_dec, np.float64)
    assert np.abs(np.asarray(half.reconstruct(x), np.float64) - want).max() <= 0.006 * np.abs(want).max()
    raw = dictionary(jmi_sparse.TopK(6, "none"))
    for capacity in (3, 6, 9):
        values = np.abs(np.asarray(raw.encode_sparse(points(5, D).astype(np.float32), capacity).values))
        assert (np.diff(values) <= 0).all()


def test_nan_is_not_hidden_by_a_threshold():
    x = points(2, D).astype(np.float32)
    x[0, 1] = np.nan
    for activation in (jmi_sparse.JumpReLU(jnp.full(F, 0.1)), jmi_sparse.Gated(*[jnp.zeros(F)] * 3)):
        skip = ("b_enc",) if isinstance(activation, jmi_sparse.Gated) else ()
        found = np.asarray(dictionary(activation, skip=skip).reconstruct(x))
        assert np.isnan(found[0]).all()
        assert np.isfinite(found[1]).all()


def test_no_places_is_an_error():
    with pytest.raises(ArgumentError, match="capacity"):
        dictionary().encode_sparse(points(), 0)


def test_features_lie_on_the_devices_of_a_mesh(tmp_path):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    place = folder(tmp_path / "sae", {"architecture": "jumprelu"}, {"threshold": np.full(F, 0.3, np.float32)})
    one, whole = jmi_sparse.load(place, mesh=mesh), jmi_sparse.load(place)
    for name, spec in (("W_enc", (None, "model")), ("W_dec", ("model", None)), ("b_enc", ("model",))):
        assert getattr(one, name).sharding.is_equivalent_to(
            NamedSharding(mesh, PartitionSpec(*spec)), getattr(one, name).ndim
        )
    assert one.activation.threshold.sharding.spec == PartitionSpec("model")
    x = points(5, D).astype(np.float32)
    np.testing.assert_allclose(jax.jit(lambda d: d.reconstruct(x))(one), whole.reconstruct(x), atol=1e-5)
    wrong = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(ArgumentError, match="axis 'model'"):
        jmi_sparse.load(place, mesh=wrong)
    three = jax.sharding.Mesh(np.array(jax.devices()[:3]), ("model",))
    with pytest.raises(ArgumentError, match="20 features cannot be split"):
        jmi_sparse.load(place, mesh=three)
