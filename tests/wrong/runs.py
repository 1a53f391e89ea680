"""Good calls: runs, generation, sweeps and gradients."""

import functools

import numpy as np

import jmi
from jmi import metrics
from tests.wrong.call import DIFF, MODEL, PARIS, POINT, Call
from tests.wrong.values import PROMPT, model, tokens


def run_calls() -> list[Call]:
    lm, here = model(), tokens()
    own = {"arch": lm.arch, "params": lm.params}
    grid = jmi.Grid(layer=[1, 4])
    hooks = {"blocks.*.hook_mlp_out": jmi.At(grid["layer"], jmi.Zero())}
    swept = {"lm": lm, "prompts": here, "hooks": hooks, "metric": metrics.Prob(PARIS), "logits_at": -1}
    sweep_kinds = {
        "lm": "model",
        "prompts": "prompt",
        "hooks": "hooks",
        "metric": "metric of any shape",
        "base": "hooks",
        "logits_at": "index?",
    }
    return [
        Call(
            "lm.run",
            lm.run,
            {"prompts": here},
            {"prompts": "prompt", "hooks": "hooks", "capture": "capture"},
        ),
        Call(
            "jmi.Prompts",
            lambda **fields: lm.run(jmi.Prompts(**fields)).logits,
            {"tokens": here, "mask": np.ones((1, 6), bool), "positions": np.arange(6)[None]},
            {"tokens": "tokens", "mask": "mask", "positions": "positions of tokens"},
        ),
        Call("lm.run, logits_at", lm.run, {"prompts": here, "logits_at": -1}, {"logits_at": "index?"}),
        Call(
            "lm.run, stop", lm.run, {"prompts": here, "stop_at_layer": 2}, {"stop_at_layer": "count from 0?"}
        ),
        Call(
            "jmi.forward",
            jmi.forward,
            {**own, "prompts": here, "stop_at_layer": 0, "remat": True},
            {**MODEL, "prompts": "tokens", "hooks": "hooks", "capture": "capture", "remat": "flag"},
        ),
        Call(
            "lm.generate",
            lm.generate,
            {"prompts": here, "max_new_tokens": 2, "seed": 3, "temperature": 1.0},
            {
                "prompts": "prompt",
                "max_new_tokens": "count",
                "seed": "seed of rows?",
                "temperature": "positive?",
                "step_hooks": "hooks",
            },
        ),
        Call(
            "jmi.generate",
            jmi.generate,
            {**own, "prompts": here, "max_new_tokens": 2},
            {**MODEL, "prompts": "tokens", "max_new_tokens": "count", "capture": "capture"},
        ),
        Call("lm.encode", lm.encode, {"text": PROMPT}, {"text": "text"}),
        Call("lm.decode", lm.decode, {"tokens": here[0]}, {"tokens": "row of ids"}),
        Call("lm.token_id", lm.token_id, {"word": "Paris"}, {"word": "word"}),
        Call("lm.sites", lm.sites, {"batch": 2, "pos": 3}, {"batch": "count", "pos": "count"}),
        Call(
            "jmi.prepare",
            jmi.prepare,
            {"arch": lm.arch, "hooks": {POINT: jmi.Zero()}, "shape": (1, 6)},
            {"arch": "architecture", "hooks": "hooks to prepare", "shape": "indices"},
        ),
        Call(
            "jmi.sweep",
            functools.partial(jmi.sweep, progress=False),
            {**swept, "memory": 2**30},
            {
                **sweep_kinds,
                "memory": "count",
                "capture": "capture",
                "share": "flag",
                "mesh": "graph?",
            },
        ),
        Call(
            "jmi.plan",
            jmi.plan,
            swept,
            {"prompts": "prompt", "metric": "metric of any shape", "memory": "count"},
        ),
        Call(
            "jmi.Grid",
            lambda layer: jmi.Grid(layer=layer).axes["layer"],
            {"layer": [1, 2]},
            {"layer": "values of an axis"},
        ),
        Call("grid[name]", grid.__getitem__, {"name": "layer"}, {"name": "axis"}),
        Call(
            "grid.take",
            lambda name, table: grid.take(name, table).values,
            {"name": "layer", "table": np.zeros((6, 128), np.float32)},
            {"name": "axis", "table": "values"},
        ),
        Call(
            "grid.cells",
            lambda values: grid.cells(values).values,
            {"values": np.zeros(2)},
            {"values": "values"},
        ),
        Call(
            "jmi.value_and_grad_at",
            jmi.value_and_grad_at,
            {"lm": lm, "prompts": here, "metric": DIFF, "sites": [POINT]},
            {"lm": "model", "prompts": "prompt", "metric": "metric", "sites": "sites", "hooks": "hooks"},
        ),
        Call(
            "jmi.frozen",
            jmi.frozen,
            {"arch": lm.arch, "patterns": True, "norms": True},
            {"arch": "architecture", "patterns": "flag", "norms": "flag"},
        ),
    ]
