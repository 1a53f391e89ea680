"""Good calls: interventions, reducers, alignment, metrics and statistics."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jmi
from jmi import align, metrics, stats
from tests.wrong.call import MADRID, PARIS, PATTERN, POINT, SCORES, Call
from tests.wrong.values import PROMPT, model, tokens


def _hooked(make: Callable[..., Any], point: str = POINT) -> Callable[..., Any]:
    """Logits of a run with one intervention, made of the arguments."""
    return lambda **fields: model().run(tokens(), {point: make(**fields)}).logits


def _reduced(make: Callable[..., Any], point: str = POINT) -> Callable[..., Any]:
    """What a reducer gives, made of the arguments."""
    return lambda **fields: model().run(tokens(), capture=[jmi.Capture(point, reduce=make(**fields))])[point]


@functools.cache
def logits() -> jax.Array:
    """Logits of the prompt at its end."""
    return model().run(tokens(), logits_at=-1).logits


SELECTORS = {"rows": "selector", "positions": "selector", "heads": "selector", "units": "selector"}
EDGES = {"queries": "selector", "keys": "selector", "heads": "selector", "rows": "selector"}


def part_calls() -> list[Call]:
    vector, stream = np.ones(128, np.float32), np.ones((1, 6, 128), np.float32)
    z = functools.partial(_hooked, point="blocks.2.attn.hook_z")
    return [
        Call(
            "Zero", z(jmi.Zero), {"positions": [1, 2], "heads": [0, 1], "units": [3], "rows": [0]}, SELECTORS
        ),
        Call("Replace", _hooked(jmi.Replace), {"value": vector}, {"value": "payload"}),
        Call(
            "Add",
            _hooked(jmi.Add),
            {"vector": vector, "scale": 2.0},
            {"vector": "payload", "scale": "payload"},
        ),
        Call("Scale", _hooked(jmi.Scale), {"factor": 2.0}, {"factor": "payload"}),
        Call(
            "Patch",
            _hooked(jmi.Patch),
            {"source": stream, "positions": [1, 2], "source_positions": [2, 3]},
            {"source": "whole tensor", "source_positions": "indices?"},
        ),
        Call(
            "Project", _hooked(jmi.Project), {"directions": vector}, {"directions": "payload", "keep": "flag"}
        ),
        Call(
            "At",
            _hooked(jmi.At, "blocks.*.hook_mlp_out"),
            {"layers": 2, "hook": jmi.Zero()},
            {"layers": "index", "hook": "intervention"},
        ),
        Call(
            "PerLayer",
            _hooked(jmi.PerLayer, "blocks.*.hook_mlp_out"),
            {"hook": jmi.Add(np.ones((6, 128), np.float32))},
            {"hook": "intervention"},
        ),
        Call(
            "Knockout",
            _hooked(jmi.Knockout, SCORES),
            {"queries": [5], "keys": [2], "heads": [1], "rows": [0]},
            EDGES,
        ),
        Call("Knockout, edges", _hooked(jmi.Knockout, SCORES), {"edges": [[5, 2]]}, {"edges": "indices"}),
        Call(
            "Knockout, mask",
            _hooked(jmi.Knockout, SCORES),
            {"mask": np.eye(6, dtype=bool)},
            {"mask": "mask of edges"},
        ),
        Call(
            "ScaleAttention",
            _hooked(jmi.ScaleAttention, PATTERN),
            {"factor": 0.5, "keys": 2},
            {"factor": "factor", "keys": "selector"},
        ),
        Call(
            "SetAttention",
            _hooked(jmi.SetAttention, PATTERN),
            {"weight": 0.5, "keys": 2},
            {"weight": "factor"},
        ),
        Call("Noise", _hooked(jmi.Noise), {"scale": 0.1, "seed": 3}, {"scale": "payload", "seed": "seed"}),
        Call("Select", _reduced(jmi.Select), {"position": 2}, {"position": "index?"}),
        Call("Dot", _reduced(jmi.Dot), {"vectors": vector}, {"vectors": "payload"}),
        Call(
            "random_directions",
            jmi.random_directions,
            {"seeds": [1, 2], "vector": vector},
            {"seeds": "seeds", "vector": "vector"},
        ),
        Call(
            "align_tokens",
            align.align_tokens,
            {"clean": [7, 1, 2, 9], "corrupted": [7, 5, 9]},
            {"clean": "values", "corrupted": "values"},
        ),
        Call(
            "align_spans",
            align.align_spans,
            {"clean": {"s": (1, 4)}, "corrupted": {"s": (2, 4)}, "anchor": "last"},
            {"clean": "spans", "corrupted": "spans", "anchor": "choice"},
        ),
        Call(
            "find_span",
            functools.partial(align.find_span, model()),
            {"text": PROMPT, "part": "France"},
            {"text": "text", "part": "text"},
        ),
        Call(
            "logit_diff",
            metrics.logit_diff,
            {"logits": logits(), "token": PARIS, "other": MADRID},
            {"logits": "logits", "token": "token", "other": "token"},
        ),
        Call(
            "prob", metrics.prob, {"logits": logits(), "token": PARIS}, {"logits": "logits", "token": "token"}
        ),
        Call(
            "kl_divergence",
            metrics.kl_divergence,
            {"baseline": logits(), "other": logits()},
            {"baseline": "logits", "other": "logits"},
        ),
        Call(
            "top_changes",
            metrics.top_changes,
            {"baseline": logits(), "other": logits(), "k": 3},
            {"k": "count"},
        ),
        Call(
            "bootstrap",
            stats.bootstrap,
            {"values": np.arange(9.0), "level": 0.9, "resamples": 50, "seed": 1},
            {"values": "examples", "level": "share", "resamples": "count", "seed": "seed"},
        ),
        Call(
            "sign_flip",
            stats.sign_flip,
            {"values": np.arange(9.0), "permutations": 50, "seed": 1},
            {"values": "examples", "permutations": "count", "seed": "seed"},
        ),
        Call(
            "summary",
            stats.summary,
            {"values": np.arange(9.0), "placebo": np.ones((2, 9))},
            {"values": "examples", "placebo": "examples?"},
        ),
    ]
