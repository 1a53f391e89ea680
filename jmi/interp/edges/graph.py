"""The graph of edges through a transformer's residual stream: who writes to it and who reads it.

Writers are the input (token and position embedding), every head and every MLP. Readers are the query, key
and value input of every head, the input of every MLP, and the logits (the final stream, before its norm).
Each writer reaches every reader after it: those of later layers, and heads the MLP of their own layer
unless the two run in parallel. As in Hanna et al. 2024 (arXiv:2403.17806) and MIB (arXiv:2504.13151).

Axis letters: w writers, r readers.
"""

import dataclasses
import functools

import numpy as np

from jmi.errors import ArgumentError
from jmi.lm import LanguageModel, check_lm
from jmi.model.architecture import Architecture, require
from jmi.model.sites import table_of

READS = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")
"""Points where the readers of a layer read the stream, in the order of their indices."""


@dataclasses.dataclass(frozen=True)
class EdgeGraph:
    """Which edges a model has, and the index and label of each end; hashable.

    Writers in order: ``input``, then layer by layer the heads ``a0.h0`` and the MLP ``m0``. Readers in
    order: layer by layer ``a0.h0<q>`` of every head, ``<k>`` and ``<v>``, and ``m0``; last ``logits``. Heads
    that share keys and values read through one edge: ``a0.kv0<k>``.

    Attributes:
      n_layers, n_heads, n_kv_heads, d_model: sizes of the model.
      parallel: whether attention and MLP of a layer read the same stream.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    parallel: bool = False

    @property
    def n_writers(self) -> int:
        """Number of writers."""
        return 1 + self.n_layers * self.written_by_layer

    @property
    def n_readers(self) -> int:
        """Number of readers."""
        return self.n_layers * self.read_by_layer + 1

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.exists.sum())

    @property
    def written_by_layer(self) -> int:
        """Number of writers in one layer."""
        return self.n_heads + 1

    @property
    def read_by_layer(self) -> int:
        """Number of readers in one layer."""
        return self.n_heads + 2 * self.n_kv_heads + 1

    @functools.cached_property
    def exists(self) -> np.ndarray:
        """Bool ``[w, r]``: where there is an edge."""
        found = np.zeros((self.n_writers, self.n_readers), bool)
        found[:, -1] = True
        for layer in range(self.n_layers):
            before = 1 + layer * self.written_by_layer
            end = (layer + 1) * self.read_by_layer
            found[:before, end - self.read_by_layer : end] = True
            if not self.parallel:
                found[before : before + self.n_heads, end - 1] = True
        found.flags.writeable = False
        return found

    @functools.cached_property
    def inputs_of(self) -> np.ndarray:
        """Bool ``[r, w]``: whether the reader is an input of the head or MLP that writes."""
        group = np.arange(self.n_heads) // (self.n_heads // self.n_kv_heads)
        shared = np.arange(self.n_kv_heads)[:, None] == group
        heads = np.concatenate([np.eye(self.n_heads, dtype=bool), shared, shared])
        found = np.zeros((self.n_readers, self.n_writers), bool)
        for layer in range(self.n_layers):
            row, column = layer * self.read_by_layer, 1 + layer * self.written_by_layer
            found[row : row + len(heads), column : column + self.n_heads] = heads
            found[row + len(heads), column + self.n_heads] = True
        found.flags.writeable = False
        return found

    @functools.cached_property
    def writers(self) -> tuple[str, ...]:
        """Label of each writer."""
        inside = ([*(f"a{i}.h{h}" for h in range(self.n_heads)), f"m{i}"] for i in range(self.n_layers))
        return ("input", *(label for labels in inside for label in labels))

    @functools.cached_property
    def readers(self) -> tuple[str, ...]:
        """Label of each reader."""
        kv = "h" if self.n_kv_heads == self.n_heads else "kv"
        ends = (("q", "h", self.n_heads), ("k", kv, self.n_kv_heads), ("v", kv, self.n_kv_heads))
        inside = (
            [*(f"a{i}.{head}{h}<{end}>" for end, head, n in ends for h in range(n)), f"m{i}"]
            for i in range(self.n_layers)
        )
        return (*(label for labels in inside for label in labels), "logits")

    def index(self, name: str) -> tuple[int, int]:
        """Indices of an edge named ``a0.h0->a1.h3<q>``; ArgumentError when there is none."""
        writer, _, reader = name.partition("->")
        if writer in self.writers and reader in self.readers:
            found = self.writers.index(writer), self.readers.index(reader)
            if self.exists[found]:
                return found
        raise ArgumentError(f"{name}: this model has no such edge; names are like {self.name(0, 0)}")

    def name(self, writer: int, reader: int) -> str:
        """Name of the edge between two indices."""
        return f"{self.writers[writer]}->{self.readers[reader]}"


def edge_graph(lm: LanguageModel) -> EdgeGraph:
    """The edges of a model.

    Raises:
      ArgumentError: a model whose stream is no sum of what was written (OPT 350m), or that has no heads with
        queries and keys (RWKV).

    Example:
      >>> import jmi_models
      >>> from jmi.interp.edges.graph import edge_graph
      >>> graph = edge_graph(jmi_models.load("atlas"))
      >>> graph.writers[:2], graph.readers[-1]
      (('input', 'a0.h0'), 'logits')
    """
    check_lm(lm)
    return graph_of(lm.arch)


@functools.lru_cache(maxsize=64)
def graph_of(arch: Architecture) -> EdgeGraph:
    """The edges of an architecture; errors as `edge_graph`."""
    table = table_of(arch)
    missing = [name for name in READS if f"blocks.*.{name}" not in table]
    if missing:
        raise ArgumentError(f"this model has no {', '.join(missing)}: its edges have no such ends")
    require(arch, "head_outputs")
    if "ln_final.hook_scale" not in table:
        raise ArgumentError(
            "this model normalises its residual stream after each module: what a reader reads is no sum of "
            "what was written, so there are no edges"
        )
    sizes = (*table["blocks.*.hook_q_input"].sizes[2:], table["blocks.*.hook_k_input"].sizes[2])
    n_heads, d_model, n_kv_heads = (int(n or 0) for n in sizes)
    parallel = "blocks.*.hook_resid_mid" not in table
    return EdgeGraph(arch.n_layers, n_heads, n_kv_heads, d_model, parallel)
