"""Sweeps: whatever cells share, and wherever they start, the results are those of a loop over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.sweeps.cells import cells_of, grid_of
from jmi.sweeps.chunks import groups_of
from jmi_models.rwkv.architecture import Rwkv
from tests.core.conftest import lively
from tests.core.sweeps.cells import (
    CAPTURES,
    FEW,
    LENGTH,
    SOURCE,
    SWEPT,
    assert_cells_differ,
    columns,
    everything,
    hooks_of,
    loop,
    of_cells,
)
from tests.oracles import grid as configs
from tests.support import committed
from tests.support.committed import each
from tests.support.tolerances import assert_agree as assert_equal
from tests.support.trees import listed

pytestmark = pytest.mark.usefixtures("small_chunks_count")


@pytest.mark.parametrize("kind", SWEPT)
def test_what_cells_share_changes_nothing(model, kind):
    lm, tokens = model
    swept, cells = hooks_of(kind)
    want = loop(lm, tokens, cells, capture=CAPTURES)
    assert_cells_differ(want["logits"])
    assert_equal(jmi.sweep(*model, swept, everything, capture=CAPTURES), want)
    assert_equal(jmi.sweep(*model, swept, everything, capture=CAPTURES, share=False), want)
    # Where logits are of one position, what else is kept decides what the last layer computes.
    picked = np.stack([want["logits"][:, 0, -1], want["logits"][:, 1, 6]], 1)
    few = FEW[list(SWEPT).index(kind) % len(FEW)]
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
        at = [-1, 5][: len(tokens)]
        last = jmi.sweep(lm, tokens, swept, lambda out: out.logits, logits_at=at)
        assert_equal(last, want["logits"][:, np.arange(len(tokens)), at])


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
    after = ["ln_final.hook_normalized", "hook_final_norm", "unembed.hook_in", "unembed.hook_out"]
    for site in ("hook_embed", *after, "hook_logits"):
        factors, positions = columns([0.5, 2.0, 3.0], [1, 2, -1])
        swept = {site: jmi.Scale(factors, positions=positions)}
        cells = [{site: jmi.Scale(f, positions=p)} for f, p in ((0.5, 1), (2.0, 2), (3.0, -1))]
        capture = ["blocks.*.hook_resid_post", "hook_embed", *after]
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


def test_padded_prompts(model):
    lm, tokens = model
    mask = np.ones((2, LENGTH), bool)
    mask[1, :3] = False
    swept, cells = hooks_of("add")
    read = lambda out: out.logits[:, -1]
    want = loop(lm, (tokens, mask), cells, read)
    assert_equal(jmi.sweep(lm, (tokens, mask), swept, read), want)


def test_listed_layers(model):
    lm, tokens = model
    in_list = jmi.LanguageModel(lm.arch, listed(lm.params))
    swept, cells = hooks_of("patch")
    want = loop(lm, tokens, cells)
    assert_equal(jmi.sweep(in_list, tokens, swept, everything), want)
