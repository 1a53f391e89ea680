"""Circuits: a model in which chosen edges are cut, what flows along them being that of another run.

A circuit is the model rewired (`jmi.rewire`): one module stands where the stream is read, and takes away from
what each reader reads by how much removed writers differ from what stands in for them; and where it is
written, to note by how much each writer differs. What stands in may be what was written on a corrupted
prompt, on average, or nothing.

Axis letters: b batch, s sequence, d model width, h heads, k head width, w writers, r readers (of a layer, or
all).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.checks import real_array, shown
from jmi.engine.wired import Here
from jmi.errors import ArgumentError
from jmi.interp.edges.graph import READS, EdgeGraph, edge_graph, graph_of
from jmi.interp.edges.written import Written, check_written, head_outputs
from jmi.lm import LanguageModel
from jmi.model.inputs import Prompts
from jmi.model.sites import table_of
from jmi.modules import rewire
from jmi.numerics import wide

_ATTENTION, _MLP, _LAST = "hook_attn_out", "hook_mlp_out", "hook_resid_post"
_HEADS = ("attn.hook_z", "ln1_post.hook_scale")


@tree.dataclass
class Circuit:
    """The module of a circuit; it carries by how much each writer differs from what stands in for it.

    Attributes:
      params: of each layer, ``removed`` ``[r, w]``, and what stands in for its ``heads`` ``[b, s, h, k]`` and
        its ``mlp`` ``[b, s, d]``; axes of size 1 broadcast.
      removed: ``[w]``, edges cut before the logits.
      input: what stands in for the input, ``[b, s, d]``.
      model: the architecture of the whole model. Static.
    """

    params: Any
    removed: Any
    input: Any
    model: Any = tree.static()
    per_layer: bool = tree.static(default=True)

    def start(self, stream: jax.Array, prompts: Prompts) -> jax.Array:
        """``[b, s, w, d]``: so far the input alone differs."""
        run, given = stream.shape[:2], self.input.shape[:2]
        if any(n not in (1, m) for n, m in zip(given, run, strict=True)):
            raise ArgumentError(f"ablated= is of prompts {given}; this run is of {run}")
        zeros = jnp.zeros((*run, graph_of(self.model).n_writers, stream.shape[2]), self.input.dtype)
        return zeros.at[:, :, 0].set(stream.astype(self.input.dtype) - self.input)

    def __call__(self, read: Any, written: jax.Array, differs: jax.Array, here: Here) -> Any:
        name = here.site.point.removeprefix("blocks.*.")
        if name in READS:
            rows = self._rows(READS.index(name))
            missed = _missed(self.params["removed"][rows], differs)
            return _less(written, missed if name in READS[:3] else missed[:, :, 0]), differs
        if name == _LAST:
            return _less(written, _missed(self.removed[None], differs)[:, :, 0]), differs
        wider = jax.tree.map(lambda x: x.astype(differs.dtype), read)
        n_heads = graph_of(self.model).n_heads
        if name == _MLP:
            new, first = (wider - self.params["mlp"])[:, :, None], n_heads
        else:
            heads = wider[0] / wider[1][..., None] if isinstance(wider, tuple) else wider
            new, first = head_outputs(self.model, here.params, heads - self.params["heads"]), 0
        place = 1 + jnp.asarray(here.site.layer) * (n_heads + 1) + first
        return written, jax.lax.dynamic_update_slice_in_dim(differs, new, place, axis=2)

    def _rows(self, which: int) -> slice:
        """Where the readers at a point stand among those of a layer."""
        graph = graph_of(self.model)
        ends = np.cumsum([0, graph.n_heads, graph.n_kv_heads, graph.n_kv_heads, 1])
        return slice(int(ends[which]), int(ends[which + 1]))


def _less(written: jax.Array, missed: jax.Array) -> jax.Array:
    return (written.astype(missed.dtype) - missed).astype(written.dtype)


def _missed(removed: jax.Array, differs: jax.Array) -> jax.Array:
    """What readers miss, ``[b, s, r, d]``, by the edges ``removed`` ``[r, w]``."""
    weights = jnp.broadcast_to(removed.astype(differs.dtype), (*differs.shape[:2], *removed.shape))
    return jnp.einsum("bsrw,bswd->bsrd", weights, differs)


def circuit_model(lm: LanguageModel, kept: Any, ablated: Written) -> LanguageModel:
    """A circuit as a model of its own: whatever takes a LanguageModel runs, sweeps and generates with it.

    With every edge kept it is the model; with none, and ``ablated`` of a run on other tokens, every part
    does what it did in that run. Hooks act on what the circuit computes: those at ``hook_q_input`` and
    the like see the circuit's stream, and edges carry what writers add after those at ``attn.hook_z`` and
    ``hook_mlp_out``. What is added to the stream at any other point flows along no edge: all readers see it.
    It carries ``[b, s, w, d]`` numbers from layer to layer.

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
      >>> kept = edge_graph(lm).exists.copy()
      >>> kept[edge_graph(lm).index("input->logits")] = False
      >>> circuit = circuit_model(lm, kept, written(lm, "The capital of Spain is"))
      >>> out = circuit.run("The capital of France is")
    """
    graph = edge_graph(lm)
    check_written(ablated)
    shape, dtype = graph.exists.shape, getattr(kept, "dtype", None)
    if getattr(kept, "shape", None) != shape or not np.issubdtype(dtype, np.bool_):
        raise ArgumentError(f"kept= is {shown(kept)}; it must be booleans {list(shape)}")
    removed = (jnp.asarray(graph.exists) & ~jnp.asarray(kept)).T
    rows = removed[:-1].reshape(graph.n_layers, graph.read_by_layer, graph.n_writers)
    start, heads, mlps = _fitted(graph, ablated, wide(jax.tree.leaves(lm.params["blocks"])[0].dtype))
    params = {"removed": rows, "heads": heads, "mlp": mlps}
    module = Circuit(params, removed[-1], start, model=lm.arch)
    every = functools.partial("blocks.*.{}".format)
    has = tuple(every(name) for name in _HEADS if every(name) in table_of(lm.arch))
    last = f"blocks.{lm.arch.n_layers - 1}.{_LAST}"
    places: dict[Any, Any] = {((), every(name)): module for name in READS}
    places |= {(has, every(_ATTENTION)): module, (every(_MLP),) * 2: module, (last, last): module}
    return rewire(lm, places)


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
