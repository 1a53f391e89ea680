"""Dictionaries at the sites of a model: what each reads, and what its output stands for.

Axis letters: L sites that are read, T sites that are written, b batch, s places.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.captures.capture import Capture
from jmi.checks import shown
from jmi.errors import ArgumentError, HookError
from jmi.lm import LanguageModel
from jmi.model.sites import find, layer_name, split
from jmi_sparse.dictionaries.activations import BatchTopK
from jmi_sparse.dictionaries.by_site import by_site, sites_of
from jmi_sparse.dictionaries.crosscoder import Crosscoder
from jmi_sparse.dictionaries.crosslayer import CrossLayerTranscoder
from jmi_sparse.dictionaries.kinds import AnyDictionary
from jmi_sparse.dictionaries.layered import DictionarySet
from jmi_sparse.scoring.corpus import Batch

_GIVE = "give {site: dictionary}, or a dictionary, a set or a cross-layer transcoder alone"


@dataclasses.dataclass(frozen=True)
class Placed:
    """A dictionary, and the sites that it reads and writes: one of each, or one for each layer.

    Attributes:
      name: what results call it.
      dictionary: as given.
    """

    name: str
    dictionary: AnyDictionary
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @property
    def bare(self) -> Any:
        """The dictionary without its hooks: of all layers one structure, and so one program."""
        dictionary: Any = self.dictionary
        return dataclasses.replace(dictionary, hook_in=None, hook_out=None, metadata="{}")

    @property
    def joint(self) -> bool:
        """Whether it is one of several layers, whose sites results call by their own names."""
        return isinstance(self.dictionary, CrossLayerTranscoder)

    def named(self, sites: Sequence[str]) -> Sequence[str]:
        """What results call each of ``sites``, which are `reads` or `writes`."""
        return sites if self.joint else [self.name]


def placed(lm: LanguageModel, dictionaries: Any) -> list[Placed]:
    """Dictionaries at their sites, in the order given.

    Raises:
      ArgumentError: something else; a width that is not the site's; a dictionary that selects over a batch.
      HookError: no such site, or several.
    """
    found = [_one(lm, *each) for each in _listed(dictionaries)]
    names = [each.name for each in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ArgumentError(f"dictionaries: {twice[0]} is named twice; give its dictionaries as one list")
    return found


def _listed(given: Any) -> Iterator[tuple[str, str | None, Any]]:
    """(what is added to the name, site, dictionary); no site where the dictionary says it."""
    if isinstance(given, DictionarySet):
        yield from (("", None, given[layer]) for layer in given.layers)
        return
    if isinstance(given, AnyDictionary):
        yield "", None, given
        return
    for site, value in by_site(given).items():
        if isinstance(value, DictionarySet):
            for name, layer in sites_of(site, value).items():
                yield "", name, value[layer or 0]
            continue
        several = isinstance(value, (list, tuple))
        for i, each in enumerate(value if several else [value]):
            yield (f"[{i}]" if several else ""), site, each


def _one(lm: LanguageModel, ending: str, site: str | None, dictionary: Any) -> Placed:
    joint = isinstance(dictionary, CrossLayerTranscoder)
    others = isinstance(dictionary, (Crosscoder, DictionarySet)) or (joint and site is not None)
    if not isinstance(dictionary, AnyDictionary) or others:
        raise ArgumentError(f"{site}: {shown(dictionary)} is no dictionary of one site; {_GIVE}")
    _check_selects(site or dictionary.kind, dictionary)
    reads = _sites(lm, dictionary, "hook_in", site, getattr(dictionary, "layers", ()))
    writes = reads
    if dictionary.kind != "sae":
        writes = _sites(lm, dictionary, "hook_out", None, getattr(dictionary, "targets", ()), reads[0])
    for width, names in ((dictionary.d_in, reads), (dictionary.d_out, writes)):
        for each in names:
            _check_width(lm, each, width, getattr(dictionary, "hook_z", False))
    return Placed("clt" if joint else reads[0] + ending, dictionary, reads, writes)


def _check_selects(name: str, dictionary: Any) -> None:
    if isinstance(getattr(dictionary, "activation", None), BatchTopK):
        raise ArgumentError(
            f"{name}: BatchTopK selects over all that it is given, and scores would depend on the batches; "
            "use jmi_sparse.at_threshold(dictionary)"
        )


def _sites(
    lm: LanguageModel, dictionary: Any, hook: str, site: str | None, layers: Any, near: str = ""
) -> tuple[str, ...]:
    """Names of the sites at ``site``, or at a hook of the dictionary, whose layer may be open."""
    open_name = getattr(dictionary, hook, None) if site is None else site
    if open_name is None:
        raise ArgumentError(f"this {dictionary.kind} does not say its {hook}; set it by dataclasses.replace")
    if isinstance(dictionary, CrossLayerTranscoder):
        return tuple(_site(lm, layer_name(open_name, layer)) for layer in layers)
    layer = split(near)[1]
    return (_site(lm, open_name if layer is None else layer_name(open_name, int(layer))),)


def _site(lm: LanguageModel, name: str) -> str:
    """The name of one site, with its layer counted from 0."""
    found = find(lm.arch, name)
    if len(found) != 1 or (found[0][1] is not None and len(found[0][1]) != 1):
        raise HookError(f"{shown(name)} names several sites; name one, such as blocks.3.hook_resid_post")
    site, layers = found[0]
    return site.point if layers is None else layer_name(site.point, layers[0])


def _check_width(lm: LanguageModel, name: str, width: int, hook_z: bool) -> None:
    site = find(lm.arch, name)[0][0]
    sizes = site.sizes[2:]
    if site.axes[:2] != ("batch", "pos") or len(sizes) != 1 + hook_z or None in sizes:
        raise ArgumentError(
            f"{name}: has the axes {', '.join(site.axes)}; a dictionary reads vectors of tokens"
            + (" and heads, for it has hook_z" if hook_z else "")
        )
    if int(np.prod([size or 0 for size in sizes])) != width:
        raise ArgumentError(f"{name}: has vectors {list(sizes)}; the dictionary is made for {width}")


def captured(lm: LanguageModel, batch: Batch, sites: Sequence[str]) -> dict[str, jax.Array]:
    """Values at ``sites``, ``[b, s, ...]`` each, of one run that ends at the last of them."""
    layers = [split(site)[1] for site in sites]
    deepest = None if None in layers else max(int(layer or 0) for layer in layers) + 1
    stop = None if deepest == lm.arch.n_layers else deepest
    out = lm.run(batch.prompts, capture=[Capture(site) for site in sites], stop_at_layer=stop, exact=True)
    return {site: out[site] for site in sites}


def encoded(dictionary: Any, x: Sequence[jax.Array]) -> jax.Array:
    """Features ``[L, b, s, features]`` of what is read, ``[b, s, ...]`` each."""
    if isinstance(dictionary, CrossLayerTranscoder):
        return dictionary.encode(jnp.stack(list(x)))
    return dictionary.encode(x[0])[None]


def reconstructed(dictionary: Any, x: Sequence[jax.Array]) -> jax.Array:
    """Outputs ``[T, b, s, ...]``."""
    if isinstance(dictionary, CrossLayerTranscoder):
        return dictionary.reconstruct(jnp.stack(list(x)))
    return dictionary.reconstruct(x[0])[None]
