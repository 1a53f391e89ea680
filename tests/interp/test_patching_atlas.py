"""Patching finds in a trained model what moves a name: few heads, and no placebo."""

import functools
from typing import Any

import jax
import numpy as np

import jmi
import jmi_models
from jmi import metrics, stats
from jmi.interp.patching.patch import patch
from jmi.interp.patching.patch_result import PatchResult

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
