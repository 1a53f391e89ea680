"""A sweep from its arguments to its results: planned, compiled, run in chunks, put together."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jmi.captures.capture import Capture
from jmi.checks import as_function, check_model, flag, shown, whole_number
from jmi.engine.past import past_points
from jmi.errors import ArgumentError, ConfigError
from jmi.hooks.resolve import Hooks, as_data
from jmi.metrics import check_metric
from jmi.model.architecture import Architecture, Params
from jmi.model.inputs import as_tokens, check_logits_at
from jmi.sweeps.cells import Cells, Structure, all_say, cells_of
from jmi.sweeps.chunks import Chunk, Kind, chunks_of, fitting, groups_of
from jmi.sweeps.fingerprint import fingerprint
from jmi.sweeps.sharing import Base, Fixed, Readout, plan_base, run_base, run_cells
from jmi.sweeps.store import Store

AXIS = "cells"
"""Name of the mesh axis that a sweep spreads over."""


class Compiled(NamedTuple):
    """What runs the chunks of one kind."""

    lowered: jax.stages.Lowered
    program: Any


Programs = Mapping[Kind, Compiled]


@dataclasses.dataclass(frozen=True)
class Work:
    """A validated sweep with its base run.

    Attributes:
      data: of the base run.
      reading: arrays of the readout.
      last_first: the last position at which a cell may start.
      narrow: whether nothing but the wanted logits is needed of the last layer where cells do not edit it.
    """

    fixed: Fixed
    params: Params
    data: tuple[Any, ...]
    base: Base
    cells: Cells
    shape: tuple[int, int]
    last_first: int
    narrow: bool
    share: bool
    mesh: jax.sharding.Mesh | None
    reading: list[Any]

    def compiled(self, memory: int) -> tuple[list[Chunk], Programs]:
        """The chunks, each within ``memory`` bytes of a device, and the program of each kind of them."""
        memory = whole_number("memory", memory, most=2**63)
        programs: dict[Kind, Compiled] = {}
        groups = groups_of(self.cells, self.shape, self.last_first, self.share, self.narrow)
        devices = 1 if self.mesh is None else self.mesh.size

        def size(kind: Kind, largest: int) -> int:
            def build(count: int) -> Any:
                programs[kind] = self._compile(kind, count)
                return programs[kind].program

            tokens = self.shape[0] * (self.shape[1] - kind.first)
            return fitting(build, largest, tokens, devices, memory)

        return chunks_of(groups, size), programs

    def _compile(self, kind: Kind, count: int) -> Compiled:
        args = self.arguments(Chunk(np.zeros(count, int), count, 0, kind.first, kind.narrow))
        leaves, tree = jax.tree.flatten(jax.tree.map(functools.partial(_abstract, self.mesh), args))
        traced = _program(self.fixed, kind, self.cells.structure, self.mesh, tree, tuple(leaves))()
        lowered = traced.lower()
        return Compiled(lowered, lowered.compile())

    def arguments(self, chunk: Chunk) -> tuple[Any, ...]:
        """What a chunk's program is called with."""
        return (
            self.params,
            self.base,
            self.data,
            self.reading,
            np.int32(max(chunk.layer, 0)),
            self.cells.layers[chunk.cells[0]],
            self.cells.shared,
            [chunk.cells.astype(np.int32), *(x[chunk.cells] for x in self.cells.swept)],
        )

    def fingerprint(self, programs: Programs, chunks: list[Chunk]) -> dict[str, str]:
        """Of everything that decides the results, their order included."""
        base = run_base.trace(self.fixed.of_base, self.params, self.data).lower()
        cells = [programs[kind].lowered for kind in sorted(programs)]
        layout = [dataclasses.astuple(chunk) for chunk in chunks]
        inputs = (self.data, self.reading, self.cells.layers, self.cells.shared, self.cells.swept, layout)
        (device, *_) = self.base.logits.devices()
        return fingerprint([base, *cells], self.params, inputs, device)


def prepare(
    arch: Architecture,
    params: Params,
    tokens: Any,
    hooks: Hooks,
    readout: Readout,
    *,
    base: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    mask: Any = None,
    positions: Any = None,
    logits_at: Any = None,
    models: bool = False,
    share: bool = True,
    mesh: jax.sharding.Mesh | None = None,
) -> Work:
    """Validate the arguments of `jmi.sweep` and run the base."""
    check_model(arch, params)
    tokens, readout = as_tokens(tokens), as_function("readout", readout)
    models, share = flag("models", models), flag("share", share)
    if mesh is not None and not isinstance(mesh, jax.sharding.Mesh):
        raise ArgumentError(
            f"mesh={shown(mesh)}: give a jax.sharding.Mesh, such as jax.make_mesh((4,), ('cells',))"
        )
    if mesh is not None and mesh.axis_names != (AXIS,):
        raise ConfigError(f"mesh= has axes {mesh.axis_names}; a sweep spreads over one: ('{AXIS}',)")
    run = {"mask": mask, "positions": positions, "logits_at": logits_at}
    check_metric(arch, readout)
    reading, read = jax.tree.flatten(as_data(readout))
    fixed, data = plan_base(arch, tokens, base, capture, read, models, **run)
    shape = tuple(np.shape(tokens))
    cells = cells_of(arch, hooks, shape, data[0][1])
    last_first = 0
    continuable = bool(past_points(arch))
    # What the base run does must be known of the positions from a cell's first on, and stay behind it.
    apart = all_say(arch, data[1], "is_local") and all_say(arch, data[1], "is_causal")
    if continuable and apart and not any(reduce for _, reduce in data[2]):
        at = np.asarray(shape[1] - 1 if logits_at is None else data[-1])
        last_first = int(np.where(at < 0, at + shape[1], at).min())
    if logits_at is not None:
        check_logits_at(arch, logits_at, shape, cells.structure.points)
    one = share and continuable and logits_at is not None
    narrow = one and not _looked_into(fixed, data[1], arch.n_layers - 1)
    # Placed once, not with every chunk.
    where = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.P())
    data, reading, shared = jax.device_put((data, reading, cells.shared), where)
    if where is not None:
        params = jax.device_put(params, where)
    cells = dataclasses.replace(cells, shared=shared)
    result = run_base(fixed.of_base, params, data)
    return Work(fixed, params, data, result, cells, shape, last_first, narrow, share, mesh, reading)


def _looked_into(fixed: Fixed, base_hooks: Mapping[str, Any], layer: int) -> bool:
    """Whether a hook of the base run or a capture is in ``layer``."""
    hooks = (hook for point, hs in base_hooks.items() if point.startswith("blocks.") for hook in hs)
    return any(hook.layers[layer] for hook in hooks) or any(kept and layer in kept for kept in fixed.kept)


@functools.lru_cache(maxsize=16)
def _program(
    fixed: Fixed, kind: Kind, structure: Structure, mesh: Any, tree: Any, leaves: tuple[Any, ...]
) -> Callable[[], jax.stages.Traced]:
    """A chunk's program, one for each structure and shape of its arguments.

    It is called each time, for settings such as the precision of products make programs differ: JAX traces
    and compiles it once for each of them.
    """
    run: Callable[..., Any] = functools.partial(run_cells, fixed, *kind, structure.hooks)
    if mesh is not None:
        where = jax.P(None, AXIS) if fixed.models else jax.P(AXIS)
        run = jax.shard_map(run, mesh=mesh, in_specs=(*[jax.P()] * 7, jax.P(AXIS)), out_specs=where)
    return functools.partial(jax.jit(run).trace, *jax.tree.unflatten(tree, leaves))


def _abstract(mesh: Any, x: Any) -> jax.ShapeDtypeStruct:
    placed = x.sharding if mesh is not None and isinstance(x, jax.Array) else None
    return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=placed)


def run_chunks(
    work: Work, chunks: list[Chunk], programs: Programs, store: Store | None
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Number and results of this process's chunks as they come; one runs while the one before is fetched."""
    running: collections.deque[tuple[int, Any]] = collections.deque()

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
        running.append((index, programs[chunk.kind].program(*work.arguments(chunk))))
        if len(running) > 1:
            yield fetched()
    while running:
        yield fetched()


def assembled(
    work: Work, chunks: list[Chunk], programs: Programs, results: Mapping[int, list[np.ndarray]]
) -> Any:
    """Results with the axes of the grid, on every process."""
    shapes, tree = jax.tree.flatten(programs[chunks[0].kind].program.out_info)
    axis = int(work.fixed.models)
    whole = []
    for i, shape in enumerate(shapes):
        size = (*shape.shape[:axis], len(work.cells), *shape.shape[axis + 1 :])
        out = np.zeros(size, shape.dtype)
        for index, arrays in results.items():
            chunk = chunks[index]
            # A file does not know bfloat16: its bytes come back without a name.
            values = arrays[i].view(shape.dtype)[(slice(None),) * axis + (slice(chunk.count),)]
            out[(slice(None),) * axis + (chunk.cells[: chunk.count],)] = values
        whole.append(out)
    if jax.process_count() > 1:
        whole = _exchanged(whole, chunks, axis)
    folded = [x.reshape(*x.shape[:axis], *work.cells.grid.shape, *x.shape[axis + 1 :]) for x in whole]
    return jax.tree.unflatten(tree, folded)


def _exchanged(parts: list[np.ndarray], chunks: list[Chunk], axis: int) -> list[np.ndarray]:
    """Whole results of parts that each process has, cells on ``axis``."""
    owner = np.zeros(parts[0].shape[axis], int)
    for index, chunk in enumerate(chunks):
        owner[chunk.cells] = index % jax.process_count()
    every = np.arange(len(owner))
    gathered = [np.asarray(x) for x in multihost_utils.process_allgather(parts)]
    return [x[owner, every] if not axis else np.moveaxis(x[owner, :, every], 0, 1) for x in gathered]
