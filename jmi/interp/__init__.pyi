"""The names that ``jmi.interp`` hands on: the only list of them (`jmi.lazy`)."""

from jmi.interp.attribution.atp_star import atp_star as atp_star
from jmi.interp.attribution.attribution_patching import (
    attribution_patching as attribution_patching,
    integrated_gradients as integrated_gradients,
)
from jmi.interp.decompose.decomposition import (
    Decomposition as Decomposition,
    accumulated_resid as accumulated_resid,
    decompose as decompose,
)
from jmi.interp.decompose.direct_logit import direct_logit_attribution as direct_logit_attribution
from jmi.interp.decompose.factored import (
    FactoredMatrix as FactoredMatrix,
    composition_scores as composition_scores,
    full_ov_circuit as full_ov_circuit,
    full_qk_circuit as full_qk_circuit,
    ov_circuits as ov_circuits,
    qk_circuits as qk_circuits,
)
from jmi.interp.decompose.heads import (
    HeadScores as HeadScores,
    head_scores as head_scores,
    repeated_tokens as repeated_tokens,
)
from jmi.interp.edges.circuit_files import load_circuit as load_circuit, save_circuit as save_circuit
from jmi.interp.edges.circuits import circuit_model as circuit_model
from jmi.interp.edges.eap import EdgeScores as EdgeScores, eap as eap
from jmi.interp.edges.faithfulness import Faithfulness as Faithfulness, faithfulness as faithfulness
from jmi.interp.edges.graph import EdgeGraph as EdgeGraph, edge_graph as edge_graph
from jmi.interp.edges.selection import (
    edges_above as edges_above,
    greedy_edges as greedy_edges,
    prune as prune,
    top_edges as top_edges,
)
from jmi.interp.edges.written import Written as Written, written as written
from jmi.interp.lenses.jacobian import JacobianLens as JacobianLens, jacobian_lens as jacobian_lens
from jmi.interp.lenses.jacobian_fit import fit_jacobian_lens as fit_jacobian_lens
from jmi.interp.lenses.lens import Lens as Lens
from jmi.interp.lenses.logit_lens import lens_of as lens_of, logit_lens as logit_lens
from jmi.interp.lenses.tuned import TunedLens as TunedLens, tuned_lens as tuned_lens
from jmi.interp.lenses.tuned_fit import fit_tuned_lens as fit_tuned_lens
from jmi.interp.patching.causal_tracing import causal_trace as causal_trace
from jmi.interp.patching.knockout import KnockoutResult as KnockoutResult, knockout as knockout
from jmi.interp.patching.patch import patch as patch
from jmi.interp.patching.patch_result import PatchResult as PatchResult
from jmi.interp.patching.path_patching import Receiver as Receiver, path_patch as path_patch
