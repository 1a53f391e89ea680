"""Techniques on padded prompts: what each row gives alone, whichever side the padding is on."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

import jmi
import jmi_models
from jmi import metrics
from jmi.errors import ArgumentError
from jmi.hooks.noise import Noise
from jmi.interp.attribution.atp_star import atp_star
from jmi.interp.attribution.attribution_patching import attribution_patching
from jmi.interp.decompose.decomposition import accumulated_resid, decompose
from jmi.interp.decompose.direct_logit import direct_logit_attribution
from jmi.interp.edges.eap import eap
from jmi.interp.edges.faithfulness import faithfulness
from jmi.interp.patching.causal_tracing import causal_trace
from jmi.interp.patching.patch import patch
from jmi.interp.patching.path_patching import path_patch
from tests.support.committed import each
from tests.support.padded import (
    CLEAN,
    GOALS,
    LENGTHS,
    OFFSETS,
    SOURCE,
    alike,
    batch,
    close,
    last,
    model,
    of_row,
    real,
)


@each(("gpt2/plain", "qwen3/tied", "mistral/window"))
def test_decomposition(name: str) -> None:
    for spot in (1, -1, [0, -2], [[1, 2], [4, 5]]):

        def experiment(lm: Any, rows: Any, tokens: Any, mask: Any, spot: Any = spot) -> Any:
            prompts, run = (
                jmi.Prompts(tokens, mask),
                {"positions": of_row(rows[0], spot) if len(rows) == 1 else spot},
            )
            streams = accumulated_resid(lm, prompts, **run)
            parts = decompose(lm, prompts, by="head", **run).stack()
            given = direct_logit_attribution(lm, prompts, 3, 4, by="head", **run).stack()
            return [np.moveaxis(np.asarray(x), 1, 0) for x in (streams, parts, given)]

        alike(name, experiment)


def pair(tokens: Any, rows: Any) -> Any:
    """The other prompt, padded like ``tokens``."""
    if len(rows) == 1:
        return SOURCE[rows, : tokens.shape[1]]
    side = next(s for s in OFFSETS if (batch(s)[0] == tokens).all())
    return batch(side, SOURCE)[0]


def patched(result: Any) -> list[np.ndarray]:
    """What a result holds, rows first."""
    return [
        np.moveaxis(np.asarray(x), -1, 0) for part in (result.patched, result.base) for x in part.values()
    ]


@pytest.mark.parametrize(
    ("name", "using"),
    [
        ("gpt2/plain", "source"),
        ("gpt2/plain", "overall mean"),
        ("mistral/window", "source"),
        ("mistral/window", "zero"),
        ("rwkv7", "source"),
        ("rwkv7", "overall mean"),
    ],
)
def test_patching(name: str, using: str) -> None:
    site = "hook_mlp_out"
    for spot in ([0, 3, -1], [[0, 3], [5, 1]]):

        def experiment(lm: Any, rows: Any, tokens: Any, mask: Any, spot: Any = spot) -> Any:
            spot = of_row(rows[0], spot) if len(rows) == 1 else spot
            other = None if using == "zero" else pair(tokens, rows)
            options = {"metric": GOALS, "using": using, "at": {"position": spot}, "into": "clean"}
            if using == "overall mean":  # the same for every row
                other = jmi.Prompts(CLEAN)
            elif other is not None:
                other = jmi.Prompts(other, mask)
            return patched(patch(lm, jmi.Prompts(tokens, mask), other, site, progress=False, **options))

        alike(name, experiment)


@each(("gpt2/plain", "rwkv7"))
def test_patching_visits_every_token_that_a_row_has(name: str) -> None:
    def experiment(lm: Any, rows: Any, tokens: Any, mask: Any) -> Any:
        prompts = (jmi.Prompts(x, mask) for x in (pair(tokens, rows), tokens))
        found = patch(lm, *prompts, "hook_resid_pre", metric=GOALS, progress=False)
        effect = np.moveaxis(found.effect["diff"], -1, 0)
        whole = np.full((*effect.shape[:-1], 6), np.nan)
        whole[..., : effect.shape[-1]] = effect
        return whole

    alike(name, experiment)


@each(("gpt2/plain", "rwkv7"))
@pytest.mark.parametrize("theirs", OFFSETS)
def test_what_is_patched_in_may_be_padded_otherwise(name: str, theirs: str) -> None:
    def experiment(lm: Any, rows: Any, tokens: Any, mask: Any) -> Any:
        if mask is None:
            other, seen = pair(tokens, rows), None
        else:
            other, seen = batch(theirs, SOURCE)
        prompts = jmi.Prompts(other, seen), jmi.Prompts(tokens, mask)
        run: Any = {"metric": GOALS, "progress": False, "share": False}
        found = []
        for site, over in (("hook_mlp_out", None), ("attn.hook_pattern", ["layer", "head"])):
            if over is None or name != "rwkv7":
                found.append(patch(lm, *prompts, site, over=over, at={"position": [1, -1]}, **run))
        if name != "rwkv7":
            found.append(path_patch(lm, *prompts, positions=[1, -1], **run))
        return [patched(x) for x in found]

    alike(name, experiment)


@each(("gpt2/plain", "qwen3/tied"))
def test_noised_subjects(name: str) -> None:
    """The draws are those of a batch: rows alone have others, so the two sides are compared."""
    lm = model(name)
    with jax.enable_x64(True):
        found = []
        for side in OFFSETS:
            tokens, mask = batch(side)
            options: Any = {"metric": GOALS, "at": {"position": [0, -1]}, "progress": False}
            trace = causal_trace(lm, (tokens, mask), [[1, 2], [3, 4]], seeds=[1], **options)
            noise = last(lm, tokens, mask, {"blocks.1.hook_resid_pre": Noise(1.0, positions=-2)})
            found.append([*patched(trace), noise])
    for got in found[1:]:
        for one, other in zip(got, found[0], strict=True):
            close(np.asarray(one), np.asarray(other))
    assert np.abs(trace.effect["diff"]).max() > 1e-3


@each(("gpt2/plain", "mistral/window"))
def test_attribution(name: str) -> None:
    sites = ["blocks.*.attn.hook_z", "blocks.*.attn.hook_k"]

    def experiment(lm: Any, rows: Any, tokens: Any, mask: Any) -> Any:
        base, source = (jmi.Prompts(x, mask) for x in (tokens, pair(tokens, rows)))
        goal, found = GOALS["diff"], []
        for scores in (
            attribution_patching(lm, source, base, sites, metric=goal, steps=2),
            atp_star(lm, base, source, sites, metric=goal, into="clean", grad_drop=False),
        ):
            found += [real(np.moveaxis(np.asarray(x), 0, 1), mask, 2) for x in scores.captures.values()]
            for x in scores.captures.values():
                assert mask is None or (np.asarray(x)[:, ~mask] == 0).all()
        return found

    alike(name, experiment)


@each(("gpt2/plain", "mistral/window"))
def test_edges(name: str) -> None:
    def experiment(lm: Any, rows: Any, tokens: Any, mask: Any) -> Any:
        clean, corrupted = (jmi.Prompts(x, mask) for x in (tokens, pair(tokens, rows)))
        found = [eap(lm, clean, corrupted, metric=GOALS["diff"], per_example=True).values]
        kept = np.random.default_rng(0).random((1, *found[-1].shape[1:])) < 0.5
        found.append(faithfulness(lm, clean, corrupted, kept, metric=GOALS["diff"]).metrics.T)
        return found

    alike(name, experiment)


def test_texts_padded_on_either_side_give_the_same() -> None:
    lm = jmi_models.load("atlas")
    texts = ["The capital of France is", "When John and Mary went to the shop, John gave the book to"]
    goal, found = metrics.LogitDiff(lm.token_id("Paris"), lm.token_id("Rome")), []
    for side in ("left", "right"):
        given = lm.encode_batch(texts, side)
        prompts = jmi.Prompts(given.tokens, given.mask)
        parts = direct_logit_attribution(lm, prompts, 5, 6)
        put = patch(lm, prompts, None, "hook_mlp_out", metric=goal, using="mean", progress=False)
        found.append((parts.total(), goal(lm.run(prompts)), put.patched))
    assert np.isnan(found[0][2]).any()
    assert not np.isnan(found[0][2]).all()
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_padded_prompts_are_aligned_by_their_tokens() -> None:
    pairs = jmi.align.align_tokens(
        ([[0, 7, 1, 2, 9], [7, 1, 3, 9, 0]], np.array([[False, *[True] * 4], [*[True] * 4, False]])),
        [[7, 1, 5, 9], [7, 1, 4, 9]],
    )
    assert pairs.clean.tolist() == pairs.corrupted.tolist() == [0, 1, -1]
    lm = model("gpt2/plain")
    base, source = CLEAN.copy(), CLEAN.copy()
    base[:, 1], source[:, 2] = 8, 9
    with jax.enable_x64(True):
        alone = []
        for row, n in enumerate(LENGTHS):
            one, other = base[[row], :n], np.delete(source[[row], :n], 1, axis=1)
            at = {"position": jmi.align.align_tokens(one, other)}
            alone.append(patch(lm, one, other, "hook_mlp_out", metric=GOALS, into="clean", at=at))
        tokens, mask = batch("left", base)
        other, theirs = batch("right", np.delete(np.concatenate([source, source], 1), 1, axis=1))
        theirs[np.arange(2), np.array(LENGTHS) - 1] = False
        prompts = (tokens, mask), (other, theirs)
        given = jmi.align.align_tokens(*prompts)
        run = functools.partial(
            patch, lm, *prompts, "hook_mlp_out", metric=GOALS, into="clean", progress=False
        )
        found = run(at={"position": given})
        unlike = np.array(LENGTHS) - 1
        with pytest.raises(ArgumentError, match=f"has 4 positions and the other {unlike[0]} in row 0"):
            run()
    assert given.clean.tolist() == [0, -1]
    for row, one in enumerate(alone):
        spots = [
            list(
                jmi.align.align_tokens(
                    base[[row], : LENGTHS[row]], np.delete(source[[row], : LENGTHS[row]], 1, axis=1)
                ).clean
            ).index(p % LENGTHS[row])
            for p in given.clean
        ]
        close(found.patched["diff"][:, :, row], one.patched["diff"][:, spots, 0])
