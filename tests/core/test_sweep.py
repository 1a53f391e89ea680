"""Sweeps: whatever they share, cut up, spread or resume, the results are those of a loop over the cells."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, HookError, InterventionError, OutputError
from jmi.hooks.grid import Swept
from jmi.sweeps import chunks as sweep_plan
from jmi.sweeps import store as sweep_store
from jmi.sweeps import work as sweep_work
from jmi.sweeps.cells import cells_of, grid_of
from jmi.sweeps.chunks import groups_of
from jmi.sweeps.sharing import Part
from jmi_models.decoder.experts import Experts
from jmi_models.decoder.mlp import Mlp
from jmi_models.rwkv.architecture import Rwkv
from tests.core.conftest import lively, tiny
from tests.core.test_rewire import IN, OUT, Transcoder, weights
from tests.oracles import grid as configs
from tests.support import committed
from tests.support.committed import each
from tests.support.processes import run_two
from tests.support.tolerances import assert_agree as assert_equal

LENGTH = 11
RNG = np.random.default_rng(3)


@pytest.fixture(autouse=True)
def small_chunks_count(monkeypatch):
    """Let even these few tokens be worth a chunk of their own, so that cells start behind position 0."""
    monkeypatch.setattr(sweep_plan, "PASS", 0)


@pytest.fixture(scope="module")
def model():
    with jax.enable_x64(True):
        arch = tiny()
        tokens = jnp.asarray(RNG.integers(0, 29, (2, LENGTH)), jnp.int32)
        yield jmi.LanguageModel(arch, lively(arch, jnp.float64)), tokens


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


def hooks_of(kind):
    swept = SWEPT[kind](*columns(LAYERS, POSITIONS))
    cells = [SWEPT[kind](int(i), int(p)) for i, p in zip(LAYERS, POSITIONS, strict=True)]
    return swept, cells


@pytest.mark.parametrize("kind", SWEPT)
def test_what_cells_share_changes_nothing(model, kind):
    lm, tokens = model
    swept, cells = hooks_of(kind)
    want = loop(lm, tokens, cells, capture=CAPTURES)
    assert_cells_differ(want["logits"])
    assert_equal(jmi.sweep(*model, swept, everything, capture=CAPTURES), want)
    assert_equal(jmi.sweep(*model, swept, everything, capture=CAPTURES, share=False), want)
    last = jmi.sweep(*model, swept, lambda out: out.logits, logits_at=[-1, 6])
    picked = np.stack([want["logits"][:, 0, -1], want["logits"][:, 1, 6]], 1)
    assert_equal(last, picked)
    for few in (CAPTURES[:4], [CAPTURES[0], CAPTURES[2]]):
        captured = jmi.sweep(*model, swept, everything, capture=few, logits_at=[-1, 6])
        assert_equal(captured, {name: want[name] for name in captured} | {"logits": picked})


def test_the_cells_above_do_share(model):
    lm, tokens = model
    for kind in SWEPT:
        hooks = hooks_of(kind)[0]
        cells = cells_of(lm.arch, hooks, grid_of(hooks), tokens.shape)
        groups = groups_of(cells, np.zeros(len(cells), int), tokens.shape, LENGTH - 1, share=True)
        assert {g.first for g in groups} == {0, 3, 6, 9}
        assert {g.layer for g in groups} == ({0, 1} if kind == "elsewhere" else {0, 2, 3})
        assert not any(g.narrow for g in groups)


@pytest.mark.parametrize(
    ("options", "narrow"),
    [
        ({"logits_at": -1}, True),
        ({"logits_at": -1, "capture": ["blocks.*.hook_resid_pre"]}, False),
        ({"logits_at": -1, "capture": ["blocks.1.hook_resid_pre"]}, True),
        ({"logits_at": -1, "base": {"blocks.3.hook_mlp_out": jmi.Scale(0.5)}}, False),
        ({"logits_at": -1, "share": False}, False),
        ({}, False),
    ],
)
def test_one_position_alone_passes_through_a_last_layer_that_nobody_looks_into(model, options, narrow):
    work = sweep_work.prepare(*model, hooks_of("patch")[0], everything, **options)
    chunks, programs = work.compiled(2**30)
    assert {c.narrow for c in chunks if c.layer < 3} == {narrow}
    assert not any(c.narrow for c in chunks if c.layer == 3)
    assert len(programs) <= sweep_plan.STEPS + narrow


def test_no_other_position_is_computed_in_that_layer(model):
    work = sweep_work.prepare(*model, hooks_of("patch")[0], everything, logits_at=-1)
    wide, narrow = (work._compile(Part(0, False, flag), 4).lowered.as_text() for flag in (False, True))
    all_positions, one = f"tensor<4x2x{LENGTH}x24xf64>", "tensor<4x2x1x24xf64>"
    assert narrow.count(all_positions) == wide.count(all_positions) > 0
    assert one in narrow
    assert one not in wide


@pytest.mark.parametrize("what", ["mask", "base", "experts", "models", "mesh", "embedding"])
def test_the_last_layer_of_one_position_is_that_of_all(model, what):
    lm, tokens = model
    options = {}
    site = "hook_embed" if what == "embedding" else "blocks.*.hook_resid_mid"
    layers, factors, positions = columns([0, 1, 2], [0.5, 2.0, 3.0], [1, 4, 7])
    edit = jmi.Scale(factors, positions=positions)
    swept = {site: edit if what == "embedding" else jmi.At(layers, edit)}
    if what == "mask":
        tokens = jmi.Prompts(tokens, np.arange(LENGTH) >= np.array([[0], [2]]))
    elif what == "base":
        options["base"] = {"blocks.1.hook_mlp_out": jmi.Scale(1.5)}
    elif what == "experts":
        arch = dataclasses.replace(lm.arch, mlp=Mlp("silu"), experts=Experts(4, 2, 24, True))
        lm = jmi.LanguageModel(arch, lively(arch, jnp.float64))
    elif what == "models":
        lm = jmi.Models(lm, jax.tree.map(lambda x: jnp.stack([x, 0.9 * x]), lm.params))
    elif what == "mesh":
        options["mesh"] = jax.make_mesh((4,), ("cells",), axis_types=(jax.sharding.AxisType.Auto,))
    run = functools.partial(jmi.sweep, lm, tokens, swept, lambda out: out.logits, **options)
    got = run(logits_at=[-1, 8])
    assert_cells_differ(got if what != "models" else got[0])
    whole = run(share=False)
    place = 8 + 2 * (what == "mask")  # of the row's token 8, behind its padding
    assert_equal(got, np.stack([whole[..., 0, -1, :], whole[..., 1, place, :]], -2))


MASKS = RNG.random((5, 4)) < 0.5
FORMS = {
    **{kind: hooks_of(kind)[0] for kind in SWEPT},
    "mask of layers": {"blocks.*.hook_mlp_out": jmi.At(of_cells(MASKS), jmi.Scale(2))},
    "several layers": {"blocks.*.hook_mlp_out": jmi.At(of_cells([[0, -1], [1, 1], [2, 3]]), jmi.Scale(0.5))},
    "mask of positions": {
        "blocks.1.hook_mlp_out": jmi.Zero(positions=of_cells(np.tri(LENGTH, dtype=bool)[::-1]))
    },
    "positions by row": {
        "blocks.1.hook_mlp_out": jmi.Zero(positions=of_cells(RNG.integers(1, LENGTH, (6, 2, 3))))
    },
    "positions by layer": {
        "blocks.*.hook_mlp_out": jmi.PerLayer(
            jmi.Scale(np.ones(4), positions=of_cells(LAYERS[:, None] + np.arange(4)))
        )
    },
    "pairs": {
        "blocks.2.attn.hook_attn_scores": jmi.Knockout(edges=of_cells(RNG.integers(2, LENGTH, (6, 3, 2))))
    },
    "several points": {"blocks.*.hook_*_out": jmi.At([1, 2, 3], jmi.Scale(of_cells(np.arange(3))))},
    "layers that have arrays": {
        "blocks.*.hook_mlp_out": jmi.At(
            of_cells([[1, 1], [3, 1], [3, 3]]), jmi.PerLayer(jmi.Add(SOURCE[:2, 0, 0]), slots=[-1, 1, -1, 0])
        )
    },
    "whole masks of layers that have arrays": {
        "blocks.*.hook_mlp_out": jmi.At(
            of_cells(np.ones((3, 4), bool)), jmi.PerLayer(jmi.Add(SOURCE[:2, 0, 0]), slots=[-1, 1, -1, 0])
        )
    },
    "integers on a device": {"blocks.0.hook_mlp_out": jmi.Scale(of_cells(jnp.arange(3)))},
    "other rows of per-layer arrays": {
        "blocks.*.hook_mlp_out": jmi.PerLayer(
            jmi.Add(SOURCE[:2, 0, 0]), slots=of_cells([[-1, 0, -1, 1], [0, -1, -1, -1], [1, 0, -1, -1]])
        )
    },
    "one of several names that meet at a point": {
        "blocks.*.hook_mlp_out": [jmi.Scale(0.5), jmi.At([1, -1], jmi.Scale(of_cells([1.0, 2.0, 3.0])))],
        "blocks.2.hook_mlp_out": jmi.Add(SOURCE[0, 0], positions=[1, 2]),
        "hook_logits": jmi.Scale(2),
    },
    "the same array in two hooks": {
        name: jmi.At(same, jmi.Scale(same))
        for same in [of_cells([1, 2, 3])]
        for name in ("blocks.*.attn.hook_out", "blocks.*.hook_mlp_out")
    },
    "layers on a device": {"blocks.*.hook_mlp_out": jmi.At(of_cells(jnp.arange(3)), jmi.Zero())},
    "embedding": {
        "hook_embed": jmi.Add(*columns(RNG.normal(size=(3, 16)), np.arange(3)), positions=4),
    },
    "as many layers and positions as cells": {
        "blocks.*.hook_mlp_out": jmi.At([0, 2, 3], jmi.Scale(of_cells([1.0, 2.0, 3.0]), positions=[1, 4, 7]))
    },
    "a function": {
        "blocks.0.hook_mlp_out": jax.tree_util.Partial(lambda x, value, site: value * x, of_cells(np.ones(3)))
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_cells_are_what_each_of_them_prepares(model, form):
    lm, tokens = model
    given = FORMS[form]
    leaves, tree = jax.tree.flatten(given)
    cells = cells_of(lm.arch, given, grid_of(given), tokens.shape)
    for i in range(len(cells)):
        each = [x.values[i] if isinstance(x, Swept) else x for x in leaves]
        want = jmi.prepare(lm.arch, jax.tree.unflatten(tree, each), tokens.shape)
        got = cells.structure.hooks(cells.layers[i], cells.shared, [x[i] for x in cells.swept])
        assert jax.tree.structure(got) == jax.tree.structure(want)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_layer_of_one_cell_that_has_no_such_point_is_refused(model):
    """Between layers that have it: the least and the largest of all cells are fine."""
    lm, tokens = model
    module = Transcoder(weights(2))
    spliced = jmi.rewire(lm, {(IN.replace("*", i), OUT.replace("*", i)): module for i in "13"})
    for layers in ([1, 3], [1, 2, 3]):
        hooks = {"blocks.*.mlp.hook_features": jmi.At(of_cells(layers), jmi.Zero())}
        if layers == [1, 3]:
            want = loop(spliced, tokens, [{f"blocks.{i}.mlp.hook_features": jmi.Zero()} for i in layers])
            assert_equal(jmi.sweep(spliced, tokens, hooks, everything), want)
            continue
        with pytest.raises(HookError, match=r"layers \[2\] have no such point"):
            jmi.sweep(spliced, tokens, hooks, everything)


FAMILIES = ("gemma2", "gptj", "bloom", "gpt_oss", "opt", "smollm3")
"""Soft-caps and windows, parallel blocks, alibi, sinks, learned positions, layers without rotary."""


@each(name for name in configs.COMMITTED if name.split("/")[0] in FAMILIES)
def test_every_kind_of_attention_can_start_at_a_position(name):
    lm = committed.load(name, "float64")
    with jax.enable_x64(True):
        tokens = jnp.asarray(configs.committed(name).tokens)
        layers, positions = columns([0, 1, 1, 0], [3, -1, 6, 1])
        swept = {"blocks.*.hook_resid_pre": jmi.At(layers, jmi.Scale(2.0, positions=positions))}
        cells = [
            {f"blocks.{i}.hook_resid_pre": jmi.Scale(2.0, positions=p)}
            for i, p in ((0, 3), (1, -1), (1, 6), (0, 1))
        ]
        want = loop(lm, tokens, cells)
        assert_cells_differ(want)
        assert_equal(jmi.sweep(lm, tokens, swept, everything), want)
        for at in (-1, [2, 5][: len(tokens)]):
            last = jmi.sweep(lm, tokens, swept, lambda out: out.logits, logits_at=at)
            rows = np.arange(len(tokens))
            assert_equal(last, want["logits"][:, rows, np.broadcast_to(at, len(tokens))])


@pytest.mark.parametrize("version", [6, 7])
def test_a_recurrent_model_starts_at_a_layer(version):
    ranks = {6: ("rank_mix", "rank_decay"), 7: ("rank_decay", "rank_a", "rank_v", "rank_gate")}[version]
    arch = Rwkv(version, 3, 24, 2, 12, 40, 31, tuple((rank, 4) for rank in ranks))
    with jax.enable_x64(True):
        lm = jmi.LanguageModel(arch, lively(arch, jnp.float64))
        tokens = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
        layers, positions = columns([0, 1, 2, 1], [0, 1, 2, 3])
        swept = {"blocks.*.rwkv.hook_write": jmi.At(layers, jmi.Zero(positions=positions))}
        cells = [
            {f"blocks.{i}.rwkv.hook_write": jmi.Zero(positions=p)}
            for i, p in ((0, 0), (1, 1), (2, 2), (1, 3))
        ]
        capture = ["blocks.*.rwkv.hook_state"]
        want = loop(lm, tokens, cells, capture=capture)
        assert_cells_differ(want["logits"])
        assert_equal(jmi.sweep(lm, tokens, swept, everything, capture=capture), want)


def test_cells_may_edit_the_embedding_or_only_the_unembedding(model):
    lm, tokens = model
    for site in ("hook_embed", "hook_final_norm", "hook_logits"):
        factors, positions = columns([0.5, 2.0, 3.0], [1, 2, -1])
        swept = {site: jmi.Scale(factors, positions=positions)}
        cells = [{site: jmi.Scale(f, positions=p)} for f, p in ((0.5, 1), (2.0, 2), (3.0, -1))]
        capture = ["blocks.*.hook_resid_post", "hook_embed"]
        want = loop(lm, tokens, cells, capture=capture)
        assert_equal(jmi.sweep(*model, swept, everything, capture=capture), want)


def test_cells_act_on_top_of_the_hooks_of_the_base_run(model):
    lm, tokens = model
    base = {
        "hook_embed": jmi.Add(SOURCE[0, 0, 0], positions=2),
        "blocks.*.hook_resid_mid": jmi.Scale(1.1, positions=5),
    }
    layers, positions = columns([1, 3], [4, 9])
    swept = {"blocks.*.hook_resid_mid": jmi.At(layers, jmi.PerLayer(jmi.Patch(SOURCE, positions=positions)))}
    cells = [
        {
            "hook_embed": base["hook_embed"],
            "blocks.*.hook_resid_mid": [
                base["blocks.*.hook_resid_mid"],
                jmi.At(layer, jmi.PerLayer(jmi.Patch(SOURCE, positions=position))),
            ],
        }
        for layer, position in ((1, 4), (3, 9))
    ]
    want = loop(lm, tokens, cells, capture=CAPTURES)
    assert_equal(jmi.sweep(*model, swept, everything, base=base, capture=CAPTURES), want)


def test_an_intervention_of_unknown_reach_is_run_at_every_position(model):
    lm, tokens = model

    @jmi.tree.dataclass
    class MeanSoFar:
        """Reads other positions than those it writes."""

        strength: jax.Array
        positions: jax.Array

        def __call__(self, value, site):
            mean = value.mean(1, keepdims=True) * self.strength.astype(value.dtype)
            here = jnp.arange(value.shape[1])[None, :, None] == self.positions
            return jnp.where(here, mean, value)

    swept = {"blocks.2.hook_resid_pre": MeanSoFar(*columns([0.5, 1.0], [4, 9]))}
    cells = [{"blocks.2.hook_resid_pre": MeanSoFar(f, p)} for f, p in ((0.5, 4), (1.0, 9))]
    assert_equal(jmi.sweep(*model, swept, everything), loop(lm, tokens, cells))


def test_a_reducer_sees_every_position(model):
    lm, tokens = model
    capture = [jmi.Capture("blocks.*.hook_resid_post", reduce=jmi.Select(position=2), label="second")]
    swept, cells = hooks_of("add")
    want = loop(lm, tokens, cells, capture=capture)
    assert_equal(jmi.sweep(*model, swept, everything, capture=capture), want)


def test_one_cell_and_cells_that_differ_in_nothing_but_their_layers(model):
    lm, tokens = model
    for layers in ([0, 2, 3], [1]):
        swept = {"blocks.*.hook_mlp_out": jmi.At(of_cells(layers), jmi.Zero())}
        cells = [{f"blocks.{layer}.hook_mlp_out": jmi.Zero()} for layer in layers]
        assert_equal(jmi.sweep(*model, swept, everything), loop(lm, tokens, cells))


def test_the_arrays_of_a_metric_are_data(model):
    lm, tokens = model
    traces = []

    def read(index, out):
        traces.append(1)
        return out.logits[:, -1, index]

    swept, cells = hooks_of("add")
    want = loop(lm, tokens, cells, lambda out: out.logits[:, -1])
    counts = []
    for index in (3, 11):
        got = jmi.sweep(*model, swept, jax.tree_util.Partial(read, jnp.int32(index)))
        assert_equal(got, want[..., index])
        counts.append(len(traces))
    assert counts[0] == counts[1], "another index is no other program"


def test_padded_prompts(model):
    lm, tokens = model
    mask = np.ones((2, LENGTH), bool)
    mask[1, :3] = False
    swept, cells = hooks_of("add")
    read = lambda out: out.logits[:, -1]
    want = loop(lm, (tokens, mask), cells, read)
    assert_equal(jmi.sweep(lm, (tokens, mask), swept, read), want)


def test_models_are_an_axis(model):
    lm, tokens = model
    other = jmi.LanguageModel(lm.arch, jax.tree.map(lambda x: x * 0.9, lm.params))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), lm.params, other.params)
    swept, cells = hooks_of("patch")
    want = np.stack([loop(each, tokens, cells, lambda out: out.logits) for each in (lm, other)])
    assert_equal(jmi.sweep(jmi.Models(lm, stacked), tokens, swept, lambda out: out.logits), want)


@pytest.mark.parametrize("wrong", ["no axis", "unlike axes", "no model", "another model", "nothing"])
def test_weights_that_are_not_those_of_several_models_are_refused(model, wrong):
    lm, tokens = model
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), lm.params)
    params = {
        "no axis": lm.params,
        "unlike axes": {**stacked, "embed": {"W_E": stacked["embed"]["W_E"][:1]}},
        "no model": jax.tree.map(lambda x: x[:0], stacked),
        "another model": jax.tree.map(lambda x: x[None], lively(tiny(2), jnp.float64)),
        "nothing": None,
    }[wrong]
    with pytest.raises(ArgumentError, match="one axis of models in front"):
        jmi.sweep(jmi.Models(lm, params), tokens, hooks_of("add")[0], everything)


def test_listed_layers(model):
    lm, tokens = model
    blocks = [jax.tree.map(lambda w, i=i: w[i], lm.params["blocks"]) for i in range(4)]
    listed = jmi.LanguageModel(lm.arch, {**lm.params, "blocks": blocks})
    swept, cells = hooks_of("patch")
    want = loop(lm, tokens, cells)
    assert_equal(jmi.sweep(listed, tokens, swept, everything), want)


@pytest.mark.parametrize("n_layers", [1, 4])
def test_listed_layers_of_which_the_last_is_for_one_position(n_layers):
    with jax.enable_x64(True):
        arch = tiny(n_layers)
        lm = jmi.LanguageModel(arch, lively(arch, jnp.float64))
        listed = jmi.LanguageModel(arch, jmi_models.listed(lm.params))
        tokens = jnp.asarray(RNG.integers(0, 29, (2, LENGTH)), jnp.int32)
        read = lambda out: out.logits
        for site, layers in (("hook_embed", None), ("blocks.*.hook_mlp_out", [0, n_layers // 2])):
            factors, positions, where = columns([0.5, 2.0], [1, 7], layers or [0, 0])
            edit = jmi.Scale(factors, positions=positions)
            swept = {site: edit if layers is None else jmi.At(where, edit)}
            whole = jmi.sweep(lm, tokens, swept, read, share=False)
            got = jmi.sweep(listed, tokens, swept, read, logits_at=-1)
            assert_equal(got, whole[:, :, -1])


def test_another_sweep_of_the_same_structure_compiles_nothing(model):
    lm, tokens = model
    traces = []

    def read(out):
        traces.append(1)
        return out.logits[:, -1]

    def sweep(*values, tokens):
        layers, positions, factor = columns(*values)
        swept = {"blocks.*.hook_mlp_out": jmi.At(layers, jmi.Scale(factor, positions=positions))}
        return jmi.sweep(lm, tokens, swept, read)

    one = sweep([0, 1, 2, 3], [1, 4, 7, 10], [2.0, 3.0, 4.0, 5.0], tokens=tokens)
    first = len(traces)
    two = sweep([3, 1, 0, 2], [10, 7, 4, 1], [3.0, 3.0, 4.0, 6.0], tokens=tokens[:, ::-1])
    assert len(traces) == first
    assert not np.array_equal(one, two)


def test_small_memory_means_small_chunks_and_the_same_results(model):
    vectors = RNG.normal(size=(37, 16))
    swept = {"blocks.1.hook_resid_pre": jmi.Add(of_cells(vectors))}
    read = lambda out: out.logits
    whole = jmi.plan(*model, swept, read)
    assert [p.chunks for p in whole.programs] == [1]
    assert whole.cells == 37
    budget = whole.programs[0].bytes // 4
    cut = jmi.plan(*model, swept, read, memory=budget)
    assert cut.programs[0].bytes <= budget
    assert cut.programs[0].chunks > 3
    assert_equal(
        jmi.sweep(*model, swept, read, memory=budget),
        jmi.sweep(*model, swept, read),
    )
    with pytest.raises(ArgumentError, match="raise memory="):
        jmi.sweep(*model, swept, read, memory=1000)


def test_cells_spread_over_devices_without_a_word_between_them(model):
    swept, _ = hooks_of("patch")
    mesh = jax.make_mesh((4,), ("cells",), axis_types=(jax.sharding.AxisType.Auto,))
    read = lambda out: out.logits[:, -1]
    assert_equal(
        jmi.sweep(*model, swept, read, mesh=mesh),
        jmi.sweep(*model, swept, read),
    )
    work = sweep_work.prepare(*model, swept, read, mesh=mesh)
    texts = [compiled.program.as_text() for compiled in work.compiled(2**30)[1].values()]
    assert texts
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert not any(collective in text for text in texts)


def test_a_sweep_that_was_stopped_goes_on_and_ends_with_the_same_bits(model, tmp_path, monkeypatch):
    lm, tokens = model
    swept, _ = hooks_of("patch")
    read = lambda out: {
        "last": out.logits[:, -1],
        "best": out.logits.argmax(-1),
        "short": out.logits[:, -1].astype(jnp.bfloat16),
    }
    want = jmi.sweep(*model, swept, read)
    folder = tmp_path / "sweep"
    written = []
    original = sweep_store.Store.write

    def killed(self, chunk, arrays):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(chunk)
        original(self, chunk, arrays)

    monkeypatch.setattr(sweep_store.Store, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        jmi.sweep(*model, swept, read, output=folder)
    done = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert len(done) == 5
    (folder / ".000007.npz.tmp").write_bytes(b"half a file")

    monkeypatch.setattr(sweep_store.Store, "write", original)
    got = jmi.sweep(*model, swept, read, output=folder)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert len(list(folder.glob("[0-9]*.npz"))) == 12
    assert {name: (folder / name).stat().st_mtime_ns for name in done} == done, "finished chunks stay"

    doubled = jmi.LanguageModel(lm.arch, jax.tree.map(lambda x: x * 2, lm.params))
    for other in ((lm, tokens[:, ::-1]), (doubled, tokens)):
        with pytest.raises(OutputError, match="another sweep"):
            jmi.sweep(*other, swept, read, output=folder)
    with pytest.raises(OutputError, match="another sweep"):
        jmi.sweep(
            *model,
            swept,
            lambda out: {**read(out), "last": out.logits[:, -2]},
            output=folder,
        )


def test_a_folder_that_is_not_a_sweep_is_left_alone(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    swept, _ = hooks_of("add")
    for where, words in ((tmp_path, "holds no sweep"), (tmp_path / "a" / "b", "create the folder")):
        with pytest.raises(OutputError, match=words):
            jmi.sweep(*model, swept, everything, output=where)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


TWO = """
import jax.numpy as jnp
import numpy as np
import jmi, jmi_models
lm = jmi_models.load("atlas")
tokens = lm.encode("The capital of France is")
grid = jmi.Grid(layer=range(3), seed=[3, 8], head=range(4))
hooks = {"blocks.*.attn.hook_z": jmi.At(grid["layer"], jmi.Zero(heads=grid["head"]))}
base = {"hook_embed": jmi.Noise(0.1, seed=grid["seed"])}
read = lambda out: out.logits[0]
logits = jmi.sweep(lm, tokens, hooks, read, base=base, logits_at=-1, output=args[0] + "/out")
np.save(f"{args[0]}/{process}.npy", logits)
"""


def test_two_processes_share_the_cells(tmp_path):
    run_two(TWO, tmp_path)
    lm = jmi_models.load("atlas")
    tokens = lm.encode("The capital of France is")
    grid = jmi.Grid(layer=range(3), seed=[3, 8], head=range(4))
    hooks = {"blocks.*.attn.hook_z": jmi.At(grid["layer"], jmi.Zero(heads=grid["head"]))}
    base = {"hook_embed": jmi.Noise(0.1, seed=grid["seed"])}
    want = jmi.sweep(lm, tokens, hooks, lambda out: out.logits[0], base=base, logits_at=-1)
    assert want.shape[:3] == grid.shape
    one, two = (np.load(tmp_path / f"{i}.npy") for i in (0, 1))
    np.testing.assert_array_equal(one, two)
    assert_equal(one, want)
    assert len(list((tmp_path / "out").glob("*.npz"))) == 6


@jmi.tree.dataclass
class Picky:
    """An intervention whose check no range describes."""

    number: object

    def check(self, site, shape):
        if self.number == 13:
            raise InterventionError(f"{site.point}: {self.number} is bad luck")

    def __call__(self, value, site):
        return value * self.number


@pytest.mark.parametrize(
    ("hooks", "error", "words"),
    [
        ({"blocks.*.hook_mlp_out": jmi.At(0, jmi.Zero(positions=1))}, HookError, "the same in every cell"),
        (
            {"blocks.*.hook_mlp_out": jmi.At(of_cells([0, 1]), jmi.Scale(of_cells([1.0, 2.0])))},
            HookError,
            "2 grids",
        ),
        ({"blocks.0.hook_mlp_out": jmi.Zero(positions=[0, of_cells([1, 2])])}, HookError, "inside a list"),
        ({"blocks.*.hook_mlp_out": jmi.At(of_cells([0, 4]), jmi.Zero())}, HookError, "layers 0 to 3"),
        ({"blocks.0.hook_mlp_out": jmi.Zero(positions=of_cells([0, 40]))}, InterventionError, "out of range"),
        ({"blocks.0.hook_mlp_outt": jmi.Zero(positions=of_cells([0, 1]))}, HookError, "Nearest"),
        ({"hook_logits": jmi.Zero(positions=of_cells([0, 1]))}, HookError, "logits_at"),
        ({"blocks.0.hook_mlp_out": jmi.Zero(positions=of_cells([0.0, 1.0]))}, InterventionError, "integers"),
        ({"blocks.*.hook_mlp_out": jmi.At(of_cells([0.0, 1.0]), jmi.Zero())}, HookError, "indices or a mask"),
        (
            {"blocks.*.hook_mlp_out": jmi.PerLayer(jmi.Zero(positions=of_cells([[0] * 4, [0, -12, 0, 0]])))},
            InterventionError,
            "out of range",
        ),
        (
            {"hook_embed": jmi.Project(of_cells(np.eye(16)[:2] * [[1], [0]]))},
            InterventionError,
            "zero or not finite",
        ),
        ({"hook_embed": Picky(of_cells([1, 13, 2]))}, InterventionError, "13"),
        (
            {
                "blocks.*.hook_mlp_out": jmi.At(
                    of_cells([1, 2, 3]), jmi.PerLayer(jmi.Add(np.ones((2, 16))), slots=[-1, 1, -1, 0])
                )
            },
            HookError,
            r"no row for layers \[2\]",
        ),
    ],
)
def test_a_wrong_cell_is_one_clear_error_before_anything_runs(model, monkeypatch, hooks, error, words):
    lm, tokens = model
    monkeypatch.setattr(sweep_work, "run_base", None)
    with pytest.raises(error, match=words):
        jmi.sweep(lm, tokens, hooks, everything, logits_at=-1)


def test_a_mesh_of_another_shape_is_refused(model):
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with pytest.raises(ArgumentError, match="'cells'"):
        jmi.sweep(*model, hooks_of("add")[0], everything, mesh=mesh)


def test_static_parts_are_hashable_values(model):
    lm, tokens = model
    hooks = [hooks_of("add")[0] for _ in range(2)]
    one, two = (cells_of(lm.arch, h, grid_of(h), tokens.shape).structure for h in hooks)
    assert hash(one) == hash(two)
    assert one == two
    assert one != dataclasses.replace(one, whole=dataclasses.replace(one.whole, classes=()))
