"""A sweep from its arguments to its results: planned, compiled, run in chunks, put together."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmi.captures.capture import Capture, Plan
from jmi.checks import as_function, flag, shown, whole_number
from jmi.engine.lengths import affordable, has_places, roomy
from jmi.engine.memory import only_caches
from jmi.engine.run import Run, check_logits_at
from jmi.engine.takes_padding import Held, held_in
from jmi.errors import ArgumentError
from jmi.hooks.resolve import Hooks, as_data
from jmi.lm import LanguageModel, check_lm
from jmi.metrics import check_metric
from jmi.model.inputs import Prompts, checked
from jmi.sweeps.bases import Bases, bases_of
from jmi.sweeps.cells import Cells, Structure, cells_of, grid_of
from jmi.sweeps.chunks import Chunk, chunks_of, fitting, groups_of
from jmi.sweeps.every_cell import all_say
from jmi.sweeps.fingerprint import fingerprint
from jmi.sweeps.models import Models, check_stacked
from jmi.sweeps.sharing import Base, Fixed, Given, Part, plan_base, run_base, run_cells
from jmi.sweeps.store import Store
from jmi.tree import structure_of

CELLS = 16
"""Chunks of small sweeps have a multiple of so many cells, so that a few cells more are no other program."""

AXIS = "cells"
"""Name of the mesh axis that a sweep spreads over."""


class Compiled(NamedTuple):
    """What runs the chunks of one kind."""

    lowered: jax.stages.Lowered
    program: Any


Programs = Mapping[Part, Compiled]


@dataclasses.dataclass(frozen=True)
class Work:
    """A validated sweep.

    Attributes:
      run: of the base, with the hooks of its first variant.
      bases: the hooks of every variant of the base, and which one each cell has.
      last_first: the last position at which a cell may start.
      narrow: whether nothing but the wanted logits is needed of the last layer where cells do not edit it.
      reading: arrays of the metric.
      exact: whether numbers of tokens and cells are as they are, or rounded up where that costs little.
    """

    fixed: Fixed
    params: Any
    run: Run
    bases: Bases
    cells: Cells
    last_first: int
    narrow: bool
    share: bool
    mesh: jax.sharding.Mesh | None
    reading: list[Any]
    exact: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Batch and positions."""
        return self.run.prompts.shape

    def base_run(self, which: int) -> Run:
        """The run of one variant of the base."""
        return dataclasses.replace(self.run, hooks=dict(self.bases.hooks(which)))

    def base_shapes(self) -> Base:
        """Shapes of what a base run leaves."""
        shapes: Base = jax.eval_shape(functools.partial(run_base, self.fixed.models), self.run, self.params)
        return shapes

    def compiled(self, memory: int) -> tuple[list[Chunk], Programs]:
        """The chunks, each within ``memory`` bytes of a device, and the program of each kind of them."""
        memory = whole_number("memory", memory, most=2**63)
        programs: dict[Part, Compiled] = {}
        groups = groups_of(
            self.cells, self.bases.of_cell, self.shape, self.last_first, self.share, narrow=self.narrow
        )
        devices = 1 if self.mesh is None else self.mesh.size

        def size(part: Part, largest: int) -> int:
            def build(count: int) -> Any:
                programs[part] = self._compile(part, count)
                return programs[part].program

            tokens = self.shape[0] * (self.shape[1] - part.first)
            more = -(-largest // CELLS) * CELLS
            if not self.exact and affordable(self.params, (more - largest) * tokens):
                largest = more
            return fitting(build, largest, tokens, devices, memory)

        return chunks_of(groups, size), programs

    def _compile(self, part: Part, count: int) -> Compiled:
        chunk = Chunk(np.zeros(count, int), count, 0, 0, part.first, part.narrow)
        args = self.arguments(chunk, self.run, self.base_shapes())
        leaves, tree = jax.tree.flatten(jax.tree.map(functools.partial(_abstract, self.mesh), args))
        traced = _program(self.fixed, part, self.cells.structure, self.mesh, tree, tuple(leaves))()
        lowered = traced.lower()
        return Compiled(lowered, lowered.compile())

    def arguments(self, chunk: Chunk, run: Run, base: Base) -> tuple[Given, list[np.ndarray]]:
        """What a chunk's program is called with."""
        start = np.int32(min(max(chunk.layer, 0), run.static.arch.n_layers - 1))
        layers = self.cells.layers[chunk.cells[0]]
        given = Given(self.params, base, run, self.reading, start, layers, self.cells.shared)
        return given, [chunk.cells.astype(np.int32), *(x[chunk.cells] for x in self.cells.swept)]

    def fingerprint(self, programs: Programs, chunks: list[Chunk]) -> dict[str, str]:
        """Of everything that decides the results, their order included."""
        base = run_base.trace(self.fixed.models, self.run, self.params).lower()
        cells = [programs[part].lowered for part in sorted(programs)]
        layout = [dataclasses.astuple(chunk) for chunk in chunks]
        bases = [self.bases.hooks(i) for i in range(len(self.bases))]
        inputs = (
            self.run,
            bases,
            self.reading,
            self.cells.layers,
            self.cells.shared,
            self.cells.swept,
            layout,
        )
        (device, *_) = jnp.zeros(()).devices()
        return fingerprint([base, *cells], self.params, inputs, device)


def prepare(
    lm: LanguageModel | Models,
    prompts: Any,
    hooks: Hooks,
    metric: Any,
    *,
    base: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    logits_at: Any = None,
    share: bool = True,
    mesh: jax.sharding.Mesh | None = None,
    exact: bool = False,
) -> Work:
    """Validate the arguments of `jmi.sweep`."""
    models = isinstance(lm, Models)
    held, params = (lm.lm, lm.params) if isinstance(lm, Models) else (lm, getattr(lm, "params", None))
    arch = check_lm(held).arch
    if models:
        check_stacked(held.params, params)
    found, metric = checked(arch, held.prompts(prompts)), as_function("metric", metric)
    share, exact = flag("share", share), flag("exact", exact)
    _check_mesh(mesh)
    check_metric(arch, metric)
    grid = grid_of(hooks, base)
    plan = functools.partial(_planned, arch, hooks, grid, base, capture=capture, logits_at=logits_at)
    cells, bases, run, layout = plan(found)
    if not exact and mesh is None:
        acting = [*held_in(arch, hooks, capture), *held_in(arch, base)]
        if logits_at is None or has_places(arch, layout, found, held.dtype):
            acting.append(Held(metric))
        longer = roomy(arch, params, found, acting, copies=len(cells))
        if longer is not found:
            found = longer
            cells, bases, run, layout = plan(found)
    read = as_data(metric)
    fixed = Fixed(layout.groups, layout.layers, structure_of(read), models)
    last_first, caches = 0, only_caches(arch)
    # Cells start at a position where hooks of base runs act on each by itself and let nothing look ahead.
    every = [bases.hooks(i) for i in range(len(bases))]
    apart = all(all_say(arch, each, say) for each in every for say in ("is_local", "is_causal"))
    if caches and apart and not any(reduce for _, reduce in layout.data):
        at = np.asarray(found.shape[1] - 1 if logits_at is None else run.logits_at)
        last_first = int(np.where(at < 0, at + found.shape[1], at).min())
    one = share and logits_at is not None and hasattr(arch, "only")
    narrow = one and not any(_looked_into(fixed, each, arch.n_layers - 1) for each in every)
    # Placed once, not with every chunk.
    where = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.P())
    run, reading, shared = jax.device_put((run, jax.tree.leaves(read), cells.shared), where)
    if where is not None:
        params = jax.device_put(params, where)
    cells = dataclasses.replace(cells, shared=shared)
    return Work(fixed, params, run, bases, cells, last_first, narrow, share, mesh, reading, exact)


def _planned(
    arch: Any, hooks: Hooks, grid: Any, base: Hooks | None, prompts: Prompts, *, capture: Any, logits_at: Any
) -> tuple[Cells, Bases, Run, Plan]:
    """The cells, the bases, and the run of the first of these with the plan of what the user captures."""
    cells = cells_of(arch, hooks, grid, prompts.shape, prompts.mask)
    bases = bases_of(arch, base, grid, prompts.shape, prompts.mask)
    run, layout = plan_base(arch, prompts, bases.hooks(0), capture, logits_at)
    if logits_at is not None:
        check_logits_at(arch, logits_at, prompts, cells.structure.points)
    return cells, bases, run, layout


def _check_mesh(mesh: Any) -> None:
    if mesh is not None and not isinstance(mesh, jax.sharding.Mesh):
        raise ArgumentError(
            f"mesh={shown(mesh)}: give a jax.sharding.Mesh, such as jax.make_mesh((4,), ('cells',))"
        )
    if mesh is not None and mesh.axis_names != (AXIS,):
        raise ArgumentError(f"mesh= has axes {mesh.axis_names}; a sweep spreads over one: ('{AXIS}',)")


def _looked_into(fixed: Fixed, base_hooks: Mapping[str, Any], layer: int) -> bool:
    """Whether a hook of a base run or a capture is in ``layer``."""
    hooks = (hook for point, hs in base_hooks.items() if point.startswith("blocks.") for hook in hs)
    return any(hook.layers[layer] for hook in hooks) or any(kept and layer in kept for kept in fixed.kept)


@functools.lru_cache(maxsize=16)
def _program(
    fixed: Fixed, part: Part, structure: Structure, mesh: Any, tree: Any, leaves: tuple[Any, ...]
) -> Callable[[], jax.stages.Traced]:
    """A chunk's program, one for each structure and shape of its arguments.

    It is called each time, for settings such as the precision of products make programs differ: JAX traces
    and compiles it once for each of them.
    """
    run: Callable[..., Any] = functools.partial(run_cells, fixed, part, structure.hooks)
    if mesh is not None:
        where = jax.P(None, AXIS) if fixed.models else jax.P(AXIS)
        run = jax.shard_map(run, mesh=mesh, in_specs=(jax.P(), jax.P(AXIS)), out_specs=where)
    return functools.partial(jax.jit(run).trace, *jax.tree.unflatten(tree, leaves))


def _abstract(mesh: Any, x: Any) -> jax.ShapeDtypeStruct:
    placed = x.sharding if mesh is not None and isinstance(x, jax.Array) else None
    return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=placed)


def run_chunks(
    work: Work, chunks: list[Chunk], programs: Programs, store: Store | None
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Number and results of this process's chunks as they come; one runs while the one before is fetched."""
    running: collections.deque[tuple[int, Any]] = collections.deque()
    base: tuple[int, Run, Base] | None = None

    def fetched() -> tuple[int, list[np.ndarray]]:
        index, result = running.popleft()
        arrays = [np.asarray(x) for x in jax.tree.leaves(jax.device_get(result))]
        if store is not None:
            store.write(index, arrays)
        return index, arrays

    for index in range(jax.process_index(), len(chunks), jax.process_count()):
        held = None if store is None else store.read(index)
        if held is not None:
            yield index, held
            continue
        chunk = chunks[index]
        if base is None or base[0] != chunk.base:
            run = work.base_run(chunk.base)
            base = (chunk.base, run, run_base(work.fixed.models, run, work.params))
        running.append((index, programs[chunk.part].program(*work.arguments(chunk, *base[1:]))))
        if len(running) > 1:
            yield fetched()
    while running:
        yield fetched()
