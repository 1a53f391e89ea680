"""Sites: the names of points in the forward pass, and how names are found.

A *point* is a name with the layer left open, ``blocks.*.attn.hook_pattern``; a *name* given by a
user is a point with its layer filled in (``blocks.5.attn.hook_pattern``, ``blocks.-1.hook_resid_post``)
or a pattern (``blocks.*.hook_resid_post``, ``blocks.3.attn.*``, ``*``). Names are TransformerLens's.
"""

import dataclasses
import difflib
import fnmatch
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from jmi.errors import HookError

SCORES = "blocks.*.attn.hook_attn_scores"
PATTERN = "blocks.*.attn.hook_pattern"

ALIASES: Mapping[str, str] = {"blocks.*.attn.hook_scores": SCORES}

_BLOCK_NAME = re.compile(r"blocks\.(\*|-?\d+)\.(.+)")


@dataclasses.dataclass(frozen=True)
class Site:
    """One point of one model, handed to every intervention and reducer.

    Attributes:
      point: name with the layer open, e.g. ``blocks.*.attn.hook_q``.
      axes: names of the axes of the tensor there: batch, pos, query and key (positions), head, kv_head,
        expert, d_model, d_embed (what the unembedding reads, where that is narrower), d_head, d_mlp, vocab,
        one, feature (of a dictionary), and of a recurrent state d_key and d_value. Selectors and techniques
        go by these; a model may have others.
      sizes: size of each axis; None for batch and for positions, which each run chooses.
      layers: the layers that have the point, in order; None outside the blocks.
      layer: index of the running layer (int32, traced inside a scan); None outside the blocks.
      derived: computed for captures alone: the model does not read it, so no hook can act there.
      mask: bool ``[b, s]``, True at the real tokens of this run; None when every place holds one. Axes of
        positions keep padding; `jmi.model.padding` finds the place of a token.
    """

    point: str
    axes: tuple[str, ...]
    sizes: tuple[int | None, ...]
    layers: tuple[int, ...] | None = None
    layer: Any = None
    derived: bool = False
    mask: Any = dataclasses.field(default=None, compare=False)

    @property
    def n_layers(self) -> int | None:
        """Number of layers that have the point; None outside the blocks."""
        return None if self.layers is None else len(self.layers)

    def shape(self, batch: int, pos: int) -> tuple[int, ...]:
        """Shape of the tensor for ``batch`` rows of ``pos`` tokens."""
        free = {"batch": batch, "pos": pos, "query": pos, "key": pos}
        return tuple(free[a] if n is None else n for a, n in zip(self.axes, self.sizes, strict=True))

    def token_axes(self) -> list[int]:
        """Indices of the axes with an entry for each token."""
        return [i for i, axis in enumerate(self.axes) if axis in ("pos", "query", "key")]

    def axis(self, *names: str) -> int | None:
        """Index of the first of ``names`` that this site has, or None."""
        return next((self.axes.index(n) for n in names if n in self.axes), None)


class HasSites(Protocol):
    """The part of an architecture that names are checked against."""

    @property
    def n_layers(self) -> int: ...

    def __hash__(self) -> int: ...

    def sites(self) -> Mapping[str, Site]: ...


def sites_of(
    points: Mapping[str, tuple[str, ...]],
    sizes: Mapping[str, int],
    n_layers: int,
    some: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Site]:
    """Site table of a model.

    Args:
      points: the axes of the tensor at each point, in execution order.
      sizes: of axes; batch and positions have none.
      some: the layers of points that not every layer has.
    """
    known, every = {"one": 1, **sizes}, tuple(range(n_layers))
    return {
        point: Site(
            point,
            axes,
            tuple(known.get(axis) for axis in axes),
            (some or {}).get(point, every) if point.startswith("blocks.") else None,
        )
        for point, axes in points.items()
    }


def slots(layers: Sequence[int], n_layers: int) -> np.ndarray:
    """Row of each of ``layers`` in an array that has them alone, or -1: ``int32[n_layers]``."""
    rows = np.full(n_layers, -1, np.int32)
    rows[list(layers)] = np.arange(len(layers))
    return rows


def split(name: str) -> tuple[str, str | None]:
    """``blocks.5.x`` -> (``blocks.*.x``, ``"5"``); a name outside the blocks -> (name, None)."""
    match = _BLOCK_NAME.fullmatch(name)
    if match is None:
        return name, None
    point = f"blocks.*.{match[2]}"
    return ALIASES.get(point, point), match[1]


def layer_name(point: str, layer: int) -> str:
    """``blocks.*.x`` and 5 -> ``blocks.5.x``."""
    return point.replace("*", str(layer), 1)


@functools.lru_cache(maxsize=4096)
def find(arch: HasSites, name: str) -> tuple[tuple[Site, tuple[int, ...] | None], ...]:
    """Sites that ``name`` means in ``arch``, each with its layers (None outside the blocks).

    Raises:
      HookError: nothing matches, or the layer does not exist; the message names what is near.
    """
    table = table_of(arch)
    point, layer = split(name)
    if point in table:
        found = [table[point]]
    elif "*" in (point if layer is None else point.removeprefix("blocks.*.")):
        found = [site for p, site in table.items() if fnmatch.fnmatchcase(p, point)]
    else:
        found = []
    if not found:
        raise HookError(_unknown(arch, name, point, layer))
    layers = _layers(arch, name, point, layer)
    here = [(site, _having(site, layers)) for site in found]
    there = [(site, own) for site, own in here if own != ()]
    if not there:
        has = found[0].layers or ()
        raise HookError(
            f"{name}: layer {layers[0]} has no such point; of this model layers {spans(has)} have it"
        )
    return tuple(there)


def _having(site: Site, layers: tuple[int, ...]) -> tuple[int, ...] | None:
    return None if site.layers is None else tuple(i for i in layers if i in site.layers)


def spans(layers: Sequence[int]) -> str:
    """``0-3, 7`` for 0, 1, 2, 3, 7."""
    runs = [list(run) for _, run in itertools.groupby(enumerate(layers), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{r[0][1]}-{r[-1][1]}" if len(r) > 1 else f"{r[0][1]}" for r in runs)


@functools.lru_cache(maxsize=256)
def table_of(arch: HasSites) -> Mapping[str, Site]:
    """``arch.sites()``, built once per architecture value."""
    return arch.sites()


@functools.lru_cache(maxsize=4096)
def part_of(arch: HasSites, point: str) -> Literal["embed", "blocks", "unembed"]:
    """Where a point of the model stands: before its layers, in them, or after them."""
    if point.startswith("blocks."):
        return "blocks"
    order = list(table_of(arch))
    first = next(i for i, other in enumerate(order) if other.startswith("blocks."))
    return "embed" if order.index(point) < first else "unembed"


def full_name(arch: HasSites, name: str) -> str:
    """``hook_resid_pre`` -> ``blocks.*.hook_resid_pre``; names of points outside the layers stay."""
    return name if name.startswith("blocks.") or name in table_of(arch) else f"blocks.*.{name}"


def _layers(arch: HasSites, name: str, point: str, layer: str | None) -> tuple[int, ...]:
    if layer is None or layer == "*":
        return tuple(range(arch.n_layers))
    index = int(layer)
    if not -arch.n_layers <= index < arch.n_layers:
        nearest = layer_name(point, arch.n_layers - 1 if index > 0 else 0)
        raise HookError(
            f"{name}: there is no layer {index}; this model has layers 0 to {arch.n_layers - 1}. "
            f"Nearest: {nearest}"
        )
    return (index % arch.n_layers,)


def _unknown(arch: HasSites, name: str, point: str, layer: str | None) -> str:
    near = difflib.get_close_matches(point, list(table_of(arch)), n=3, cutoff=0.5)
    if layer is not None and layer != "*" and -arch.n_layers <= int(layer) < arch.n_layers:
        near = [layer_name(p, int(layer)) for p in near]
    hint = f"Nearest: {', '.join(near)}" if near else "`lm.sites()` lists every point"
    return f"{name}: this model has no such point. {hint}"
