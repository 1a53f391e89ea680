"""What every kind of dictionary does alike: inputs checked and prepared, outputs brought back."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jmi.checks import real_array
from jmi.errors import ArgumentError
from jmi_sparse.dictionaries.activations import over
from jmi_sparse.dictionaries.normalisation import Normalisation


def flat(x: Any, d_in: int, hook_z: bool, dtype: Any) -> jax.Array:
    """Inputs ``[..., d_in]`` in ``dtype``; with ``hook_z`` they come as ``[..., heads, width]``.

    Raises:
      ArgumentError: no real numbers, or of another width.
    """
    x = jnp.asarray(real_array("x", x)).astype(dtype)
    width = x.shape[-2:] if hook_z else x.shape[-1:]
    if len(width) != 1 + hook_z or math.prod(width) != d_in:
        axes = "last two axes, heads and width," if hook_z else "last axis"
        raise ArgumentError(f"x={list(x.shape)}: the {axes} must make up d_in={d_in}")
    return x.reshape(*x.shape[: -len(width)], d_in)


def prepared(x: jax.Array, normalisation: Normalisation | None, subtracted: jax.Array | None) -> jax.Array:
    """Flat inputs as an encoder reads them: normalised, then minus a bias of the decoder, if given."""
    z = x if normalisation is None else normalisation.apply(x)
    return z if subtracted is None else z - over(subtracted, z)


def features(given: Any, W_dec: jax.Array) -> jax.Array:
    """Features ``[..., features]`` in the decoder's dtype; ArgumentError where they are none of its own."""
    found = jnp.asarray(real_array("features", given)).astype(W_dec.dtype)
    if found.shape[-1:] != W_dec.shape[:1]:
        raise ArgumentError(f"features={list(found.shape)}: the last axis needs {W_dec.shape[0]}")
    return found


def restored(y: jax.Array, x: Any, normalisation: Normalisation | None, hook_z: bool) -> jax.Array:
    """What was decoded, in the units and the shape of the input ``x`` of which it was made, or None.

    Raises:
      ArgumentError: no ``x`` where each vector is scaled by itself.
    """
    if normalisation is not None:
        if x is None and normalisation.by_vector:
            raise ArgumentError(
                f"decode: {type(normalisation).__name__} scales each vector by itself; pass x="
            )
        y = normalisation.undo(y, y if x is None else flat(x, y.shape[-1], hook_z, y.dtype))
    return y.reshape(jnp.shape(x)) if hook_z and x is not None else y


def missed(found: jax.Array, wanted: Any) -> jax.Array:
    """``wanted - found``; ArgumentError where their shapes differ."""
    wanted = jnp.asarray(real_array("y", wanted)).astype(found.dtype)
    if found.shape != wanted.shape:
        raise ArgumentError(f"y={list(wanted.shape)}: the output has shape {list(found.shape)}")
    return wanted - found
