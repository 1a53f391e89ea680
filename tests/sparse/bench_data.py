"""Data with classes, and the definitions of what measures of SAEBench share, in plain numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

N, F, D, TASKS = 160, 12, 8, 3
TRAIN = np.arange(N) < 100


@functools.cache
def noisy(seed=0):
    """Activations, features, decoder and labels of classes that overlap, of unequal size."""
    rng = np.random.default_rng(seed)
    labels = rng.random((TASKS, N)) < np.array([[0.3], [0.5], [0.7]])
    features = np.maximum(rng.normal(size=(N, F)) + rng.normal(size=(TASKS, F)).T.dot(labels).T, 0)
    decoder = rng.normal(size=(F, D))
    return features @ decoder + rng.normal(size=(N, D)), features, decoder, labels


def in_float64(function, *arrays, **options):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*map(jnp.asarray, arrays), **options))


def planted_classes(seed=0):
    """Class k is carried by latent k, among others that say nothing."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, TASKS, N)
    features = rng.random((N, F)).astype(np.float32)
    features[np.arange(N), which] += 2
    return features, which == np.arange(TASKS)[:, None]


def class_weights(groups):
    return sum(group * sum(map(np.sum, groups)) / (len(groups) * group.sum()) for group in groups)


def probe_loss(u, x, sign, weights, l2):
    """Loss and gradient."""
    margin = sign * (x @ u[:-1] + u[-1])
    pull = -weights * sign / (1 + np.exp(margin))
    value = l2 / 2 * u[:-1] @ u[:-1] + weights @ np.logaddexp(0, -margin)
    return value, np.append(l2 * u[:-1] + pull @ x, pull.sum())


def plain_probe(x, y, weights, l2=1.0):
    given = (x, np.where(y, 1, -1), weights, l2)
    found = optimize.minimize(probe_loss, np.zeros(x.shape[1] + 1), given, jac=True, method="BFGS", tol=1e-9)
    return found.x[:-1], found.x[-1]


def balanced_accuracy(logits, groups, y):
    return np.mean([np.mean((logits > 0)[group] == y[group]) for group in groups])


def sides(y, side):
    return [y & side, ~y & side]
