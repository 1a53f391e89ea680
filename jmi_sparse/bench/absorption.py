"""Absorption: a general latent that stays silent where more special ones say the same."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jmi.checks import real_array, shown, whole_array
from jmi.engine.forward import precise
from jmi.errors import ArgumentError
from jmi_sparse.bench.examples import balanced, checked, classes, labelled, split
from jmi_sparse.bench.main_latents import MainLatents, f1_of, main_latents
from jmi_sparse.bench.probes import fitted

SILENT = 1e-8
"""A latent below this does not fire."""

ALIGNED = 0.025
"""Least cosine between probe and decoder row of the one latent that absorbs."""

ABSORBING = 0.1
"""Least cosine of latents that count as absorbing in the fraction."""

SHARE = 0.4
"""Least share of the probe's projection that absorbing latents make up."""

ABSORBERS = 3
"""At most so many latents absorb at once."""


class Absorption(NamedTuple):
    """Rates of each task, over the test examples of the concept that the dense probe recognises.

    Attributes:
      full: ``[tasks]``: share of them that is absorbed by one latent; NaN without an example or main latent.
      fraction: ``[tasks]``: mean absorption fraction; NaN likewise.
      main: the main latents.
      probe_f1: ``[tasks]``, of the dense probe on the test examples.
      examples: int32 ``[tasks]``: how many there are.
    """

    full: jax.Array
    fraction: jax.Array
    main: MainLatents
    probe_f1: jax.Array
    examples: jax.Array


@precise()
def absorption(
    activations: Any,
    features: Any,
    decoder: Any,
    labels: Any,
    train: Any,
    *,
    most: int = 10,
    jump: float = 0.03,
    l1: float = 0.01,
    l2: float = 1.0,
) -> Absorption:
    """How often a concept is left to latents that stand for something else: SAEBench's absorption.

    A dense probe (`fit_probe`) says in which direction activations hold a concept, such as the first letter
    of a word; `main_latents` says which latents stand for it; and `absorbed` judges each test example of the
    concept with a positive logit of the dense probe.

    Source: SAEBench 0.6.0, `absorption`; Chanin et al. 2024 (arXiv 2409.14507). There both the dense probe
    and the ranking are trained by some epochs of Adam; here they are at their optimum, the dense one under
    the penalty ``l2``. As there, features are first put in units of the length of their decoder rows.

    How it misleads: a poor dense probe makes rates of noise, so SAEBench drops tasks of ``probe_f1`` 0.6 or
    less. An absorbing latent of many examples raises F1 and counts as main. Widths and sparsities differ in
    how often main latents fire, and so do rates.

    Args:
      activations: ``[n, d]``, such as at the last token of each word.
      features: ``[n, features]`` of these activations.
      decoder: ``[features, d]``: what a unit of each feature writes.
      labels: bool ``[tasks, n]``.
      train: bool ``[n]``; the other examples are the test.
      most, jump, l1: of `main_latents`.
      l2: penalty of the probes.

    Raises:
      ArgumentError: shapes that do not fit, numbers that are not finite or out of range, a class of which
        train or test have no example.

    Example:
      >>> import numpy as np
      >>> word = np.tile(np.arange(80), 2)  # 40 words of the concept, then 40 others
      >>> rows = np.eye(81)  # latent 0 stands for the concept, 1 + i for word i
      >>> features = np.eye(81)[1 + word]
      >>> features[:, 0] = (word < 40) & (word >= 10)  # ten words are absorbed
      >>> rows[1:11, 0] = 1
      >>> found = absorption(features @ rows, features, rows, word[None] < 40, np.arange(160) < 80)
      >>> float(found.full[0]), found.main.ids[0].tolist()
      (0.25, [0, -1, -1, -1, -1, -1, -1, -1, -1, -1])
    """
    given = checked(train, activations=activations, features=features, decoder=decoder)
    train, activations, features, decoder = given
    # What a unit of a feature writes is then of length 1, and no result depends on how features are scaled.
    norms = jnp.linalg.norm(decoder, axis=-1, keepdims=True)
    features, decoder = features * norms.T, decoder / jnp.maximum(norms, SILENT)
    main = main_latents(features, labels, train, most=most, jump=jump, l1=l1, l2=l2)
    labels = labelled(labels, train)
    probe = fitted(activations, labels, balanced(split(classes(labels), train)[0], activations.dtype), l2)
    logits = probe.logits(activations)
    judged = labels & ~train[None] & (logits > 0)
    full, fraction = _rates(activations, features, decoder, probe.weights, main, judged)
    probe_f1 = f1_of(logits, labels, ~train[None])
    return Absorption(full, fraction, main, probe_f1, judged.sum(-1).astype(jnp.int32))


@jax.jit
def _rates(
    activations: jax.Array,
    features: jax.Array,
    decoder: jax.Array,
    directions: jax.Array,
    main: MainLatents,
    judged: jax.Array,
) -> list[jax.Array]:
    """Means of what `absorbed` says of the examples that are ``judged``, ``[tasks]`` each."""

    def rates(task: tuple[jax.Array, ...]) -> list[jax.Array]:
        direction, ids, judged, f1 = task
        each = _absorbed(activations, features, decoder, direction, ids)
        # Without a main latent nothing is absorbed from one.
        known = judged.any() & (ids >= 0).any() & ~jnp.isnan(f1).any()
        return [jnp.where(known, jnp.mean(of.astype(f1.dtype), where=judged), jnp.nan) for of in each]

    return lax.map(rates, (directions, main.ids, judged, main.f1))


class Absorbed(NamedTuple):
    """Judgement of each example.

    Attributes:
      full: bool ``[n]``: main latents are silent, and one other latent stands for the concept.
      fraction: ``[n]``, 0 to 1: the part of the concept that other latents hold.
    """

    full: jax.Array
    fraction: jax.Array


@precise()
def absorbed(activations: Any, features: Any, decoder: Any, direction: Any, main: Any) -> Absorbed:
    """Whether, and how far, other latents than the main ones hold a concept in each example.

    With p the unit ``direction``, ``P = x p``, and ``c_i`` the cosine of p and decoder row ``D_i``, the
    projection of a latent is ``f_i (D_i . p)``: ``f_i c_i`` where rows have length 1, as SAEBench makes them.

    - Full: every main latent is below `SILENT`, and the latent of the largest projection has ``c_i`` of at
      least `ALIGNED` and a projection of at least `SHARE` of P.
    - Fraction: M is the projection of the main latents together, T that of the `ABSORBERS` largest of others
      whose ``c_i`` is at least `ABSORBING`. It is 0 if M >= P or T < SHARE P; else 1 if M <= 0; else
      ``A / (A + M)`` with ``A = min(T, P - M)``.

    Where P is 0 or less, the concept is not there, and nothing is absorbed.

    Args:
      activations: ``[n, d]``, examples of the concept.
      features: ``[n, features]``.
      decoder: ``[features, d]``.
      direction: ``[d]``, such as the weights of a dense probe; its length does not matter.
      main: ids of the main latents ``[k]``; -1 is none.

    Raises:
      ArgumentError: shapes that do not fit, numbers that are not finite, an id that is no latent.

    Example:
      >>> rows = [[1.0, 0.0], [0.6, 0.8]]
      >>> found = absorbed([[1.0, 0.0], [0.6, 0.8]], [[1.0, 0.0], [0.0, 1.0]], rows, [1.0, 0.0], [0])
      >>> found.full.tolist(), found.fraction.tolist()
      ([False, True], [0.0, 1.0])
    """
    activations = real_array("activations", activations, 1)
    every = np.ones(activations.shape[0], bool)
    _, *given = checked(every, activations=activations, features=features, decoder=decoder)
    direction, main = real_array("direction", direction), whole_array("main", main)
    if direction.shape != given[2].shape[1:] or main.ndim != 1:
        raise ArgumentError(f"direction={shown(direction)}, main={shown(main)}: give [d] and [k]")
    if not isinstance(main, jax.core.Tracer) and not ((main >= -1) & (main < given[2].shape[0])).all():
        raise ArgumentError(f"main={main.tolist()}: give ids below {given[2].shape[0]}, or -1 for none")
    if not isinstance(direction, jax.core.Tracer) and not 0 < np.linalg.norm(direction) < np.inf:
        raise ArgumentError("direction: its length must be above 0 and finite")
    return _absorbed(*given, jnp.asarray(direction).astype(given[0].dtype), jnp.asarray(main))


@jax.jit
def _absorbed(
    x: jax.Array, features: jax.Array, decoder: jax.Array, direction: jax.Array, main: jax.Array
) -> Absorbed:
    unit = direction / jnp.linalg.norm(direction)
    written = decoder @ unit
    # A row of zeros is aligned with nothing.
    cosines = written / jnp.maximum(jnp.linalg.norm(decoder, axis=-1), SILENT)
    projections, total = features * written[None], x @ unit
    n_features = len(decoder)
    is_main = jnp.zeros(n_features, bool).at[jnp.where(main < 0, n_features, main)].set(True, mode="drop")

    top = jnp.argmax(projections, axis=-1)
    silent = (jnp.where(is_main[None], features, 0) < SILENT).all(-1)
    stands = (cosines[top] >= ALIGNED) & (projections.max(-1) >= SHARE * total)

    by_main = jnp.where(is_main[None], projections, 0).sum(-1)
    others = jnp.where((~is_main & (cosines >= ABSORBING))[None], jnp.maximum(projections, 0), 0)
    by_others = lax.top_k(others, min(ABSORBERS, n_features))[0].sum(-1)
    taken = jnp.minimum(by_others, total - by_main)
    none = (by_main >= total) | (by_others < SHARE * total) | (total <= 0)
    fraction = jnp.where(by_main <= 0, 1, taken / (taken + by_main))
    return Absorbed(silent & stands & (total > 0), jnp.where(none, 0, fraction))
