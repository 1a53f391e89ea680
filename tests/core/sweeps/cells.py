"""Sweeps over cells of many kinds, and the loop of single runs that they must equal."""

import jax
import numpy as np

import jmi

LENGTH = 11
RNG = np.random.default_rng(3)


def everything(out):
    return {"logits": out.logits, **out.captures}


def loop(lm, prompts, cells, metric=everything, **kwargs):
    """One run after another."""
    prompts = lm.prompts(prompts)
    run = jax.jit(lambda hooks: metric(jmi.forward(lm.arch, lm.params, prompts, hooks, **kwargs)))
    results = [run(jmi.prepare(lm.arch, hooks, prompts.shape, prompts.mask)) for hooks in cells]
    return jax.tree.map(lambda *x: np.stack(x), *results)


def assert_cells_differ(results):
    rows = np.asarray(jax.tree.leaves(results)[0])
    assert len({row.tobytes() for row in rows}) == len(rows), "every cell must have an effect of its own"


def columns(*values):
    """Values of one grid for the cells of a sweep, given cell by cell."""
    grid = jmi.Grid(cell=range(len(values[0])))
    return [grid.take("cell", column) for column in values]


def of_cells(values):
    (swept,) = columns(values)
    return swept


SOURCE = RNG.normal(size=(4, 2, LENGTH, 16))
LAYERS, POSITIONS = np.array([(i, p) for i in (0, 2, 3) for p in (0, 4, 7, -1)]).T
SWEPT = {
    "patch": (
        lambda i, p: {"blocks.*.hook_resid_mid": jmi.At(i, jmi.PerLayer(jmi.Patch(SOURCE, positions=p)))}
    ),
    "add": lambda i, p: {
        "blocks.*.hook_mlp_out": jmi.At(
            i, jmi.PerLayer(jmi.Add(SOURCE[:3, 0, 0], positions=p), slots=[2, -1, 0, 1])
        )
    },
    "knockout": lambda i, p: {"blocks.*.attn.hook_attn_scores": jmi.At(i, jmi.Knockout(keys=p, heads=1))},
    "edges": lambda i, p: {
        "blocks.*.attn.hook_pattern": [
            jmi.At(i, jmi.SetAttention(0.3, queries=p, keys=0, rows=1)),
            jmi.At(i, jmi.Scale(0.9, positions=p)),
        ]
    },
    "keys": lambda i, p: {
        "blocks.*.attn.hook_k": jmi.At(i, jmi.Scale(1.5, positions=p)),
        "blocks.*.hook_q_input": jmi.At(i, jmi.Scale(0.5, positions=p, heads=2)),
    },
    "project": lambda i, p: {
        "blocks.*.hook_resid_post": [jmi.At(i, jmi.Project(SOURCE[0, 0, :3], positions=p))]
    },
    "elsewhere": lambda i, p: {
        "blocks.*.hook_mlp_out": jmi.At(i, jmi.Zero(positions=p)),
        "blocks.1.attn.hook_z": jmi.Scale(0.5, positions=p),
    },
}

CAPTURES = [
    "hook_embed",
    "blocks.*.hook_resid_pre",
    "blocks.1.attn.hook_pattern",
    jmi.Capture("blocks.2.hook_resid_post", when="before", label="arrived"),
    "hook_final_norm",
]

FEW = [], CAPTURES[:4], [CAPTURES[0], CAPTURES[2]]


def hooks_of(kind):
    swept = SWEPT[kind](*columns(LAYERS, POSITIONS))
    cells = [SWEPT[kind](int(i), int(p)) for i, p in zip(LAYERS, POSITIONS, strict=True)]
    return swept, cells
