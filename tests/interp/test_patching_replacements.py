"""What patching puts in place: zeros, means, other rows and drawn vectors, against numpy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.errors import ArgumentError
from jmi.interp.patching.patch import patch
from jmi.interp.patching.replacements import Drawn
from jmi.sweeps.work import _program
from tests.interp.by_hand import CLEAN, CORRUPTED, MEASURES, by_hand, captured, diff, same, small


@pytest.fixture(autouse=True)
def double() -> Any:
    with jax.enable_x64(True):
        yield


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


def test_seeds_are_an_axis_of_one_sweep() -> None:
    """Each on its own gives what it gives beside others, in one program whatever their number."""
    run = functools.partial(
        patch, small(), corrupted=CORRUPTED, site="attn.hook_z", metric=MEASURES, over=("layer", "head")
    )
    many = np.random.default_rng(2).integers(0, 29, (8, 5)).astype(np.int32)
    for using, clean in (("resample", many), ("random", CLEAN), ("shuffled", CLEAN)):
        before = _program.cache_info().misses
        every = run(clean=clean, using=using, seeds=[3, 8], share=False, exact=True)
        assert _program.cache_info().misses == before + 1
        for i, seed in enumerate((3, 8)):
            same(every.patched["diff"][i], run(clean=clean, using=using, seeds=[seed]).patched["diff"][0])
        assert np.abs(every.patched["diff"][0] - every.patched["diff"][1]).max() > 1e-6
        by_position = functools.partial(run, clean=clean, using=using, seeds=[3, 8], over=("position",))
        same(by_position().patched["diff"], by_position(share=False).patched["diff"])
