"""What is done to an input before it is encoded, and undone on what is decoded.

Each is a pytree with ``apply(x)`` and ``undo(y, x)`` on ``[..., d]``; sums are in float32 or more. A vector
of zeros stays zeros, with finite gradients, where SAELens would give NaN.
"""

from typing import Protocol

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.numerics import wide


class Normalisation(Protocol):
    """A pytree that scales what is encoded, and scales back what is decoded.

    ``by_vector`` in its class says whether each vector is scaled by itself, so that the way back needs it.
    """

    by_vector: bool

    def apply(self, x: jax.Array) -> jax.Array:
        """``x`` ``[..., d]`` as the encoder reads it."""
        ...

    def undo(self, y: jax.Array, x: jax.Array) -> jax.Array:
        """The decoder's ``y`` ``[..., d]`` in the units of the input ``x``, of which it was made."""
        ...


@tree.dataclass
class ConstantNorm:
    """Each vector is scaled to the norm ``sqrt(d)``; what is decoded gets the norm's factor back.

    SAELens's ``constant_norm_rescale``.
    """

    by_vector = True

    def apply(self, x: jax.Array) -> jax.Array:
        norm = _norm(x)
        scale = x.shape[-1] ** 0.5 / jnp.where(norm > 0, norm, 1)
        return (x.astype(norm.dtype) * jnp.broadcast_to(scale, x.shape)).astype(x.dtype)

    def undo(self, y: jax.Array, x: jax.Array) -> jax.Array:
        norm = _norm(x)
        return (y.astype(norm.dtype) * jnp.broadcast_to(norm / x.shape[-1] ** 0.5, y.shape)).astype(y.dtype)


@tree.dataclass
class LayerNorm:
    """Each vector minus its mean, over its standard deviation (divided by d - 1) plus 1e-5.

    What is decoded is multiplied by the deviation alone, without 1e-5, and gets the mean back. This is
    SAELens's ``layer_norm``, not the layer norm of models, which divides by d and has its epsilon in the
    root.
    """

    by_vector = True

    def apply(self, x: jax.Array) -> jax.Array:
        mean, deviation = _moments(x)
        centred = x.astype(mean.dtype) - jnp.broadcast_to(mean, x.shape)
        return (centred / jnp.broadcast_to(deviation + 1e-5, x.shape)).astype(x.dtype)

    def undo(self, y: jax.Array, x: jax.Array) -> jax.Array:
        mean, deviation = (jnp.broadcast_to(part, y.shape) for part in _moments(x))
        return (y.astype(mean.dtype) * deviation + mean).astype(y.dtype)


@tree.dataclass
class Scalar:
    """Every input times one number, and what is decoded over it: ``constant_scalar_rescale``."""

    by_vector = False

    factor: jax.Array

    def apply(self, x: jax.Array) -> jax.Array:
        return x * over_all(self.factor, x)

    def undo(self, y: jax.Array, x: jax.Array) -> jax.Array:
        return y / over_all(self.factor, y)


@tree.dataclass
class Outside:
    """A normalisation whose numbers are not in the files: nothing is done, as in SAELens.

    Features are then those of inputs of another scale than the training saw. Where the factor is known,
    `jmi_sparse.fold_norm_factor` puts it into the weights.

    Attributes:
      mode: what the files call it.
    """

    by_vector = False

    mode: str = tree.static()

    def apply(self, x: jax.Array) -> jax.Array:
        return x

    def undo(self, y: jax.Array, x: jax.Array) -> jax.Array:
        return y


def over_all(number: jax.Array, value: jax.Array) -> jax.Array:
    """One number, in the dtype and shape of ``value``."""
    return jnp.broadcast_to(number.astype(value.dtype), value.shape)


def _norm(x: jax.Array) -> jax.Array:
    """Euclidean norm ``[..., 1]``; its gradient at 0 is 0."""
    square = jnp.square(x.astype(wide(x.dtype))).sum(-1, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation ``[..., 1]``, the latter with d - 1."""
    x = x.astype(wide(x.dtype))
    mean = x.mean(-1, keepdims=True)
    return mean, _norm(x - jnp.broadcast_to(mean, x.shape)) / max(x.shape[-1] - 1, 1) ** 0.5
