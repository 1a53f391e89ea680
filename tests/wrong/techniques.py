"""Good calls: techniques."""

import functools

import numpy as np

from jmi import interp
from tests.wrong.call import DIFF, MADRID, MODEL, PARIS, POINT, RUN, Call
from tests.wrong.values import OTHER, model, tokens


def technique_calls() -> list[Call]:
    lm, here, there = model(), tokens(), tokens(OTHER)
    own = {"arch": lm.arch, "params": lm.params}
    graph = interp.edge_graph(lm.arch)
    kept, strength = graph.exists.copy(), np.where(graph.exists, np.arange(79.0), 0)
    scores = interp.EdgeScores(strength, graph)
    zeros = interp.Written(0.0, 0.0, 0.0)
    pair = {**own, "base": here, "source": there, "metric": DIFF}
    pair_kinds = {"base": "tokens", "source": "tokens", "metric": "metric"}
    patched = {
        "base": here,
        "source": there,
        "site": "hook_resid_pre",
        "metrics": {"diff": DIFF},
        "layers": [2],
        "positions": [1, 4],
        "progress": False,
    }
    of_lm = lambda function: functools.partial(function, lm)
    attributed = {
        "sites": "sites",
        "keep": "axes to keep",
        "hooks": "hooks",
        "capture": "capture",
        "mask": "mask",
    }
    return [
        Call(
            "patch",
            of_lm(interp.patch),
            {**patched, "window": 1},
            {
                "base": "prompt",
                "source": "prompt",
                "site": "site",
                "metrics": "metrics",
                "over": "axes?",
                "using": "choice",
                "layers": "indices?",
                "positions": "indices?",
                "window": "count",
                "hooks": "hooks",
                "centred": "flag",
                "logits_at": "index?",
            },
        ),
        Call(
            "patch, seeds",
            of_lm(interp.patch),
            {**patched, "using": "random", "seeds": [3]},
            {"seeds": "seeds"},
        ),
        Call(
            "causal_trace",
            of_lm(interp.causal_trace),
            {
                "prompt": here,
                "subject": [4],
                "metrics": {"diff": DIFF},
                "scale": 0.1,
                "seeds": [1],
                "layers": [2],
                "positions": [4],
                "progress": False,
            },
            {
                "prompt": "prompt",
                "subject": "indices",
                "metrics": "metrics?",
                "seeds": "seeds",
                "scale": "positive?",
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
            {"base": here, "source": there, "metrics": {"diff": DIFF}, "senders": "mlps", "progress": False},
            {
                "base": "prompt",
                "source": "prompt",
                "metrics": "metrics",
                "senders": "choice",
                "receivers": "choice?",
                "through_mlps": "flag",
                "positions": "indices?",
            },
        ),
        Call(
            "head_scores",
            interp.head_scores,
            {**own, "tokens": np.tile(here, 2), "reach": 2},
            {**MODEL, "tokens": "tokens", "reach": "count"},
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
            {**own, "tokens": here, "positions": -1, "by": "layer"},
            {
                **MODEL,
                "tokens": "tokens",
                "by": "choice",
                "positions": "index?",
                "hooks": "hooks",
                "mask": "mask",
            },
        ),
        Call(
            "accumulated_resid",
            interp.accumulated_resid,
            {**own, "tokens": here},
            {"tokens": "tokens", "positions": "index?"},
        ),
        Call(
            "direct_logit_attribution",
            interp.direct_logit_attribution,
            {**own, "tokens": here, "target": PARIS, "other": MADRID},
            {
                **MODEL,
                "tokens": "tokens",
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
            {**MODEL, **pair_kinds, **attributed, "steps": "count?"},
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
            {**own, "clean": here, "corrupted": there, "metric": DIFF, "steps": 2},
            {
                **MODEL,
                "clean": "tokens",
                "corrupted": "tokens",
                "metric": "metric",
                "steps": "count?",
                "per_example": "flag",
                **RUN,
                "logits_at": "index?",
            },
        ),
        Call("written", interp.written, {**own, "tokens": here}, {**MODEL, "tokens": "tokens"}),
        Call(
            "circuit_model",
            lambda **k: interp.circuit_model(**k)[1]["removed"],
            {**own, "kept": kept, "ablated": zeros},
            {**MODEL, "kept": "edges", "ablated": "scores"},
        ),
        Call(
            "faithfulness",
            interp.faithfulness,
            {**own, "clean": here, "corrupted": there, "metric": DIFF, "circuits": kept[None]},
            {
                "clean": "tokens",
                "corrupted": "tokens",
                "metric": "metric",
                "circuits": "edges",
                "ablated": "scores?",
            },
        ),
        Call("edge_graph", interp.edge_graph, {"arch": lm.arch}, {"arch": "architecture"}),
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
            {**own, "layer": 1, "head": 2},
            {**MODEL, "layer": "index", "head": "index"},
        ),
        Call(
            "composition_scores", interp.composition_scores, {**own, "kind": "Q"}, {**MODEL, "kind": "choice"}
        ),
    ]
