"""Removal of latents: what probes still tell when those of one concept are set to 0 (SCR and TPP).

A latent set to 0 takes ``f_i D_i`` from an activation, so a probe's logit falls by ``f_i (D_i . w)``. What
the dictionary misses of an activation stays in it. That holds where decoding is linear: where each vector is
normalised by itself, give features times the factor of their vector.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jmi.checks import real_number, several, whole_number
from jmi.engine.forward import precise
from jmi.errors import ArgumentError
from jmi_sparse.bench.examples import (
    balanced,
    check_groups,
    checked,
    classes,
    labelled,
    mean_difference,
    split,
    truths,
)
from jmi_sparse.bench.probes import Probe, accuracy, fitted

SIZES = (2, 5, 10, 20, 50, 100, 500)
"""How many latents SAEBench removes."""

GAP = 0.001
"""Below this there is no accuracy to win back, and the score is 0."""


class Scr(NamedTuple):
    """Accuracies on the test examples, each of the four groups counting alike; NaN if a fit did not converge.

    Attributes:
      score: ``[sizes]``: ``(after - before) / (clean - before)``.
      after: ``[sizes]``, of the biased probe with that many latents removed.
      before: ``[]``, of the biased probe.
      clean: ``[]``, of the unbiased probe.
      ids: int32 ``[largest size]``: latents in the order of removal, -1 after the last that has an effect.
    """

    score: jax.Array
    after: jax.Array
    before: jax.Array
    clean: jax.Array
    ids: jax.Array


class Tpp(NamedTuple):
    """Accuracies on the test examples, both classes of each task counting alike.

    Attributes:
      score: ``[tasks, sizes]``: the fall of its own accuracy minus the mean fall of the others'.
      after: ``[tasks, sizes, tasks]``, of the probe of the last axis, latents of the first removed.
      before: ``[tasks]``.
      ids: int32 ``[tasks, largest size]``, as of `Scr`.
    """

    score: jax.Array
    after: jax.Array
    before: jax.Array
    ids: jax.Array


@precise()
def scr(
    activations: Any,
    features: Any,
    decoder: Any,
    target: Any,
    spurious: Any,
    train: Any,
    *,
    sizes: Sequence[int] = SIZES,
    l2: float = 1.0,
) -> Scr:
    """Spurious correlation removal: what removing the latents of a shortcut wins back.

    A biased probe of ``target`` is fitted to the train examples on which target and ``spurious`` agree, so it
    cannot tell them apart. Latents are ranked by ``|mean difference x (D . w)|``: the difference of train
    examples with and without spurious, and w of a probe of spurious. The first N are set to 0. To all probes
    but the biased one the four groups count alike, and so they do in accuracies, which are of test examples.

    Source: SAEBench 0.6.0, `scr_and_tpp`; Karvonen et al. 2024 (arXiv 2411.18895). SAEBench draws equally
    many examples of each group, and trains its probes by some epochs of AdamW with an L1 penalty. It reports
    the direction in which the biased probe does worse: call this twice, target and spurious exchanged, and
    keep the one of lower ``before``.

    How it misleads: with a small gap between clean and before the score is noise over noise, and may be far
    from 0 and 1. Many latents removed may help by removing anything.

    Args:
      activations: ``[n, d]``, of one token each or averaged by `mean_over_tokens`.
      features: ``[n, features]``, averaged likewise.
      decoder: ``[features, d]``: what a unit of each feature writes.
      target, spurious: bool ``[n]``; if they go against each other, give ``~spurious``.
      train: bool ``[n]``; the other examples are the test. Both need examples of all four groups.
      sizes: how many latents are removed. Those without an effect are left.
      l2: penalty of the probes (`fit_probe`).

    Raises:
      ArgumentError: shapes that do not fit, numbers that are not finite, a group without an example.

    Example:
      >>> import numpy as np
      >>> target, spurious, train = (np.arange(64) // 2**i % 2 == 1 for i in range(3))
      >>> features = np.stack([target, spurious], axis=1) * 1.0
      >>> rows = np.array([[1.0, 0.0], [0.0, 3.0]])
      >>> found = scr(features @ rows + [0, -1.5], features, rows, target, spurious, train, sizes=[1])
      >>> float(found.before), float(found.clean), found.ids.tolist()
      (0.5, 1.0, [1])
    """
    train, activations, features, decoder = checked(
        train, activations=activations, features=features, decoder=decoder
    )
    target, spurious = (
        truths(name, value, 1, len(train)) for name, value in (("target", target), ("spurious", spurious))
    )
    groups = jnp.stack([target & spurious, ~target & ~spurious, target & ~spurious, ~target & spurious])
    check_groups(groups, train, "target and spurious (both, neither, only target, only spurious)")
    return _scr(activations, features, decoder, groups, train, l2=_positive(l2), sizes=_sizes(sizes))


@functools.partial(jax.jit, static_argnames="sizes")
def _scr(
    activations: jax.Array,
    features: jax.Array,
    decoder: jax.Array,
    groups: jax.Array,
    train: jax.Array,
    *,
    l2: Any,
    sizes: tuple[int, ...],
) -> Scr:
    dtype, target, spurious = activations.dtype, groups[0] | groups[2], groups[0] | groups[3]
    even, test = (balanced(side, dtype) for side in split(groups, train))
    agreeing = balanced(split(groups[:2], train)[0], dtype)
    labels = jnp.stack([target, target, spurious])
    biased, clean, shortcut = _each(fitted(activations, labels, jnp.stack([agreeing, even, even]), l2))
    effects = jnp.abs(mean_difference(features, spurious, even) * (decoder @ shortcut.weights))
    ids = _strongest(effects, sizes)
    logits = biased.logits(activations)
    left = logits[None] - _taken(features, (decoder @ biased.weights)[:, None], ids, sizes)[:, 0]
    before = accuracy(logits, target, test)
    after = accuracy(left, target[None], test[None])
    reference = accuracy(clean.logits(activations), target, test)
    gap = reference - before
    score = jnp.where(gap < GAP, 0, (after - before) / gap)
    return Scr(score, after, before, reference, ids)


@precise()
def tpp(
    activations: Any,
    features: Any,
    decoder: Any,
    labels: Any,
    train: Any,
    *,
    sizes: Sequence[int] = SIZES,
    l2: float = 1.0,
) -> Tpp:
    """Targeted probe perturbation: whether the latents of one class are of that class alone.

    For each class the N latents with the largest effect ``max(mean difference, 0) x (D . w)`` on its own
    probe are set to 0: those that are larger in the class, and raise its logit. The score of a class is the
    fall of its probe's accuracy minus the mean fall of the other probes'. SAEBench reports the mean of it.

    Source: SAEBench 0.6.0, `scr_and_tpp`; Karvonen et al. 2024 (arXiv 2411.18895), with the differences that
    `scr` names. Where fewer than N latents have a positive effect, only these are removed.

    How it misleads: a score of 0 is had by removing nothing as well as by ruining all probes alike; look at
    ``before`` and ``after``. Related classes share latents, and pull the score down.

    Args:
      activations, features, decoder, train, sizes, l2: as of `scr`.
      labels: bool ``[tasks, n]``, two tasks or more.

    Raises:
      ArgumentError: shapes that do not fit, numbers that are not finite, a single task, a class of which
        train or test have no example.

    Example:
      >>> import numpy as np
      >>> which = np.arange(60) % 3
      >>> features = np.eye(3)[which]
      >>> labels, train = which == np.arange(3)[:, None], np.arange(60) < 30
      >>> found = tpp(features, features, np.eye(3), labels, train, sizes=[1])
      >>> found.score.tolist()
      [[0.5], [0.5], [0.5]]
    """
    train, activations, features, decoder = checked(
        train, activations=activations, features=features, decoder=decoder
    )
    labels = labelled(labels, train)
    if len(labels) < 2:
        raise ArgumentError("labels: give two tasks or more; one has no others to compare with")
    return _tpp(activations, features, decoder, labels, train, l2=_positive(l2), sizes=_sizes(sizes))


@functools.partial(jax.jit, static_argnames="sizes")
def _tpp(
    activations: jax.Array,
    features: jax.Array,
    decoder: jax.Array,
    labels: jax.Array,
    train: jax.Array,
    *,
    l2: Any,
    sizes: tuple[int, ...],
) -> Tpp:
    fit, test = (balanced(side, features.dtype) for side in split(classes(labels), train))
    probes = fitted(activations, labels, fit, l2)
    logits, written = probes.logits(activations), decoder @ probes.weights.T

    def without(task: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        y, fit, own = task
        ids = _strongest(jnp.maximum(mean_difference(features, y, fit), 0) * own, sizes)
        left = logits[None] - _taken(features, written, ids, sizes)
        return accuracy(left, labels[None], test[None]), ids

    before = accuracy(logits, labels, test)
    after, ids = lax.map(without, (labels, fit, written.T))
    fall = before[None, None] - after
    own = jnp.einsum("tst->ts", fall)
    others = (fall.sum(-1) - own) / (len(labels) - 1)
    return Tpp(own - others, after, before, ids)


def _strongest(effects: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Ids of the latents with the largest positive effects, ``[largest size]``, -1 after the last."""
    found, ids = lax.top_k(effects, min(max(sizes), len(effects)))
    ids = jnp.where(found > 0, ids.astype(jnp.int32), -1)
    return jnp.pad(ids, (0, max(sizes) - len(ids)), constant_values=-1)


def _taken(features: jax.Array, written: jax.Array, ids: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """What the first of ``ids`` add to logits ``[sizes, probes, n]``; ``written`` ``[features, probes]``."""
    first = jnp.arange(len(ids))[None] < jnp.array(sizes)[:, None]
    kept = (first & (ids >= 0)[None])[:, :, None]
    return jnp.einsum("np,spc->scn", features[:, ids], jnp.where(kept, written[ids][None], 0))


def _each(probes: Probe) -> list[Probe]:
    return [Probe(w, b) for w, b in zip(probes.weights, probes.bias, strict=True)]


def _sizes(sizes: Any) -> tuple[int, ...]:
    return tuple(whole_number("sizes", size, 1) for size in several("sizes", sizes, "numbers of latents"))


def _positive(l2: Any) -> Any:
    return real_number("l2", l2, above=0)
