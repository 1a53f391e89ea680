"""Dictionaries of several layers as one: arrays stacked on a leading axis, each layer by itself."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.checks import real_array, shown
from jmi.errors import ArgumentError
from jmi_sparse.dictionaries.activations import JumpReLU, ReLU, TopK
from jmi_sparse.dictionaries.active import Sparse
from jmi_sparse.dictionaries.dictionary import Dictionary


@tree.dataclass
class DictionarySet:
    """A dictionary for each of some layers, of one shape: per-layer transcoders (PLT), or SAEs of a model.

    What is read and written has a leading axis of layers, and each layer has a row of it; ``dictionaries[i]``
    gives that of layer ``i``. `jmi_sparse.stack` makes one.

    Attributes:
      stacked: a dictionary whose arrays have a leading axis, a row for each layer; its hooks have the layer
        open, ``blocks.*.mlp.hook_in``.
      layers: in the order of the rows.
    """

    stacked: Dictionary
    layers: tuple[int, ...] = tree.static()

    @property
    def kind(self) -> str:
        """``"sae"`` or ``"transcoder"``."""
        return self.stacked.kind

    @property
    def hook_in(self) -> str | None:
        """The site that is read, with the layer open."""
        return self.stacked.hook_in

    @property
    def hook_out(self) -> str | None:
        """The site that the output stands for, with the layer open."""
        return self.stacked.hook_out

    @property
    def d_in(self) -> int:
        """Width of what is read."""
        return self.stacked.d_in

    @property
    def d_out(self) -> int:
        """Width of what is written."""
        return self.stacked.d_out

    @property
    def n_features(self) -> int:
        """How many features each layer has."""
        return self.stacked.n_features

    def __getitem__(self, layer: int) -> Dictionary:
        if layer not in self.layers:
            raise ArgumentError(f"layer={shown(layer)}: there are dictionaries of {list(self.layers)}")
        row = self.layers.index(layer)
        found = jax.tree.map(lambda array: array[row], self.stacked)
        filled = {name: _filled(getattr(found, name), layer) for name in ("hook_in", "hook_out")}
        return dataclasses.replace(found, **filled)

    def encode(self, x: jax.Array) -> jax.Array:
        """Features ``[layers, ..., features]`` of ``x`` ``[layers, ..., d_in]``."""
        return self._each("encode", x)

    def encode_pre(self, x: jax.Array) -> jax.Array:
        """Pre-activations, of the same shape."""
        return self._each("encode_pre", x)

    def encode_sparse(self, x: jax.Array, capacity: int) -> Sparse:
        """The active features alone, ``capacity`` of each layer; see `Dictionary.encode_sparse`."""
        self._check("x", x)
        return jax.vmap(lambda d, x: d.encode_sparse(x, capacity))(self.stacked, jnp.asarray(x))

    def decode(self, features: jax.Array, x: jax.Array | None = None) -> jax.Array:
        """What features stand for, ``[layers, ..., d_out]``; see `Dictionary.decode`."""
        if x is None:
            return self._each("decode", features)
        return self._each("decode", features, x)

    def decode_sparse(self, features: Sparse, x: jax.Array | None = None) -> jax.Array:
        """`decode` of the features that `encode_sparse` gave."""
        return jax.vmap(lambda d, f, x: d.decode_sparse(f, x))(self.stacked, features, x)

    def reconstruct(self, x: jax.Array) -> jax.Array:
        """The output for ``x``, skips included."""
        return self._each("reconstruct", x)

    def error(self, x: jax.Array, y: jax.Array | None = None) -> jax.Array:
        """What the dictionaries miss; see `Dictionary.error`."""
        return self._each("error", x) if y is None else self._each("error", x, y)

    def fold_norms(self) -> "DictionarySet":
        """Each with decoder rows of norm 1; see `Dictionary.fold_norms`."""
        return dataclasses.replace(self, stacked=jax.vmap(lambda d: d.fold_norms())(self.stacked))

    def unfold_norms(self, norms: jax.Array) -> "DictionarySet":
        """`fold_norms`, turned back, with norms ``[layers, features]``."""
        self._check("norms", norms)
        return dataclasses.replace(
            self, stacked=jax.vmap(lambda d, n: d.unfold_norms(n))(self.stacked, jnp.asarray(norms))
        )

    def _each(self, method: str, *arrays: Any) -> jax.Array:
        for array in arrays:
            self._check("x", array)
        given = [jnp.asarray(array) for array in arrays]
        return jax.vmap(lambda d, *a: getattr(d, method)(*a))(self.stacked, *given)

    def _check(self, name: str, array: Any) -> None:
        shape = jnp.shape(real_array(name, array))
        if not shape or shape[0] != len(self.layers):
            raise ArgumentError(f"{name}={list(shape)}: the first axis needs a row for each of {self.layers}")

    def __repr__(self) -> str:
        return f"DictionarySet(layers {list(self.layers)}, {self.stacked!r})"


def stack(dictionaries: Mapping[int, Dictionary]) -> DictionarySet:
    """Dictionaries of several layers as one.

    Args:
      dictionaries: layer -> dictionary, all of one kind, activation and width. Where some have fewer
        features than others, features that are never active fill them up; ``log_density`` is kept where all
        have it.

    Raises:
      ArgumentError: dictionaries that differ in more than their numbers.

    Example:
      >>> import jax.numpy as jnp, jmi_sparse
      >>> eye = jnp.eye(4)
      >>> one = jmi_sparse.Dictionary(eye, eye, jnp.zeros(4), jmi_sparse.ReLU(), jnp.zeros(4))
      >>> both = jmi_sparse.stack({0: one, 3: one})
      >>> both.encode(jnp.ones((2, 5, 4))).shape
      (2, 5, 4)
    """
    if not isinstance(dictionaries, Mapping) or not dictionaries:
        raise ArgumentError(f"dictionaries={shown(dictionaries)}: give a dict, layer -> dictionary")
    for layer, each in dictionaries.items():
        if not isinstance(each, Dictionary) or isinstance(layer, bool) or not isinstance(layer, int):
            raise ArgumentError(f"stack: {shown(layer)}: {shown(each)}; give layer -> Dictionary")
    widest = max(each.n_features for each in dictionaries.values())
    kept = all(each.log_density is not None for each in dictionaries.values())
    rows = [_bare(widened(each, widest), layer, kept) for layer, each in sorted(dictionaries.items())]
    structures = [jax.tree.structure(row) for row in rows]
    shapes = [[(jnp.shape(a), jnp.result_type(a)) for a in jax.tree.leaves(row)] for row in rows]
    layers = tuple(sorted(dictionaries))
    for layer, structure, shape in zip(layers, structures, shapes, strict=True):
        if (structure, shape) != (structures[0], shapes[0]):
            raise ArgumentError(
                f"stack: the dictionary of layer {layer} differs from that of layer {layers[0]} in kind, "
                "activation, options, hooks, widths or dtype; only numbers may differ"
            )
    return DictionarySet(jax.tree.map(lambda *arrays: jnp.stack(arrays), *rows), layers)


def widened(dictionary: Dictionary, features: int) -> Dictionary:
    """The dictionary with further features up to ``features``, none of them ever active."""
    more = features - dictionary.n_features
    if not more:
        return dictionary
    activation = dictionary.activation
    if not isinstance(activation, (ReLU, JumpReLU, TopK)):
        raise ArgumentError(
            f"stack: a {type(activation).__name__} dictionary cannot be given more features; use those of "
            "one number"
        )
    if isinstance(activation, TopK):
        # Features of rows without a norm would be scaled to 0, which is more than a negative value.
        raw = activation.relu == "none" and (
            dictionary.rescale_acts_by_decoder_norm or dictionary.b_enc is None
        )
        if activation.k > dictionary.n_features or raw:
            raise ArgumentError(
                f"stack: a dictionary of {dictionary.n_features} features that keeps {activation.k} of them "
                f"({activation.relu!r}) cannot be given more; use those of one number"
            )
    if isinstance(activation, JumpReLU):
        activation = JumpReLU(jnp.pad(activation.threshold, (0, more)))
    # Where negative values may be kept, a pre-activation of 0 would be kept in their place.
    low = jnp.finfo(dictionary.W_enc.dtype).min
    last = float(low) if isinstance(activation, TopK) and activation.relu == "none" else 0.0
    density, b_enc = dictionary.log_density, dictionary.b_enc
    return dataclasses.replace(
        dictionary,
        W_enc=jnp.pad(dictionary.W_enc, ((0, 0), (0, more))),
        W_dec=jnp.pad(dictionary.W_dec, ((0, more), (0, 0))),
        b_enc=None if b_enc is None else jnp.pad(b_enc, (0, more), constant_values=last),
        activation=activation,
        log_density=None if density is None else jnp.pad(density, (0, more), constant_values=-10.0),
    )


def _bare(dictionary: Dictionary, layer: int, density: bool) -> Dictionary:
    """A row: hooks with the layer open, and nothing that is one layer's alone."""
    return dataclasses.replace(
        dictionary,
        hook_in=opened(dictionary.hook_in, layer),
        hook_out=opened(dictionary.hook_out, layer),
        log_density=dictionary.log_density if density else None,
        metadata="{}",
    )


def opened(name: str | None, layer: int) -> str | None:
    """The name of a site with its layer left open."""
    return None if name is None else name.replace(f"blocks.{layer}.", "blocks.*.", 1)


def _filled(name: str | None, layer: int) -> str | None:
    return None if name is None else name.replace("blocks.*.", f"blocks.{layer}.", 1)
