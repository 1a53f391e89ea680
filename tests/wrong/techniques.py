"""Good calls: techniques."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import interp
from tests.wrong.call import DIFF, MADRID, PARIS, POINT, Call
from tests.wrong.values import OTHER, model, tokens


def technique_calls() -> list[Call]:
    lm, here, there = model(), tokens(), tokens(OTHER)
    graph = interp.edge_graph(lm)
    kept, strength = graph.exists.copy(), np.where(graph.exists, np.arange(79.0), 0)
    scores = interp.EdgeScores(strength, graph)
    zeros = jax.tree.map(jnp.zeros_like, interp.written(lm, here))
    pair = {"lm": lm, "clean": here, "corrupted": there, "metric": DIFF}
    pair_kinds = {
        "lm": "model",
        "clean": "prompt",
        "corrupted": "prompt",
        "metric": "metric",
        "into": "choice",
    }
    patched = {
        "clean": here,
        "corrupted": there,
        "site": "hook_resid_pre",
        "metric": {"diff": DIFF},
        "layer": [2],
        "position": [1, 4],
        "progress": False,
    }
    of_lm = lambda function: functools.partial(function, lm)

    def at(function: Any) -> Any:
        """A technique whose ``at`` is made of layer and position."""
        return lambda layer, position, **rest: function(
            lm, **{"at": {"layer": layer, "position": position}, **rest}
        )

    attributed = {
        "sites": "sites",
        "keep": "axes to keep",
        "hooks": "hooks",
        "capture": "capture",
    }
    return [
        Call(
            "patch",
            at(interp.patch),
            {**patched, "window": 1},
            {
                "clean": "prompt",
                "corrupted": "prompt",
                "site": "site",
                "metric": "metrics",
                "into": "choice?",
                "over": "axes?",
                "at": "places?",
                "using": "choice",
                "layer": "indices?",
                "position": "indices?",
                "window": "count or pair",
                "hooks": "hooks",
                "logits_at": "index?",
            },
        ),
        Call(
            "patch, seeds",
            at(interp.patch),
            {**patched, "using": "random", "seeds": [3]},
            {"seeds": "seeds"},
        ),
        Call(
            "causal_trace",
            at(interp.causal_trace),
            {
                "prompts": here,
                "subject": [4],
                "metric": {"diff": DIFF},
                "scale": 0.1,
                "seeds": [1],
                "layer": [2],
                "position": [4],
                "progress": False,
            },
            {
                "prompts": "prompt",
                "subject": "indices",
                "metric": "metrics?",
                "site": "site",
                "window": "count",
                "seeds": "seeds",
                "scale": "positive?",
                "at": "places?",
            },
        ),
        Call(
            "knockout",
            lambda **k: interp.knockout(lm, **k).target_logit_drop,
            {"prompt": here, "layer": 2, "queries": -1, "keys": 2, "heads": 1, "target": PARIS, "top": 3},
            {
                "prompt": "prompt",
                "layer": "index?",
                "queries": "selector",
                "keys": "selector",
                "heads": "selector",
                "target": "word or token?",
                "top": "count",
            },
        ),
        Call(
            "path_patch",
            of_lm(interp.path_patch),
            {
                "clean": here,
                "corrupted": there,
                "metric": {"diff": DIFF},
                "senders": "mlps",
                "progress": False,
            },
            {
                "clean": "prompt",
                "corrupted": "prompt",
                "metric": "metrics",
                "into": "choice",
                "senders": "choice",
                "receivers": "choice?",
                "through_mlps": "flag",
                "positions": "indices?",
            },
        ),
        Call(
            "head_scores",
            interp.head_scores,
            {"lm": lm, "prompts": np.tile(here, 2), "reach": 2},
            {"lm": "model", "prompts": "prompt", "reach": "count"},
        ),
        Call(
            "repeated_tokens",
            interp.repeated_tokens,
            {"seed": 1, "n_sequences": 2, "length": 5, "d_vocab": 9, "bos": 0},
            {"seed": "seed", "n_sequences": "count", "length": "count", "d_vocab": "count", "bos": "index?"},
        ),
        Call(
            "decompose",
            interp.decompose,
            {"lm": lm, "prompts": here, "positions": -1, "by": "layer"},
            {"lm": "model", "prompts": "prompt", "by": "choice", "positions": "index?", "hooks": "hooks"},
        ),
        Call(
            "accumulated_resid",
            interp.accumulated_resid,
            {"lm": lm, "prompts": here},
            {"lm": "model", "prompts": "prompt", "positions": "index?"},
        ),
        Call(
            "direct_logit_attribution",
            interp.direct_logit_attribution,
            {"lm": lm, "prompts": here, "target": PARIS, "other": MADRID},
            {
                "lm": "model",
                "prompts": "prompt",
                "target": "token",
                "other": "token?",
                "by": "choice",
                "positions": "index?",
            },
        ),
        Call(
            "attribution_patching",
            interp.attribution_patching,
            {**pair, "sites": POINT, "steps": 2},
            {**pair_kinds, **attributed, "steps": "count?"},
        ),
        Call(
            "integrated_gradients",
            interp.integrated_gradients,
            {**pair, "sites": POINT, "steps": 2},
            {**pair_kinds, "sites": "sites", "steps": "count"},
        ),
        Call(
            "atp_star",
            interp.atp_star,
            {**pair, "sites": POINT, "qk_fix": False, "grad_drop": False},
            {**pair_kinds, "sites": "sites", "keep": "axes to keep", "qk_fix": "flag", "grad_drop": "flag"},
        ),
        Call(
            "eap",
            interp.eap,
            {**pair, "steps": 2},
            {**pair_kinds, "steps": "count?", "per_example": "flag", "logits_at": "index?"},
        ),
        Call("written", interp.written, {"lm": lm, "prompts": here}, {"lm": "model", "prompts": "prompt"}),
        Call(
            "circuit_model",
            lambda **k: interp.circuit_model(**k).run(here, logits_at=-1).logits,
            {"lm": lm, "kept": kept, "ablated": zeros},
            {"lm": "model", "kept": "edges", "ablated": "scores"},
        ),
        Call(
            "faithfulness",
            interp.faithfulness,
            {**pair, "circuits": kept[None]},
            {
                "clean": "prompt",
                "corrupted": "prompt",
                "metric": "metric",
                "circuits": "edges",
                "ablated": "scores?",
            },
        ),
        Call("edge_graph", interp.edge_graph, {"lm": lm}, {"lm": "model"}),
        Call(
            "top_edges",
            interp.top_edges,
            {"scores": scores, "n": 5},
            {"scores": "scores", "n": "count from 0"},
        ),
        Call(
            "edges_above",
            interp.edges_above,
            {"scores": scores, "threshold": 3.0},
            {"scores": "scores", "threshold": "number"},
        ),
        Call(
            "greedy_edges",
            interp.greedy_edges,
            {"scores": scores, "n": 5},
            {"scores": "scores", "n": "count from 0"},
        ),
        Call("prune", interp.prune, {"graph": graph, "kept": kept}, {"graph": "graph", "kept": "edges"}),
        Call(
            "full_ov_circuit",
            lambda **k: interp.full_ov_circuit(**k).A,
            {"lm": lm, "layer": 1, "head": 2},
            {"lm": "model", "layer": "index", "head": "index"},
        ),
        Call(
            "composition_scores",
            interp.composition_scores,
            {"lm": lm, "kind": "Q"},
            {"lm": "model", "kind": "choice"},
        ),
    ]
