"""What scores are made of: sums over batches, and the batches."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi_sparse
from jmi_sparse.scoring import scored as scores
from jmi_sparse.scoring.corpus import batches
from jmi_sparse.scoring.sums import Moments, measure
from tests.sparse.by_loops import D, agree, forward, of_features, of_outputs, random_weights


def test_a_large_mean_costs_no_digits():
    rng = np.random.default_rng(0)
    x = (3e3 + rng.normal(size=(2, 50, D))).astype(np.float32)
    counted = np.ones((2, 50), bool)
    counted[1, 40:] = False
    eye = jnp.eye(D)
    shifts = jmi_sparse.Dictionary(eye, eye, jnp.full(D, 0.5), jmi_sparse.ReLU(), jnp.zeros(D))
    parts = [
        measure(shifts, (half,), (half,), c)
        for half, c in ((x[:, :20], counted[:, :20]), (x[:, 20:], counted[:, 20:]))
    ]
    target = parts[0][0][0].target + parts[1][0][0].target
    kept = x[counted].astype(np.float64)
    # Of E|x|^2 - |E x|^2 in float32 nothing would be left: 1e9 - 1e9.
    np.testing.assert_allclose(target.squares, ((kept - kept.mean(0)) ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(target.mean, kept.mean(0), rtol=1e-6)
    assert target.n == counted.sum() == 90
    # An offset of every token alike: forgiven by one definition, and by no other.
    error = parts[0][0][0].error + parts[1][0][0].error
    assert error.squares / target.squares < 1e-5
    assert sum(part[0][0].sums["error"] for part in parts) / target.squares == pytest.approx(0.25, rel=0.05)


def measured(dtype, x, y):
    """`OutputScores` and `FeatureScores` of one batch, the second row half padding."""
    counted = np.ones(x.shape[:2], bool)
    counted[1, 4:] = False
    arrays = {name: jnp.asarray(array, dtype) for name, array in random_weights(0).items()}
    dictionary = jmi_sparse.Dictionary(activation=jmi_sparse.ReLU(), **arrays)
    (outputs,), (features,) = measure(dictionary, (x,), (y,), counted)
    return scores.of_outputs(outputs), scores.of_features(features), counted


@pytest.mark.parametrize(("dtype", "bar"), [("float64", 1e-12), ("float32", 1e-5)])
def test_sums_are_as_exact_as_the_dictionary(dtype, bar):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(2, 2, 9, D)) + 0.5
    with jax.enable_x64(dtype == "float64"):
        outputs, features, counted = measured(dtype, *(jnp.asarray(v, dtype) for v in (x, y)))
    f, z = forward(random_weights(0), x)
    n = np.arange(counted.sum())
    agree(outputs, of_outputs(y[counted], z[counted], [n]), bar)
    agree(features, of_features(f[counted], np.nonzero(counted)[0]), bar)


def test_half_precision_is_summed_in_float32():
    x, y = np.random.default_rng(5).normal(size=(2, 2, 9, D)) + 0.5
    x, y = (jnp.asarray(v, jnp.bfloat16) for v in (x, y))
    outputs, features, counted = measured("float32", x, y)
    x, y = (np.asarray(v, np.float64) for v in (x, y))
    f, z = forward(random_weights(0), x)
    agree(outputs, of_outputs(y[counted], z[counted], [np.arange(counted.sum())]), 1e-5)
    agree(features, of_features(f[counted], np.nonzero(counted)[0]), 1e-5)


def test_nothing_is_made_of_zeros_but_zeros():
    zeros = jnp.zeros((D, D))
    silent = jmi_sparse.Dictionary(zeros, zeros, zeros[0], jmi_sparse.ReLU(), zeros[0])
    x = np.random.default_rng(0).normal(size=(1, 6, D)).astype(np.float32)
    x[0, 0] = 0
    (found,), (used,) = measure(silent, (x,), (x,), np.ones((1, 6), bool))
    outputs, features = scores.of_outputs(found), scores.of_features(used)
    assert outputs.fvu_dictionary_learning == pytest.approx(1)
    assert (outputs.cosine, outputs.l2_ratio, features.l0, features.l1, features.alive) == (0, 0, 0, 0, 0)
    assert np.isnan(outputs.relative_reconstruction_bias)


def test_moments_of_nothing_change_nothing():
    some, none = Moments(3, np.array([1.0, 2.0]), 5.0), Moments(0, np.zeros(2), 0.0)
    for both in (some + none, none + some):
        assert (both.n, both.squares, both.mean.tolist()) == (3, 5.0, [1.0, 2.0])


def test_batches_hold_every_token_once():
    rows = [np.arange(2, 2 + n, dtype=np.int32) for n in (20, 3, 0, 16, 5, 4)]
    for padding, shapes in (
        (True, [(2, 16), (2, 16), (2, 20)]),
        (False, [(2, n) for n in (3, 4, 5, 16, 20)]),
    ):
        lm = SimpleNamespace(arch=SimpleNamespace(takes_padding=padding))
        work = list(batches(lm, rows, 2))
        assert [batch.tokens.shape for batch in work] == shapes
        seen = sorted(
            (int(batch.rows[b]), int(batch.tokens[b, p]))
            for batch in work
            for b, p in zip(*np.nonzero(batch.real), strict=True)
        )
        assert seen == sorted((i, int(token)) for i, row in enumerate(rows) for token in row)
        for batch in work:
            assert (batch.prompts.mask is None) == (not padding)
            # A row that fills a batch is run as any other, and counts nowhere.
            assert padding is False or batch.prompts.mask.any(1).all()


def test_what_is_made_of_the_losses():
    x = scores.Losses(2.0, 2.5, 6.0, 4.0, 0.4, 4.0, 2.0, 10)
    assert (x.loss_recovered_zero, x.loss_recovered_mean) == (3.5 / 4, 1.5 / 2)
    assert (x.kl_recovered_zero, x.kl_recovered_mean) == (3.6 / 4, 1.6 / 2)
    assert np.isinf(dataclasses.replace(x, ce_zero=2.0).loss_recovered_zero)
