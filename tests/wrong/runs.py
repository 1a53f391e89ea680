"""Good calls: runs, generation, sweeps and gradients."""

import functools

import numpy as np

import jmi
from jmi import metrics
from tests.wrong.call import DIFF, MODEL, PARIS, POINT, RUN, Call
from tests.wrong.values import PROMPT, model, tokens


def run_calls() -> list[Call]:
    lm, here = model(), tokens()
    own = {"arch": lm.arch, "params": lm.params}
    grid = jmi.Grid(layer=[1, 4])
    hooks = {"blocks.*.hook_mlp_out": jmi.At(grid["layer"], jmi.Zero())}
    swept = {**own, "tokens": here, "hooks": hooks, "readout": metrics.Prob(PARIS), "logits_at": -1}
    sweep_kinds = {
        "tokens": "tokens",
        "hooks": "hooks",
        "readout": "readout",
        "base": "hooks",
        "logits_at": "index?",
    }
    return [
        Call(
            "lm.run",
            lm.run,
            {"prompt": here, "mask": np.ones((1, 6), bool), "positions": np.arange(6)[None]},
            {"prompt": "prompt", "hooks": "hooks", "capture": "capture", **RUN},
        ),
        Call("lm.run, logits_at", lm.run, {"prompt": here, "logits_at": -1}, {"logits_at": "index?"}),
        Call(
            "lm.run, stop", lm.run, {"prompt": here, "stop_at_layer": 2}, {"stop_at_layer": "count from 0?"}
        ),
        Call(
            "jmi.forward",
            jmi.forward,
            {**own, "tokens": here, "stop_at_layer": 0, "remat": True},
            {**MODEL, "tokens": "tokens", "hooks": "hooks", "capture": "capture", **RUN, "remat": "flag"},
        ),
        Call(
            "lm.generate",
            lm.generate,
            {"prompt": here, "n": 2, "seed": 3, "temperature": 1.0},
            {
                "prompt": "prompt",
                "n": "count",
                "seed": "seed?",
                "temperature": "positive",
                "step_hooks": "hooks",
            },
        ),
        Call(
            "jmi.generate",
            jmi.generate,
            {**own, "tokens": here, "n": 2},
            {**MODEL, "tokens": "tokens", "n": "count", "capture": "capture", "mask": "mask"},
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
                **MODEL,
                **sweep_kinds,
                "memory": "count",
                "capture": "capture",
                "share": "flag",
                "mesh": "graph?",
            },
        ),
        Call("jmi.plan", jmi.plan, swept, {"tokens": "tokens", "readout": "readout", "memory": "count"}),
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
            {**own, "tokens": here, "readout": DIFF, "sites": [POINT]},
            {
                **MODEL,
                "tokens": "tokens",
                "readout": "metric",
                "sites": "sites",
                "hooks": "hooks",
                "mask": "mask",
            },
        ),
        Call(
            "jmi.frozen",
            jmi.frozen,
            {"arch": lm.arch, "patterns": True, "norms": True},
            {"arch": "architecture", "patterns": "flag", "norms": "flag"},
        ),
    ]
