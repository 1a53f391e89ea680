"""A position is the p-th real token of its row: padded on any side, rows give what they give alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi import metrics
from jmi.errors import ArgumentError, HookError, InterventionError
from jmi.gradients import value_and_grad_at
from jmi.interp.patching.patch import patch
from tests.support.committed import each
from tests.support.padded import (
    CLEAN,
    GOALS,
    LENGTHS,
    MODELS,
    OFFSETS,
    SPOTS,
    alike,
    batch,
    close,
    last,
    model,
    of_row,
    real,
)

RNG = np.random.default_rng(1)
VECTOR = RNG.normal(size=64)
SCORES, PATTERN = "blocks.1.attn.hook_attn_scores", "blocks.1.attn.hook_pattern"


def on_streams(d: int, spot: Any) -> dict[str, Any]:
    """Each kind of intervention, in one program."""
    return {
        "hook_embed": jmi.Add(VECTOR[:d], positions=spot),
        "blocks.0.hook_mlp_out": jmi.Replace(VECTOR[:d], positions=spot),
        "blocks.0.hook_attn_out": jmi.Zero(positions=spot),
        "blocks.1.hook_resid_pre": jmi.Scale(-2.0, positions=spot),
        "blocks.1.hook_mlp_out": jmi.Project(VECTOR[:d], positions=spot),
    }


def on_attention(spot: Any) -> dict[str, Any]:
    """Likewise, each at a head of its own."""
    return {
        "blocks.0.attn.hook_attn_scores": jmi.Knockout(queries=spot, keys=0, heads=0),
        "blocks.0.attn.hook_pattern": jmi.SetAttention(0.3, queries=spot, heads=1),
        SCORES: [
            jmi.Knockout(keys=spot, heads=0),
            jmi.Knockout(edges=[(-1, 0), (-2, 1), (2, 2)], heads=1),
        ],
        PATTERN: [
            jmi.ScaleAttention(3.0, queries=spot, keys=-2, heads=[0, 1]),
            jmi.SetAttention(0.3, keys=spot, heads=2),
            jmi.Replace(0.2, positions=spot, heads=3),
        ],
    }


@each(MODELS)
def test_hooks(name: str) -> None:
    for spot in SPOTS:

        def experiment(lm: Any, rows: Any, tokens: Any, mask: Any, spot: Any = spot) -> Any:
            spot = of_row(rows[0], spot) if len(rows) == 1 else spot
            return last(lm, tokens, mask, on_streams(lm.arch.d_model, spot))

        alike(name, experiment)


@each(MODELS[:-1])
def test_hooks_on_attention(name: str) -> None:
    for spot in SPOTS:

        def experiment(lm: Any, rows: Any, tokens: Any, mask: Any, spot: Any = spot) -> Any:
            return last(lm, tokens, mask, on_attention(of_row(rows[0], spot) if len(rows) == 1 else spot))

        alike(name, experiment)


@each(MODELS)
def test_reducers_wanted_logits_and_metrics(name: str) -> None:
    for spot in (0, 3, -1, -4, np.array([1, 5]), np.array([-4, -1])):

        def experiment(lm: Any, rows: Any, tokens: Any, mask: Any, spot: Any = spot) -> Any:
            at = spot[rows] if np.ndim(spot) else spot
            out = lm.run(jmi.Prompts(tokens, mask), logits_at=at)
            found = [out.logits, metrics.Prob(3)(out)]
            if not np.ndim(spot):
                points = [
                    p for p in ("blocks.0.hook_resid_post", PATTERN) if "rwkv" not in name or "resid" in p
                ]
                seen = [jmi.Capture(p, reduce=jmi.Select(position=at)) for p in points]
                out = lm.run(jmi.Prompts(tokens, mask), capture=seen)
                found += [out[points[0]], metrics.LogitDiff(3, 4)(out)]
                for point in points[1:]:
                    found.append(real(out[point], mask, 2))
            return found

        alike(name, experiment)


@each(MODELS)
def test_gradients_of_a_metric_at_the_last_token(name: str) -> None:
    site = "blocks.0.hook_resid_post"
    run = jax.jit(lambda lm, prompts: value_and_grad_at(lm, prompts, metrics.LogitDiff(3, 4), site))

    def experiment(lm: Any, rows: Any, tokens: Any, mask: Any) -> Any:
        found = run(lm, jmi.Prompts(tokens, mask))
        return found.value, real(found.grads[site], mask, 1)

    alike(name, experiment)


@each(("gpt2/plain", "rwkv7"))
def test_sweeps(name: str) -> None:
    def experiment(lm: Any, rows: Any, tokens: Any, mask: Any) -> Any:
        spots = [0, 1, 3, -1]
        grid = jmi.Grid(position=spots)
        hooks = {"blocks.1.hook_resid_pre": jmi.Scale(-2.0, positions=grid["position"])}
        swept = jmi.sweep(
            lm, jmi.Prompts(tokens, mask), hooks, metrics.final_logits, logits_at=-1, progress=False
        )
        for spot, got in zip(spots, swept, strict=True):
            hook = {"blocks.1.hook_resid_pre": jmi.Scale(-2.0, positions=spot)}
            close(got, np.asarray(lm.run(jmi.Prompts(tokens, mask), hook, logits_at=-1).logits))
        return np.moveaxis(swept, 1, 0)

    alike(name, experiment)


@each(("gpt2/plain", "mistral/window", "rwkv7"))
def test_generation(name: str) -> None:
    def experiment(lm: Any, rows: Any, tokens: Any, mask: Any) -> Any:
        found = jmi.generate(
            lm.arch,
            lm.params,
            jmi.Prompts(tokens, mask),
            3,
            hooks={"blocks.1.hook_resid_pre": jmi.Scale(-2.0, positions=[1, -1])},
            capture=["hook_logits"],
        )
        return found.tokens, np.moveaxis(np.asarray(found.captures["hook_logits"]), 0, 1)

    alike(name, experiment)


def spread(lm: Any, capture: Any, side: str) -> Any:
    tokens, mask = batch(side)
    return lm.run(jmi.Prompts(tokens, mask), capture=capture)


@each(("gpt2/plain",))
def test_output_is_read_by_tokens(name: str) -> None:
    lm, points = (
        model(name),
        ["blocks.*.hook_resid_post", "blocks.1.attn.hook_pattern", "blocks.*.mlp.hook_out"],
    )
    with jax.enable_x64(True):
        alone = [lm.run(CLEAN[[row], :n], capture=points) for row, n in enumerate(LENGTHS)]
        for side in OFFSETS:
            out = spread(lm, points, side)
            for spot in (0, 3, -1, -4, np.array([3, 5]), jnp.array([-1, 0])):
                at = np.broadcast_to(spot, 2)
                for label in (points[0], "blocks.1.hook_resid_post", "blocks.-1.mlp.hook_out"):
                    got = out.at(label, spot)
                    for row, one in enumerate(alone):
                        close(np.asarray(got)[..., row, :], np.asarray(one[label])[..., 0, at[row], :])
                queries = np.asarray(out.at(points[1], spot))
                for row, one in enumerate(alone):
                    close(
                        real(queries[[row]], batch(side)[1][[row]], 2),
                        real(one.at(points[1], int(at[row])), None, 2),
                    )
            many = jax.vmap(
                lambda x, out=out: jax.tree.map(lambda leaf: leaf * x if leaf.dtype != bool else leaf, out)
            )
            many = many(jnp.arange(1.0, 4.0))
            np.testing.assert_array_equal(many.at(points[0], -2)[1], 2 * out.at(points[0], -2))
            assert np.isnan(jax.jit(lambda p, out=out: out.at(points[0], p))(5)[:, 0]).all()
        with pytest.raises(ArgumentError, match="row 0 has 4 tokens"):
            out.at(points[0], 4)
        with pytest.raises(HookError, match="no axis of positions"):
            spread(lm, [jmi.Capture("hook_embed", reduce=jmi.Norm())], side).at("hook_embed", 0)


@each(("gpt2/plain",))
def test_a_token_that_a_row_does_not_have(name: str) -> None:
    """Concrete positions are an error that names the row; traced ones select nothing, or read NaN."""
    lm, (tokens, mask) = model(name), batch("left")
    site = "blocks.1.hook_resid_pre"
    with jax.enable_x64(True):
        for hook in (jmi.Zero(positions=4), jmi.Zero(positions=[[0], [6]]), jmi.Zero(positions=[-5])):
            with pytest.raises(InterventionError, match=r"token of row \d, which has [46]"):
                lm.run(jmi.Prompts(tokens, mask), {site: hook})
        lm.run(jmi.Prompts(tokens, mask), {site: jmi.Zero(positions=5, rows=1)})
        lm.run(jmi.Prompts(tokens, mask), {site: jmi.Zero(positions=5, rows=[False, True])})
        with pytest.raises(InterventionError, match="row 0, which has 4"):
            lm.run(jmi.Prompts(tokens, mask), {SCORES: jmi.Knockout(edges=[(4, 0)])})
        with pytest.raises(InterventionError, match="row 0, which has 4"):
            lm.run(jmi.Prompts(tokens, mask), capture=[jmi.Capture(site, reduce=jmi.Select(position=-5))])
        with pytest.raises(ArgumentError, match="row 0 has 4 tokens"):
            lm.run(jmi.Prompts(tokens, mask), logits_at=4)
        with pytest.raises(InterventionError, match="row 0, which has 4"):
            patch(
                lm, (tokens, mask), None, "hook_mlp_out", metric=GOALS, using="zero", at={"position": [1, 4]}
            )
        grid = jmi.Grid(row=[0, 1], position=[3, 5])
        hooks = {site: jmi.Zero(rows=grid["row"], positions=grid["position"])}
        with pytest.raises(InterventionError, match="row 0, which has 4"):
            jmi.sweep(lm, jmi.Prompts(tokens, mask), hooks, metrics.final_logits, progress=False)

        @jax.jit
        def traced(position: Any) -> Any:
            run = functools.partial(jmi.forward, lm.arch, lm.params, jmi.Prompts(tokens, mask))
            seen = jmi.Capture(site, reduce=jmi.Select(position=position))
            edited, wanted = run({site: jmi.Zero(positions=position)}, [seen]), run(logits_at=position)
            return metrics.final_logits(edited), edited[site], wanted.logits

        plain = np.asarray(last(lm, tokens, mask))
        for position in (4, -5):
            logits, seen, wanted = map(np.asarray, traced(position))
            close(logits[0], plain[0])
            assert np.abs(logits[1] - plain[1]).max() > 1e-3
            assert np.isnan(seen[0]).all()
            assert np.isnan(wanted[0]).all()
            assert np.isfinite(seen[1]).all()
            assert np.isfinite(wanted[1]).all()


@each(("gpt2/plain", "opt/pre_norm"))
def test_positions_of_a_run_are_those_of_a_table(name: str) -> None:
    """That of opt begins with two rows that are no position's."""
    lm, tokens = model(name), CLEAN
    for wrong, said in ((-1, "has -1"), (lm.arch.n_ctx, f"has {lm.arch.n_ctx}")):
        positions = np.stack([np.where(np.arange(6) == 2, wrong, np.arange(6)), np.arange(6)])
        with pytest.raises(ArgumentError, match=said):
            lm.run(jmi.Prompts(tokens, None, positions))
        with jax.enable_x64(True):
            found = jax.jit(lambda p: jmi.forward(lm.arch, lm.params, jmi.Prompts(tokens, None, p)).logits)(
                positions
            )
        assert np.isnan(found[0, 2:]).all()
        assert np.isfinite(found[1]).all()
        padded = np.where(batch("left")[1], 1, wrong)
        assert np.isfinite(last_with(lm, padded)).all()


def last_with(lm: Any, positions: Any) -> Any:
    """Whatever positions stand at padding."""
    tokens, mask = batch("left")
    with jax.enable_x64(True):
        run = jax.jit(lambda p: jmi.forward(lm.arch, lm.params, jmi.Prompts(tokens, mask, p)))
        got = np.asarray(metrics.final_logits(run(positions)))
        close(got, np.asarray(metrics.final_logits(lm.run(jmi.Prompts(tokens, mask, positions)))))
    return got
