"""Absorption is found where it was built in, at its rate, and each number follows from its definition."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmi_sparse import bench
from jmi_sparse.bench.probes import lasso
from tests.sparse.bench_data import (
    TRAIN,
    D,
    F,
    class_weights,
    in_float64,
    noisy,
    plain_probe,
    sides,
)


def spelling(absorbed=0, left=0.0, absorbers_share=1.0, seed=0):
    """40 words of a concept and 40 others, each twice; a latent for the concept, one for each word.

    Of the first ``absorbed`` words the latent writes ``absorbers_share`` of the concept besides the word, and
    the concept's own latent fires at ``left``.
    """
    word = np.tile(np.arange(80), 2)
    directions = np.linalg.qr(np.random.default_rng(seed).normal(size=(96, 96)))[0]
    concept, words = directions[0], directions[1:81]
    decoder = np.concatenate([concept[None], words])
    decoder[1 : 1 + absorbed] += absorbers_share * concept
    features = np.concatenate([(word < 40)[:, None] * 1.0, np.eye(80)[word]], axis=1)
    features[word < absorbed, 0] = left
    # All words hold the concept alike, whatever the dictionary says of it.
    activations = (word < 40)[:, None] * concept + words[word]
    return activations, features, decoder, word[None] < 40, np.arange(160) < 80


@pytest.mark.parametrize("absorbed", [0, 8])
def test_absorption_is_found_at_its_rate_where_it_is_and_nowhere_else(absorbed):
    found = bench.absorption(*spelling(absorbed))
    assert found.main.ids[0].tolist() == [0] + [-1] * 9
    assert found.full.tolist() == [np.float32(absorbed / 40)]
    assert found.fraction.tolist() == [np.float32(absorbed / 40)]
    assert (int(found.examples[0]), float(found.probe_f1[0])) == (40, 1)
    # Without the 8 words: precision 1, recall 0.8.
    np.testing.assert_allclose(found.main.f1[0, 0], 2 * (1 - absorbed / 40) / (2 - absorbed / 40), rtol=1e-6)


def test_absorption_in_part_is_in_the_fraction_alone():
    found = bench.absorption(*spelling(8, left=0.4, absorbers_share=0.6))
    assert found.full.tolist() == [0]
    # The concept's share that the eight words' own latents write, of eight words in forty.
    np.testing.assert_allclose(found.fraction, 0.6 * 8 / 40, atol=0.003)


def test_absorption_does_not_depend_on_how_latents_are_scaled():
    activations, features, decoder, labels, train = spelling(8, left=0.4, absorbers_share=0.6)
    scale = np.random.default_rng(4).uniform(0.01, 100, 81)
    plain = bench.absorption(activations, features, decoder, labels, train)
    scaled = bench.absorption(activations, features * scale, decoder / scale[:, None], labels, train)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(scaled), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_latent_that_brings_enough_f1_is_a_main_one():
    word = np.tile(np.arange(80), 2)
    activations, features, decoder, labels, train = spelling()
    features = np.concatenate([features, (word[:, None] < 8) * 1.0], axis=1)
    features[word < 8, 0] = 0
    decoder = np.concatenate([decoder, decoder[:1]])
    found = bench.absorption(activations, features, decoder, labels, train)
    assert found.main.ids[0, :3].tolist() == [0, 81, -1]
    np.testing.assert_allclose(found.main.f1[0, :2], [1.6 / 1.8, 1], rtol=1e-6)
    assert found.full.tolist() == found.fraction.tolist() == [0]
    strict = bench.absorption(activations, features, decoder, labels, train, jump=0.2)
    assert strict.main.ids[0, :2].tolist() == [0, -1]
    assert strict.full.tolist() == [np.float32(0.2)]


def test_main_latents_are_their_definition():
    _, features, _, labels = noisy()
    found = in_float64(bench.main_latents, features, labels, TRAIN, most=6)
    every = in_float64(bench.main_latents, features, labels, TRAIN, most=F + 2, jump=-1)
    weights = in_float64(lasso, features, labels, TRAIN, l1=0.01)
    for task, y in enumerate(labels):
        order = np.argsort(-weights[task])
        positive = order[weights[task][order] > 0].tolist()
        assert every.ids[task].tolist() == positive + [-1] * (F + 2 - len(positive))
        f1 = []
        for k in range(1, 7):
            x = features[:, positive[:k]]
            w, b = plain_probe(x, y, class_weights(sides(y, TRAIN)))
            said, true = (x @ w + b > 0)[~TRAIN], y[~TRAIN]
            precision, recall = (said & true).sum() / said.sum(), (said & true).sum() / true.sum()
            f1.append(2 * precision * recall / (precision + recall))
        np.testing.assert_allclose(found.f1[task], f1, atol=1e-12)
        kept = next(k for k in range(1, 7) if k == 6 or not f1[k] > f1[k - 1] + 0.03)
        assert found.ids[task].tolist() == positive[:kept] + [-1] * (6 - kept)
    assert len({(ids >= 0).sum() for ids in found.ids}) > 1


@pytest.mark.parametrize(("part", "first"), [("lasso", -1), ("first_few", 0)])
def test_without_a_ranking_or_its_probes_there_is_no_rate(monkeypatch, part, first):
    shape = {"lasso": (1, 81), "first_few": (3, 160)}[part]
    module = sys.modules["jmi_sparse.bench.main_latents"]
    monkeypatch.setattr(module, part, lambda x, *_: jnp.full(shape, jnp.nan, x.dtype))
    # Not compiled: other tests would get the program.
    monkeypatch.setattr(module, "_f1_by_count", module._f1_by_count.__wrapped__)
    found = bench.absorption(*spelling(8), most=3)
    assert found.main.ids.tolist() == [[first, -1, -1]]
    assert np.isnan(found.main.f1).all()
    assert np.isnan(found.full).all()
    assert np.isnan(found.fraction).all()


def test_without_a_main_latent_or_an_example_there_is_no_rate():
    activations, features, decoder, labels, train = spelling()
    silent = bench.absorption(activations, features * 0, decoder, labels, train)
    assert silent.main.ids.max() == -1
    assert np.isnan(silent.full).all()
    assert np.isnan(silent.fraction).all()
    unseen = bench.absorption(activations * 0, features, decoder, labels, train)
    assert int(unseen.examples[0]) == 0
    assert np.isnan(unseen.full).all()
    assert np.isnan(unseen.fraction).all()


def plain_absorbed(x, f, decoder, direction, main):
    """The definition, an example at a time."""
    p = direction / np.sqrt(np.sum(direction**2))
    cosines = [float(row @ p / np.sqrt(row @ row)) for row in decoder]
    total = float(x @ p)
    by = [f[i] * float(decoder[i] @ p) for i in range(len(f))]
    if total <= 0:
        return False, 0.0, "no concept"
    best = max(range(len(f)), key=lambda i: by[i])
    full = all(f[i] < 1e-8 for i in main) and cosines[best] >= 0.025 and by[best] / total >= 0.4
    m = sum(by[i] for i in main)
    rest = sorted(
        (by[i] for i in range(len(f)) if i not in main and cosines[i] >= 0.1 and by[i] > 0), reverse=True
    )
    t = sum(rest[:3])
    if m >= total:
        return full, 0.0, "main is enough"
    if t / total < 0.4:
        return full, 0.0, "too little"
    if m <= 0:
        return full, 1.0, "all"
    a = min(t, total - m)
    return full, a / (a + m), "T" if t < total - m else "the rest"


def test_each_example_is_judged_by_the_definition():
    rng = np.random.default_rng(5)
    n, latents, main = 600, 50, [2, 7]
    decoder, direction = rng.normal(size=(latents, D)), rng.normal(size=D) * 3
    features = np.maximum(rng.normal(size=(n, latents)), 0) * (rng.random((n, latents)) < 0.1)
    x = features @ decoder + rng.normal(size=(n, D))
    got = in_float64(bench.absorbed, x, features, decoder, direction, main)
    want = [plain_absorbed(x[i], features[i], decoder, direction, main) for i in range(n)]
    np.testing.assert_array_equal(got.full, [w[0] for w in want])
    np.testing.assert_allclose(got.fraction, [w[1] for w in want], atol=1e-12)
    assert {w[2] for w in want} == {"no concept", "main is enough", "too little", "all", "T", "the rest"}
    assert 0 < got.full.sum() < n
    padded = in_float64(bench.absorbed, x, features, decoder, direction * 5, [2, -1, 7, -1])
    np.testing.assert_allclose(padded.fraction, got.fraction, atol=1e-12)
