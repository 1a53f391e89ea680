"""A dictionary that tells what earlier positions foretell from what is new: temporal feature analysis."""

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.engine.forward import precise
from jmi.errors import ArgumentError
from jmi.numerics import wide
from jmi_sparse.dictionaries import active, inputs
from jmi_sparse.dictionaries.activations import ReLU, TopK, over
from jmi_sparse.dictionaries.active import Sparse
from jmi_sparse.dictionaries.normalisation import Normalisation


@tree.dataclass
class Linear:
    """``x W^T + b``.

    Attributes:
      weight: ``[out, in]``.
      bias: ``[out]``.
    """

    weight: jax.Array
    bias: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x @ self.weight.T
        return y + over(self.bias, y)


@tree.dataclass
class FeatureAttention:
    """Attention over features of positions: queries of this one, keys and values of those before it.

    Attributes:
      q_target, k_ctx: features -> a narrower width.
      v_ctx, c_proj: features -> features.
      heads: into how many heads both widths are cut.
    """

    q_target: Linear
    k_ctx: Linear
    v_ctx: Linear
    c_proj: Linear
    heads: int = tree.static()

    def __call__(self, context: jax.Array, target: jax.Array) -> jax.Array:
        """``[..., s, features]``, of both in that shape."""
        q, k, v = (
            y.reshape(*y.shape[:-1], self.heads, -1)
            for y in (self.q_target(target), self.k_ctx(context), self.v_ctx(context))
        )
        scores = jnp.einsum("...qhk,...shk->...hqs", q, k) / q.shape[-1] ** 0.5
        scores = scores.astype(wide(scores.dtype))
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(jnp.broadcast_to(causal, scores.shape), scores, -jnp.inf)
        pattern = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        mixed = jnp.einsum("...hqs,...shk->...qhk", pattern, v)
        return self.c_proj(mixed.reshape(context.shape))


@tree.dataclass
class Temporal:
    """Features that earlier positions foretell, and features of what they do not.

    `encode` gives those of what is new, and they alone do not make up the input: `reconstruct` adds what
    `predict` gives. Both read whole sequences ``[..., s, d_in]``, and a position depends on those before it,
    so padding must be on the right and a cut prompt gives other features.

    Source: arXiv 2511.01836, as in SAELens's ``temporal``.

    Attributes:
      W_dec: ``[features, d_in]``.
      b_dec: ``[d_in]``.
      layers: attention, layer after layer, each on what the ones before it left.
      activation: of what is new: `ReLU`, or `TopK` of ``"before"``.
      W_enc: ``[d_in, features]``; None for the transpose of ``W_dec``.
      normalisation, log_density, apply_b_dec_to_input, hook_z, hook_in, hook_out, metadata: as of a
        `Dictionary`.
    """

    W_dec: jax.Array
    b_dec: jax.Array
    layers: tuple[FeatureAttention, ...]
    activation: ReLU | TopK
    W_enc: jax.Array | None = None
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
        """Features of what is new ``[..., s, features]``, of ``x`` ``[..., s, d_in]``."""
        return self.activation(self._split(x)[0])

    @precise()
    def encode_pre(self, x: jax.Array) -> jax.Array:
        """Their pre-activations, of the same shape."""
        return self._split(x)[0]

    @precise()
    def predict(self, x: jax.Array) -> jax.Array:
        """Features that earlier positions foretell, of the same shape."""
        return self._split(x)[1]

    @precise()
    def encode_sparse(self, x: jax.Array, capacity: int) -> Sparse:
        """The active ones alone; see `Dictionary.encode_sparse`."""
        return active.sparse(self.encode(x), capacity)

    @precise()
    def decode(self, features: jax.Array, x: jax.Array | None = None) -> jax.Array:
        """What features stand for; ``x`` and errors as of `Dictionary.decode`."""
        return self._restored(inputs.features(features, self.W_dec) @ self.W_dec, x)

    @precise()
    def decode_sparse(self, features: Sparse, x: jax.Array | None = None) -> jax.Array:
        """`decode` of the features that `encode_sparse` gave."""
        return self._restored(active.written(features.ids, features.values, self.W_dec), x)

    @precise()
    def reconstruct(self, x: jax.Array) -> jax.Array:
        """The output for ``x``, in its shape: what was foretold and what is new."""
        new, foretold = self._split(x)
        return self.decode(self.activation(new) + foretold, x)

    def error(self, x: jax.Array, y: jax.Array | None = None) -> jax.Array:
        """What the dictionary misses: ``y - reconstruct(x)``, ``y`` being ``x`` by default."""
        return inputs.missed(self.reconstruct(x), x if y is None else y)

    def _restored(self, y: jax.Array, x: jax.Array | None) -> jax.Array:
        y = y + over(self.b_dec, y) if self.W_enc is not None or self.apply_b_dec_to_input else y
        return inputs.restored(y, x, self.normalisation, self.hook_z)

    def _split(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Pre-activations of what is new, and what was foretold."""
        x = inputs.flat(x, self.d_in, self.hook_z, self.W_dec.dtype)
        if x.ndim < 2:
            raise ArgumentError(f"x={list(x.shape)}: give whole sequences, [..., positions, {self.d_in}]")
        rest = inputs.prepared(x, self.normalisation, self.b_dec if self.apply_b_dec_to_input else None)
        W_enc = (self.W_dec.T if self.W_enc is None else self.W_enc) / (4 * self.d_in)
        foretold = jnp.zeros((*rest.shape[:-1], self.n_features), rest.dtype)
        for layer in self.layers:
            target = jax.nn.relu(rest @ W_enc)
            context = jnp.concatenate([jnp.zeros_like(target[..., :1, :]), target[..., :-1, :]], axis=-2)
            codes = jax.nn.relu(layer(context, target))
            written = codes @ self.W_dec
            share = _share(written, rest)
            foretold = foretold + jnp.broadcast_to(share, codes.shape) * codes
            rest = rest - jnp.broadcast_to(share, written.shape) * written
        return rest @ W_enc, foretold


def _share(direction: jax.Array, rest: jax.Array) -> jax.Array:
    """How much of ``rest`` lies along ``direction``, in parts of it ``[..., 1]``; 0 along no direction."""
    direction, wider = direction.astype(wide(direction.dtype)), rest.astype(wide(rest.dtype))
    # The smallest number under the root changes nothing but its slope at 0, which would be infinite.
    norm = jnp.sqrt(jnp.square(direction).sum(-1, keepdims=True) + float(jnp.finfo(direction.dtype).tiny))
    return ((direction * wider).sum(-1, keepdims=True) / jnp.square(norm + 1e-6)).astype(rest.dtype)
