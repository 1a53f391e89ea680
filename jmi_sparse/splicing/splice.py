"""`splice`: a model with dictionaries in it, whose features are sites like any other."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import jmi
from jmi.checks import flag, shown
from jmi.errors import ArgumentError, HookError
from jmi.lm import LanguageModel, check_lm
from jmi.model.sites import Site, find, table_of
from jmi_sparse.dictionaries.activations import BatchTopK
from jmi_sparse.dictionaries.by_site import by_site, sites_of
from jmi_sparse.dictionaries.crosscoder import Crosscoder
from jmi_sparse.dictionaries.crosslayer import CrossLayerTranscoder
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.dictionaries.layered import DictionarySet, stack, widened
from jmi_sparse.dictionaries.pursuit import MatchingPursuit
from jmi_sparse.dictionaries.temporal import Temporal
from jmi_sparse.splicing import crosslayer as spliced_clt
from jmi_sparse.splicing.modules import SplicedSAE, SplicedTranscoder

Dictionaries = Mapping[str, Any] | DictionarySet | CrossLayerTranscoder | Dictionary | MatchingPursuit


@dataclasses.dataclass(frozen=True)
class _Placed:
    """A dictionary of one layer, and the sites of that layer."""

    dictionary: Dictionary | MatchingPursuit
    layer: int
    reads: Site
    writes: Site

    def ends(self) -> tuple[str, str]:
        reads, writes = (site.point.replace("*", str(self.layer), 1) for site in (self.reads, self.writes))
        return reads, writes

    def like(self) -> tuple[Any, ...]:
        """What is the same in dictionaries that one module can hold."""
        d = dataclasses.replace(self.dictionary, hook_in=None, hook_out=None, metadata="{}")
        names = (self.reads.point, self.writes.point)
        structure, width = jmi.tree.structure_of(d), self.dictionary.W_dec.dtype
        return names, structure, width if isinstance(d, Dictionary) else id(self.dictionary)


def splice(
    lm: LanguageModel,
    dictionaries: Dictionaries,
    *,
    error: bool = True,
    skip_special: bool | Sequence[int] = False,
) -> LanguageModel:
    """``lm`` with dictionaries in it: their features become sites, for whatever takes a LanguageModel.

    An SAE at ``blocks.5.hook_resid_post`` has the points ``blocks.5.hook_resid_post.hook_sae_acts_post``
    ``[b, s, feature]`` and ``.hook_sae_input``, ``.hook_sae_acts_pre``, ``.hook_sae_recons``,
    ``.hook_sae_error``, ``.hook_sae_output`` (SAELens's names). A transcoder or cross-layer transcoder
    stands for the MLP: ``blocks.5.mlp.hook_features`` (and ``.hook_features_pre``) where it reads,
    ``blocks.5.mlp.hook_error`` where it writes. Hooks on the point that is read act before encoding.

    With ``error`` nothing changes until features are hooked, gradients included: the error is computed from
    what arrives, so gradients flow through it. To stop them there as SAELens does, hook it with
    ``jmi.hooks.freeze.Detach()``.

    Dictionaries at one point in several layers share the number of features of the widest; those added are
    never active.

    Args:
      dictionaries: site that is read -> dictionary, or with ``blocks.*`` a `DictionarySet`; or a set, a
        cross-layer transcoder or a dictionary alone, which say themselves where they read.
      error: add what the dictionary misses, so that the model computes what it did. Without it the
        reconstruction stands alone, and points that nothing reads any more are closed.
      skip_special: leave the point as it is at special tokens of the tokenizer, or at these token ids.

    Raises:
      ArgumentError: a width that is not the site's, or a dictionary that does not decide position by
        position.
      HookError: no such site.

    Example:
      >>> import jax, jax.numpy as jnp, jmi, jmi_models, jmi_sparse
      >>> lm = jmi_models.load("atlas")
      >>> rows = jax.random.normal(jax.random.key(0), (512, lm.arch.d_model))
      >>> sae = jmi_sparse.Dictionary(rows.T, rows, jnp.zeros(128), jmi_sparse.TopK(8), jnp.zeros(512))
      >>> spliced = jmi_sparse.splice(lm, {"blocks.2.hook_resid_post": sae})
      >>> features = "blocks.2.hook_resid_post.hook_sae_acts_post"
      >>> spliced.run("Paris is", {features: jmi.Zero(units=7)}, capture=[features])[features].shape
      (1, 3, 512)
    """
    check_lm(lm)
    error, special = flag("error", error), _special(lm, skip_special)
    if isinstance(dictionaries, CrossLayerTranscoder):
        return _with_clt(lm, dictionaries, special, error)
    placed = [_placed(lm, name, each) for name, each in _listed(dictionaries)]
    _check_apart(lm, placed, error)
    modules: dict[tuple[str | Iterable[str], str], Any] = {}
    for point in dict.fromkeys(p.reads.point for p in placed):
        here = [p for p in placed if p.reads.point == point]
        for like in dict.fromkeys(p.like() for p in here):
            alike = [p for p in here if p.like() == like]
            module = _module(lm, alike, max(p.dictionary.n_features for p in here), special, error)
            modules |= {p.ends(): module for p in alike}
    return jmi.rewire(lm, modules)


def _check_apart(lm: LanguageModel, placed: list[_Placed], error: bool) -> None:
    """Refuse two dictionaries at one place, and one where nothing reads what it writes."""
    seen: set[tuple[str, int]] = set()
    for p in placed:
        if (p.reads.point, p.layer) in seen:
            raise ArgumentError(
                f"{p.ends()[0]}: two dictionaries read here; splice one, or one after the other"
            )
        seen.add((p.reads.point, p.layer))
    for p in placed if not error else ():
        gone = {f"blocks.*.{name}" for name in between(lm, p.reads, p.writes)}
        for other in placed:
            here = {other.reads.point, other.writes.point}
            if other.layer == p.layer and gone & here:
                raise ArgumentError(
                    f"{other.ends()[0]}: without its error the transcoder at {p.ends()[0]} stands for what "
                    "is here; leave one of them out, or splice with error=True"
                )


def _special(lm: LanguageModel, asked: Any) -> Any:
    """Ids of tokens to leave out, or None."""
    if not isinstance(asked, (bool, np.bool_)):
        ids = np.asarray(jmi.checks.whole_array("skip_special", asked))
        return jnp.asarray(ids.reshape(-1), jnp.int32)
    if not asked:
        return None
    if lm.tokenizer is None:
        raise ArgumentError(
            "skip_special=True: this model has no tokenizer to say which tokens are; give ids"
        )
    return jnp.asarray(sorted(set(lm.tokenizer.special.values())), jnp.int32)


def _listed(given: Any) -> list[tuple[str, Any]]:
    """Sites and dictionaries, sets taken apart."""
    found: list[tuple[str, Any]] = []
    for name, each in by_site(given).items():
        if isinstance(each, DictionarySet):
            found += [
                (site, each[layer]) for site, layer in sites_of(name, each).items() if layer is not None
            ]
        elif isinstance(each, (Dictionary, MatchingPursuit)):
            found.append((name, each))
        else:
            raise ArgumentError(f"{name}: {_why_not(each)}")
    return found


def _why_not(given: Any) -> str:
    if isinstance(given, Crosscoder):
        return "a crosscoder reads all its points before it writes any, so it cannot stand in a run"
    if isinstance(given, CrossLayerTranscoder):
        return "give a cross-layer transcoder alone, splice(lm, clt)"
    if isinstance(given, Temporal):
        return "a temporal dictionary reads whole sequences; what stands in a model acts by position"
    return f"{shown(given)} is no dictionary"


def _placed(lm: LanguageModel, name: str, dictionary: Any) -> _Placed:
    """A dictionary at its sites, of which the widths are checked."""
    if isinstance(getattr(dictionary, "activation", None), BatchTopK):
        raise ArgumentError(
            f"{name}: BatchTopK selects over all positions of a batch; splice "
            "jmi_sparse.at_threshold(dictionary)"
        )
    reads, layer = _site(lm, name)
    writes = reads
    if dictionary.kind == "transcoder":
        if dictionary.hook_out is None:
            raise ArgumentError(
                f"{name}: this transcoder does not say where it writes; give it one, "
                "dataclasses.replace(transcoder, hook_out='blocks.5.hook_mlp_out')"
            )
        writes, other = _site(lm, dictionary.hook_out.replace("*", str(layer), 1))
        if other != layer:
            raise ArgumentError(f"{name}: it writes in another layer, at {dictionary.hook_out}")
    _check_width(name, "reads", dictionary.d_in, reads)
    _check_width(name, "writes", dictionary.d_out, writes)
    hook_z = len(reads.axes) == 4
    if dictionary.kind == "transcoder" and (hook_z or len(writes.axes) == 4):
        raise ArgumentError(
            f"{name}: a transcoder between vectors of heads; take points of the stream's width"
        )
    if hook_z != dictionary.hook_z:
        dictionary = dataclasses.replace(dictionary, hook_z=hook_z)
    return _Placed(dictionary, layer, reads, writes)


def _site(lm: LanguageModel, name: str) -> tuple[Site, int]:
    """The point and layer of the name of one site in the layers."""
    found = find(lm.arch, name) if isinstance(name, str) else []
    if len(found) != 1 or found[0][1] is None or len(found[0][1]) != 1:
        raise HookError(
            f"{shown(name)}: a dictionary stands at one site in the layers, blocks.5.hook_resid_post"
        )
    return found[0][0], found[0][1][0]


def _check_width(name: str, does: str, width: int, site: Site) -> None:
    sizes = [size or 0 for size in site.sizes[2:]]
    if site.axes[:2] != ("batch", "pos") or int(np.prod(sizes)) != width:
        raise ArgumentError(
            f"{name}: the dictionary {does} vectors of {width}; {site.point} has "
            f"{' x '.join(f'{axis} {size}' for axis, size in zip(site.axes[2:], sizes, strict=True))}"
        )


def _module(lm: LanguageModel, alike: list[_Placed], features: int, special: Any, error: bool) -> Any:
    """One module for dictionaries of one structure at one point of several layers."""
    first = alike[0]
    if isinstance(first.dictionary, MatchingPursuit):
        return SplicedSAE(first.dictionary, special, first.dictionary.n_features, error, per_layer=False)
    rows = stack({p.layer: widened(_blank(p), features) for p in alike}).stacked
    if first.reads.point == first.writes.point:
        return SplicedSAE(rows, special, features, error)
    closed = () if error else between(lm, first.reads, first.writes)
    return SplicedTranscoder(rows, special, features, error, closed=closed)


def _blank(placed: _Placed) -> Any:
    return dataclasses.replace(placed.dictionary, hook_in=None, hook_out=None)


def between(lm: LanguageModel, reads: Site, writes: Site) -> tuple[str, ...]:
    """Points of a layer, without ``blocks.i.``, that only what lies between two of its points reads."""
    order = list(table_of(lm.arch))
    part = writes.point.removeprefix("blocks.*.").removeprefix("hook_").partition("_")[0].partition(".")[0]
    norms = {"mlp": ("ln2", "ln2_post"), "attn": ("ln1", "ln1_post")}.get(part, ())
    names = [
        point.removeprefix("blocks.*.")
        for point in order[order.index(reads.point) + 1 : order.index(writes.point)]
    ]
    return tuple(n for n in names if n.partition(".")[0] in (part, *norms) or n == f"hook_{part}_in")


def _with_clt(lm: LanguageModel, clt: CrossLayerTranscoder, special: Any, error: bool) -> LanguageModel:
    if isinstance(clt.activation, BatchTopK):
        raise ArgumentError(
            "splice: BatchTopK selects over all positions of a batch; it cannot stand in a run"
        )
    if any(clt.targets[target] < clt.layers[source] for source, target in clt.pairs):
        raise ArgumentError("splice: this transcoder writes into layers before the one it reads")
    if clt.layers != clt.targets:
        raise ArgumentError(
            f"splice: this transcoder reads layers {list(clt.layers)} and writes {list(clt.targets)}; load "
            "all of its layers"
        )
    if clt.hook_in is None or clt.hook_out is None:
        raise ArgumentError("splice: this transcoder does not say where it reads and writes; set its hooks")
    first = str(clt.layers[0])
    reads, writes = (_site(lm, name.replace("*", first, 1))[0] for name in (clt.hook_in, clt.hook_out))
    _check_width(clt.hook_in, "reads", clt.d_in, reads)
    _check_width(clt.hook_out, "writes", clt.d_out, writes)
    module: Any = spliced_clt.module_of(
        clt,
        special=special,
        error=error,
        closed=() if error else between(lm, reads, writes),
        n_layers=lm.arch.n_layers,
    )
    points = reads.point, writes.point
    modules: dict[tuple[str | Iterable[str], str], Any] = {}
    for layer in clt.layers:
        read, written = (point.replace("*", str(layer), 1) for point in points)
        modules[read, written] = module
    return jmi.rewire(lm, modules)
