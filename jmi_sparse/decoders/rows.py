"""Decoder rows of any dictionaries, in memory or on disk, asked for in one way."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.checks import shown
from jmi.errors import ArgumentError
from jmi.model.sites import split, table_of
from jmi.numerics import wide
from jmi_sparse.dictionaries.crosslayer import CrossLayerTranscoder
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.dictionaries.layered import DictionarySet
from jmi_sparse.dictionaries.pursuit import MatchingPursuit
from jmi_sparse.formats.reading.decoders import Decoders


def decoders_of(given: Any) -> Decoders:
    """Decoders of a dictionary, a set, a cross-layer transcoder, ``{site: dictionary}``, or as they are.

    Raises:
      ArgumentError: something else, a dictionary that does not say its layer, or several of one layer.
    """
    if isinstance(given, Decoders):
        return given
    if isinstance(given, CrossLayerTranscoder):
        return _of_crosslayer(given)
    if isinstance(given, DictionarySet):
        found: dict[int, Any] = {layer: given[layer] for layer in given.layers}
    elif isinstance(given, (Dictionary, MatchingPursuit)):
        found = {_layer(given.hook_out or given.hook_in): given}
    elif isinstance(given, Mapping) and given:
        found = {}
        for name, each in given.items():
            if not isinstance(each, (Dictionary, MatchingPursuit)):
                raise ArgumentError(f"{shown(name)}: {shown(each)}; give the dictionary of one layer")
            if _layer(name) in found:
                raise ArgumentError(f"{shown(name)}: a second dictionary of this layer; take one of them")
            found[_layer(name)] = each
    else:
        raise ArgumentError(f"dictionaries={shown(given)}: give a dictionary, a set, or {{site: dictionary}}")
    shapes = {tuple(each.W_dec.shape) for each in found.values()}
    if len(shapes) > 1:
        raise ArgumentError(
            f"dictionaries of several shapes, {sorted(shapes)}; jmi_sparse.stack makes them alike"
        )
    matrices = {layer: np.asarray(each.W_dec) for layer, each in found.items()}
    return Decoders(
        {layer: (layer,) for layer in found},
        next(iter(shapes)),
        next(iter(matrices.values())).dtype,
        lambda layer, target: matrices[layer],
        lambda layer: found[layer],
        _written(given, found),
    )


def _of_crosslayer(clt: CrossLayerTranscoder) -> Decoders:
    pairs = {(clt.layers[s], clt.targets[t]): i for i, (s, t) in enumerate(clt.pairs)}
    rows = np.asarray(clt.W_dec)
    return Decoders(
        {layer: tuple(sorted(t for s, t in pairs if s == layer)) for layer in clt.layers},
        rows.shape[1:],
        rows.dtype,
        lambda layer, target: rows[pairs[layer, target]],
        clt.encoder,
        clt.hook_out,
    )


def _written(given: Any, found: Mapping[int, Any]) -> str | None:
    """The point at which dictionaries are written, the layer open; None where they do not say it."""
    names = list(given) if isinstance(given, Mapping) else [each.hook_in for each in found.values()]
    points = set()
    for name, each in zip(names, found.values(), strict=True):
        own = each.hook_out or (name if each.kind == "sae" else None)
        points.add(None if own is None else split(own)[0])
    if len(points) > 1:
        raise ArgumentError(
            f"dictionaries that write at several points, {sorted(map(str, points))}; take those of one"
        )
    return next(iter(points))


def check_stream(arch: Any, decoders: Decoders) -> str:
    """The point at which rows are written, found to take vectors of the stream.

    Raises:
      ArgumentError: rows of another width or of heads, or of layers that the model does not have.
    """
    point = decoders.site or "blocks.*.hook_resid_post"
    site, last = table_of(arch).get(point), max(t for targets in decoders.targets.values() for t in targets)
    width = None if site is None or site.axes[2:] != ("d_model",) else site.sizes[-1]
    if width != decoders.d_out or last not in (site.layers or () if site else ()):
        raise ArgumentError(
            f"rows of {decoders.d_out} at {point}, up to layer {last}: they are no vectors of this model's "
            f"stream, which has {table_of(arch)['blocks.*.hook_resid_post'].sizes[-1]} dimensions in "
            f"{arch.n_layers} layers"
        )
    return point


def _layer(name: Any) -> int:
    """The layer of a site's name."""
    layer = split(name)[1] if isinstance(name, str) else None
    if layer is None or not layer.isdigit():
        raise ArgumentError(
            f"{shown(name)}: which layer does this dictionary write in? Give {{'blocks.5.hook_resid_post': "
            "dictionary}"
        )
    return int(layer)


def unit(rows: jax.Array) -> jax.Array:
    """Rows ``[..., d]`` of norm 1, in float32 or more; those of 0 stay 0."""
    rows = rows.astype(wide(rows.dtype))
    return rows / jnp.broadcast_to(
        jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-10), rows.shape
    )
