"""Probes and sparse probing: planted answers are found, numbers follow from definitions, bad input fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import jmi
from jmi_sparse import bench
from jmi_sparse.bench import probes
from jmi_sparse.bench.probes import lasso
from tests.sparse.bench_data import (
    TASKS,
    TRAIN,
    F,
    N,
    balanced_accuracy,
    class_weights,
    in_float64,
    noisy,
    plain_probe,
    planted_classes,
    probe_loss,
    sides,
)

# Probes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_probe_is_at_its_optimum_whatever_the_scale_of_columns(dtype):
    x, _, _, labels = noisy()
    x = (x * np.array([1e4, 1, 1e-3, 1, 0, 1, 1, 1]) + np.array([0, 1e3, 0, 0, 0, 0, 0, 7])).astype(dtype)
    x[:, 3] = 3.3  # a constant
    run = in_float64 if dtype == np.float64 else lambda f, *a, **k: f(*a, **k)
    probe = run(bench.fit_probe, x, labels, TRAIN, l2=0.3)
    assert probe.weights.dtype == dtype
    for w, b, y in zip(probe.weights, probe.bias, labels, strict=True):
        weights = class_weights(sides(y, TRAIN))
        u, wide = np.append(w, b).astype(float), x.astype(float)
        _, slope = probe_loss(u, wide, np.where(y, 1, -1), weights, 0.3)
        # In units of a sum in which nothing cancels; a mean taken out first, for the bias makes up for it.
        slope[:-1] -= slope[-1] * (weights @ wide) / weights.sum()
        size = weights @ np.abs(wide - (weights @ wide) / weights.sum()) + 1e-9
        assert (np.abs(slope[:-1]) < (1e-4 if dtype == np.float32 else 1e-11) * size)[
            [0, 1, 2, 5, 6, 7]
        ].all()
        assert w[4] == 0
        assert abs(w[3]) < 1e-5


def test_a_probe_is_the_one_that_another_optimiser_finds():
    x, _, _, labels = noisy()
    probe = in_float64(bench.fit_probe, x, labels, TRAIN, l2=2.0)
    for w, b, y in zip(probe.weights, probe.bias, labels, strict=True):
        want = plain_probe(x, y, class_weights(sides(y, TRAIN)), 2.0)
        np.testing.assert_allclose(w, want[0], atol=1e-6)
        np.testing.assert_allclose(b, want[1], atol=1e-6)


@pytest.mark.oracle
def test_a_probe_is_the_one_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="the live oracle needs scikit-learn")
    x, _, _, labels = noisy()
    probe = in_float64(bench.fit_probe, x, labels, TRAIN, l2=0.5)
    for w, b, y in zip(probe.weights, probe.bias, labels, strict=True):
        theirs = linear_model.LogisticRegression(C=2.0, class_weight="balanced", tol=1e-10, max_iter=10_000)
        theirs.fit(x[TRAIN], y[TRAIN])
        np.testing.assert_allclose(w, theirs.coef_[0], atol=1e-6)
        np.testing.assert_allclose(b, theirs.intercept_[0], atol=1e-6)


def test_separable_examples_and_more_columns_than_examples_converge():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(N, 200)).astype(np.float32), (np.arange(N) % 2 == 0)[None]
    probe = bench.fit_probe(x, y, TRAIN, l2=1e-3)
    assert ((probe.logits(x) > 0) == y)[:, TRAIN].all()
    weights, sign = class_weights(sides(y[0], TRAIN)), np.where(y[0], 1, -1)
    _, slope = probe_loss(np.append(probe.weights[0], probe.bias), x.astype(float), sign, weights, 1e-3)
    assert np.abs(slope).max() < 1e-4 * N


def test_a_fit_that_is_cut_short_is_nan_and_so_is_what_follows_from_it(monkeypatch):
    x, features, _, labels = noisy()
    monkeypatch.setattr(probes, "_NEWTON_STEPS", 1)
    monkeypatch.setattr(probes, "_GRADIENT_STEPS", 2)
    weights = jnp.ones(N, np.float32)
    probe = probes.newton(jnp.asarray(x, np.float32), labels[0], weights, 1.0)
    assert np.isnan(probe.weights).all()
    assert np.isnan(probes.accuracy(probe.logits(jnp.asarray(x, np.float32)), labels[0], weights))
    assert np.isnan(
        lasso.__wrapped__(jnp.asarray(features, np.float32), labels, jnp.asarray(TRAIN), 0.01)
    ).all()


def test_the_ranking_of_main_latents_is_at_the_optimum_of_its_loss():
    _, features, _, labels = noisy()
    features = features * np.geomspace(0.1, 10, F)
    l1 = 0.02
    found = in_float64(lasso, features, labels, TRAIN, l1=l1)
    kinds = set()
    for w, y in zip(found, labels[:, TRAIN], strict=True):
        x, costs = features[TRAIN], np.where(y, (~y).sum() / y.sum(), 1) / TRAIN.sum()
        sign = np.where(y, 1, -1)
        # The bias is free: at the optimum the slope along it is 0.
        bias = optimize.brentq(
            lambda b, c=costs, s=sign, z=x @ w: (c * s / (1 + np.exp(s * (z + b)))).sum(), -50, 50
        )
        slope = -(costs * sign / (1 + np.exp(sign * (x @ w + bias)))) @ x
        np.testing.assert_allclose(slope[w != 0], -l1 * np.sign(w[w != 0]), atol=3e-3 * l1)
        assert (np.abs(slope[w == 0]) <= l1 * 1.003).all()
        kinds |= set(np.sign(w))
    assert kinds == {-1, 0, 1}


# Sparse probing


def test_means_are_over_the_tokens_that_count():
    values = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    mask = np.array([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 1]], bool)
    want = [[sum(v) / len(v) for v in values[i][mask[i]].T] for i in range(3)]
    np.testing.assert_allclose(bench.mean_over_tokens(values, mask), want, rtol=1e-6)
    with pytest.raises(jmi.ArgumentError, match="no token"):
        bench.mean_over_tokens(values, mask & False)
    with pytest.raises(jmi.ArgumentError, match=r"bool \[n, tokens\]"):
        bench.mean_over_tokens(values, mask.T)


def test_a_latent_that_carries_a_class_is_found_and_is_enough():
    features, labels = planted_classes()
    found = bench.sparse_probing(features, labels, TRAIN, ks=[1, 2])
    assert found.ids[:, 0].tolist() == [0, 1, 2]
    assert found.accuracy.tolist() == [[1, 1]] * TASKS
    assert found.dense is None


def test_labels_that_were_shuffled_are_found_by_chance_only():
    features, labels = planted_classes()
    shuffled = np.random.default_rng(1).permuted(np.concatenate([labels] * 10), axis=1)
    found = bench.sparse_probing(features, shuffled, TRAIN, ks=[1, 2])
    # 60 test examples, 30 tasks: the mean has a standard deviation of about 0.014.
    np.testing.assert_allclose(found.accuracy.mean(0), 0.5, atol=0.05)


def test_sparse_probing_is_its_definition():
    activations, features, _, labels = noisy()
    options = {"activations": activations, "ks": (1, 2, 5)}
    found = in_float64(bench.sparse_probing, features, labels, TRAIN, **options)
    for task, y in enumerate(labels):
        weights, test = class_weights(sides(y, TRAIN)), sides(y, ~TRAIN)
        apart = features[y & TRAIN].mean(0) - features[~y & TRAIN].mean(0)
        order = np.argsort(-np.abs(apart))
        assert found.ids[task].tolist() == order[:5].tolist()
        for place, k in enumerate((1, 2, 5)):
            w, b = plain_probe(features[:, order[:k]], y, weights)
            want = balanced_accuracy(features[:, order[:k]] @ w + b, test, y)
            np.testing.assert_allclose(found.accuracy[task, place], want, atol=1e-12)
        w, b = plain_probe(activations, y, weights)
        np.testing.assert_allclose(
            found.dense[task], balanced_accuracy(activations @ w + b, test, y), atol=1e-12
        )
    assert 0.5 < found.accuracy.min() < found.accuracy.max() < 1


def test_splits_may_be_mapped_and_a_split_without_a_class_gives_nan():
    features, labels = planted_classes()
    _, noise, *_ = noisy()
    mixed = (features + noise).astype(np.float32)
    splits = np.stack([TRAIN, ~TRAIN, labels[0]])
    found = jax.vmap(lambda train: bench.sparse_probing(mixed, labels, train, ks=[1, 2]))(splits)
    for split, got in zip(splits[:2], found.accuracy, strict=False):
        np.testing.assert_allclose(
            got, bench.sparse_probing(mixed, labels, split, ks=[1, 2]).accuracy, atol=1e-6
        )
    assert np.isnan(found.accuracy[2, 0]).all()


# Bad input


def changed(**wrong):
    activations, features, decoder, labels = noisy()
    given = {"activations": activations, "features": features, "decoder": decoder, "labels": labels}
    return {**given, "train": TRAIN, **wrong}


NAN = np.where(np.arange(N)[:, None] == 3, np.nan, noisy()[1])
ONE_CLASS = noisy()[3] | np.array([[False], [True], [False]])

WRONG = [
    ({"features": NAN}, "NaN"),
    ({"features": noisy()[1][:-1]}, "train has 160 examples"),
    ({"features": noisy()[1][0]}, "train has 160 examples"),
    ({"decoder": noisy()[2].T}, "features and activations have"),
    ({"labels": ONE_CLASS}, r"some have none, first \[1, 1\]"),
    ({"labels": noisy()[3][0]}, r"bool \[tasks, 160\]"),
    ({"labels": noisy()[3][:, :-1]}, r"bool \[tasks, 160\]"),
    ({"labels": noisy()[3].astype(int)}, "np.arange"),
    ({"train": np.ones(N, bool)}, "among the test examples"),
    ({"train": np.arange(N)}, r"bool \[n\]"),
    ({"l2": 0}, "l2=0"),
]


@pytest.mark.parametrize(("wrong", "says"), WRONG)
@pytest.mark.parametrize("measure", [bench.absorption, bench.tpp])
def test_bad_input_is_one_clear_error(measure, wrong, says):
    with pytest.raises(jmi.ArgumentError, match=says):
        measure(**changed(**wrong))


def test_other_bad_input_is_one_clear_error():
    x, f, decoder, labels = noisy()
    with pytest.raises(jmi.ArgumentError, match=r"first \[3\]"):
        bench.scr(x, f, decoder, labels[0] | labels[1], labels[0], TRAIN)
    with pytest.raises(jmi.ArgumentError, match="two tasks"):
        bench.tpp(x, f, decoder, labels[:1], TRAIN)
    with pytest.raises(jmi.ArgumentError, match="ks=13"):
        bench.sparse_probing(f, labels, TRAIN, ks=[13])
    with pytest.raises(jmi.ArgumentError, match="ids below 12"):
        bench.absorbed(x, f, decoder, x[0], [12])
    with pytest.raises(jmi.ArgumentError, match=r"\[d\]"):
        bench.absorbed(x, f, decoder, x, [1])
    with pytest.raises(jmi.ArgumentError, match="length"):
        bench.absorbed(x, f, decoder, x[0] * 0, [1])
