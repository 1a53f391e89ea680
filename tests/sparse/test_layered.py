"""Sets of dictionaries: each layer by itself, whatever their widths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi_sparse
from jmi.errors import ArgumentError
from tests.sparse.made import D, F, dictionary, points, weights
from tests.sparse.test_dictionary import FORMS
from tests.support.tolerances import assert_agree

OUT = 5
SKIP = np.random.default_rng(31).normal(size=(1, OUT, D))


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def several(form="relu", **options):
    """Dictionaries of three layers, each with numbers of its own."""
    skip = ("b_enc",) if form == "gated" else ()
    found = {}
    for row, layer in enumerate((1, 4, 6)):
        held = {name: jnp.asarray(array) for name, array in weights(seed=row, d_out=OUT).items()}
        hooks = {name: f"blocks.{layer}.{name}" for name in ("hook_in", "hook_out")}
        one = dictionary(FORMS[form][0](), np.float64, skip, d_out=OUT, kind="transcoder", **hooks, **options)
        found[layer] = dataclasses.replace(one, **{name: held[name] for name in held if name not in skip})
    return found


@pytest.mark.parametrize("form", [form for form in FORMS if form != "batchtopk"])
def test_a_set_is_its_dictionaries(form):
    each = several(form, W_skip=jnp.asarray(SKIP[0]))
    one, x = jmi_sparse.stack(each), points(3, 2, 4, D)
    assert (one.layers, one.hook_in, one.hook_out) == ((1, 4, 6), "blocks.*.hook_in", "blocks.*.hook_out")
    assert (one.kind, one.d_in, one.d_out, one.n_features) == ("transcoder", D, OUT, F)
    alone = list(each.values())
    features = np.stack([d.encode(x[i]) for i, d in enumerate(alone)])
    assert_agree(one.encode(x), features)
    assert_agree(one.encode_pre(x), np.stack([d.encode_pre(x[i]) for i, d in enumerate(alone)]))
    y = np.stack([d.decode(features[i]) for i, d in enumerate(alone)])
    assert_agree(one.decode(features), y)
    assert_agree(one.decode_sparse(one.encode_sparse(x, F)), y)
    assert_agree(one.reconstruct(x), y + x @ SKIP[0].T)
    assert_agree(one.error(x, np.zeros_like(y)), -y - x @ SKIP[0].T)
    for layer, d in each.items():
        assert one[layer].hook_in == f"blocks.{layer}.hook_in"
        assert_agree(one[layer], dataclasses.replace(d, metadata="{}"))


@pytest.mark.parametrize("form", ["relu", "jumprelu", "gated"])
def test_norms_of_a_set_are_folded_and_unfolded(form):
    one, x = jmi_sparse.stack(several(form)), points(3, 4, D)
    norms = np.stack([np.linalg.norm(weights(seed=row, d_out=OUT)["W_dec"], axis=-1) for row in range(3)])
    folded = one.fold_norms()
    assert_agree(folded.encode(x), np.asarray(one.encode(x)) * norms[:, None])
    assert_agree(folded.reconstruct(x), one.reconstruct(x))
    assert_agree(folded.unfold_norms(norms), one)
    for wrong in (norms[:2], norms[:, :3]):
        with pytest.raises(ArgumentError, match="norms="):
            folded.unfold_norms(wrong)


WIDE = {
    "relu": jmi_sparse.ReLU,
    "jumprelu": lambda n: jmi_sparse.JumpReLU(jnp.linspace(-0.5, 1, n)),
    **{
        f"topk {meaning}": lambda n, meaning=meaning: jmi_sparse.TopK(6, meaning)
        for meaning in ("after", "before", "none", "magnitude")
    },
}


@pytest.mark.parametrize("form", WIDE)
@pytest.mark.parametrize("rescaled", [False, True])
def test_fewer_features_are_filled_up_with_silent_ones(form, rescaled):
    made = {}
    for layer, features in enumerate((9, 14)):
        held = {n: jnp.asarray(a) for n, a in weights(seed=layer, features=features).items()}
        # Negative on the whole, so that the k largest reach below 0.
        held["b_enc"] = held["b_enc"] - 2
        activation = WIDE[form]() if form == "relu" else WIDE[form](features)
        density = jnp.linspace(-3, -1, features)
        made[layer] = jmi_sparse.Dictionary(
            activation=activation, log_density=density, rescale_acts_by_decoder_norm=rescaled, **held
        )
    if form == "topk none" and rescaled:
        with pytest.raises(ArgumentError, match="cannot be given more"):
            jmi_sparse.stack(made)
        return
    one, x = jmi_sparse.stack(made), points(2, 7, D)
    features = np.asarray(one.encode(x))
    assert features.shape == (2, 7, 14)
    assert_agree(features[0, :, :9], made[0].encode(x[0]))
    assert not features[0, :, 9:].any()
    assert_agree(features[1], made[1].encode(x[1]))
    want = np.stack([made[0].reconstruct(x[0]), made[1].reconstruct(x[1])])
    assert_agree(one.reconstruct(x), want)
    assert_agree(one.decode_sparse(one.encode_sparse(x, 14)), want)
    np.testing.assert_array_equal(one[0].log_density[9:], -10)


def test_what_cannot_be_stacked_is_said():
    each = several()
    few = dataclasses.replace(dictionary(jmi_sparse.TopK(9), np.float64), **_narrow(6))
    for wrong in (
        {},
        [each[1]],
        {1: "x"},
        {True: each[1]},
        {1: each[1], 2: dataclasses.replace(each[4], kind="sae")},
        {1: each[1], 2: dataclasses.replace(each[4], hook_in="blocks.2.other")},
        {1: few, 2: dictionary(jmi_sparse.TopK(9), np.float64)},
        {1: dictionary(FORMS["gated"][0](), np.float64, ("b_enc",)), 2: each[1]},
    ):
        with pytest.raises(ArgumentError):
            jmi_sparse.stack(wrong)
    one = jmi_sparse.stack(each)
    for given in (points(2, D), points(3, D + 1), "x", np.zeros(())):
        with pytest.raises(ArgumentError):
            one.encode(given)
    with pytest.raises(ArgumentError, match="layer=2"):
        one[2]


def _narrow(features):
    return {name: jnp.asarray(array) for name, array in weights(features=features).items()}
