"""Examples of features: every window of a corpus looked at by a loop, and what is kept compared with it."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi_models
import jmi_sparse
from jmi.errors import ArgumentError, OutputError
from jmi_sparse.scoring.gathering import BINS, Gathered, gather
from tests.sparse.by_loops import (
    LENGTHS,
    SITE,
    atlas,
    clt,
    forward,
    padded,
    random_weights,
    sae,
    special,
    values,
)

IDS = [7, 3, 40, 55]
CONTEXT = 6
examples = functools.partial(
    jmi_sparse.examples, batch_size=5, context=CONTEXT, n=4, quantiles=3, per_quantile=2, progress=False
)


@functools.cache
def found(**options):
    return examples(atlas(), padded(), {SITE: sae()}, features=IDS, **options)


@functools.cache
def activations():
    """Of each prompt, ``[n, features]`` in float64."""
    _, mask = padded()
    f, _ = forward(random_weights(0), *values(SITE))
    return [f[i, mask[i]] for i in range(len(LENGTHS))]


def windows(feature):
    """(prompt, start, activations) of every window in which a feature is active, the largest peaks first."""
    listed = [
        (prompt, start, acts[start : start + CONTEXT, feature])
        for prompt, acts in enumerate(activations())
        for start in range(0, len(acts), CONTEXT)
    ]
    return sorted((w for w in listed if w[2].max() > 0), key=lambda w: -w[2].max())


@pytest.mark.parametrize("feature", IDS)
def test_the_strongest_windows_are_kept(feature):
    tokens, mask = padded()
    got, wanted = found()[feature].top, windows(feature)
    assert len(got) == min(4, len(wanted)) > 1
    # Every prompt begins with the same token, so of equal peaks any may be kept.
    np.testing.assert_allclose([e.peak for e in got], [w[2].max() for w in wanted[:4]], rtol=1e-4)
    assert len({(e.prompt, e.start) for e in got}) == len(got)
    by_place = {w[:2]: w[2] for w in wanted}
    for example in got:
        own = tokens[example.prompt, mask[example.prompt]][example.start : example.start + CONTEXT]
        np.testing.assert_array_equal(example.tokens, own)
        acts = by_place[example.prompt, example.start]
        np.testing.assert_allclose(example.acts, acts, rtol=1e-4, atol=1e-5)
        assert example.strings == [atlas().token_string(int(t)) for t in own]


def test_how_often_and_how_much():
    every = np.concatenate(activations())
    for feature in IDS:
        got, f = found()[feature], every[:, feature]
        assert got.frequency == (f > 0).mean()
        np.testing.assert_allclose([got.low, got.high], [f[f > 0].min(), f.max()], rtol=1e-4)
        counts, _ = np.histogram(f[f > 0], got.edges)
        np.testing.assert_array_equal(got.histogram, counts)
        assert got.edges[-1] / 2 <= f.max() < got.edges[-1]


def test_a_sample_of_all_there_is_holds_all_in_quantiles():
    whole = found(per_quantile=30)
    for feature in IDS:
        wanted, parts = windows(feature), whole[feature].quantiles
        listed = [e for part in parts for e in part.examples]
        assert {(e.prompt, e.start) for e in listed} == {w[:2] for w in wanted}
        np.testing.assert_allclose([e.peak for e in listed], [w[2].max() for w in wanted], rtol=1e-4)
        sizes = [len(part.examples) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        for part in parts:
            assert (part.high, part.low) == (part.examples[0].peak, part.examples[-1].peak)
        assert parts[0].name.startswith("Quantile 3 of 3: ")


def sampled(one, feature):
    return {(e.prompt, e.start) for part in one[feature].quantiles for e in part.examples}


def test_a_sample_depends_on_the_seed_and_on_nothing_else():
    one = found()
    by_twos = found(batch_size=2)
    others = examples(atlas(), padded(), {SITE: sae()}, features=[40, 7])
    seeds = [found(seed=seed) for seed in range(1, 4)]
    for feature in (7, 40):
        own = sampled(one, feature)
        assert len(own) == 6 < len(windows(feature))
        assert own <= {w[:2] for w in windows(feature)}
        assert own == sampled(by_twos, feature) == sampled(others, feature)
    assert any(sampled(other, 7) != sampled(one, 7) for other in seeds)
    assert sampled(one, 7) != sampled(one, 40)
    np.testing.assert_allclose([e.peak for e in by_twos[7].top], [e.peak for e in one[7].top], rtol=1e-4)


def test_every_active_window_is_as_likely_as_any_other():
    # 20 windows of one token, 12 of them active, 3 kept; where it is stronger it is not likelier.
    acts = np.zeros((2, 10, 1), np.float32)
    acts[0, :8, 0] = np.arange(1, 9)
    acts[1, 4:8, 0] = 100
    numbers, drawn, n = np.arange(20, dtype=np.int32), np.zeros(20), 500
    for seed in range(n):
        state = Gathered.nothing(1, 1, 3, 1)
        for row in range(2):
            key, own = jax.random.key(seed), numbers[row * 10 : row * 10 + 10]
            state = gather(state, acts[row : row + 1], np.array([5], np.int32), own, key)
        kept = np.asarray(state.sample.window[0])
        assert len(set(kept.tolist())) == 3
        drawn[kept] += 1
    active = acts[..., 0].ravel() > 0
    assert drawn[~active].sum() == 0
    p = 3 / 12
    assert np.abs(drawn[active] - n * p).max() < 5 * np.sqrt(n * p * (1 - p))


def test_histograms_do_not_depend_on_what_comes_first():
    rng = np.random.default_rng(0)
    acts = np.exp(rng.normal(size=(6, 8, 2), scale=4)).astype(np.float32)
    acts[rng.random(acts.shape) < 0.4] = 0
    acts[0, 0] = 4.0  # on an edge
    state = Gathered.nothing(2, 1, 1, 8)
    for row in range(6):
        state = gather(
            state,
            acts[row : row + 1],
            np.arange(2, dtype=np.int32),
            np.array([row], np.int32),
            jax.random.key(0),
        )
    for k in range(2):
        f = acts[..., k].ravel()
        limit = 2.0 ** np.asarray(state.exponent)[k]
        assert limit / 2 <= f.max() < limit
        counts, _ = np.histogram(f[f > 0], np.linspace(0, limit, BINS + 1))
        np.testing.assert_array_equal(state.histogram[k], counts)


def test_negative_activations_count_by_magnitude():
    acts = np.zeros((1, 4, 1), np.float32)
    acts[0, :, 0] = [-5, 2, 0, 3]
    state = gather(
        Gathered.nothing(1, 2, 1, 2),
        acts,
        np.array([0], np.int32),
        np.arange(2, dtype=np.int32),
        jax.random.key(0),
    )
    np.testing.assert_array_equal(state.top.rank[0], [5, 3])
    np.testing.assert_array_equal(state.top.acts[0], [[-5, 2], [0, 3]])
    assert (int(state.counts[0]), float(state.low[0]), float(state.high[0])) == (3, -5, 3)


def test_pairs_of_features():
    active = np.concatenate(activations())[:, IDS] > 0
    both = np.array([[(a & b).sum() for a in active.T] for b in active.T])
    np.testing.assert_array_equal(found().both, both)
    either = np.array([[(a | b).sum() for a in active.T] for b in active.T])
    np.testing.assert_allclose(found().jaccard(), both / either)
    np.testing.assert_allclose(found().phi(), np.corrcoef(active.T.astype(float)), atol=1e-12)
    assert found().features == [(SITE, i) for i in IDS]


def test_a_feature_that_is_never_active():
    dead = dataclasses.replace(sae(), b_enc=jnp.full(60, -1e3))
    one = examples(atlas(), padded(), {SITE: dead}, features=[7, 8])
    assert (one[7].top, one[7].quantiles, one[7].frequency) == ([], [], 0)
    assert np.isnan([one[7].low, one[7].high]).all()
    assert np.isnan(one.jaccard()).all()
    assert np.isnan(one.phi()).all()
    assert json.loads(one[7].to_json())["act_max"] is None


def test_special_tokens_may_be_left_out():
    tokens, mask = padded()
    one = found(skip_special=True)
    left = [~special(tokens[i, mask[i]]) for i in range(len(LENGTHS))]
    assert one.n == sum(each.sum() for each in left) == found().n - len(LENGTHS) - 1
    f = np.concatenate([acts[kept] for acts, kept in zip(activations(), left, strict=True)])
    for feature in IDS:
        assert one[feature].frequency == (f[:, feature] > 0).mean()
    for example in one[7].top:
        assert (example.acts[special(example.tokens)] == 0).all()


def test_the_file_of_a_feature(tmp_path):
    one = found()
    one.save(tmp_path / "new")
    held = json.loads((tmp_path / "new" / SITE / "40.json").read_text())
    assert held == one[40].to_dict() == json.loads(one[40].to_json())
    assert held["index"] == 40
    names = [part["quantile_name"] for part in held["examples_quantiles"]]
    assert names[0] == "Top activations"
    assert len(names) == 4
    for part in held["examples_quantiles"]:
        for example in part["examples"]:
            assert set(example) == {"tokens", "tokens_acts_list"}
            assert len(example["tokens"]) == len(example["tokens_acts_list"]) > 0
            assert all(isinstance(token, str) for token in example["tokens"])
    assert held["act_max"] == one[40].high
    assert held["activation_frequency"] == one[40].frequency
    assert held["quantile_values"] == sorted(held["quantile_values"], reverse=True)
    assert sum(held["histogram"]["counts"]) == round(one[40].frequency * one.n)
    assert len(json.loads(one.to_json())["features"]) == len(one) == 4
    one[40].plot().savefig(tmp_path / "histogram.png")
    assert (tmp_path / "histogram.png").stat().st_size > 1000
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        one.save(tmp_path / "taken")


def test_tokens_that_a_decoder_row_promotes():
    logits = np.asarray(random_weights(0)["W_dec"], np.float64) @ np.asarray(atlas().params["embed"]["W_E"]).T
    for feature in IDS:
        order = np.argsort(-logits[feature])
        words = [atlas().token_string(int(t)) for t in order]
        assert found()[feature].top_logits == words[:10]
        assert found()[feature].bottom_logits == words[:-11:-1]


def test_no_logits_of_what_is_not_of_the_stream():
    one = examples(atlas(), padded(), {"blocks.2.attn.hook_z": sae(hook_z=True)}, features=[7])
    assert one[7].top_logits is one[7].bottom_logits is None
    assert "top_logits" not in one[7].to_dict()


def test_features_of_several_layers():
    reads = [f"blocks.{i}.hook_resid_mid" for i in (1, 3)]
    one = examples(atlas(), padded(), clt(), features={reads[1]: [5, 2], reads[0]: [9]})
    _, mask = padded()
    f = [forward(random_weights(seed), x)[0][mask] for seed, x in zip((6, 7), values(*reads), strict=True)]
    active = np.stack([f[0][:, 9], f[1][:, 5], f[1][:, 2]]) > 0
    assert one.features == [(reads[0], 9), (reads[1], 5), (reads[1], 2)]
    np.testing.assert_array_equal(one.both, active.astype(int) @ active.T.astype(int))
    unembedding = np.asarray(atlas().params["embed"]["W_E"]).T
    rows = random_weights(6)["W_dec"][9] + random_weights(8)["W_dec"][9]
    best = atlas().token_string(int(np.argmax(rows @ unembedding)))
    assert one[reads[0], 9].top_logits[0] == best
    with pytest.raises(ArgumentError, match="give \\(site, id\\)"):
        one[5]
    with pytest.raises(ArgumentError, match="not among those asked for"):
        one[reads[0], 5]


def test_what_does_not_fit_is_refused():
    given = {SITE: sae()}
    for message, options in {
        "has 0 to 59": {"features": [60]},
        "give each id once": {"features": [3, 3]},
        "whole numbers": {"features": [1.5]},
        "the sites are": {"features": {"blocks.3.hook_resid_post": [1]}},
        "n=0": {"n": 0},
        "context=0": {"context": 0},
        "seed=-1": {"seed": -1},
        "skip_special='saelens'": {"skip_special": "saelens"},
    }.items():
        with pytest.raises(ArgumentError, match=message):
            examples(atlas(), padded(), given, **options)
    with pytest.raises(ArgumentError, match="no token that counts"):
        examples(atlas(), np.array([[0, 1]]), given, skip_special=True)
    zeros = jnp.zeros((5000, 128))
    wide = jmi_sparse.Dictionary(zeros.T, zeros, zeros[0], jmi_sparse.ReLU(), jnp.zeros(5000))
    with pytest.raises(ArgumentError, match="there are 5,000, more than 4,096"):
        examples(atlas(), padded(), {SITE: wide})


def test_activations_that_are_no_numbers_are_told():
    broken = dataclasses.replace(sae(), b_enc=jnp.full(60, jnp.nan), activation=jmi_sparse.TopK(3))
    with pytest.raises(ArgumentError, match="NaN"):
        examples(atlas(), padded(), {SITE: broken}, features=[0, 1, 2])


def test_a_corpus_without_texts():
    one = examples(dataclasses.replace(atlas(), tokenizer=None), padded(), {SITE: sae()}, features=[7])
    assert one[7].top[0].strings[0] == f"<{one[7].top[0].tokens[0]}>"


def test_pairs_are_no_ids():
    lm = jmi_models.load("atlas")
    with pytest.raises(ArgumentError, match="give ids"):
        jmi_sparse.examples(
            lm, ["Paris"], {"blocks.2.hook_resid_post": trained_by_chance()}, features=[(2, 3)]
        )


def trained_by_chance():
    rows = np.random.default_rng(0).normal(size=(16, 128)).astype(np.float32)
    zeros = np.zeros(128, np.float32)
    return jmi_sparse.Dictionary(rows.T.copy(), rows, zeros, jmi_sparse.TopK(2), np.zeros(16, np.float32))
