"""`rewire`: modules between two points of a layer, as a model of its own.

Circuits, dictionaries that are spliced in, transcoders in place of MLPs and cross-layer transcoders are such
modules. All else goes through unchanged: sites, memory, sweeps, gradients, generation.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jmi.checks import no_number_in, shown
from jmi.engine.rewired import Rewired, layers_of
from jmi.engine.wired import Here, Wire
from jmi.errors import ArgumentError, HookError
from jmi.hooks.reach import takes_padding
from jmi.lm import LanguageModel, check_lm
from jmi.model.inputs import Prompts
from jmi.model.sites import Site, find, table_of


class Module(Protocol):
    """What may stand between two points of a layer: a pytree (`jmi.tree.dataclass`) that acts by position.

    Attributes:
      params: its parameters; of all else that it holds there is one set for all layers.
      per_layer: whether ``params`` have a leading axis, one row for each layer in which it stands; each layer
        then gets the module with its own row. Static.

    With ``takes_padding = True`` in its class it says that it holds no entry for each place of a prompt, and
    prompts run at few lengths.
    """

    params: Any
    per_layer: bool

    def sites(self, reads: tuple[Site, ...], writes: Site) -> Mapping[str, Mapping[str, int | None]]:
        """Points of its own: name without ``blocks.i.`` -> size of each axis by name (None: as the run)."""
        ...

    def closes(self, writes: str) -> Iterable[str]:
        """Points of the model, without ``blocks.i.``, that it no longer has where the module writes at
        ``writes``: what is hooked there would not reach the module, or what is read there lacks its part.

        A module without this method closes nothing.
        """
        ...

    def start(self, carry: Any, prompts: Prompts) -> Any:
        """What it carries from layer to layer, arrays ``[b, s, ...]``, given what enters the first layer and
        the tokens of the positions that are run.

        A module without this method carries nothing, nor does one whose ``carries`` is False.
        """
        ...

    def __call__(self, read: Any, written: jax.Array, carry: Any, here: Here) -> tuple[jax.Array, Any]:
        """What is written, and what is carried on.

        Args:
          read: what flowed onward from the point that it reads, a tuple for several of them, None for none.
          written: what would be written; at the same point that it reads, that.
          carry: its own; None without one.
          here: the site of what is written, the tap for points of its own, the layer's own parameters.
        """
        ...


def rewire(lm: LanguageModel, modules: Mapping[tuple[str | Iterable[str], str], Module]) -> LanguageModel:
    """``lm`` with modules in it, for whatever takes a LanguageModel.

    Args:
      modules: ``(reads, writes)`` -> module. Names are sites of one layer, ``blocks.3.mlp.hook_in``, or of
        all, ``blocks.*.mlp.hook_in``; both name the same layers, and what is read comes first in the layer. A
        module may read several points, or none. What is written goes on as if the layer had written it:
        through the hooks there, and into captures. Where it reads the point that it writes, the hooks there
        act before it. One module at several points has one set of parameters and one carry; modules at one
        point act in order.

    A module must act position by position: sweeps and generation run positions by themselves.

    Raises:
      HookError: an unknown site, a point that is not in the layers or of another module, or one read that
        comes after what is written; in a run, a point that is computed step by step (``rwkv.hook_states``).
      InterventionError: in a run, a module that returns another shape or dtype than it was given.
      ArgumentError: what is no module, or parameters without a row for each layer.

    Example:
      >>> import jax, jmi, jmi_models
      >>> @jmi.tree.dataclass
      ... class Half:
      ...     params: jax.Array
      ...     per_layer: bool = jmi.tree.static(default=False)
      ...
      ...     def sites(self, reads, writes):
      ...         return {"mlp.hook_half": dict(zip(writes.axes, writes.sizes))}
      ...
      ...     def __call__(self, read, written, carry, here):
      ...         return here.tap("mlp.hook_half", self.params * written), carry
      >>> lm = jmi_models.load("atlas")
      >>> ends = "blocks.*.mlp.hook_in", "blocks.*.mlp.hook_out"
      >>> half = jmi.rewire(lm, {ends: Half(jax.numpy.float32(0.5))})
      >>> out = half.run("Paris is", capture=["blocks.2.mlp.hook_half"])
    """
    check_lm(lm)
    if not isinstance(modules, Mapping) or not modules:
        raise ArgumentError(f"modules={shown(modules)}: give a dict, {{(reads, writes): module}}")
    host, held = lm.arch, list(lm.params.get("modules", ()))
    wires = list(host.wires) if isinstance(host, Rewired) else []
    own = {site.point: (site, writes) for site, writes in host.own} if isinstance(host, Rewired) else {}
    numbers: dict[int, int] = {}
    owners: dict[tuple[str, int], int] = {}
    closed = list(host.closed) if isinstance(host, Rewired) else []
    for key, module in modules.items():
        number = numbers.setdefault(id(module), len(held))
        if number == len(held):
            held.append(_checked(module))
        wire = _wire(host, key, number)
        wires.append(wire)
        if hasattr(module, "closes"):
            closed += [(f"blocks.*.{name}", wire.layers) for name in module.closes(wire.writes)]
        for site, writes in _sites_of(host, module, wire):
            _check_owner(owners, site, number)
            own[site.point] = _joint(own.get(site.point), site, writes)
    for number in numbers.values():
        _check_rows(held[number], layers_of(wires, number))
    arch = Rewired(
        host.model if isinstance(host, Rewired) else host,
        tuple(wires),
        tuple(own.values()),
        tuple(hasattr(module, "start") and getattr(module, "carries", True) for module in held),
        tuple(closed),
        takes_padding=getattr(host, "takes_padding", False) and all(map(takes_padding, held)),
    )
    return dataclasses.replace(lm, arch=arch, params={**lm.params, "modules": tuple(held)})


def _wire(host: Any, key: Any, number: int) -> Wire:
    """Where a module stands."""
    if not isinstance(key, tuple) or len(key) != 2:
        raise ArgumentError(f"{shown(key)}: a module stands between two points, (reads, writes)")
    reads, writes = key
    names = () if reads is None else (reads,) if isinstance(reads, str) else tuple(reads)
    ends = [_point(host, name) for name in (*names, writes)]
    if len({layers for _, layers in ends}) != 1:
        raise HookError(f"{names} -> {writes}: a module reads and writes in the same layers")
    order = list(table_of(host))
    for site, _ in ends[:-1]:
        if order.index(site.point) > order.index(ends[-1][0].point):
            raise HookError(f"{site.point} comes after {ends[-1][0].point}: a module reads before it writes")
    short = [site.point.removeprefix("blocks.*.") for site, _ in ends]
    return Wire(tuple(short[:-1]), short[-1], ends[-1][1], number)


def _point(host: Any, name: Any) -> tuple[Site, tuple[int, ...]]:
    if not isinstance(name, str):
        raise HookError(f"{shown(name)}: give the name of a site")
    found = find(host, name)
    if len(found) != 1 or found[0][1] is None or found[0][0].derived:
        raise HookError(f"{name}: a module stands between single points inside the layers")
    if isinstance(host, Rewired) and found[0][0].point not in table_of(host.model):
        raise HookError(f"{name}: a point of a module; modules stand between points of the model itself")
    return found[0][0], found[0][1]


def _checked(module: Any) -> Any:
    if isinstance(module, type) or not callable(module) or not hasattr(module, "params"):
        raise ArgumentError(f"{shown(module)} is no module: see jmi.modules.Module")
    wrong = no_number_in(module)
    if wrong is not None:
        raise ArgumentError(f"{type(module).__name__} holds {shown(wrong[0])}; parameters are arrays")
    return module


def _check_rows(module: Any, layers: tuple[int, ...]) -> None:
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(module.params)} if module.per_layer else set()
    if sizes - {(len(layers),)}:
        raise ArgumentError(
            f"{type(module).__name__}: each of its params needs a row for each of {len(layers)} layers, "
            f"{list(layers)}; found first axes {sorted(sizes)}"
        )


def _sites_of(host: Any, module: Any, wire: Wire) -> Iterator[tuple[Site, str]]:
    """The points that a module brings where it stands, each with the point that it writes there."""
    if not hasattr(module, "sites"):
        return
    table, writes = table_of(host), f"blocks.*.{wire.writes}"
    reads = tuple(table[f"blocks.*.{name}"] for name in wire.reads)
    for name, axes in module.sites(reads, table[writes]).items():
        if f"blocks.*.{name}" in table:
            raise HookError(f"{name}: there is a point of this name already; give that of a module its own")
        yield Site(f"blocks.*.{name}", tuple(axes), tuple(axes.values()), wire.layers), writes


def _check_owner(owners: dict[tuple[str, int], int], site: Site, number: int) -> None:
    """Raise HookError where two modules have a point of one name in one layer: it would hold the last."""
    for layer in site.layers or ():
        if owners.setdefault((site.point, layer), number) != number:
            raise HookError(f"{site.point}: of two modules in layer {layer}; give each a name of its own")


def _joint(other: tuple[Site, str] | None, site: Site, writes: str) -> tuple[Site, str]:
    """One point of modules in several layers."""
    if other is None:
        return site, writes
    if (other[0].axes, other[0].sizes) != (site.axes, site.sizes):
        raise HookError(f"{site.point}: of modules of several shapes; give each a name of its own")
    layers = tuple(sorted({*(other[0].layers or ()), *(site.layers or ())}))
    return dataclasses.replace(site, layers=layers), other[1]
