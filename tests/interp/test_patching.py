"""Patched runs against loops of single runs, in which plain numpy writes what is patched."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

import jmi
from jmi.errors import ArgumentError, HookError
from jmi.interp.patching.patch import patch
from tests.core.test_rewire import Transcoder, weights
from tests.interp.by_hand import CLEAN, CORRUPTED, MEASURES, by_hand, captured, diff, same, small
from tests.oracles import grid
from tests.support.committed import load
from tests.support.random_rwkv import load as rwkv


@pytest.fixture(autouse=True)
def double() -> Any:
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("name", "site", "over"),
    [
        ("gpt2/plain", "hook_resid_pre", ("layer", "position")),
        ("gemma2/capped", "attn.hook_z", ("layer", "head")),
        ("gemma2/capped", "attn.hook_k", ("layer", "head")),
        ("falcon/new_decoder", "attn.hook_pattern", ("head", "position", "layer")),
        ("gptj/plain", "mlp.hook_post", ("layer", "unit")),
    ],
)
def test_every_cell_equals_a_run_written_by_hand(name: str, site: str, over: tuple[str, ...]) -> None:
    lm, tokens = load(name, "float64"), grid.committed(name).tokens
    source, point = np.roll(tokens, 1, axis=1), f"blocks.*.{site}"
    units = {"unit": [0, 3]} if "unit" in over else None
    found = patch(lm, source, tokens, site, metric=MEASURES, over=over, at=units)
    assert tuple(found.axes) == over
    put = captured(lm, source, point)
    rng = np.random.default_rng(0)
    for _ in range(4):
        cell = [int(rng.integers(len(values))) for values in found.axes.values()]
        at = {axis: int(found.axes[axis][i]) for axis, i in zip(over, cell, strict=True)}
        logits = by_hand(lm, tokens, point, put, [at.pop("layer")], **at)
        same(found.patched["diff"][tuple(cell)], diff(logits))
        ranks = (logits > logits[[0, 1], [1, 2]][:, None]).sum(-1)
        np.testing.assert_array_equal(found.patched["rank"][tuple(cell)], ranks)


def test_recurrent_models_are_patched_alike() -> None:
    lm, tokens = rwkv(7), CORRUPTED
    put = captured(lm, CLEAN, "blocks.*.rwkv.hook_y")
    found = patch(lm, CLEAN, tokens, "rwkv.hook_y", metric=MEASURES, over=("position", "layer", "head"))
    for position, layer, head in ((0, 1, 0), (3, 0, 1)):
        want = diff(by_hand(lm, tokens, "blocks.*.rwkv.hook_y", put, [layer], position=position, head=head))
        same(found.patched["diff"][position, layer, head], want)


def test_axes_that_are_not_swept_are_taken_together() -> None:
    lm, point = small(), "blocks.*.attn.hook_z"
    found = patch(
        lm,
        CLEAN,
        CORRUPTED,
        "attn.hook_z",
        metric=MEASURES,
        over=("layer",),
        at={"position": [0, -1], "head": [1, 3], "layer": [0, -1]},
    )
    put = captured(lm, CLEAN, point)
    assert found.axes["layer"].tolist() == [0, 2]
    for i, layer in enumerate((0, 2)):
        same(
            found.patched["diff"][i],
            diff(by_hand(lm, CORRUPTED, point, put, [layer], position=[0, 4], head=[1, 3])),
        )
    together = patch(
        lm,
        CLEAN,
        CORRUPTED,
        "attn.hook_z",
        metric=MEASURES,
        over=("head",),
        at={"layer": [0, 2], "position": [0, -1]},
    )
    for head in range(4):
        want = by_hand(lm, CORRUPTED, point, put, [0, 2], position=[0, 4], head=head)
        same(together.patched["diff"][head], diff(want))
    alone = patch(lm, CLEAN, CORRUPTED, "blocks.1.hook_attn_out", metric=MEASURES)
    whole = patch(lm, CLEAN, CORRUPTED, "hook_attn_out", metric=MEASURES)
    np.testing.assert_array_equal(alone.axes["layer"], [1])
    same(alone.patched["diff"][0], whole.patched["diff"][1])


def test_positions_may_differ_by_row() -> None:
    lm = small()
    found = patch(lm, CLEAN, CORRUPTED, "hook_resid_mid", metric=MEASURES, at={"position": [[0, 2], [3, 1]]})
    every = patch(lm, CLEAN, CORRUPTED, "hook_resid_mid", metric=MEASURES)
    assert found.patched["diff"].shape == (3, 2, 2)
    for row, positions in enumerate(([0, 2], [3, 1])):
        same(found.patched["diff"][..., row], every.patched["diff"][:, positions, row])
    together = patch(
        lm,
        CLEAN,
        CORRUPTED,
        "hook_resid_mid",
        metric=MEASURES,
        over=("layer",),
        at={"position": [[0, 2], [3, 1]]},
    )
    for row, positions in enumerate(([0, 2], [3, 1])):
        put = captured(lm, CLEAN, "blocks.*.hook_resid_mid")
        want = by_hand(lm, CORRUPTED, "blocks.*.hook_resid_mid", put, [1], position=positions)
        same(together.patched["diff"][1, row], diff(want)[row])


def test_a_point_outside_the_blocks_has_no_layers() -> None:
    lm = small()
    found = patch(lm, CLEAN, CORRUPTED, "hook_embed", metric=MEASURES)
    assert list(found.axes) == ["position"]
    for i in range(5):
        mixed = CORRUPTED.copy()
        mixed[:, i] = CLEAN[:, i]
        same(found.patched["diff"][i], diff(np.asarray(lm.run(mixed).logits[:, -1])))
    assert (
        "layer"
        not in patch(lm, CLEAN, CORRUPTED, "hook_embed", metric=MEASURES, at={"position": [[1], [2]]}).axes
    )


def test_a_point_that_some_layers_have_is_patched_in_these() -> None:
    host, site = small(), "blocks.*.mlp.hook_features"
    module, ends = Transcoder(weights(2)), ("blocks.{}.mlp.hook_in", "blocks.{}.mlp.hook_out")
    lm = jmi.rewire(host, {tuple(end.format(i) for end in ends): module for i in (0, 2)})
    put = captured(lm, CLEAN, site)
    run = functools.partial(patch, lm, CLEAN, CORRUPTED, "mlp.hook_features", metric=MEASURES["diff"])

    def by_hooks(values: np.ndarray, rows: Any, **where: Any) -> np.ndarray:
        hooks = {f"blocks.{2 * row}.mlp.hook_features": jmi.Patch(values[row], **where) for row in rows}
        return diff(np.asarray(lm.run(CORRUPTED, hooks).logits[:, -1]))

    found = run(over=("layer", "unit"), at={"unit": [1, 4]})
    assert found.axes["layer"].tolist() == [0, 2]
    for row, (i, unit) in ((0, (0, 1)), (1, (1, 4))):
        same(found.patched[row, i], by_hooks(put, [row], units=unit))
    together = run(over=("position",), at={"layer": [2, 0]}, window=3)
    same(together.patched[3], by_hooks(put, [0, 1], positions=3))
    window = run(over=("layer",), window=3)
    same(window.patched[0], by_hooks(put, [0, 1]))
    same(window.patched[1], by_hooks(put, [1]))
    mean = np.broadcast_to(put.mean((1, 2), keepdims=True), put.shape)
    same(run(over=("layer",), using="overall mean").patched[1], by_hooks(mean, [1]))
    assert run(over=("layer",), using="random", seeds=[1, 2]).patched.shape == (2, 2, 2)
    with pytest.raises(HookError, match=r"is in layers \[0, 2\] alone"):
        run(at={"layer": [1]})


def test_windows_are_cut_off_at_the_borders() -> None:
    lm, point = small(), "blocks.*.hook_mlp_out"
    put = captured(lm, CLEAN, point)
    run = functools.partial(
        patch, lm, CLEAN, CORRUPTED, "hook_mlp_out", metric=MEASURES, over=("layer",), at={"position": -1}
    )
    for window, wanted in (
        (2, [[0, 1], [1, 2], [2]]),
        ((1, 1), [[0, 1], [0, 1, 2], [1, 2]]),
        ((1, 0), [[0], [0, 1], [1, 2]]),
        ((5, 4), [[0, 1, 2]] * 3),
    ):
        found = run(window=window)
        for i, layers in enumerate(wanted):
            same(found.patched["diff"][i], diff(by_hand(lm, CORRUPTED, point, put, layers, position=-1)))
    with pytest.raises(ArgumentError, match="window"):
        run(window=0)
    with pytest.raises(ArgumentError, match=r"\(before, after\)"):
        run(window=(1, 2, 3))


def test_hooks_of_the_base_are_in_every_cell() -> None:
    lm = small()
    hooks = {"blocks.0.hook_mlp_out": jmi.Scale(0.3)}
    found = patch(lm, CLEAN, CORRUPTED, "hook_resid_mid", metric=MEASURES, hooks=hooks)
    same(found.base["diff"], diff(np.asarray(lm.run(CORRUPTED, hooks).logits[:, -1])))
    put = captured(lm, CLEAN, "blocks.*.hook_resid_mid")
    for layer, position in ((0, 2), (2, 4)):
        both = {
            **hooks,
            f"blocks.{layer}.hook_resid_mid": jmi.Patch(put[layer], positions=position),
        }
        want = diff(np.asarray(lm.run(CORRUPTED, both).logits[:, -1]))
        same(found.patched["diff"][layer, position], want)


def test_one_source_row_serves_every_row_of_the_base() -> None:
    lm = small()
    one = patch(lm, CLEAN[:1], CORRUPTED, "hook_attn_out", metric=MEASURES)
    both = patch(lm, CLEAN[[0, 0]], CORRUPTED, "hook_attn_out", metric=MEASURES)
    same(one.patched["diff"], both.patched["diff"])
    same(one.source["diff"], both.source["diff"])
