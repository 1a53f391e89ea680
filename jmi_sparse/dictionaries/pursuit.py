"""A dictionary that finds its features one after the other: matching pursuit."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jmi import tree
from jmi.engine.forward import precise
from jmi.errors import ArgumentError
from jmi_sparse.dictionaries import active, inputs
from jmi_sparse.dictionaries.activations import over
from jmi_sparse.dictionaries.active import Sparse
from jmi_sparse.dictionaries.normalisation import Normalisation


@tree.dataclass
class MatchingPursuit:
    """The row that points most along what is left is taken with its length there, again and again.

    ``i = argmax(r W_dec^T)``, ``f_i += relu(r . row_i)``, ``r -= that row_i``, until nothing new was taken or
    the rest is short, for each position by itself. Encoder and decoder are one matrix. Rows are meant to have
    norm 1: a feature of a longer row overshoots. There is no pre-activation, and so no `encode_pre`. Of equal
    products the lower id is taken; what is chosen has no gradient, its value has.

    Source: SAELens's ``matching_pursuit``.

    Attributes:
      W_dec: ``[features, d_in]``.
      b_dec: ``[d_in]``, subtracted before and added after, or neither.
      residual_threshold: a rest with a smaller norm ends the search; 0 for never.
      max_iterations: the most steps; each of them multiplies by all of ``W_dec``.
      stop_on_duplicate_support: a step that takes no new feature ends the search.
      normalisation, log_density, apply_b_dec_to_input, hook_z, hook_in, hook_out, metadata: as of a
        `Dictionary`.

    Example:
      >>> import jax.numpy as jnp, jmi_sparse
      >>> pursuit = jmi_sparse.MatchingPursuit(jnp.eye(3), jnp.zeros(3), 0.1, 2)
      >>> [float(value) for value in pursuit.encode(jnp.array([3.0, 1.0, 2.0]))]
      [3.0, 0.0, 2.0]
    """

    W_dec: jax.Array
    b_dec: jax.Array
    residual_threshold: float = tree.static()
    max_iterations: int = tree.static()
    stop_on_duplicate_support: bool = tree.static(default=True)
    normalisation: Normalisation | None = None
    log_density: jax.Array | None = None
    apply_b_dec_to_input: bool = tree.static(default=False)
    hook_z: bool = tree.static(default=False)
    hook_in: str | None = tree.static(default=None)
    hook_out: str | None = tree.static(default=None)
    metadata: str = tree.static(default="{}")
    kind = "sae"

    @property
    def d_in(self) -> int:
        """Width of what is read."""
        return self.W_dec.shape[-1]

    @property
    def d_out(self) -> int:
        """Width of what is written: that of what is read."""
        return self.W_dec.shape[-1]

    @property
    def n_features(self) -> int:
        """How many features there are."""
        return self.W_dec.shape[-2]

    @precise()
    def encode(self, x: jax.Array) -> jax.Array:
        """Features ``[..., features]`` of ``x`` as `Dictionary.encode` takes it."""
        x = inputs.flat(x, self.d_in, self.hook_z, self.W_dec.dtype)
        z = inputs.prepared(x, self.normalisation, self.b_dec if self.apply_b_dec_to_input else None)
        rest = z.reshape(-1, self.d_in)
        found = jnp.zeros((len(rest), self.n_features), rest.dtype)
        start = rest, found, jnp.zeros(len(rest), bool)

        def step(state: Any, _: None) -> tuple[Any, None]:
            return lax.cond(state[2].all(), lambda s: s, self._step, state), None

        (_, found, _), _ = lax.scan(step, start, None, self.max_iterations)
        return found.reshape(*z.shape[:-1], self.n_features)

    def _step(self, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """One more feature for each position ``[n]`` that is not done."""
        rest, found, done = state
        ids = jnp.argmax(jax.nn.relu(rest @ self.W_dec.T), axis=-1)
        rows, places = self.W_dec[ids], jnp.arange(len(ids))
        value = jnp.where(done, 0, jax.nn.relu((rest * rows).sum(-1)))
        after = found.at[places, ids].add(value)
        rest = rest - value[:, None] * rows
        if self.stop_on_duplicate_support:
            # Features only grow, so a step that took a new one is one whose place was empty.
            done = done | (found[places, ids] != 0) | (after[places, ids] == 0)
        if self.residual_threshold > 0:
            done = done | (jnp.square(rest).sum(-1) < self.residual_threshold**2)
        return rest, after, done

    def encode_pre(self, x: jax.Array) -> jax.Array:
        """There is none: each step has products of its own. ArgumentError."""
        raise ArgumentError("encode_pre: matching pursuit has no single pre-activation; use encode")

    @precise()
    def encode_sparse(self, x: jax.Array, capacity: int) -> Sparse:
        """The active ones alone; see `Dictionary.encode_sparse`."""
        return active.sparse(self.encode(x), capacity)

    @precise()
    def decode(self, features: jax.Array, x: jax.Array | None = None) -> jax.Array:
        """What features stand for, ``[..., d_in]``; ``x`` and errors as of `Dictionary.decode`."""
        return self._restored(inputs.features(features, self.W_dec) @ self.W_dec, x)

    @precise()
    def decode_sparse(self, features: Sparse, x: jax.Array | None = None) -> jax.Array:
        """`decode` of the features that `encode_sparse` gave."""
        return self._restored(active.written(features.ids, features.values, self.W_dec), x)

    def reconstruct(self, x: jax.Array) -> jax.Array:
        """The output for ``x``, in its shape."""
        return self.decode(self.encode(x), x)

    def error(self, x: jax.Array, y: jax.Array | None = None) -> jax.Array:
        """What the dictionary misses: ``y - reconstruct(x)``, ``y`` being ``x`` by default."""
        return inputs.missed(self.reconstruct(x), x if y is None else y)

    def _restored(self, y: jax.Array, x: jax.Array | None) -> jax.Array:
        y = y + over(self.b_dec, y) if self.apply_b_dec_to_input else y
        return inputs.restored(y, x, self.normalisation, self.hook_z)
