"""Factors moved between weights: reconstructions stay, features change by what is said."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi_sparse
from jmi.errors import ArgumentError
from tests.sparse.made import D, F, dictionary, points, weights
from tests.sparse.test_dictionary import FORMS, THRESHOLD
from tests.support.tolerances import assert_agree

NORMS = np.linalg.norm(weights()["W_dec"], axis=1)


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rescaled", [False, True])
def test_folded_norms_change_no_reconstruction(form, rescaled):
    skip = ("b_enc",) if form == "gated" else ()
    options = {"apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": rescaled}
    one, x = dictionary(FORMS[form][0](), np.float64, skip, **options), points()
    if "topk" in form and not rescaled:
        with pytest.raises(ArgumentError, match="fold_norms"):
            one.fold_norms()
        return
    folded = one.fold_norms()
    assert_agree(folded.decoder_norms, np.ones(F))
    assert_agree(folded.reconstruct(x), one.reconstruct(x))
    # Rescaled features are in units of their rows already.
    assert_agree(folded.encode(x), np.asarray(one.encode(x)) * (1 if rescaled else NORMS))
    back = folded.unfold_norms(one.decoder_norms)
    assert_agree(back, one)
    with pytest.raises(ArgumentError, match="one for each of 20 features"):
        folded.unfold_norms(np.ones(3))


def test_a_row_of_zeros_stays_and_writes_nothing():
    one = dictionary(dtype=np.float64)
    one = dataclasses.replace(one, W_dec=one.W_dec.at[3].set(0))
    for rescaled in (False, True):
        made = dataclasses.replace(one, rescale_acts_by_decoder_norm=rescaled)
        assert np.isfinite(made.reconstruct(points())).all()
        assert_agree(made.fold_norms().reconstruct(points()), one.reconstruct(points()))


def test_a_factor_is_that_of_the_inputs():
    one, x = dictionary(dtype=np.float64, apply_b_dec_to_input=True), points()
    one = dataclasses.replace(one, normalisation=jmi_sparse.Outside("expected_average_only_in"))
    folded = jmi_sparse.fold_norm_factor(one, 2.5)
    assert folded.normalisation is None
    assert_agree(folded.encode(x), one.encode(2.5 * x))
    assert_agree(folded.reconstruct(x), np.asarray(one.reconstruct(2.5 * x)) / 2.5)
    rows = weights()["W_dec"] / NORMS[:, None]
    pursuit = jmi_sparse.MatchingPursuit(
        jnp.asarray(rows), jnp.asarray(weights()["b_dec"]), 0.5, D, apply_b_dec_to_input=True
    )
    smaller = jmi_sparse.fold_norm_factor(pursuit, 2.5)
    assert_agree(smaller.encode(x), np.asarray(pursuit.encode(2.5 * x)) / 2.5)
    assert_agree(smaller.reconstruct(x), np.asarray(pursuit.reconstruct(2.5 * x)) / 2.5)
    for wrong in (0, -1.0, float("nan"), "2"):
        with pytest.raises(ArgumentError, match="factor"):
            jmi_sparse.fold_norm_factor(one, wrong)


@pytest.mark.parametrize("rescaled", [False, True])
def test_a_batch_of_topk_at_its_threshold(rescaled):
    chosen = jmi_sparse.BatchTopK(jnp.float64(0.8), 3)
    one, x = dictionary(chosen, np.float64, rescale_acts_by_decoder_norm=rescaled), points()
    held = weights()
    pre = (x @ held["W_enc"] + held["b_enc"]) * (NORMS if rescaled else 1)
    want = np.where(pre > 0.8, pre, 0)
    made = jmi_sparse.at_threshold(one)
    assert isinstance(made.activation, jmi_sparse.JumpReLU)
    assert_agree(made.encode(x), want)
    assert_agree(made.reconstruct(x), (want / NORMS if rescaled else want) @ held["W_dec"] + held["b_dec"])
    # Position by position, as the selection over a batch is not.
    assert_agree(made.encode(x[:1]), want[:1])
    # The factor reaches the threshold only where features are in units of their rows.
    folded = jmi_sparse.fold_norm_factor(one, 2.0)
    assert_agree(jmi_sparse.at_threshold(folded).reconstruct(x), np.asarray(made.reconstruct(2 * x)) / 2)
    with pytest.raises(ArgumentError, match="already decides"):
        jmi_sparse.at_threshold(made)
    unset = dataclasses.replace(one, activation=jmi_sparse.BatchTopK(jnp.float64(0), 3))
    with pytest.raises(ArgumentError, match="never set"):
        jmi_sparse.at_threshold(unset)


def test_thresholds_are_folded_with_the_features_they_belong_to():
    one = dictionary(jmi_sparse.JumpReLU(jnp.asarray(THRESHOLD)), np.float64)
    assert_agree(one.fold_norms().activation.threshold, THRESHOLD * NORMS)


def test_a_factor_changes_what_a_threshold_in_units_of_rows_is_compared_with():
    threshold = jmi_sparse.JumpReLU(jnp.linspace(0, 2, F))
    trained = dictionary(threshold, np.float64, rescale_acts_by_decoder_norm=True)
    folded, x = jmi_sparse.fold_norm_factor(trained, 3.0), points()
    assert_agree(folded.reconstruct(x), trained.reconstruct(3.0 * x) / 3.0)
    np.testing.assert_array_equal(folded.encode(x) != 0, trained.encode(3.0 * x) != 0)
    with pytest.raises(ArgumentError, match="scales each input by itself"):
        jmi_sparse.fold_norm_factor(dictionary(normalisation=jmi_sparse.ConstantNorm()), 2.0)
