"""A run as one value: everything that a forward pass is made of, checked before anything is traced."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jmi import tree
from jmi.captures.capture import Capture, Group, Plan, plan
from jmi.checks import as_array, flag, shown
from jmi.engine.memory import Memory, check, leaving
from jmi.errors import ArgumentError, HookError
from jmi.hooks.resolve import Hooks, prepare
from jmi.model.architecture import Architecture
from jmi.model.inputs import Prompts, checked, joined
from jmi.model.padding import check_token, place_of
from jmi.model.sites import part_of


@dataclasses.dataclass(frozen=True)
class Static:
    """What a trace of a run depends on besides shapes and structures.

    Attributes:
      groups: the captures.
      remat: layers are recomputed under reverse mode, not stored.
      stops: it ends before a layer and returns what enters it.
      length: how many positions are run, where these are not all; None when they are.
      classes: of hooks and reducers, which the comparison of structures overlooks (`jmi.tree`).
    """

    arch: Architecture
    groups: tuple[Group, ...]
    remat: bool = True
    stops: bool = False
    length: int | None = None
    classes: tuple[type, ...] = ()


@tree.dataclass
class Run:
    """What a forward pass is made of.

    Attributes:
      prompts: all positions, those that are not run included.
      hooks: prepared.
      reducers: for each capture the row of each layer, and its reducer.
      carry: what enters the first layer that is run, in place of the embedding.
      span: first layer and the one before which it stops (None: to the end); None for all layers.
      logits_at: place ``[]`` or ``[b]`` whose logits are wanted, among the positions that are run.
      memory: what other positions left behind, as `Memory.parts`.
      first: the first position that is run.
      context: in place of what the architecture makes of ``prompts``, where it is known already: with memory
        of all positions, else of those that are run.
    """

    prompts: Prompts
    hooks: dict[str, tuple[Any, ...]]
    reducers: tuple[tuple[Any, Any], ...]
    carry: Any = None
    span: tuple[Any, Any] | None = None
    logits_at: Any = None
    memory: dict[str, Any] | None = None
    first: Any = 0
    context: Any = None
    static: Static = tree.static(kw_only=True)

    @property
    def own(self) -> Prompts:
        """The positions that are run."""
        length = self.static.length
        return self.prompts if length is None else self.prompts.part(self.first, length)


def plan_run(
    arch: Architecture,
    prompts: Any,
    hooks: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    *,
    start_at_layer: Any = None,
    carry: Any = None,
    stop_at_layer: Any = None,
    memory: bool | Memory = False,
    logits_at: Any = None,
    remat: bool = True,
) -> tuple[Run, Plan]:
    """Validate the arguments of a run (as `forward`); the captures of the plan come first in the run's."""
    own, remat = checked(arch, prompts), flag("remat", remat)
    start, stop = _bounds(arch, start_at_layer, stop_at_layer, carry)
    before = None if isinstance(memory, bool) else check(arch, memory, own.shape[0])
    whole = own if before is None else joined([before.prompts, own])
    if before is not None:
        arch.check_continued(whole.shape[1])  # type: ignore[attr-defined]
    prepared = prepare(arch, hooks, whole.shape, whole.mask)
    layout = plan(arch, capture, own.shape, own.mask)
    kept = layout
    if memory is not False:
        if start is not None or stop is not None:
            raise ArgumentError("memory= needs a run through all layers: each has a part of it")
        kept = layout + plan(arch, leaving(arch), own.shape)
    if start is not None or stop is not None:
        _check_reached(arch, prepared, layout, start, stop)
    if logits_at is not None:
        if stop is not None:
            raise ArgumentError(
                "logits_at= and stop_at_layer= exclude each other: a stopped run has no logits"
            )
        points = {*prepared, *(group.point for group in layout.groups)}
        logits_at = check_logits_at(arch, logits_at, own, points)
    static = Static(
        arch,
        kept.groups,
        remat,
        stops=stop is not None,
        length=None if before is None else own.shape[1],
        classes=tree.classes((prepared, kept.data)),
    )
    run = Run(
        whole,
        prepared,
        kept.data,
        carry=carry,
        span=None if start is None and stop is None else (0 if start is None else start, stop),
        logits_at=logits_at,
        memory=None if before is None else before.parts,
        first=0 if before is None else before.prompts.shape[1],
        static=static,
    )
    return run, layout


def check_logits_at(arch: Architecture, at: Any, prompts: Prompts, points: Iterable[str]) -> Any:
    """``logits_at`` as a place; refused where it would hide what a hook or capture at ``points`` asks for."""
    for point in points:
        if part_of(arch, point) == "unembed":
            raise HookError(f"{point}: logits_at= computes one position of it only; drop logits_at=")
    at = check_token("logits_at", at, prompts.shape, prompts.mask)
    return at if prompts.mask is None else place_of(at, prompts.mask)


def _bounds(arch: Architecture, start: Any, stop: Any, carry: Any) -> tuple[Any, Any]:
    start, stop = _layer("start_at_layer", start, arch), _layer("stop_at_layer", stop, arch)
    if isinstance(start, np.int32) and isinstance(stop, np.int32) and start > stop:
        raise ArgumentError(f"start_at_layer={start} comes after stop_at_layer={stop}: nothing would run")
    if (start is None) != (carry is None):
        raise ArgumentError("start_at_layer= and carry= go together: the layer, and what enters it")
    return start, stop


def _layer(name: str, layer: Any, arch: Architecture) -> Any:
    """A layer given as an int, as int32; a traced one as it is."""
    if layer is None or isinstance(layer, jax.core.Tracer):
        return layer
    given = np.asarray(as_array(name, layer))
    if not np.issubdtype(given.dtype, np.integer) or given.ndim or not 0 <= given <= arch.n_layers:
        raise ArgumentError(
            f"{name}={shown(layer)}: use 0 to {arch.n_layers}, this model has {arch.n_layers} layers"
        )
    return np.int32(given)


def _check_reached(arch: Architecture, hooks: dict[str, Any], layout: Plan, start: Any, stop: Any) -> None:
    """Refuse hooks and captures that a partial run never reaches, as far as its bounds are known."""
    low = 0 if start is None or isinstance(start, jax.core.Tracer) else int(start)
    high = arch.n_layers if stop is None or isinstance(stop, jax.core.Tracer) else int(stop)
    for point, layers in _asked(hooks, layout):
        if layers is None:
            skipped = start if part_of(arch, point) == "embed" else stop
            if skipped is not None:
                raise HookError(f"{point}: not reached by a run of some layers only; drop it")
        elif layers.size and not ((low <= layers) & (layers < high)).all():
            raise HookError(
                f"{point}: layers {layers.tolist()} are not all within the run, {low} to {high - 1}"
            )


def _asked(hooks: dict[str, Any], layout: Plan) -> Iterator[tuple[str, Any]]:
    """Points with the layers a user named there (None outside the blocks); "every layer" is no name."""
    for point, sequence in hooks.items():
        if not point.startswith("blocks."):
            yield point, None
        for hook in sequence if point.startswith("blocks.") else ():
            if isinstance(hook.layers, np.ndarray) and not hook.layers.all():
                yield point, np.flatnonzero(hook.layers)
    for group, layers in zip(layout.groups, layout.layers, strict=True):
        if not group.whole:
            yield group.point, None if layers is None else np.asarray(layers)
