"""SCR and TPP: removing planted latents tells, removing others does not; numbers follow from definitions."""

import numpy as np

from jmi_sparse import bench
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
    sides,
)


def shortcut(seed=0):
    """A target, and a stronger attribute, whose two values latents 3 and 5 stand for."""
    rng = np.random.default_rng(seed)
    target, spurious = rng.random((2, N)) < 0.5
    decoder = np.linalg.qr(rng.normal(size=(F, F)))[0]
    decoder[5] = -decoder[3]
    features = rng.random((N, F))
    features[:, 1] += target
    features[:, 3], features[:, 5] = 4 * spurious, 4 * ~spurious
    return features @ decoder, features, decoder, target, spurious, TRAIN


def test_removing_the_latents_of_a_shortcut_wins_the_accuracy_back_and_removing_others_does_not():
    activations, features, decoder, *rest = shortcut()
    found = bench.scr(activations, features, decoder, *rest, sizes=[2])
    assert sorted(found.ids.tolist()) == [3, 5]
    assert float(found.before) < 0.6
    assert float(found.clean) > 0.95
    assert float(found.score[0]) > 0.95
    others = np.setdiff1d(np.arange(F), [1, 3, 5])
    without = bench.scr(activations, features[:, others], decoder[others], *rest, sizes=[2])
    assert abs(float(without.score[0])) < 0.1


def test_without_a_gap_the_score_is_zero():
    activations, features, decoder, target, _, train = shortcut()
    harmless = np.random.default_rng(8).random(N) < 0.5
    found = bench.scr(activations * 50, features, decoder * 50, target, harmless, train, sizes=[1, 2])
    assert float(found.clean - found.before) < 0.001
    assert found.score.tolist() == [0, 0]


def four_groups(t, s, side):
    return [t & s & side, ~t & ~s & side, t & ~s & side, ~t & s & side]


def test_scr_is_its_definition():
    activations, features, decoder, labels = noisy(1)
    t, s, sizes = labels[0], labels[1], (1, 3, 20)
    found = in_float64(bench.scr, activations, features, decoder, t, s, TRAIN, sizes=sizes)
    even, test = class_weights(four_groups(t, s, TRAIN)), four_groups(t, s, ~TRAIN)
    w, b = plain_probe(activations, t, class_weights(four_groups(t, s, TRAIN)[:2]))
    before = balanced_accuracy(activations @ w + b, test, t)
    clean_w, clean_b = plain_probe(activations, t, even)
    clean = balanced_accuracy(activations @ clean_w + clean_b, test, t)
    groups = four_groups(t, s, TRAIN)
    apart = sum(sign * features[g].mean(0) / 2 for sign, g in zip((1, -1, -1, 1), groups, strict=True))
    effects = np.abs(apart * (decoder @ plain_probe(activations, s, even)[0]))
    order = np.argsort(-effects)
    assert found.ids.tolist() == [*order, *[-1] * (20 - F)]
    np.testing.assert_allclose([found.before, found.clean], [before, clean], atol=1e-12)
    for place, size in enumerate(sizes):
        kept = features.copy()
        kept[:, order[:size]] = 0
        left = activations - features @ decoder + kept @ decoder
        after = balanced_accuracy(left @ w + b, test, t)
        np.testing.assert_allclose(found.after[place], after, atol=1e-12)
        score = (after - before) / (clean - before) if clean - before >= 0.001 else 0
        np.testing.assert_allclose(found.score[place], score, atol=1e-9)
    assert clean - before > 0.01
    assert len({*found.after}) > 1


def test_latents_of_one_class_alone_score_half_and_unrelated_ones_nothing():
    features, labels = planted_classes()
    features[:, :TASKS] = 3 * labels.T
    decoder = np.eye(F, dtype=np.float32)
    found = bench.tpp(features, features, decoder, labels, TRAIN, sizes=[1])
    assert found.ids[:, 0].tolist() == [0, 1, 2]
    # The probe then says no to all, and its accuracy falls from 1 to 0.5; the others say no as before.
    assert found.before.tolist() == [1] * TASKS
    np.testing.assert_allclose(found.score, 0.5, atol=1e-6)
    others = bench.tpp(features, features[:, TASKS:], decoder[TASKS:], labels, TRAIN, sizes=[1])
    np.testing.assert_allclose(others.score, 0, atol=1e-6)


def test_tpp_is_its_definition():
    activations, features, decoder, labels = noisy(2)
    sizes = (1, 3, 20)
    found = in_float64(bench.tpp, activations, features, decoder, labels, TRAIN, sizes=sizes)
    probes = [plain_probe(activations, y, class_weights(sides(y, TRAIN))) for y in labels]
    tests = [sides(y, ~TRAIN) for y in labels]

    def accuracies(x):
        return np.array(
            [balanced_accuracy(x @ w + b, t, y) for (w, b), t, y in zip(probes, tests, labels, strict=True)]
        )

    np.testing.assert_allclose(found.before, accuracies(activations), atol=1e-12)
    for c, y in enumerate(labels):
        apart = np.maximum(features[y & TRAIN].mean(0) - features[~y & TRAIN].mean(0), 0)
        effects = apart * (decoder @ probes[c][0])
        order = [i for i in np.argsort(-effects) if effects[i] > 0]
        assert found.ids[c].tolist() == [*order, *[-1] * (20 - len(order))]
        for place, size in enumerate(sizes):
            kept = features.copy()
            kept[:, order[:size]] = 0
            fall = accuracies(activations) - accuracies(activations - (features - kept) @ decoder)
            np.testing.assert_allclose(found.score[c, place], fall[c] - np.delete(fall, c).mean(), atol=1e-12)
    assert np.abs(found.score).max() > 0.05
