"""Sparse probing: how much of a concept a few latents hold."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jmi.checks import real_number, several, whole_number
from jmi.engine.forward import precise
from jmi_sparse.bench.examples import balanced, checked, classes, labelled, mean_difference, split
from jmi_sparse.bench.probes import accuracy, fitted, newton


class SparseProbing(NamedTuple):
    """Accuracies on the test examples; 0.5 is chance, and NaN says that a fit did not converge.

    Attributes:
      accuracy: ``[tasks, ks]``, of probes that read k latents.
      dense: ``[tasks]``, of probes that read all of the activations; None without them.
      ids: int32 ``[tasks, largest k]``: the latents, the largest difference of means first.
    """

    accuracy: jax.Array
    dense: jax.Array | None
    ids: jax.Array


@precise()
def sparse_probing(
    features: Any,
    labels: Any,
    train: Any,
    *,
    activations: Any = None,
    ks: Sequence[int] = (1, 2, 5),
    l2: float = 1.0,
) -> SparseProbing:
    """Test accuracy of logistic probes on the k latents whose mean differs most between two classes.

    The k latents with the largest ``|mean of class 1 - mean of class 0|`` over the train examples are read by
    a probe (`fit_probe`), whose accuracy is taken on the test examples. Classes count alike in all of it:
    SAEBench draws equally many examples of both instead, where these are the same numbers. The probe on
    ``activations`` is what there is to be found.

    Source: SAEBench 0.6.0, `sparse_probing`; Gurnee et al. 2023 (arXiv 2305.01610). SAEBench puts features
    in units of the length of their decoder rows first: `Dictionary.fold_norms`.

    How it misleads: latents that are large differ more than small ones that tell the classes apart better.
    Of many tasks and dictionaries the best score is high by chance alone. That latents tell classes apart
    does not say that a model uses them.

    Args:
      features: ``[n, features]``, of one token each or averaged by `mean_over_tokens`.
      labels: bool ``[tasks, n]``.
      train: bool ``[n]``; the other examples are the test.
      activations: ``[n, d]``, for the dense probe.
      ks: how many latents a probe reads.
      l2: penalty of the probes.

    Raises:
      ArgumentError: shapes that do not fit, numbers that are not finite, a k above the number of latents, a
        class of which train or test have no example.

    Example:
      >>> import numpy as np
      >>> rng = np.random.default_rng(0)
      >>> concept, train = rng.random(200) < 0.4, np.arange(200) < 100
      >>> features = rng.random((200, 8))
      >>> features[:, 3] += 2 * concept
      >>> found = sparse_probing(features, concept[None], train, ks=[1])
      >>> int(found.ids[0, 0]), float(found.accuracy[0, 0])
      (3, 1.0)
    """
    given = {"features": features} | ({} if activations is None else {"activations": activations})
    train, features, *others = checked(train, **given)
    labels = labelled(labels, train)
    ks = tuple(whole_number("ks", k, 1, features.shape[1]) for k in several("ks", ks, "numbers of latents"))
    l2 = real_number("l2", l2, above=0)
    fit, test = (balanced(side, features.dtype) for side in split(classes(labels), train))
    found, ids = _sparse(features, labels, fit, test, l2, ks)
    dense = [accuracy(fitted(x, labels, fit, l2).logits(x), labels, test) for x in others]
    return SparseProbing(found, dense[0] if dense else None, ids)


@functools.partial(jax.jit, static_argnames="ks")
def _sparse(
    features: jax.Array, labels: jax.Array, fit: jax.Array, test: jax.Array, l2: Any, ks: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    def one(task: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        y, fit, test = task
        _, ids = lax.top_k(jnp.abs(mean_difference(features, y, fit)), max(ks))
        logits = first_few(features[:, ids], y, fit, l2, jnp.array(ks))
        return accuracy(logits, y[None], test[None]), ids

    return lax.map(one, (labels, fit, test))


def first_few(chosen: jax.Array, y: jax.Array, weights: jax.Array, l2: Any, ks: jax.Array) -> jax.Array:
    """Logits ``[ks, n]`` of probes that read the first k columns of ``chosen`` ``[n, places]``."""

    def read(k: jax.Array) -> jax.Array:
        # A column of zeros gets weight 0.
        x = jnp.where((jnp.arange(chosen.shape[1]) < k)[None], chosen, 0)
        return newton(x, y, weights, l2).logits(x)

    return jax.vmap(read)(ks)
