"""Circuits of edges: the model run with some edges kept and the others removed.

Along an edge that is kept, a reader sees what the writer writes in this very run; along one that is removed,
what it is said to write instead: in a run on a corrupted prompt, on average, or nothing.

Axis letters: b batch, s sequence, d model width, w writers, r readers (of a layer, or all).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.checks import check_model, real_array, shown
from jmi.errors import ArgumentError
from jmi.interp.edges.graph import READS, EdgeGraph, edge_graph
from jmi.interp.edges.written import Written, check_written, head_outputs
from jmi.model.architecture import Architecture, Params, Tap
from jmi.model.sites import Site
from jmi.numerics import wide


@dataclasses.dataclass(frozen=True)
class CircuitModel:
    """Architecture of a circuit: the model itself, but each reader misses what was removed from it.

    Made by `circuit_model`, which gives the parameters that go with it: which edges are removed is
    data. What flows between layers is the stream of the model, ``stream``, and by how much each writer
    differs from what stands in for it, ``differs`` ``[b, s, w, d]``: the price of a run in memory.
    """

    model: Any

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return self.model.n_layers

    @property
    def d_vocab(self) -> int | None:
        """Size of the vocabulary, if the model tells it."""
        return getattr(self.model, "d_vocab", None)

    @property
    def n_ctx(self) -> int | None:
        """How many tokens the model's context holds, if it tells."""
        return getattr(self.model, "n_ctx", None)

    def sites(self) -> Mapping[str, Site]:
        """Every point of the model; at those where the stream is read, it is the circuit's."""
        return self.model.sites()

    def context(self, params: Any, tokens: jax.Array, mask: Any, positions: Any) -> Any:
        """As the model's."""
        return self.model.context(params["model"], tokens, mask, positions)

    def embed(self, params: Any, tokens: jax.Array, context: Any, tap: Tap) -> dict[str, jax.Array]:
        """The stream, with the difference of its input from what stands in for it."""
        stream, other = self.model.embed(params["model"], tokens, context, tap), params["input"]
        run, given = stream.shape[:2], other.shape[:2]
        if any(n not in (1, m) for n, m in zip(given, run, strict=True)):
            raise ArgumentError(f"ablated= is of prompts {given}; this run is of {run}")
        n_writers = edge_graph(self.model).n_writers
        differs = jnp.zeros((*run, n_writers, stream.shape[2]), other.dtype)
        start = stream.astype(other.dtype) - other
        return {"stream": stream, "differs": differs.at[:, :, 0].set(start)}

    def block(
        self, layer_params: Any, carry: Any, context: Any, layer: Any, tap: Tap
    ) -> dict[str, jax.Array]:
        """One layer, each reader without what was removed from it."""
        wires = _Wires(self.model, layer_params, layer, carry["differs"])
        given = {field.name: getattr(tap, field.name) for field in dataclasses.fields(tap)}
        inside = _CircuitTap(**given, wires=wires)
        stream = self.model.block(layer_params["block"], carry["stream"], context, layer, inside)
        return {"stream": stream, "differs": wires.differs}

    def readout(self, params: Any, carry: Any, tap: Tap) -> jax.Array:
        """Logits of the stream without what was removed from it."""
        missed = _missed(params["removed"][None], carry["differs"])[:, :, 0]
        stream = (carry["stream"].astype(missed.dtype) - missed).astype(carry["stream"].dtype)
        return self.model.readout(params["model"], stream, tap)


@dataclasses.dataclass
class _Wires:
    """What flows along the edges of one layer; lives for one trace of it."""

    model: Any
    layer_params: Any
    layer: Any
    differs: jax.Array

    def __post_init__(self) -> None:
        graph = edge_graph(self.model)
        heads = _missed(self.layer_params["removed"][:-1], self.differs)
        ends = np.cumsum([graph.n_heads, graph.n_kv_heads])
        self.missed = dict(zip(READS, jnp.split(heads, ends, axis=2), strict=False))
        self.z: Any = None
        self.scale: Any = None

    def read(self, name: str, stream: jax.Array) -> jax.Array:
        """What the readers at a point read in place of the stream."""
        if name == READS[-1]:
            missed = _missed(self.layer_params["removed"][-1:], self.differs)[:, :, 0]
        else:
            missed = self.missed[name]
        return (stream.astype(missed.dtype) - missed).astype(stream.dtype)

    def passed(self, name: str, value: jax.Array) -> None:
        """Keep what the writers add, from the points they pass through."""
        wide_value = value.astype(self.differs.dtype)
        if name == "attn.hook_z":
            self.z = wide_value
        elif name == "ln1_post.hook_scale":
            self.scale = wide_value
        elif name == "hook_attn_out":
            heads = self.z if self.scale is None else self.z / self.scale[..., None]
            differs = heads - self.layer_params["heads"]
            self._write(0, head_outputs(self.model, self.layer_params["block"], differs))
        elif name == "hook_mlp_out":
            differs = wide_value - self.layer_params["mlp"]
            self._write(self.z.shape[2], differs[:, :, None])

    def _write(self, first: int, differs: jax.Array) -> None:
        own = edge_graph(self.model).written_by_layer
        place = 1 + jnp.asarray(self.layer) * own + first
        self.differs = jax.lax.dynamic_update_slice_in_dim(self.differs, differs, place, axis=2)


@dataclasses.dataclass
class _CircuitTap(Tap):
    """A tap that lets readers see the circuit's stream, before hooks, and notes what writers add, after."""

    wires: Any = None

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        value = super().__call__(name, self.wires.read(name, value) if name in READS else value)
        self.wires.passed(name, value)
        return value

    def wants(self, name: str) -> bool:
        return name in READS or super().wants(name)

    def _wanted_here(self, points: set[str]) -> jax.Array | None:
        everywhere = any(point.removeprefix("blocks.*.") in READS for point in points)
        return None if everywhere else super()._wanted_here(points)


def _missed(removed: jax.Array, differs: jax.Array) -> jax.Array:
    """What readers miss, ``[b, s, r, d]``, by the edges ``removed`` ``[r, w]``."""
    weights = jnp.broadcast_to(removed.astype(differs.dtype), (*differs.shape[:2], *removed.shape))
    return jnp.einsum("bsrw,bswd->bsrd", weights, differs)


def circuit_model(
    arch: Architecture, params: Params, kept: Any, ablated: Written
) -> tuple[CircuitModel, Params]:
    """A circuit as a model of its own, for `jmi.forward` with its hooks, captures, jit, grad and vmap.

    With every edge kept it is the model; with none, and ``ablated`` of a run on other tokens, every part
    does what it did in that run. User hooks act on what the circuit computes: those at ``hook_q_input`` and
    the like see the circuit's stream, and edges carry what writers add after those at ``attn.hook_z`` and
    ``hook_mlp_out``. What is added to the stream at any other point flows along no edge: all readers see it.

    Args:
      kept: bool ``[w, r]``, the edges of the circuit; data, so another circuit never recompiles.
      ablated: what writers are taken to write along removed edges, `written` in a run on corrupted
        prompts of the same shape, means (axes of size 1 broadcast), or ``Written(0.0, 0.0, 0.0)``.

    Raises:
      ArgumentError: ``kept`` of another shape or not boolean, ``ablated`` that does not fit the model, or a
        model without edges (`edge_graph`).

    Example:
      >>> import jmi, jmi_models
      >>> from jmi.interp.edges.circuits import circuit_model
      >>> from jmi.interp.edges.graph import edge_graph
      >>> from jmi.interp.edges.written import written
      >>> lm = jmi_models.load("atlas")
      >>> kept = edge_graph(lm.arch).exists.copy()
      >>> kept[edge_graph(lm.arch).index("input->logits")] = False
      >>> spain = written(lm.arch, lm.params, lm.encode("The capital of Spain is"))
      >>> arch, params = circuit_model(lm.arch, lm.params, kept, spain)
      >>> out = jmi.forward(arch, params, lm.encode("The capital of France is"))
    """
    graph = edge_graph(arch)
    check_model(arch, params)
    check_written(ablated)
    shape, dtype = graph.exists.shape, getattr(kept, "dtype", None)
    if getattr(kept, "shape", None) != shape or not np.issubdtype(dtype, np.bool_):
        raise ArgumentError(f"kept= is {shown(kept)}; it must be booleans {list(shape)}")
    removed = (jnp.asarray(graph.exists) & ~jnp.asarray(kept)).T
    rows = removed[:-1].reshape(graph.n_layers, graph.read_by_layer, graph.n_writers)
    blocks = params["blocks"]
    start, heads, mlps = _fitted(graph, ablated, wide(jax.tree.leaves(blocks)[0].dtype))
    layers: Any = {"removed": rows, "heads": heads, "mlp": mlps}
    if isinstance(blocks, (list, tuple)):
        layers = [{"block": p, **{name: x[i] for name, x in layers.items()}} for i, p in enumerate(blocks)]
    else:
        layers["block"] = blocks
    return CircuitModel(arch), {"model": params, "blocks": layers, "removed": removed[-1], "input": start}


def _fitted(graph: EdgeGraph, ablated: Written, dtype: Any) -> list[jax.Array]:
    """The arrays of ``ablated`` with an axis of layers and sizes of 1 where they broadcast."""
    lead, n = (1, 1), graph.n_layers
    whole = {
        "input": (*lead, graph.d_model),
        "heads": (n, *lead, graph.n_heads, 1),
        "mlps": (n, *lead, graph.d_model),
    }
    fitted = []
    for name, shape in whole.items():
        given = jnp.asarray(real_array(f"ablated.{name}", getattr(ablated, name))).astype(dtype)
        try:
            fitted.append(jnp.broadcast_to(given, jnp.broadcast_shapes(given.shape, shape)))
        except ValueError:
            raise ArgumentError(
                f"ablated.{name} of shape {given.shape} does not fit this model, {shape}"
            ) from None
    return fitted
