"""Patched runs against loops of single runs, and what is put there against numpy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

import jmi
import jmi_models
from jmi import metrics, stats
from jmi.align import Alignment, align_spans, align_tokens, find_span
from jmi.errors import ArgumentError, HookError, InterventionError
from jmi.interp.patching.patch import PatchResult, patch
from jmi.interp.patching.replacements import Drawn
from jmi.sweeps.work import _program
from tests.core.conftest import lively, tiny
from tests.core.test_rewire import Transcoder, weights
from tests.oracles import grid
from tests.support.committed import load
from tests.support.random_rwkv import load as rwkv
from tests.support.tolerances import assert_agree

CORRUPTED = np.random.default_rng(0).integers(0, 29, (2, 5)).astype(np.int32)
CLEAN = np.random.default_rng(1).integers(0, 29, (2, 5)).astype(np.int32)
MEASURES = {"diff": metrics.LogitDiff([3, 5], 7), "rank": metrics.Rank([1, 2])}


@pytest.fixture(autouse=True)
def double() -> Any:
    with jax.enable_x64(True):
        yield


@functools.cache
def small() -> jmi.LanguageModel:
    with jax.enable_x64(True):
        arch = tiny(n_layers=3)
        return jmi.LanguageModel(arch, lively(arch, jnp.float64), name="tiny")


@jmi.tree.dataclass
class Write:
    values: Any
    mask: Any

    def __call__(self, value: jax.Array, site: Any) -> jax.Array:
        return jnp.where(self.mask, self.values, value)


def by_hand(
    lm: jmi.LanguageModel, tokens: Any, point: str, put: Any, layers: Any, **where: Any
) -> np.ndarray:
    """Logits ``[b, vocab]`` of a run in which plain numpy wrote ``put`` at ``where`` of some layers."""
    site = lm.arch.sites()[point]
    axes = {
        "row": "batch",
        "position": "pos" if "pos" in site.axes else "query",
        "head": "head" if "head" in site.axes else "kv_head",
        "unit": site.axes[-1],
    }
    index = [np.arange(n) for n in site.shape(*tokens.shape)]
    for axis, chosen in where.items():
        index[site.axes.index(axes[axis])] = np.atleast_1d(chosen)
    value = np.asarray(lm.run(tokens, capture=[point]).stack(point.removeprefix("blocks.*.")))
    mask = np.zeros(value.shape[1:], bool)
    mask[np.ix_(*index)] = True

    hooks = {point.replace("*", str(i)): Write(put[i], mask) for i in layers}
    return np.asarray(lm.run(tokens, hooks).logits[:, -1])


def diff(logits: np.ndarray) -> np.ndarray:
    return logits[[0, 1], [3, 5]] - logits[:, 7]


def captured(lm: jmi.LanguageModel, tokens: Any, point: str) -> np.ndarray:
    return np.asarray(lm.run(tokens, capture=[point]).captures[point])


# Differences of logits, which are about 1 in size or larger.
same = functools.partial(assert_agree, scale=1.0)


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


def test_noising_denoising_and_recovery() -> None:
    lm = small()
    logits = {
        name: np.asarray(lm.run(t).logits[:, -1]) for name, t in (("base", CORRUPTED), ("source", CLEAN))
    }
    measures = {**MEASURES, "kl": metrics.KL(logits["base"])}
    found = patch(lm, CLEAN, CORRUPTED, "hook_resid_pre", metric=measures, over=("layer",))
    same(found.base["diff"], diff(logits["base"]))
    same(found.source["diff"], diff(logits["source"]))
    same(found.recovery["diff"], np.ones((3, 2)))
    same(found.effect["diff"], np.tile(diff(logits["source"]) - diff(logits["base"]), (3, 1)))
    p, q = softmax(logits["base"], -1), softmax(logits["source"], -1)
    same(found.patched["kl"], np.tile(rel_entr(p, q).sum(-1), (3, 1)))
    back = patch(lm, CLEAN, CORRUPTED, "hook_resid_pre", metric=measures, over=("layer",), into="clean")
    same(back.patched["kl"], np.zeros((3, 2)))
    same(back.base["diff"], diff(logits["source"]))
    same(back.source["diff"], diff(logits["base"]))
    assert (found.into, back.into) == ("corrupted", "clean")
    nothing = patch(lm, CORRUPTED, CORRUPTED, "attn.hook_z", metric=measures)
    same(nothing.effect["diff"], np.zeros((3, 5, 2)))
    assert np.isnan(nothing.recovery["diff"]).all()
    assert found.effect["rank"].dtype == np.float64


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
    with pytest.raises(ArgumentError, match=r"\(before, behind\)"):
        run(window=(1, 2, 3))


def test_ablations_put_what_numpy_says() -> None:
    lm, point = small(), "blocks.*.hook_mlp_out"
    more = np.random.default_rng(2).integers(0, 29, (6, 5)).astype(np.int32)
    own, other = captured(lm, CLEAN, point), captured(lm, more, point)
    run = functools.partial(patch, lm, CLEAN, site="hook_mlp_out", metric=MEASURES)
    mean = np.broadcast_to(other.mean((1, 2), keepdims=True), own.shape)
    for others, using, put in (
        (None, "zero", np.zeros_like(own)),
        (None, "mean", np.broadcast_to(own.mean(1, keepdims=True), own.shape)),
        (more, "mean", np.broadcast_to(other.mean(1, keepdims=True), own.shape)),
        (more, "overall mean", mean),
        (more[:, :3], "overall mean", None),
    ):
        found = run(corrupted=others, using=using, into="clean")
        assert (found.source, found.into) == (None, "clean")
        if put is None:
            short = captured(lm, more[:, :3], point).mean((1, 2), keepdims=True)
            put = np.broadcast_to(short, own.shape)
        for layer, position in ((0, 1), (2, 4)):
            want = diff(by_hand(lm, CLEAN, point, put, [layer], position=position))
            same(found.patched["diff"][layer, position], want)
    with pytest.raises(ArgumentError, match="nothing to recover"):
        _ = found.recovery


def test_resampling_takes_other_rows_at_the_same_position() -> None:
    lm, point = small(), "blocks.*.hook_mlp_out"
    swapped = patch(lm, CLEAN, None, "hook_mlp_out", metric=MEASURES, using="resample", seeds=(4, 5))
    assert list(swapped.axes) == ["seed", "layer", "position"]
    # Of two rows, each can only be given the other.
    put = captured(lm, CLEAN, point)[:, ::-1]
    for seed in range(2):
        want = diff(by_hand(lm, CLEAN, point, put, [1], position=3))
        same(swapped.patched["diff"][seed, 1, 3], want)
    many = np.random.default_rng(2).integers(0, 29, (8, 5)).astype(np.int32)
    options: Any = {"metric": MEASURES, "at": {"layer": 1}, "into": "clean"}
    taken = patch(lm, CLEAN, many, "hook_mlp_out", using="resample", seeds=range(3), **options)
    from_each = [
        patch(lm, CLEAN, np.stack([row, row]), "hook_mlp_out", **options).patched["diff"] for row in many
    ]
    for seed, row in np.ndindex(3, 2):
        distance = [np.abs(taken.patched["diff"][seed, ..., row] - x[..., row]).max() for x in from_each]
        assert min(distance) < 1e-12 < sorted(distance)[1]


def test_placebos_are_as_long_as_the_source_and_come_from_it() -> None:
    lm = small()
    seen: dict[str, np.ndarray] = {}

    def keep(out: jmi.Output) -> jax.Array:
        return out.logits[:, 0]

    at = {"layer": -1, "position": -1}
    run = functools.partial(patch, lm, CLEAN, CORRUPTED, "hook_resid_post", metric=keep, at=at)
    for kind in ("source", "random", "shuffled"):
        seen[kind] = run(using=kind, seeds=range(8)).patched
    assert seen["random"].shape == seen["shuffled"].shape == (8, 1, 1, 2)
    # After the last layer the logit is a function of what was put there alone.
    stream = captured(lm, CLEAN, "blocks.*.hook_resid_post")[-1].reshape(-1, 16)
    last = functools.partial(jmi.forward, lm.arch, lm.params, logits_at=-1)
    possible = [
        float(
            last(CORRUPTED[:1], hooks={"blocks.2.hook_resid_post": jmi.Replace(x, positions=-1)}).logits[0, 0]
        )
        for x in stream
    ]
    distance = np.abs(seen["shuffled"].reshape(-1, 1) - np.array(possible))
    assert distance.min(1).max() < 1e-12
    assert len(set(distance.argmin(1))) > 4
    assert (np.abs(seen["random"].reshape(-1, 1) - np.array(possible)).min(1) > 1e-6).all()


def test_random_vectors_are_drawn_in_every_direction_with_the_length_given() -> None:
    site = small().arch.sites()["blocks.*.attn.hook_z"]
    values = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 50, 4, 6)))
    put, again = (
        np.stack([np.asarray(Drawn(x, seed, kind="random").draw(site, 2)) for x in values]) for seed in (3, 4)
    )
    np.testing.assert_allclose(np.linalg.norm(put, axis=-1), np.linalg.norm(values, axis=-1), rtol=1e-12)
    unit = (put / np.linalg.norm(put, axis=-1, keepdims=True)).reshape(-1, 6)
    # 1200 vectors: the covariance of a random direction is 1/6, to within 5 standard errors (0.0065).
    np.testing.assert_allclose(np.cov(unit.T), np.eye(6) / 6, atol=0.033)
    assert (put != again).all()


def test_padding_changes_nothing_and_is_left_out_of_means() -> None:
    lm = small()
    padded = np.concatenate([np.zeros((2, 3), np.int32), CORRUPTED], axis=1)
    other = np.concatenate([np.zeros((2, 3), np.int32), CLEAN], axis=1)
    mask = np.broadcast_to(np.arange(8) >= 3, (2, 8))
    plain = patch(lm, CLEAN, CORRUPTED, "attn.hook_z", metric=MEASURES)
    found = patch(lm, (other, mask), (padded, mask), "attn.hook_z", metric=MEASURES)
    same(found.patched["diff"], plain.patched["diff"])
    mean = patch(lm, CLEAN, CORRUPTED, "hook_mlp_out", metric=MEASURES, using="overall mean")
    found = patch(lm, (other, mask), CORRUPTED, "hook_mlp_out", metric=MEASURES, using="overall mean")
    same(found.patched["diff"], mean.patched["diff"])
    ragged = mask | (np.arange(2)[:, None] == 1)
    found = patch(lm, (other, ragged), (padded, mask), "hook_mlp_out", metric=MEASURES, using="mean")
    put = captured_mean(lm, other, ragged)
    for position in (0, 4):
        want = by_hand_masked(lm, padded, mask, put, 1, position)
        same(found.patched["diff"][1, position], want)


def captured_mean(lm: Any, tokens: Any, mask: np.ndarray) -> np.ndarray:
    """Mean of the p-th real tokens of rows, ``[l, p, d]``."""
    out = np.asarray(lm.run((tokens, mask), capture=["blocks.*.hook_mlp_out"]).stack("hook_mlp_out"))
    rows = [out[:, i, mask[i]] for i in range(len(mask))]
    return np.stack(
        [np.mean([x[:, p] for x in rows if p < x.shape[1]], 0) for p in range(mask.sum(1).max())], axis=1
    )


def by_hand_masked(lm: Any, tokens: Any, mask: Any, put: np.ndarray, layer: int, position: int) -> np.ndarray:
    hook = jmi.Replace(put[layer, position], positions=position)
    return diff(np.asarray(lm.run((tokens, mask), {f"blocks.{layer}.hook_mlp_out": hook}).logits[:, -1]))


def test_prompts_of_different_lengths_are_patched_where_they_are_aligned() -> None:
    lm = small()
    base = np.array([[1, 2, 3, 9, 4], [1, 2, 5, 9, 4]], np.int32)
    source = np.array([[1, 6, 7, 8, 9, 4], [1, 3, 3, 3, 9, 4]], np.int32)
    pairs = align_tokens(source, base)
    assert (pairs.corrupted.tolist(), pairs.clean.tolist()) == ([0, 3, 4], [0, 4, 5])
    found = patch(lm, source, base, "hook_resid_mid", metric=MEASURES, at={"position": pairs})
    same(found.source["diff"], diff(np.asarray(lm.run(source).logits[:, -1])))
    put = np.zeros((3, 2, 5, 16))
    put[:, :, pairs.corrupted] = captured(lm, source, "blocks.*.hook_resid_mid")[:, :, pairs.clean]
    for layer, i in ((0, 0), (1, 1), (2, 2)):
        want = by_hand(lm, base, "blocks.*.hook_resid_mid", put, [layer], position=pairs.corrupted[i])
        same(found.patched["diff"][layer, i], diff(want))
    back = patch(
        lm,
        base,
        source,
        "hook_resid_mid",
        metric=MEASURES,
        into="clean",
        at={"position": align_tokens(base, source)},
    )
    same(back.patched["diff"], found.patched["diff"])
    per_row = Alignment(np.array([[3, 4], [2, 5]]), np.array([[2, 3], [1, 3]]))
    rows = patch(lm, source, base, "hook_resid_mid", metric=MEASURES, at={"position": per_row})
    for row, i in np.ndindex(2, 2):
        put[:, row, per_row.corrupted[row, i]] = captured(lm, source, "blocks.*.hook_resid_mid")[
            :, row, per_row.clean[row, i]
        ]
        want = by_hand(lm, base, "blocks.*.hook_resid_mid", put, [1], position=per_row.corrupted[row, i])
        same(rows.patched["diff"][1, i, row], diff(want)[row])
    with pytest.raises(ArgumentError, match="say which correspond"):
        patch(lm, source, base, "hook_resid_mid", metric=MEASURES)
    with pytest.raises(ArgumentError, match="the other prompt has 6 positions"):
        patch(
            lm,
            source,
            base,
            "hook_resid_mid",
            metric=MEASURES,
            at={"position": Alignment(pairs.clean + 1, pairs.corrupted)},
        )


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_alignment_is_the_longest_common_beginning_and_end(base: list[int], source: list[int]) -> None:
    base = [*base, 3][:8]
    pairs = align_tokens(base, source)
    a, b = pairs.clean.tolist(), pairs.corrupted.tolist()
    assert [base[i] for i in a] == [source[i] for i in b]
    assert sorted(set(a)) == a
    assert sorted(set(b)) == b
    first = next((n for n in range(len(a) + 1) if n == len(a) or a[n] != n or b[n] != n), 0)
    last = len(a) - first
    assert a == [*range(first), *range(len(base) - last, len(base))]
    assert b == [*range(first), *range(len(source) - last, len(source))]
    inside = min(len(base), len(source)) - last > first
    # Between the two parts neither could be longer by one.
    assert not inside or base[first] != source[first]
    assert not inside or base[-last - 1] != source[-last - 1]


def test_spans_pair_from_the_end_or_the_start() -> None:
    base, source = {"subject": (1, 4), "verb": (6, 7)}, {"subject": (0, 2), "verb": (2, 3)}
    pairs = align_spans(base, source)
    assert (pairs.clean.tolist(), pairs.corrupted.tolist()) == ([2, 3, 6], [0, 1, 2])
    pairs = align_spans(base, source, anchor="first")
    assert (pairs.clean.tolist(), pairs.corrupted.tolist()) == ([1, 2, 6], [0, 1, 2])
    with pytest.raises(ArgumentError, match="same names"):
        align_spans(base, {"subject": (0, 2)})
    with pytest.raises(ArgumentError, match="must hold"):
        align_spans({"subject": (1, 1)}, {"subject": (0, 2)})
    with pytest.raises(ArgumentError, match="overlap"):
        align_spans({"a": (0, 2), "b": (1, 3)}, {"a": (0, 2), "b": (2, 4)})


def test_the_span_of_a_word_covers_its_tokens() -> None:
    lm = jmi_models.load("atlas")
    text = "Yesterday the prime minister of Czechoslovakia left."
    for part in ("prime minister", "Czechoslovakia", "Yesterday", "."):
        start, stop = find_span(lm, text, part)
        assert lm.decode(lm.encode(text)[0, start:stop]).strip() == part
    with pytest.raises(ArgumentError, match="does not occur"):
        find_span(lm, text, "Prague")


def test_metrics_are_the_functions_of_their_names() -> None:
    logits, other = np.random.default_rng(0).normal(size=(2, 3, 29))
    token = np.array([4, 0, 28])
    for metric, function in (
        (metrics.LogitDiff(token, 2), metrics.logit_diff(logits, token, 2)),
        (metrics.Prob(token), metrics.prob(jnp.asarray(logits), token)),
        (metrics.LogProb(7), metrics.log_prob(jnp.asarray(logits), 7)),
        (metrics.Rank(token), metrics.rank(jnp.asarray(logits), token)),
        (metrics.KL(other), metrics.kl_divergence(jnp.asarray(other), jnp.asarray(logits))),
    ):
        np.testing.assert_array_equal(metric(jmi.Output(jnp.asarray(logits), {})), function)
        every = np.stack([other, logits], axis=1)
        np.testing.assert_array_equal(metric(jmi.Output(jnp.asarray(every), {})), function)


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


def test_other_tokens_and_answers_compile_nothing_anew() -> None:
    lm = small()
    patch(lm, CLEAN, CORRUPTED, "hook_attn_out", metric={"diff": metrics.LogitDiff([0, 1], [2, 3])})
    known = _program.cache_info().misses
    patch(lm, CORRUPTED, CLEAN, "hook_attn_out", metric={"diff": metrics.LogitDiff([4, 5], [6, 7])})
    assert _program.cache_info().misses == known


def test_a_metric_may_be_one_or_several_or_return_a_dict() -> None:
    lm = small()
    run = functools.partial(patch, lm, CLEAN, CORRUPTED, "hook_attn_out", over=("layer",))
    several, alone = run(metric=MEASURES), run(metric=MEASURES["diff"])
    same(alone.patched, several.patched["diff"])
    same(alone.effect, several.effect["diff"])
    same(alone.recovery, several.recovery["diff"])

    def both(out: jmi.Output) -> dict[str, jax.Array]:
        return {"last": out.logits[:, 0], "first": out.logits[:, 1]}

    found = run(metric={"logit": both, "diff": MEASURES["diff"]})
    same(found.patched["diff"], alone.patched)
    assert found.patched["logit"]["first"].shape == found.recovery["logit"]["last"].shape == (3, 2)
    assert repr(alone) == "PatchResult(into='corrupted', layer 3, rows 2)"


def test_seeds_are_an_axis_of_one_sweep() -> None:
    lm = small()

    def keep(out: jmi.Output) -> jax.Array:
        return out.logits[:, 0]

    def programs(seeds: Any) -> int:
        before = _program.cache_info().misses
        for using in ("resample", "random", "shuffled"):
            patch(
                lm,
                CLEAN,
                CORRUPTED,
                "hook_mlp_out",
                metric=keep,
                using=using,
                seeds=seeds,
                share=False,
                exact=True,
            )
        return _program.cache_info().misses - before

    assert programs([5]) == programs([0, 1, 2]) == 3
    # Each seed on its own gives what it gives beside others.
    run = functools.partial(
        patch, lm, corrupted=CORRUPTED, site="attn.hook_z", metric=MEASURES, over=("layer", "head")
    )
    many = np.random.default_rng(2).integers(0, 29, (8, 5)).astype(np.int32)
    for using, clean in (("resample", many), ("random", CLEAN), ("shuffled", CLEAN)):
        every = run(clean=clean, using=using, seeds=[3, 8])
        for i, seed in enumerate((3, 8)):
            same(every.patched["diff"][i], run(clean=clean, using=using, seeds=[seed]).patched["diff"][0])
        assert np.abs(every.patched["diff"][0] - every.patched["diff"][1]).max() > 1e-6
        by_position = functools.partial(run, clean=clean, using=using, seeds=[3, 8], over=("position",))
        same(by_position().patched["diff"], by_position(share=False).patched["diff"])


def test_what_does_not_fit_is_refused() -> None:
    lm = small()
    run = functools.partial(patch, lm, CLEAN, CORRUPTED, metric=MEASURES)
    with pytest.raises(ArgumentError, match="over='head': use one of"):
        run("hook_resid_pre", over=("layer", "head"))
    with pytest.raises(ArgumentError, match="must name one or more"):
        run("hook_resid_pre", over=())
    with pytest.raises(ArgumentError, match="it has no layer"):
        run("hook_embed", at={"layer": [0]})
    with pytest.raises(HookError, match="layers 0 to 2"):
        run("hook_resid_pre", at={"layer": [3]})
    with pytest.raises(HookError, match="no point"):
        run("hook_resid_prae")
    with pytest.raises(InterventionError, match="out of range"):
        run("hook_resid_pre", at={"position": [5]})
    with pytest.raises(ArgumentError, match="lies behind"):
        run("hook_final_norm")
    with pytest.raises(ArgumentError, match="one point at a time"):
        run("blocks.*.attn.*")
    with pytest.raises(ArgumentError, match="names its layer"):
        run("blocks.1.hook_resid_pre", at={"layer": [0]})
    with pytest.raises(ArgumentError, match="give a metric, or a dict"):
        run("hook_resid_pre", metric={})
    with pytest.raises(ArgumentError, match="token ids must be"):
        run("hook_resid_pre", metric={"p": metrics.Prob(29)})
    with pytest.raises(ArgumentError, match="one number per row"):
        run("hook_resid_pre", metric={"p": lambda out: out.logits.sum()})
    with pytest.raises(ArgumentError, match="give corrupted=None"):
        run("hook_resid_pre", using="zero")
    with pytest.raises(ArgumentError, match="give corrupted"):
        patch(lm, CORRUPTED, None, "hook_resid_pre", metric=MEASURES)
    with pytest.raises(ArgumentError, match="use one of 'source'"):
        run("hook_resid_pre", using="noise")
    with pytest.raises(ArgumentError, match="two rows"):
        patch(lm, CORRUPTED[:1], None, "hook_resid_pre", metric=metrics.Prob(3), using="resample")
    with pytest.raises(ArgumentError, match=r"token=.* give one id, or \[2\] of them"):
        run("hook_resid_pre", metric=metrics.Prob([1, 2, 3]))
    with pytest.raises(ArgumentError, match="give one for each"):
        patch(lm, np.concatenate([CLEAN] * 2)[:3], CORRUPTED, "hook_resid_pre", metric=MEASURES)
    with pytest.raises(ArgumentError, match="one vector per position"):
        run("attn.hook_pattern", using="random")
    with pytest.raises(ArgumentError, match="use one of 'clean', 'corrupted'"):
        run("hook_resid_pre", into="source")
    with pytest.raises(ArgumentError, match="needs a corrupted prompt"):
        patch(lm, CLEAN, None, "hook_resid_pre", metric=MEASURES, using="mean", into="corrupted")
    with pytest.raises(ArgumentError, match="at='heads': use one of"):
        run("attn.hook_z", at={"heads": 1})
    with pytest.raises(ArgumentError, match=r"positions: no such argument; .*at={'position': -1}"):
        run("attn.hook_z", positions=-1)
    with pytest.raises(ArgumentError, match="give a dict of axes"):
        run("attn.hook_z", at=[1])
    with pytest.raises(ArgumentError, match="give a LanguageModel"):
        patch(lm.arch, CLEAN, CORRUPTED, "hook_resid_pre", metric=MEASURES)


def test_one_source_row_serves_every_row_of_the_base() -> None:
    lm = small()
    one = patch(lm, CLEAN[:1], CORRUPTED, "hook_attn_out", metric=MEASURES)
    both = patch(lm, CLEAN[[0, 0]], CORRUPTED, "hook_attn_out", metric=MEASURES)
    same(one.patched["diff"], both.patched["diff"])
    same(one.source["diff"], both.source["diff"])


PEOPLE = ["Mary", "Tom", "James", "Emma", "John", "Anna", "Peter", "Lucy"], [
    "John", "Anna", "Lucy", "Peter", "Sarah", "David", "Mary", "Tom"
]  # fmt: skip


@functools.cache
def drinks() -> tuple[jmi.LanguageModel, np.ndarray, np.ndarray, metrics.LogitDiff]:
    """Eight prompts, the same with the other person giving, and whose name the answer is."""
    lm = jmi_models.load("atlas")
    text = "When {} and {} went to the store, {} gave a drink to"
    clean, corrupted = (
        np.concatenate([lm.encode(text.format(a, b, (a, b)[giver])) for a, b in zip(*PEOPLE, strict=True)])
        for giver in (1, 0)
    )
    names = (np.array([lm.token_id(name) for name in side]) for side in PEOPLE)
    return lm, clean, corrupted, metrics.LogitDiff(*names)


def share(found: PatchResult) -> np.ndarray:
    """Of the gap between base and source, on average over prompts, ``[*axes]``."""
    return found.effect["diff"].mean(-1) / (found.source["diff"] - found.base["diff"]).mean()


def test_a_few_heads_of_atlas_move_the_name() -> None:
    with jax.enable_x64(False):
        lm, clean, corrupted, diff = drinks()
        run = functools.partial(
            patch,
            lm,
            clean,
            corrupted,
            "attn.hook_z",
            metric={"diff": diff},
            at={"position": -1},
            seeds=range(4),
        )
        found = run(over=("layer", "head"))
        placebo = run(over=("layer", "head"), using="shuffled")
        best = np.unravel_index(share(found).argmax(), share(found).shape)
        told = stats.summary(found.effect["diff"], placebo.effect["diff"])
        # The least that eight prompts can show: all agree.
        assert told.p[best] == told.placebo_p[best] == 2 / 2**8
        assert told.low[best] > told.placebo[best]
        # A placebo takes the wrong name away, which is half of the way, and brings no other.
        for using in ("shuffled", "random"):
            taken_away = share(run(over=("layer", "head"), using=using))[:, *best]
            assert (np.abs(taken_away / share(found)[best] - 0.5) < 0.15).all()

        z = lm.run(clean, capture=["blocks.*.attn.hook_z"]).stack("attn.hook_z")

        def together(heads: np.ndarray) -> float:
            hooks: dict[str, Any] = {}
            for layer, head in heads:
                patched = jmi.Patch(z[layer], positions=-1, heads=int(head))
                hooks.setdefault(f"blocks.{layer}.attn.hook_z", []).append(patched)
            moved = diff(lm.run(corrupted, hooks)) - found.base["diff"]
            return float(moved.mean() / (found.source["diff"] - found.base["diff"]).mean())

        movers = share(found) > 0.05
        assert movers.sum() <= 6
        assert together(np.argwhere(movers)) > 0.85
        assert together(np.argwhere(~movers)) < 0.15


def test_the_stream_carries_the_name_to_the_last_token_and_a_placebo_does_not() -> None:
    with jax.enable_x64(False):
        lm, clean, corrupted, diff = drinks()
        run = functools.partial(
            patch,
            lm,
            clean,
            corrupted,
            "hook_resid_mid",
            metric=metrics.Prob(diff.token),
            at={"position": -1},
        )
        restored = run().patched.mean(-1)[:, 0]
        assert restored[0] < 0.01
        assert restored[-1] > 0.99
        for using in ("shuffled", "random"):
            # On average: now and then a draw is that of the right name.
            assert run(using=using, seeds=range(4)).patched[:, -1].mean() < 0.1
