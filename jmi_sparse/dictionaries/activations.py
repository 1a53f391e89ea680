"""What makes features of pre-activations: the one thing in which most kinds of dictionaries differ.

Each is a pytree that is called with ``[..., features]`` and gives the same shape. What is not active is
exactly 0. Its arrays have the dtype of the dictionary that holds it.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from jmi import tree
from jmi.checks import choice, real_number, whole_number
from jmi.errors import ArgumentError

MEANINGS = ("after", "before", "none", "magnitude")
"""What is done about negative values in a `TopK`."""

_OTHERS = (
    "fold_norms: this dictionary keeps the largest pre-activations, and would keep others once they are "
    "scaled; use it as it is"
)


class Activation(Protocol):
    """A pytree that makes features of the pre-activations that a dictionary computes."""

    def pre(self, linear: jax.Array) -> jax.Array:
        """What counts as the pre-activation: ``linear`` itself, but in a `Gated` dictionary."""
        ...

    def __call__(self, linear: jax.Array) -> jax.Array:
        """Features ``[..., features]``."""
        ...

    def scaled(self, norms: jax.Array) -> Any:
        """The activation that gives ``norms`` ``[features]`` times as much for as much larger input.

        Raises:
          ArgumentError: there is none, for other features would be active.
        """
        ...


def over(row: jax.Array, value: jax.Array) -> jax.Array:
    """A row ``[n]`` (or more axes) for each of ``[..., n]``: JAX may be told to refuse implied axes."""
    return jnp.broadcast_to(row.reshape((1,) * (value.ndim - row.ndim) + row.shape), value.shape)


@tree.dataclass
class ReLU:
    """Positive pre-activations, and 0 for the others."""

    def pre(self, linear: jax.Array) -> jax.Array:
        return linear

    def __call__(self, linear: jax.Array) -> jax.Array:
        return jax.nn.relu(linear)

    def scaled(self, norms: jax.Array) -> "ReLU":
        return self


@tree.dataclass
class JumpReLU:
    """Pre-activations that are above a threshold and positive, and 0 for the others.

    The comparison is strict: a value at its threshold is not active. A negative threshold acts as 0 does, as
    in SAELens; where another library lets negatives pass there, it defines another function. The threshold
    itself has no gradient: trainers put a straight-through estimate in its place.

    Attributes:
      threshold: ``[features]``.
    """

    threshold: jax.Array

    def pre(self, linear: jax.Array) -> jax.Array:
        return linear

    def __call__(self, linear: jax.Array) -> jax.Array:
        active = (linear > over(self.threshold, linear)) & (linear > 0)
        # A comparison with NaN is false, and would hide it.
        active = active | jnp.isnan(linear)
        return jnp.where(active, linear, jnp.zeros_like(linear))

    def scaled(self, norms: jax.Array) -> "JumpReLU":
        return JumpReLU((self.threshold.astype(norms.dtype) * norms).astype(self.threshold.dtype))


@tree.dataclass
class Gated:
    """One linear map, read twice: a gate says which features are active, a magnitude how much.

    ``active = x W_enc + b_gate > 0`` and ``value = relu(x W_enc exp(r_mag) + b_mag)``. The dictionary has no
    ``b_enc``, and its pre-activation is the magnitude before relu, as in SAELens. The gate has no gradient.

    Attributes:
      b_gate, b_mag, r_mag: ``[features]``.
    """

    b_gate: jax.Array
    b_mag: jax.Array
    r_mag: jax.Array

    def pre(self, linear: jax.Array) -> jax.Array:
        return linear * over(jnp.exp(self.r_mag), linear) + over(self.b_mag, linear)

    def __call__(self, linear: jax.Array) -> jax.Array:
        return self.of(linear, self.pre(linear))

    def of(self, linear: jax.Array, magnitude: jax.Array) -> jax.Array:
        """Features of a magnitude before relu that need not be its own."""
        gate = linear + over(self.b_gate, linear)
        active = (gate > 0) | jnp.isnan(gate)
        return jnp.where(active, jax.nn.relu(magnitude), jnp.zeros_like(linear))

    def scaled(self, norms: jax.Array) -> "Gated":
        gate, mag = ((b.astype(norms.dtype) * norms).astype(b.dtype) for b in (self.b_gate, self.b_mag))
        return Gated(gate, mag, self.r_mag)


@tree.dataclass
class TopK:
    """The ``k`` largest pre-activations of each position, and 0 for the others.

    Of equal values the one with the lower id is taken; PyTorch promises no order there, so compare values,
    not ids, where values are equal.

    Attributes:
      k: how many, at most the number of features.
      relu: what is done about negative values. ``"after"``: k are taken, negative ones become 0, so fewer
        than k may be active (SAELens, OpenAI). ``"before"``: negative ones become 0 first, with the same
        values in the end (dictionary_learning, sparsify). ``"none"``: negative ones may be taken and stay
        (circuit-tracer). ``"magnitude"``: the k largest by absolute value, with their signs (SAELens's
        abstopk).
    """

    k: int = tree.static()
    relu: str = tree.static(default="after")

    def __post_init__(self) -> None:
        whole_number("k", self.k)
        choice("relu", self.relu, MEANINGS)

    def pre(self, linear: jax.Array) -> jax.Array:
        return linear

    def __call__(self, linear: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        ids, kept = self.kept(linear, bias)
        return jnp.put_along_axis(jnp.zeros_like(linear), ids, kept, axis=-1, inplace=False)

    def kept(self, linear: jax.Array, bias: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Ids and values of the k that are kept of ``linear + bias``, ``[..., k]``; some values may be 0.

        A ``bias`` ``[features]`` that is not added yet spares a pass over all features.
        """
        if self.k > linear.shape[-1]:
            raise ArgumentError(f"k={self.k}: this dictionary has {linear.shape[-1]} features; give fewer")
        ids, kept = largest(linear, self.k, bias, by_magnitude=self.relu == "magnitude")
        # Whether negative ones become 0 before or after, what is positive is kept.
        return ids, jax.nn.relu(kept) if self.relu in ("after", "before") else kept

    def scaled(self, norms: jax.Array) -> "TopK":
        raise ArgumentError(_OTHERS)


@tree.dataclass
class GroupMax:
    """Features in ``k`` groups of neighbours, and of each group the largest positive pre-activation.

    What is kept in a group does not depend on the others, unlike in `TopK`. Of equal values the one with the
    lower id is taken.

    Source: sparsify's ``groupmax``.

    Attributes:
      k: how many groups; the number of features is a multiple of it.
    """

    k: int = tree.static()

    def __post_init__(self) -> None:
        whole_number("k", self.k)

    def pre(self, linear: jax.Array) -> jax.Array:
        return linear

    def __call__(self, linear: jax.Array) -> jax.Array:
        if linear.shape[-1] % self.k:
            raise ArgumentError(f"k={self.k}: {linear.shape[-1]} features do not make up as many groups")
        groups = jax.nn.relu(linear).reshape(*linear.shape[:-1], self.k, -1)
        ids = groups.argmax(-1, keepdims=True)
        kept = jnp.take_along_axis(groups, ids, axis=-1)
        features = jnp.put_along_axis(jnp.zeros_like(groups), ids, kept, axis=-1, inplace=False)
        return features.reshape(linear.shape)

    def scaled(self, norms: jax.Array) -> "GroupMax":
        raise ArgumentError(_OTHERS)


_BLOCK = 32
"""Neighbours that are looked at together: their largest says whether one of them can be among the k."""


def largest(
    linear: jax.Array, k: int, bias: jax.Array | None = None, *, by_magnitude: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Ids and values ``[..., k]`` of the largest of ``linear + bias`` ``[..., n]``, the largest first.

    Of equal ones the lower id comes first. The same as `lax.top_k`, which takes longer than reading many
    values: the k largest lie in the k blocks with the largest maxima, equal ones included, for an earlier
    block stands for lower ids.
    """
    size = jnp.abs if by_magnitude else lambda values: values
    *lead, n = linear.shape
    if n % _BLOCK or n < 4 * k * _BLOCK:
        values = linear if bias is None else linear + over(bias, linear)
        ids = lax.top_k(size(values), k)[1]
        return ids, jnp.take_along_axis(values, ids, axis=-1)
    blocks = linear.reshape(*lead, n // _BLOCK, _BLOCK)
    biases = jnp.zeros(blocks.shape[-2:], linear.dtype) if bias is None else bias.reshape(blocks.shape[-2:])
    # In order, so that equal values keep the order of their ids.
    at = jnp.sort(lax.top_k(size(blocks + over(biases, blocks)).max(-1), k)[1], axis=-1)
    some = jnp.take_along_axis(blocks, at[..., None], axis=-2) + biases[at]
    some = some.reshape(*lead, k * _BLOCK)
    place = lax.top_k(size(some), k)[1]
    ids = jnp.take_along_axis(at, place // _BLOCK, axis=-1) * _BLOCK + place % _BLOCK
    return ids, jnp.take_along_axis(some, place, axis=-1)


@tree.dataclass
class BatchTopK:
    """The ``k`` times positions largest pre-activations of a whole batch: how such dictionaries are trained.

    What a position gets depends on the others of the batch, padding and those that `jax.vmap` hides not
    excepted; `jmi_sparse.at_threshold` gives the dictionary that decides position by position. Of equal
    values the earlier one is taken.

    Attributes:
      threshold: what the training kept for inference, one number; 0 where it kept none.
      k: mean number of features for a position; may have a fraction.
    """

    threshold: jax.Array
    k: float = tree.static()

    def __post_init__(self) -> None:
        real_number("k", self.k, above=0)

    def pre(self, linear: jax.Array) -> jax.Array:
        return linear

    def __call__(self, linear: jax.Array) -> jax.Array:
        flat = jax.nn.relu(linear).reshape(-1)
        count = min(int(self.k * (flat.size // max(linear.shape[-1], 1))), flat.size)
        values, ids = lax.top_k(flat, count)
        return jnp.zeros_like(flat).at[ids].set(values).reshape(linear.shape)

    def scaled(self, norms: jax.Array) -> "BatchTopK":
        raise ArgumentError(_OTHERS)
