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
from jmi.errors import ArgumentError, ConfigError, HookError, InterventionError
from jmi.interp.patching.patch import PatchResult, patch
from jmi.interp.patching.replacements import replacement
from jmi.sweeps.work import _program
from tests.core.conftest import lively, tiny
from tests.models.committed import load
from tests.models.test_rwkv import load as rwkv
from tests.oracles import grid
from tests.tolerances import assert_agree

BASE = np.random.default_rng(0).integers(0, 29, (2, 5)).astype(np.int32)
SOURCE = np.random.default_rng(1).integers(0, 29, (2, 5)).astype(np.int32)
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
    units = [0, 3] if "unit" in over else None
    found = patch(lm, tokens, source, site, MEASURES, over=over, units=units)
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
    lm, tokens = rwkv(7), BASE
    put = captured(lm, SOURCE, "blocks.*.rwkv.hook_y")
    found = patch(lm, tokens, SOURCE, "rwkv.hook_y", MEASURES, over=("position", "layer", "head"))
    for position, layer, head in ((0, 1, 0), (3, 0, 1)):
        want = diff(by_hand(lm, tokens, "blocks.*.rwkv.hook_y", put, [layer], position=position, head=head))
        same(found.patched["diff"][position, layer, head], want)


def test_axes_that_are_not_swept_are_taken_together() -> None:
    lm, point = small(), "blocks.*.attn.hook_z"
    found = patch(
        lm,
        BASE,
        SOURCE,
        "attn.hook_z",
        MEASURES,
        over=("layer",),
        positions=[0, -1],
        heads=[1, 3],
        layers=[0, -1],
    )
    put = captured(lm, SOURCE, point)
    assert found.axes["layer"].tolist() == [0, 2]
    for i, layer in enumerate((0, 2)):
        same(
            found.patched["diff"][i],
            diff(by_hand(lm, BASE, point, put, [layer], position=[0, 4], head=[1, 3])),
        )
    together = patch(
        lm, BASE, SOURCE, "attn.hook_z", MEASURES, over=("head",), layers=[0, 2], positions=[0, -1]
    )
    for head in range(4):
        want = by_hand(lm, BASE, point, put, [0, 2], position=[0, 4], head=head)
        same(together.patched["diff"][head], diff(want))
    alone = patch(lm, BASE, SOURCE, "blocks.1.hook_attn_out", MEASURES)
    whole = patch(lm, BASE, SOURCE, "hook_attn_out", MEASURES)
    np.testing.assert_array_equal(alone.axes["layer"], [1])
    same(alone.patched["diff"][0], whole.patched["diff"][1])


def test_positions_may_differ_by_row() -> None:
    lm = small()
    found = patch(lm, BASE, SOURCE, "hook_resid_mid", MEASURES, positions=[[0, 2], [3, 1]])
    every = patch(lm, BASE, SOURCE, "hook_resid_mid", MEASURES)
    assert found.patched["diff"].shape == (3, 2, 2)
    for row, positions in enumerate(([0, 2], [3, 1])):
        same(found.patched["diff"][..., row], every.patched["diff"][:, positions, row])
    together = patch(
        lm, BASE, SOURCE, "hook_resid_mid", MEASURES, over=("layer",), positions=[[0, 2], [3, 1]]
    )
    for row, positions in enumerate(([0, 2], [3, 1])):
        put = captured(lm, SOURCE, "blocks.*.hook_resid_mid")
        want = by_hand(lm, BASE, "blocks.*.hook_resid_mid", put, [1], position=positions)
        same(together.patched["diff"][1, row], diff(want)[row])


def test_a_point_outside_the_blocks_has_no_layers() -> None:
    lm = small()
    found = patch(lm, BASE, SOURCE, "hook_embed", MEASURES)
    assert list(found.axes) == ["position"]
    for i in range(5):
        mixed = BASE.copy()
        mixed[:, i] = SOURCE[:, i]
        same(found.patched["diff"][i], diff(np.asarray(lm.run(mixed).logits[:, -1])))
    assert "layer" not in patch(lm, BASE, SOURCE, "hook_embed", MEASURES, positions=[[1], [2]]).axes


def test_noising_denoising_and_recovery() -> None:
    lm = small()
    logits = {name: np.asarray(lm.run(t).logits[:, -1]) for name, t in (("base", BASE), ("source", SOURCE))}
    measures = {**MEASURES, "kl": metrics.KL(logits["base"])}
    found = patch(lm, BASE, SOURCE, "hook_resid_pre", measures, over=("layer",))
    same(found.base["diff"], diff(logits["base"]))
    same(found.source["diff"], diff(logits["source"]))
    same(found.recovery["diff"], np.ones((3, 2)))
    same(found.effect["diff"], np.tile(diff(logits["source"]) - diff(logits["base"]), (3, 1)))
    p, q = softmax(logits["base"], -1), softmax(logits["source"], -1)
    same(found.patched["kl"], np.tile(rel_entr(p, q).sum(-1), (3, 1)))
    back = patch(lm, SOURCE, BASE, "hook_resid_pre", measures, over=("layer",))
    same(back.patched["kl"], np.zeros((3, 2)))
    nothing = patch(lm, BASE, BASE, "attn.hook_z", measures)
    same(nothing.effect["diff"], np.zeros((3, 5, 2)))
    assert np.isnan(nothing.recovery["diff"]).all()
    assert found.effect["rank"].dtype == np.float64


def test_windows_are_cut_off_at_the_borders() -> None:
    lm, point = small(), "blocks.*.hook_mlp_out"
    put = captured(lm, SOURCE, point)
    run = functools.partial(patch, lm, BASE, SOURCE, "hook_mlp_out", MEASURES, over=("layer",), positions=-1)
    for window, centred, wanted in (
        (2, False, [[0, 1], [1, 2], [2]]),
        (3, True, [[0, 1], [0, 1, 2], [1, 2]]),
        (2, True, [[0], [0, 1], [1, 2]]),
        (10, True, [[0, 1, 2]] * 3),
    ):
        found = run(window=window, centred=centred)
        for i, layers in enumerate(wanted):
            same(found.patched["diff"][i], diff(by_hand(lm, BASE, point, put, layers, position=-1)))
    with pytest.raises(ArgumentError, match="window"):
        run(window=0)


def test_ablations_put_what_numpy_says() -> None:
    lm, point = small(), "blocks.*.hook_mlp_out"
    more = np.random.default_rng(2).integers(0, 29, (6, 5)).astype(np.int32)
    own, other = captured(lm, BASE, point), captured(lm, more, point)
    run = functools.partial(patch, lm, BASE, site="hook_mlp_out", metrics=MEASURES)
    mean = np.broadcast_to(other.mean((1, 2), keepdims=True), own.shape)
    for source, using, put in (
        (None, "zero", np.zeros_like(own)),
        (None, "mean", np.broadcast_to(own.mean(1, keepdims=True), own.shape)),
        (more, "mean", np.broadcast_to(other.mean(1, keepdims=True), own.shape)),
        (more, "overall mean", mean),
        (more[:, :3], "overall mean", None),
    ):
        found = run(source=source, using=using)
        assert found.source is None
        if put is None:
            short = captured(lm, more[:, :3], point).mean((1, 2), keepdims=True)
            put = np.broadcast_to(short, own.shape)
        for layer, position in ((0, 1), (2, 4)):
            want = diff(by_hand(lm, BASE, point, put, [layer], position=position))
            same(found.patched["diff"][layer, position], want)
    with pytest.raises(ConfigError, match="nothing to recover"):
        _ = found.recovery


def test_resampling_takes_other_rows_at_the_same_position() -> None:
    lm, point = small(), "blocks.*.hook_mlp_out"
    swapped = run = patch(lm, BASE, None, "hook_mlp_out", MEASURES, using="resample", seeds=(4, 5))
    assert list(run.axes) == ["seed", "layer", "position"]
    # Of two rows, each can only be given the other.
    put = captured(lm, BASE, point)[:, ::-1]
    for seed in range(2):
        want = diff(by_hand(lm, BASE, point, put, [1], position=3))
        same(swapped.patched["diff"][seed, 1, 3], want)
    many = np.random.default_rng(2).integers(0, 29, (8, 5)).astype(np.int32)
    taken = patch(lm, BASE, many, "hook_mlp_out", MEASURES, using="resample", seeds=range(3), layers=1)
    from_each = [
        patch(lm, BASE, np.stack([row, row]), "hook_mlp_out", MEASURES, layers=1).patched["diff"]
        for row in many
    ]
    for seed, row in np.ndindex(3, 2):
        distance = [np.abs(taken.patched["diff"][seed, ..., row] - x[..., row]).max() for x in from_each]
        assert min(distance) < 1e-12 < sorted(distance)[1]


def test_placebos_are_as_long_as_the_source_and_come_from_it() -> None:
    lm = small()
    seen: dict[str, np.ndarray] = {}

    def keep(out: jmi.Output) -> jax.Array:
        return out.logits[:, 0]

    measures = {"keep": keep}
    run = functools.partial(patch, lm, BASE, SOURCE, "hook_resid_post", measures, layers=-1, positions=-1)
    for kind in ("source", "random", "shuffled"):
        seen[kind] = run(using=kind, seeds=range(8)).patched["keep"]
    assert seen["random"].shape == seen["shuffled"].shape == (8, 1, 1, 2)
    # After the last layer the logit is a function of what was put there alone.
    stream = captured(lm, SOURCE, "blocks.*.hook_resid_post")[-1].reshape(-1, 16)
    last = functools.partial(jmi.forward, lm.arch, lm.params, logits_at=-1)
    possible = [
        float(last(BASE[:1], hooks={"blocks.2.hook_resid_post": jmi.Replace(x, positions=-1)}).logits[0, 0])
        for x in stream
    ]
    distance = np.abs(seen["shuffled"].reshape(-1, 1) - np.array(possible))
    assert distance.min(1).max() < 1e-12
    assert len(set(distance.argmin(1))) > 4
    assert (np.abs(seen["random"].reshape(-1, 1) - np.array(possible)).min(1) > 1e-6).all()


def test_random_vectors_are_drawn_in_every_direction_with_the_length_given() -> None:
    site = small().arch.sites()["blocks.*.attn.hook_z"]
    values = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 50, 4, 6)))
    put = np.asarray(replacement("random", values, site, 2, False, None, 3))
    np.testing.assert_allclose(np.linalg.norm(put, axis=-1), np.linalg.norm(values, axis=-1), rtol=1e-12)
    unit = (put / np.linalg.norm(put, axis=-1, keepdims=True)).reshape(-1, 6)
    # 1200 vectors: the covariance of a random direction is 1/6, to within 5 standard errors (0.0065).
    np.testing.assert_allclose(np.cov(unit.T), np.eye(6) / 6, atol=0.033)
    assert (put != np.asarray(replacement("random", values, site, 2, False, None, 4))).all()


def test_padding_changes_nothing_and_is_left_out_of_means() -> None:
    lm = small()
    padded = np.concatenate([np.zeros((2, 3), np.int32), BASE], axis=1)
    other = np.concatenate([np.zeros((2, 3), np.int32), SOURCE], axis=1)
    mask = np.broadcast_to(np.arange(8) >= 3, (2, 8))
    plain = patch(lm, BASE, SOURCE, "attn.hook_z", MEASURES)
    found = patch(lm, padded, other, "attn.hook_z", MEASURES, mask=mask, source_mask=mask)
    same(found.patched["diff"], plain.patched["diff"])
    mean = patch(lm, BASE, SOURCE, "hook_mlp_out", MEASURES, using="overall mean")
    found = patch(lm, BASE, other, "hook_mlp_out", MEASURES, using="overall mean", source_mask=mask)
    same(found.patched["diff"], mean.patched["diff"])
    ragged = mask | (np.arange(2)[:, None] == 1)
    found = patch(lm, padded, other, "hook_mlp_out", MEASURES, using="mean", mask=mask, source_mask=ragged)
    put = captured_mean(lm, other, ragged)
    for position in (0, 4):
        want = by_hand_masked(lm, padded, mask, put, 1, position)
        same(found.patched["diff"][1, position], want)


def captured_mean(lm: Any, tokens: Any, mask: np.ndarray) -> np.ndarray:
    """Mean of the p-th real tokens of rows, ``[l, p, d]``."""
    out = np.asarray(lm.run(tokens, capture=["blocks.*.hook_mlp_out"], mask=mask).stack("hook_mlp_out"))
    rows = [out[:, i, mask[i]] for i in range(len(mask))]
    return np.stack(
        [np.mean([x[:, p] for x in rows if p < x.shape[1]], 0) for p in range(mask.sum(1).max())], axis=1
    )


def by_hand_masked(lm: Any, tokens: Any, mask: Any, put: np.ndarray, layer: int, position: int) -> np.ndarray:
    hook = jmi.Replace(put[layer, position], positions=position)
    return diff(np.asarray(lm.run(tokens, {f"blocks.{layer}.hook_mlp_out": hook}, mask=mask).logits[:, -1]))


def test_prompts_of_different_lengths_are_patched_where_they_are_aligned() -> None:
    lm = small()
    base = np.array([[1, 2, 3, 9, 4], [1, 2, 5, 9, 4]], np.int32)
    source = np.array([[1, 6, 7, 8, 9, 4], [1, 3, 3, 3, 9, 4]], np.int32)
    pairs = align_tokens(base, source)
    assert (pairs.base.tolist(), pairs.source.tolist()) == ([0, 3, 4], [0, 4, 5])
    found = patch(lm, base, source, "hook_resid_mid", MEASURES, positions=pairs)
    same(found.source["diff"], diff(np.asarray(lm.run(source).logits[:, -1])))
    put = np.zeros((3, 2, 5, 16))
    put[:, :, pairs.base] = captured(lm, source, "blocks.*.hook_resid_mid")[:, :, pairs.source]
    for layer, i in ((0, 0), (1, 1), (2, 2)):
        want = by_hand(lm, base, "blocks.*.hook_resid_mid", put, [layer], position=pairs.base[i])
        same(found.patched["diff"][layer, i], diff(want))
    per_row = Alignment(np.array([[2, 3], [1, 3]]), np.array([[3, 4], [2, 5]]))
    rows = patch(lm, base, source, "hook_resid_mid", MEASURES, positions=per_row)
    for row, i in np.ndindex(2, 2):
        put[:, row, per_row.base[row, i]] = captured(lm, source, "blocks.*.hook_resid_mid")[
            :, row, per_row.source[row, i]
        ]
        want = by_hand(lm, base, "blocks.*.hook_resid_mid", put, [1], position=per_row.base[row, i])
        same(rows.patched["diff"][1, i, row], diff(want)[row])
    with pytest.raises(ConfigError, match="say which correspond"):
        patch(lm, base, source, "hook_resid_mid", MEASURES)
    with pytest.raises(ConfigError, match="source has 6 positions"):
        patch(lm, base, source, "hook_resid_mid", MEASURES, positions=Alignment(pairs.base, pairs.source + 1))


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_alignment_is_the_longest_common_beginning_and_end(base: list[int], source: list[int]) -> None:
    base = [*base, 3][:8]
    pairs = align_tokens(base, source)
    a, b = pairs.base.tolist(), pairs.source.tolist()
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
    assert (pairs.base.tolist(), pairs.source.tolist()) == ([2, 3, 6], [0, 1, 2])
    pairs = align_spans(base, source, anchor="first")
    assert (pairs.base.tolist(), pairs.source.tolist()) == ([1, 2, 6], [0, 1, 2])
    with pytest.raises(ConfigError, match="same names"):
        align_spans(base, {"subject": (0, 2)})
    with pytest.raises(ConfigError, match="must hold"):
        align_spans({"subject": (1, 1)}, {"subject": (0, 2)})
    with pytest.raises(ConfigError, match="overlap"):
        align_spans({"a": (0, 2), "b": (1, 3)}, {"a": (0, 2), "b": (2, 4)})


def test_the_span_of_a_word_covers_its_tokens() -> None:
    lm = jmi_models.load("atlas")
    text = "Yesterday the prime minister of Czechoslovakia left."
    for part in ("prime minister", "Czechoslovakia", "Yesterday", "."):
        start, stop = find_span(lm, text, part)
        assert lm.decode(lm.encode(text)[0, start:stop]).strip() == part
    with pytest.raises(ConfigError, match="does not occur"):
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
    found = patch(lm, BASE, SOURCE, "hook_resid_mid", MEASURES, hooks=hooks)
    same(found.base["diff"], diff(np.asarray(lm.run(BASE, hooks).logits[:, -1])))
    put = captured(lm, SOURCE, "blocks.*.hook_resid_mid")
    for layer, position in ((0, 2), (2, 4)):
        both = {
            **hooks,
            f"blocks.{layer}.hook_resid_mid": jmi.Patch(put[layer], positions=position),
        }
        want = diff(np.asarray(lm.run(BASE, both).logits[:, -1]))
        same(found.patched["diff"][layer, position], want)


def test_other_tokens_and_answers_compile_nothing_anew() -> None:
    lm = small()
    patch(lm, BASE, SOURCE, "hook_attn_out", {"diff": metrics.LogitDiff([0, 1], [2, 3])})
    known = _program.cache_info().misses
    patch(lm, SOURCE, BASE, "hook_attn_out", {"diff": metrics.LogitDiff([4, 5], [6, 7])})
    assert _program.cache_info().misses == known


def test_what_does_not_fit_is_refused() -> None:
    lm = small()
    run = functools.partial(patch, lm, BASE, SOURCE)
    with pytest.raises(ArgumentError, match="over='head': use one of"):
        run("hook_resid_pre", MEASURES, over=("layer", "head"))
    with pytest.raises(ConfigError, match="must name one or more"):
        run("hook_resid_pre", MEASURES, over=())
    with pytest.raises(ConfigError, match="it has no layer"):
        run("hook_embed", MEASURES, layers=[0])
    with pytest.raises(HookError, match="layers 0 to 2"):
        run("hook_resid_pre", MEASURES, layers=[3])
    with pytest.raises(HookError, match="no point"):
        run("hook_resid_prae", MEASURES)
    with pytest.raises(InterventionError, match="out of range"):
        run("hook_resid_pre", MEASURES, positions=[5])
    with pytest.raises(ConfigError, match="lies behind"):
        run("hook_final_norm", MEASURES)
    with pytest.raises(ConfigError, match="one point at a time"):
        run("blocks.*.attn.*", MEASURES)
    with pytest.raises(ConfigError, match="names its layer"):
        run("blocks.1.hook_resid_pre", MEASURES, layers=[0])
    with pytest.raises(ArgumentError, match="give a dict of metrics"):
        run("hook_resid_pre", {})
    with pytest.raises(ConfigError, match="token ids must be"):
        run("hook_resid_pre", {"p": metrics.Prob(29)})
    with pytest.raises(ConfigError, match="one number per row"):
        run("hook_resid_pre", {"p": lambda out: out.logits.sum()})
    with pytest.raises(ConfigError, match="drop the source"):
        run("hook_resid_pre", MEASURES, using="zero")
    with pytest.raises(ConfigError, match="give a source"):
        patch(lm, BASE, None, "hook_resid_pre", MEASURES)
    with pytest.raises(ArgumentError, match="use one of 'source'"):
        run("hook_resid_pre", MEASURES, using="noise")
    with pytest.raises(ConfigError, match="two rows"):
        patch(lm, BASE[:1], None, "hook_resid_pre", MEASURES, using="resample")
    with pytest.raises(ConfigError, match="give one for each"):
        patch(lm, BASE, np.concatenate([SOURCE] * 2)[:3], "hook_resid_pre", MEASURES)
    with pytest.raises(ConfigError, match="one vector per position"):
        run("attn.hook_pattern", MEASURES, using="random")


def test_one_source_row_serves_every_row_of_the_base() -> None:
    lm = small()
    one = patch(lm, BASE, SOURCE[:1], "hook_attn_out", MEASURES)
    both = patch(lm, BASE, SOURCE[[0, 0]], "hook_attn_out", MEASURES)
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
            patch, lm, corrupted, clean, "attn.hook_z", {"diff": diff}, positions=-1, seeds=range(4)
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
            patch, lm, corrupted, clean, "hook_resid_mid", {"p": metrics.Prob(diff.token)}, positions=-1
        )
        restored = run().patched["p"].mean(-1)[:, 0]
        assert restored[0] < 0.01
        assert restored[-1] > 0.99
        for using in ("shuffled", "random"):
            assert run(using=using, seeds=range(4)).patched["p"].mean(-1)[:, -1].max() < 0.1
