"""Factors moved from one weight of a dictionary to another: what it reconstructs stays as it is."""

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jmi.checks import real_array, real_number
from jmi.errors import ArgumentError
from jmi.numerics import wide
from jmi_sparse.dictionaries.activations import BatchTopK, JumpReLU
from jmi_sparse.dictionaries.normalisation import Outside
from jmi_sparse.dictionaries.pursuit import MatchingPursuit

if TYPE_CHECKING:
    from jmi_sparse.dictionaries.dictionary import Dictionary

LEAST_NORM = 1e-8
"""Norms of decoder rows below this count as this; SAELens's number."""


def fold(dictionary: "Dictionary", norms: jax.Array) -> "Dictionary":
    """Features ``norms`` ``[features]`` times as large, decoder rows as much shorter; see `fold_norms`."""
    d = dictionary
    return dataclasses.replace(
        d,
        W_enc=times(d.W_enc, norms[None, :]),
        W_dec=times(d.W_dec, 1 / norms[:, None]),
        b_enc=None if d.b_enc is None else times(d.b_enc, norms),
        # Features in units of their rows are as large as before, and so is what they are compared with.
        activation=d.activation if d.rescale_acts_by_decoder_norm else d.activation.scaled(norms),
    )


def unfold(dictionary: "Dictionary", norms: jax.Array) -> "Dictionary":
    """`fold`, turned back."""
    norms = jnp.asarray(real_array("norms", norms))
    if norms.shape != (dictionary.n_features,):
        raise ArgumentError(
            f"norms={list(norms.shape)}: give one for each of {dictionary.n_features} features"
        )
    return fold(dictionary, 1 / jnp.maximum(norms.astype(wide(norms.dtype)), LEAST_NORM))


def fold_norm_factor(
    dictionary: "Dictionary | MatchingPursuit", factor: float
) -> "Dictionary | MatchingPursuit":
    """The dictionary that takes inputs as the model has them, made of one trained on inputs times ``factor``.

    SAELens trains so under ``expected_average_only_in``, where the factor is ``sqrt(d)`` over the mean norm
    of the training inputs: ``W_enc`` is multiplied by it, ``W_dec`` and ``b_dec`` are divided. A factor of
    another model or point gives features that look right and are wrong.

    Args:
      dictionary: a `Dictionary`, or a `MatchingPursuit`, whose features become smaller by the factor.

    Raises:
      ArgumentError: ``factor`` is no positive number.

    Example:
      >>> import jax.numpy as jnp, jmi_sparse
      >>> eye = jnp.eye(3)
      >>> trained = jmi_sparse.Dictionary(eye, eye, jnp.zeros(3), jmi_sparse.ReLU(), jnp.zeros(3))
      >>> [float(value) for value in jmi_sparse.fold_norm_factor(trained, 2.0).encode(jnp.ones(3))]
      [2.0, 2.0, 2.0]
    """
    factor = real_number("factor", factor, above=0)
    d, normalisation = dictionary, dictionary.normalisation
    normalisation = None if isinstance(normalisation, Outside) else normalisation
    b_dec = times(d.b_dec, 1 / factor)
    if isinstance(d, MatchingPursuit):
        # Rows are both encoder and decoder, and stay: its features come in units of the input.
        least = d.residual_threshold / factor
        return dataclasses.replace(d, b_dec=b_dec, residual_threshold=least, normalisation=normalisation)
    activation = d.activation
    if normalisation is not None and normalisation.by_vector:
        raise ArgumentError(f"factor: {type(normalisation).__name__} already scales each input by itself")
    if isinstance(activation, (BatchTopK, JumpReLU)) and d.rescale_acts_by_decoder_norm:
        # Its threshold is compared with what the shorter decoder rows make smaller.
        activation = dataclasses.replace(activation, threshold=activation.threshold / factor)
    return dataclasses.replace(
        d,
        W_enc=times(d.W_enc, factor),
        W_dec=times(d.W_dec, 1 / factor),
        b_dec=b_dec,
        activation=activation,
        normalisation=normalisation,
    )


def at_threshold(dictionary: "Dictionary") -> "Dictionary":
    """A dictionary that was trained by `BatchTopK`, as one that decides position by position: a `JumpReLU`.

    Active is what is above the threshold that its training kept, so a position may have more or fewer
    features than by selection over a batch. Norms are folded where features are in units of them. SAELens
    saves such dictionaries for inference in this way.

    Raises:
      ArgumentError: another activation, or a threshold of 0, which training never set.

    Example:
      >>> import jax.numpy as jnp, jmi_sparse
      >>> eye, chosen = jnp.eye(2), jmi_sparse.BatchTopK(jnp.float32(1.5), k=1)
      >>> trained = jmi_sparse.Dictionary(eye, eye, jnp.zeros(2), chosen, jnp.zeros(2))
      >>> [float(value) for value in jmi_sparse.at_threshold(trained).encode(jnp.array([2.0, 1.0]))]
      [2.0, 0.0]
    """
    d = dictionary
    if not isinstance(d.activation, BatchTopK):
        raise ArgumentError(
            f"at_threshold: {type(d.activation).__name__} already decides position by position"
        )
    if not float(d.activation.threshold) > 0:
        raise ArgumentError(
            "at_threshold: the threshold is 0, which training never set; set activation.threshold"
        )
    threshold = jnp.broadcast_to(d.activation.threshold, (d.n_features,))
    d = d.fold_norms() if d.rescale_acts_by_decoder_norm else d
    return dataclasses.replace(d, activation=JumpReLU(threshold), rescale_acts_by_decoder_norm=False)


def times(weight: jax.Array, factor: jax.Array | float) -> jax.Array:
    """A product in float32 or more, in the weight's dtype."""
    factor = jnp.asarray(factor, wide(weight.dtype))
    factor = jnp.broadcast_to(factor, weight.shape)
    return (weight.astype(factor.dtype) * factor).astype(weight.dtype)
