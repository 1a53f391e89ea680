"""Features that were trained on atlas, written into its stream: what the model then says."""

import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_sparse
from jmi.errors import ArgumentError
from tests.sparse.test_splice import crosslayer
from tests.support.tolerances import assert_agree
from tests.support.trained import SITE

pytestmark = pytest.mark.programs

PROMPT, FEATURES = "The capital of {} is", f"{SITE}.hook_sae_acts_post"


def chances(logits):
    values = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return values / values.sum()


@pytest.fixture(scope="module")
def telling(atlas, capitals):
    """Of each country the features that are active at the end of its sentence more than in others."""
    spliced, active = jmi_sparse.splice(atlas, capitals), {}
    for country in ("France", "Germany", "Japan", "Sweden", "Egypt", "Peru"):
        out = spliced.run(PROMPT.format(country), capture=[FEATURES])
        active[country] = np.asarray(out[FEATURES])[0, -1]
    mean = np.mean(list(active.values()), axis=0)
    return {country: (np.argsort(mean - values)[:4], values) for country, values in active.items()}


def test_one_capital_suppressed_and_another_injected_moves_the_answer(atlas, capitals, telling):
    """Its own features at their own values: what `splice` is for."""
    spliced = jmi_sparse.splice(atlas, capitals)
    for country, other, capital in (("France", "Japan", " Tokyo"), ("Germany", "Sweden", " Stockholm")):
        (own, _), (others, values) = telling[country], telling[other]
        hooks = [
            jmi.Replace(0.0, units=own, positions=-1),
            jmi.Replace(values, units=others, positions=-1),
        ]
        prompt, token = PROMPT.format(country), atlas.token_id(capital)
        plain = chances(spliced.run(prompt).logits[0, -1])[token]
        moved = chances(spliced.run(prompt, {FEATURES: hooks}).logits[0, -1])[token]
        assert plain < 1e-3
        assert moved > 0.25
        # Suppressing alone does not say another capital, and random features in its place do not either.
        random = np.random.default_rng(0).permutation(capitals.n_features)[:4]
        elsewhere = np.zeros(capitals.n_features, np.float32)
        elsewhere[random] = values[others]
        for hook in (hooks[:1], [hooks[0], jmi.Replace(elsewhere, units=random, positions=-1)]):
            assert chances(spliced.run(prompt, {FEATURES: hook}).logits[0, -1])[token] < 0.05


def test_a_word_is_likely_where_its_features_are_written_and_nowhere_else(atlas, capitals):
    """At constant strength, from what the decoder rows point at alone."""
    token = atlas.token_id(" Tokyo")
    best = jmi_sparse.best_rows(capitals, atlas.params["embed"]["W_E"][token], k=2)
    injected = [(row.layer, row.id) for row in best]
    prompt = PROMPT.format("France")
    found = jmi_sparse.planning_site(
        atlas,
        prompt,
        capitals,
        word=token,
        injected=injected,
        strengths=[0.5, 1.0],
        controls=3,
        seed=1,
        progress=False,
    )
    assert found.probs.shape == (6, 2)
    assert found.best[0] == 5
    assert found.probs.max() > 0.5
    assert found.baseline[0] < 1e-6
    assert found.probs[:5].max() < 1e-6
    assert found.control_probs.max() < 0.01
    by_hand = sum(np.asarray(capitals.W_dec[i]) for _, i in injected)
    out = atlas.run(prompt, {SITE: jmi.Add(by_hand, positions=5)})
    assert_agree(np.float32(found.probs[5, 1]), np.float32(chances(out.logits[0, -1])[token]), "oracle")
    assert_agree(np.float32(found.logits[5, 1]), np.asarray(out.logits[0, -1, token]), "oracle")
    assert (found.control_features[:, :, 0] == 4).all()
    told = found.to_dict()
    assert told["best"]["position"] == 5
    assert told["probs"]["axes"] == ["position", "strength"]


def test_committing_and_correcting_is_what_two_hooks_do(atlas, capitals):
    tokyo, paris = (atlas.token_id(word) for word in (" Tokyo", " Paris"))
    row = jmi_sparse.best_rows(capitals, atlas.params["embed"]["W_E"][tokyo], k=1)[0]
    commit, correct = (row.layer, row.id), (4, 3)
    prompt = PROMPT.format("France")
    found = jmi_sparse.commit_and_correct(
        atlas,
        prompt,
        capitals,
        -1,
        words=(tokyo, paris),
        committed=[commit],
        correcting=[correct],
        commit_strength=1.5,
        strengths=[0.0, 2.0],
        from_layer=4,
    )
    looks = jmi.Capture("blocks.*.attn.hook_pattern", reduce=jmi.Select(position=-1))
    plain = atlas.run(prompt, capture=[looks])
    for i, strength in enumerate((0.0, 2.0)):
        vector = 1.5 * np.asarray(capitals.W_dec[commit[1]]) + strength * np.asarray(capitals.W_dec[3])
        out = atlas.run(prompt, {SITE: jmi.Add(vector, positions=-1)}, [looks])
        want = chances(out.logits[0, -1])
        assert_agree(found.probs[i], np.float32(want[[tokyo, paris]]), "oracle")
        assert found.top[i] == want.argmax()
        moved = [np.asarray(o.stack("attn.hook_pattern"))[:, 0, :, 5] for o in (out, plain)]
        assert_agree(found.looks[i], moved[0] - moved[1], scale=1.0)
    assert np.abs(found.looks[:, :5]).max() < 1e-6
    assert np.abs(found.looks[:, 5]).max() > 1e-4


def test_a_correction_of_a_padded_prompt_is_refused(atlas, capitals):
    tokens = atlas.to_tokens(PROMPT.format("France"))
    padded = np.pad(tokens, ((0, 0), (2, 0))), np.pad(np.ones_like(tokens, bool), ((0, 0), (2, 0)))
    options = {"words": (3, 4), "committed": [(4, 1)], "correcting": [(4, 2)], "from_layer": 4}
    with pytest.raises(ArgumentError, match="without padding"):
        jmi_sparse.commit_and_correct(atlas, padded, capitals, -1, **options)


def test_an_arm_of_a_comparison_is_its_parts():
    """Of a cross-layer transcoder, features are ranked by rows into one layer, or by the best of any."""
    lm = jmi.LanguageModel(*_tiny(), name="tiny")
    clt, direction = crosslayer32(), np.random.default_rng(0).normal(size=16).astype(np.float32)
    tokens = np.random.default_rng(3).integers(0, 29, (1, 7)).astype(np.int32)
    for every in (False, True):
        arm = jmi_sparse.compare_arm(
            lm, tokens, clt, word=5, direction=direction, layer=2, k=4, every_target=every
        )
        rows = jmi_sparse.best_rows(clt, direction, targets=None if every else [2], k=4)
        assert arm.ranked == tuple((row.layer, row.id) for row in rows)
        reads = [f"blocks.{i}.hook_resid_mid" for i in range(4)]
        out = lm.run(tokens, capture=reads)
        active = np.asarray(clt.encode(jnp.stack([out[name] for name in reads])))[:, 0]
        assert_agree(arm.activations, np.stack([active[layer, :, i] for layer, i in arm.ranked]))
        skip = np.asarray(out[reads[2]])[0, -1] @ np.asarray(clt.W_skip[2]).T @ direction
        assert_agree(np.float32(arm.skip), np.float32(skip), "oracle")
        both = [*arm.suppressed.suppressed, *arm.steered.injected]
        assert both == [*arm.ranked, arm.ranked[0]]


def crosslayer32():
    import jax

    with jax.enable_x64(True):
        clt = crosslayer(True)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float32), clt)


def _tiny():
    from tests.core.conftest import lively, tiny

    return tiny(), lively(tiny())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give the features"),
        ({"injected": [3]}, "pairs"),
        ({"injected": [(4, 999)]}, "ids from 0"),
        ({"injected": [(2, 9)]}, "features of layers"),
        ({"injected": [(4, 1)], "controls": -1}, "controls"),
    ],
)
def test_bad_experiments_are_named(atlas, capitals, options, words):
    with pytest.raises(ArgumentError, match=words):
        jmi_sparse.planning_site(atlas, PROMPT.format("France"), capitals, word=3, progress=False, **options)
    with pytest.raises(ArgumentError, match="one prompt"):
        jmi_sparse.planning_site(atlas, ["a", "b"], capitals, word=3, injected=[(4, 1)])
