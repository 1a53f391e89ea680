"""Techniques: one file each, plain functions over a LanguageModel, or an architecture and its parameters."""

from jmi.interp.attribution.atp_star import atp_star
from jmi.interp.attribution.attribution_patching import attribution_patching, integrated_gradients
from jmi.interp.decompose.decomposition import Decomposition, accumulated_resid, decompose
from jmi.interp.decompose.direct_logit import direct_logit_attribution
from jmi.interp.decompose.factored import (
    FactoredMatrix,
    composition_scores,
    full_ov_circuit,
    full_qk_circuit,
    ov_circuits,
    qk_circuits,
)
from jmi.interp.decompose.heads import HeadScores, head_scores, repeated_tokens
from jmi.interp.edges.circuit_files import load_circuit, save_circuit
from jmi.interp.edges.circuits import circuit_model
from jmi.interp.edges.eap import EdgeScores, eap
from jmi.interp.edges.faithfulness import Faithfulness, faithfulness
from jmi.interp.edges.graph import EdgeGraph, edge_graph
from jmi.interp.edges.selection import edges_above, greedy_edges, prune, top_edges
from jmi.interp.edges.written import Written, written
from jmi.interp.patching.causal_tracing import causal_trace
from jmi.interp.patching.knockout import KnockoutResult, knockout
from jmi.interp.patching.patch import PatchResult, patch
from jmi.interp.patching.path_patching import Receiver, path_patch
