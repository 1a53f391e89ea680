"""`features`: which features of dictionaries are active on prompts, in one run."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import jmi
from jmi import tree
from jmi.checks import shown, whole_number
from jmi.errors import ArgumentError
from jmi.hooks.resolve import Hooks
from jmi.interp.results import Result, array, short
from jmi.lm import LanguageModel, check_lm
from jmi.model.sites import Site, find, layer_name, slots, split
from jmi_sparse.dictionaries.activations import BatchTopK
from jmi_sparse.dictionaries.active import Sparse
from jmi_sparse.dictionaries.by_site import by_site, sites_of
from jmi_sparse.dictionaries.crosscoder import Crosscoder
from jmi_sparse.dictionaries.crosslayer import CrossLayerTranscoder
from jmi_sparse.dictionaries.kinds import AnyDictionary
from jmi_sparse.dictionaries.layered import DictionarySet
from jmi_sparse.dictionaries.temporal import Temporal


@tree.dataclass
class Encode:
    """Reducer: the active features of what flows at a site, `Sparse`; in `jmi.PerLayer` of stacked ones.

    Attributes:
      dictionary: reads vectors of the site.
      capacity: places for features at each position. Static.

    Example:
      >>> import jax, jax.numpy as jnp, jmi, jmi_models, jmi_sparse
      >>> lm = jmi_models.load("atlas")
      >>> rows = jax.random.normal(jax.random.key(0), (512, 128))
      >>> sae = jmi_sparse.Dictionary(rows.T, rows, jnp.zeros(128), jmi_sparse.TopK(8), jnp.zeros(512))
      >>> kept = jmi.Capture("blocks.2.hook_resid_post", reduce=jmi_sparse.Encode(sae, 8))
      >>> lm.run("Paris is", capture=[kept])["blocks.2.hook_resid_post"].ids.shape
      (1, 3, 8)
    """

    dictionary: Any
    capacity: int = tree.static()

    @property
    def takes_padding(self) -> bool:
        """Not of a dictionary that looks at other positions."""
        return not _looks_around(self.dictionary)

    def __call__(self, value: jax.Array, site: Site) -> Sparse:
        del site
        return self.dictionary.encode_sparse(value, self.capacity)


@dataclasses.dataclass(frozen=True, repr=False)
class ActiveFeatures(Result):
    """Active features of prompts, the largest first at each position.

    Attributes:
      tokens: int32 ``[b, s]``.
      mask: bool ``[b, s]``, True at real tokens.
      sites: that were read, ``n`` of them.
      layers: of the sites; -1 before the layers.
      ids: int32 ``[n, b, s, k]``; -1 where fewer are active.
      values: ``[n, b, s, k]``; 0 there.
      overflowed: bool ``[n, b, s]``: more were active than there are places.
    """

    tokens: np.ndarray
    mask: np.ndarray
    sites: tuple[str, ...]
    layers: tuple[int, ...]
    ids: np.ndarray
    values: np.ndarray
    overflowed: np.ndarray

    def strongest(self, count: int, row: int = 0) -> list[tuple[str, int]]:
        """The ``count`` features ``(site, id)`` with the largest activation at any token of a row."""
        most: dict[tuple[str, int], float] = {}
        for n, s, k in zip(*np.nonzero(self.ids[:, row] >= 0), strict=True):
            if self.mask[row, s]:
                key = self.sites[n], int(self.ids[n, row, s, k])
                most[key] = max(most.get(key, 0.0), abs(float(self.values[n, row, s, k])))
        return sorted(most, key=lambda key: -most[key])[:count]

    def _held(self) -> dict[str, Any]:
        axes = ("site", "batch", "pos", "place")
        return {
            "tokens": array(axes[1:3], self.tokens),
            "mask": array(axes[1:3], self.mask),
            "labels": {"site": self.sites},
            "layers": self.layers,
            "ids": array(axes, self.ids),
            "values": array(axes, self.values),
            "overflowed": array(axes[:3], self.overflowed),
        }

    def __repr__(self) -> str:
        return short(self, ids=self.ids)


def features(
    lm: LanguageModel,
    prompts: Any,
    dictionaries: Mapping[str, AnyDictionary] | AnyDictionary,
    *,
    capacity: int = 32,
    hooks: Hooks | None = None,
) -> ActiveFeatures:
    """The active features of prompts, from one run of the model.

    Encoders run inside the layers, and only ids and values leave them.

    Args:
      dictionaries: ``{site: dictionary}``, or a dictionary, a set or a cross-layer transcoder that says
        itself where it reads.
      capacity: places for features at each position; where more are active, ``overflowed`` says so.
      hooks: act on the run.

    Raises:
      ArgumentError: what is no dictionary, or does not say where it reads.
      HookError: no such site.

    Example:
      >>> import jax, jax.numpy as jnp, jmi_models, jmi_sparse
      >>> lm = jmi_models.load("atlas")
      >>> rows = jax.random.normal(jax.random.key(0), (512, 128))
      >>> sae = jmi_sparse.Dictionary(rows.T, rows, jnp.zeros(128), jmi_sparse.TopK(8), jnp.zeros(512))
      >>> found = jmi_sparse.features(lm, "Paris is", {"blocks.2.hook_resid_post": sae})
      >>> found.ids.shape, found.layers
      ((1, 1, 3, 32), (2,))
    """
    check_lm(lm)
    capacity = whole_number("capacity", capacity, 1)
    given = lm.prompts(prompts)
    listed = _listed(dictionaries)
    if given.mask is not None and any(isinstance(each, Temporal) for each in listed.values()):
        raise ArgumentError(
            "a temporal dictionary reads sequences from their first token: give prompts of one length"
        )
    captures = []
    for number, (name, each) in enumerate(listed.items()):
        for one in sites_of(name, each):
            find(lm.arch, one)
        reducer = _reducer(lm, each, capacity)
        captures += [jmi.Capture(one, reduce=reducer, label=str(number)) for one in sites_of(name, each)]
    out = lm.run(given, hooks, captures, logits_at=-1)
    kept: dict[str, Sparse] = {}
    for number, name in enumerate(listed):
        found = jax.tree.map(np.asarray, out.captures[str(number)])
        layers = next(known.layers for known in out.kept if known.label == str(number))
        if layers is None:
            kept[name] = found
        for row, layer in enumerate(layers or ()):
            site = layer_name(split(name)[0], layer)
            if site in kept:
                raise ArgumentError(f"{site}: two dictionaries read here; run one after the other")
            kept[site] = Sparse(*(x[row] for x in found))
    names = sorted(kept, key=_layer)
    ids, values, overflowed = (np.stack(part) for part in zip(*(kept[name] for name in names), strict=True))
    tokens = np.asarray(given.tokens)
    mask = np.ones(tokens.shape, bool) if given.mask is None else np.asarray(given.mask)
    return ActiveFeatures(tokens, mask, tuple(names), tuple(map(_layer, names)), ids, values, overflowed)


def _looks_around(dictionary: Any) -> bool:
    """Whether what it makes of a position depends on others."""
    return isinstance(dictionary, Temporal) or isinstance(getattr(dictionary, "activation", None), BatchTopK)


def _layer(name: str) -> int:
    """Of a site; -1 before the layers."""
    return int(split(name)[1] or -1)


def _listed(given: Any) -> dict[str, Any]:
    """Each dictionary by the name of the site that it reads."""
    found = by_site(given)
    for name, each in found.items():
        if isinstance(each, Crosscoder) or not isinstance(each, AnyDictionary):
            raise ArgumentError(f"{name}: {shown(each)}; give dictionaries of one site each")
        if isinstance(getattr(each, "activation", None), BatchTopK):
            raise ArgumentError(
                f"{name}: BatchTopK selects over all positions of a batch; use "
                "jmi_sparse.at_threshold(dictionary)"
            )
    return found


def _reducer(lm: LanguageModel, dictionary: Any, capacity: int) -> Any:
    if isinstance(dictionary, CrossLayerTranscoder):
        stacked, layers = dictionary.encoders, dictionary.layers
    elif isinstance(dictionary, DictionarySet):
        stacked, layers = dictionary.stacked, dictionary.layers
    else:
        return Encode(dictionary, capacity)
    # Where each layer has one, the scan hands it its row.
    every = layers == tuple(range(lm.arch.n_layers))
    rows = None if every else slots(layers, lm.arch.n_layers)
    return jmi.PerLayer(Encode(stacked, capacity), rows)


def reading(dictionaries: Any) -> dict[int, tuple[str, Any]]:
    """By layer, the site that is read and the dictionary that reads it; arguments as of `features`."""
    found: dict[int, tuple[str, Any]] = {}
    for name, each in _listed(dictionaries).items():
        for site, layer in sites_of(name, each).items():
            found[_layer(site)] = site, _of_layer(each, layer)
    return found


def _of_layer(dictionary: Any, layer: int | None) -> Any:
    """What reads in one layer; the dictionary itself where there is one."""
    if layer is None:
        return dictionary
    return dictionary.encoder(layer) if isinstance(dictionary, CrossLayerTranscoder) else dictionary[layer]
