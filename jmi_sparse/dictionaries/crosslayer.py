"""Cross-layer transcoders: features of one layer that write into it and into later ones.

L layers read, T layers written, P pairs of them, d widths.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jmi import tree
from jmi.checks import real_array, shown
from jmi.engine.forward import precise
from jmi.errors import ArgumentError
from jmi.numerics import wide
from jmi_sparse.dictionaries import active, folding, inputs
from jmi_sparse.dictionaries.activations import Activation, over
from jmi_sparse.dictionaries.active import Sparse
from jmi_sparse.dictionaries.dictionary import Dictionary


@tree.dataclass
class CrossLayerTranscoder:
    """Encoders of several layers whose features write into each layer from their own on.

    ``f_l = activation_l(x_l W_enc_l + b_enc_l)`` and ``y_t = sum over l of f_l W_dec_(l, t) + b_dec_t``, plus
    ``x_t W_skip_t^T`` with a skip, where t is read. What is read and written has a leading axis of layers. To
    run the model with it, see `jmi_sparse.splice`.

    Source: circuit-tracer's ``CrossLayerTranscoder``; its files keep skips transposed, which loading undoes.

    Attributes:
      W_enc: ``[L, d_in, features]``.
      W_dec: ``[P, features, d_out]``, the rows that a pair of layers has.
      b_dec: ``[T, d_out]``.
      activation: makes features of pre-activations; its arrays have a leading axis ``[L, ...]``.
      b_enc: ``[L, features]``.
      pairs: of each matrix of ``W_dec``: places in ``layers`` and ``targets`` of the layer that is read and
        of the one that is written.
      layers: those that are read.
      targets: those that are written; by default the same.
      W_skip: ``[L, d_out, d_in]``, from each layer that is read into itself; each must be among ``targets``.
      hook_in, hook_out: the sites with the layer open, ``blocks.*.hook_resid_mid``.
      metadata: what its files say besides, as a JSON text.
    """

    W_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    activation: Activation
    b_enc: jax.Array
    pairs: tuple[tuple[int, int], ...] = tree.static()
    layers: tuple[int, ...] = tree.static()
    targets: tuple[int, ...] = tree.static(default=())
    W_skip: jax.Array | None = None
    hook_in: str | None = tree.static(default=None)
    hook_out: str | None = tree.static(default=None)
    metadata: str = tree.static(default="{}")
    kind = "clt"

    def __post_init__(self) -> None:
        if not self.targets:
            object.__setattr__(self, "targets", self.layers)
        for layers in (self.layers, self.targets):
            if list(layers) != sorted(set(layers)):
                raise ArgumentError(f"layers {list(layers)}: give each once, in ascending order")
        known = {(i, t) for i in range(len(self.layers)) for t in range(len(self.targets))}
        # An index that is out of range would be read as the last one.
        if not known.issuperset(self.pairs) or len(set(self.pairs)) != len(self.pairs):
            raise ArgumentError(
                f"pairs={shown(self.pairs)}: give places in {len(self.layers)} layers and "
                f"{len(self.targets)} targets, each pair once"
            )
        if self.W_skip is not None and not set(self.layers) <= set(self.targets):
            raise ArgumentError(f"W_skip: layers {list(self.layers)} must be among {list(self.targets)}")

    @property
    def d_in(self) -> int:
        """Width of what is read."""
        return self.W_enc.shape[-2]

    @property
    def d_out(self) -> int:
        """Width of what is written."""
        return self.W_dec.shape[-1]

    @property
    def n_features(self) -> int:
        """How many features each layer has."""
        return self.W_enc.shape[-1]

    @property
    def decoder_norms(self) -> jax.Array:
        """Norm of each feature's rows, all its targets taken as one vector: ``[L, features]``."""
        squares = jnp.square(self.W_dec.astype(wide(self.W_dec.dtype))).sum(-1)
        return jnp.sqrt(jax.ops.segment_sum(squares, self._sources, len(self.layers)))

    def encoder(self, layer: int) -> Dictionary:
        """What encodes in one layer, as a `Dictionary` that writes nothing."""
        if layer not in self.layers:
            raise ArgumentError(f"layer={layer}: there are encoders of {list(self.layers)}")
        row = self.layers.index(layer)
        return jax.tree.map(lambda array: array[row], self.encoders)

    @property
    def encoders(self) -> Dictionary:
        """All encoders, as a `Dictionary` with a leading axis of layers that writes nothing.

        Raises:
          ArgumentError: a layer that is read and not written, so that it has no ``b_dec``.
        """
        if not set(self.layers) <= set(self.targets):
            raise ArgumentError(f"layers {list(self.layers)} are not all written: {list(self.targets)}")
        own = jnp.asarray([self.targets.index(layer) for layer in self.layers])
        return Dictionary(
            W_enc=self.W_enc,
            W_dec=jnp.zeros((len(self.layers), self.n_features, 0), self.W_dec.dtype),
            b_dec=self.b_dec[own],
            activation=self.activation,
            b_enc=self.b_enc,
            W_skip=self.W_skip,
            kind="transcoder",
        )

    @precise()
    def encode(self, x: jax.Array) -> jax.Array:
        """Features ``[L, ..., features]`` of ``x`` ``[L, ..., d_in]``.

        Raises:
          ArgumentError: no real numbers, or of another width or number of layers.
        """
        return jax.vmap(lambda a, pre: a(pre))(self.activation, self._linear(x))

    @precise()
    def encode_pre(self, x: jax.Array) -> jax.Array:
        """Pre-activations ``[L, ..., features]``."""
        return jax.vmap(lambda a, pre: a.pre(pre))(self.activation, self._linear(x))

    @precise()
    def encode_sparse(self, x: jax.Array, capacity: int) -> Sparse:
        """The active features alone, ``capacity`` of each layer; see `Dictionary.encode_sparse`."""
        return active.sparse(self.encode(x), capacity)

    @precise()
    def decode(self, features: jax.Array, x: jax.Array | None = None) -> jax.Array:
        """What features ``[L, ..., features]`` write into each layer, ``[T, ..., d_out]``, without the skip.

        ``x`` is not needed.
        """
        features = self._of_layers("features", features, self.n_features)
        return self._summed(lambda source, rows: features[source] @ rows, features.shape[1:-1])

    @precise()
    def decode_sparse(self, features: Sparse, x: jax.Array | None = None) -> jax.Array:
        """`decode` of the features that `encode_sparse` gave."""
        ids, values, _ = features
        return self._summed(
            lambda source, rows: active.written(ids[source], values[source], rows), ids.shape[1:-1]
        )

    @precise()
    def reconstruct(self, x: jax.Array) -> jax.Array:
        """The output ``[T, ..., d_out]`` for ``x`` ``[L, ..., d_in]``, skip included."""
        y = self.decode(self.encode(x))
        if self.W_skip is None:
            return y
        read = self._of_layers("x", x, self.d_in)
        at = jnp.asarray([self.targets.index(layer) for layer in self.layers])
        return y.at[at].add(jax.vmap(lambda x, skip: x @ skip.T)(read, self.W_skip))

    def error(self, x: jax.Array, y: jax.Array | None = None) -> jax.Array:
        """What it misses: ``y - reconstruct(x)``, with ``y`` ``[T, ..., d_out]``; ArgumentError without."""
        if y is None:
            raise ArgumentError("error: a transcoder stands for another point than it reads; pass y=")
        return inputs.missed(self.reconstruct(x), y)

    def fold_norms(self) -> "CrossLayerTranscoder":
        """The one whose rows have norm 1 over all targets; see `Dictionary.fold_norms`."""
        return self._folded(jnp.maximum(self.decoder_norms, folding.LEAST_NORM))

    def unfold_norms(self, norms: jax.Array) -> "CrossLayerTranscoder":
        """`fold_norms`, turned back: rows become ``norms`` ``[L, features]`` times as long."""
        norms = jnp.asarray(real_array("norms", norms))
        if norms.shape != self.b_enc.shape:
            raise ArgumentError(f"norms={list(norms.shape)}: give {list(self.b_enc.shape)}")
        return self._folded(1 / jnp.maximum(norms.astype(wide(norms.dtype)), folding.LEAST_NORM))

    def _folded(self, norms: jax.Array) -> "CrossLayerTranscoder":
        return dataclasses.replace(
            self,
            W_enc=folding.times(self.W_enc, norms[:, None, :]),
            b_enc=folding.times(self.b_enc, norms),
            W_dec=folding.times(self.W_dec, 1 / norms[self._sources, :, None]),
            activation=jax.vmap(lambda a, n: a.scaled(n))(self.activation, norms),
        )

    @property
    def _sources(self) -> jax.Array:
        return jnp.asarray([source for source, _ in self.pairs])

    def _linear(self, x: jax.Array) -> jax.Array:
        def of_layer(x: jax.Array, W_enc: jax.Array, b_enc: jax.Array) -> jax.Array:
            pre = x @ W_enc
            return pre + over(b_enc, pre)

        return jax.vmap(of_layer)(self._of_layers("x", x, self.d_in), self.W_enc, self.b_enc)

    def _of_layers(self, name: str, given: Any, width: int) -> jax.Array:
        given = jnp.asarray(real_array(name, given)).astype(self.W_enc.dtype)
        if given.ndim < 2 or given.shape[0] != len(self.layers) or given.shape[-1] != width:
            raise ArgumentError(f"{name}={list(given.shape)}: give [{len(self.layers)} layers, ..., {width}]")
        return given

    def _summed(self, write: Any, lead: tuple[int, ...]) -> jax.Array:
        """``[T, *lead, d_out]``: what each pair writes, one pair after the other."""
        start = jnp.broadcast_to(
            self.b_dec.reshape(len(self.targets), *[1] * len(lead), self.d_out),
            (len(self.targets), *lead, self.d_out),
        )

        def add(y: jax.Array, pair: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            source, target, rows = pair
            return y.at[target].add(write(source, rows)), None

        targets = jnp.asarray([target for _, target in self.pairs])
        return lax.scan(add, start, (self._sources, targets, self.W_dec))[0]

    def __repr__(self) -> str:
        made = f"{type(self.activation).__name__}, {self.d_in} -> {self.n_features} -> {self.d_out}"
        return (
            f"CrossLayerTranscoder({len(self.layers)} layers, {made}, {self.W_dec.dtype}, "
            f"{self.hook_in} -> {self.hook_out})"
        )
