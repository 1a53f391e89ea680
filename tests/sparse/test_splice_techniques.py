"""Techniques that know nothing of dictionaries, on features: each equals its loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_sparse
from tests.core.conftest import lively, tiny
from tests.sparse.test_splice import F, dictionary
from tests.support.tolerances import assert_agree

pytestmark = pytest.mark.programs

SITE, METRIC = "blocks.1.hook_resid_post", jmi.metrics.LogitDiff(5, 7)
FEATURES = f"{SITE}.hook_sae_acts_post"


@pytest.fixture(scope="module", autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def spliced(x64):
    lm = jmi.LanguageModel(tiny(), lively(tiny(), jnp.float64), name="tiny")
    return jmi_sparse.splice(lm, {SITE: dictionary()})


@pytest.fixture(scope="module")
def pair():
    draws = np.random.default_rng(3)
    return tuple(draws.integers(0, 29, (1, 7)).astype(np.int32) for _ in range(2))


def test_patching_single_features_is_a_loop_over_them(spliced, pair):
    clean, corrupted = pair
    units, positions = [0, 4, 11], [2, 5]
    found = jmi.interp.patch(
        spliced,
        clean,
        corrupted,
        FEATURES,
        metric=METRIC,
        over=("position", "unit"),
        at={"position": positions, "unit": units},
    )
    source = spliced.run(clean, capture=[FEATURES])[FEATURES]
    for i, position in enumerate(positions):
        for j, unit in enumerate(units):
            hook = jmi.Patch(source, positions=position, units=unit)
            want = METRIC(spliced.run(corrupted, {FEATURES: hook}))
            assert_agree(np.asarray(found.patched)[i, j], np.asarray(want))
    assert np.ptp(np.asarray(found.patched)) > 1e-4


def test_attribution_to_features_is_the_slope_times_the_difference(spliced, pair):
    clean, corrupted = pair
    found = jmi.interp.attribution_patching(
        spliced, clean, corrupted, FEATURES, metric=METRIC, keep=("pos", "feature")
    )
    values = [spliced.run(tokens, capture=[FEATURES])[FEATURES] for tokens in pair]
    grads = jmi.value_and_grad_at(spliced, corrupted, METRIC, FEATURES).grads[FEATURES]
    want = np.asarray((values[0] - values[1]) * grads)[0]
    assert_agree(np.asarray(found[FEATURES]), want, "gradients")
    assert want.any()


def test_seeds_of_dictionaries_are_an_axis_of_models(spliced, pair):
    """Features x strengths x seeds in one sweep, against a loop of runs."""
    seeds = [jmi_sparse.splice(_host(spliced), {SITE: dictionary(seed)}) for seed in range(3)]
    models = jmi.Models(spliced, jax.tree.map(lambda *x: jnp.stack(x), *(lm.params for lm in seeds)))
    grid = jmi.Grid(feature=[1, 8], strength=[0.0, 3.0])
    hooks = {FEATURES: jmi.Scale(grid["strength"], units=grid["feature"])}
    got = jmi.sweep(models, pair[0], hooks, METRIC, logits_at=-1, progress=False)
    assert got.shape == (3, 2, 2, 1)
    for n, lm in enumerate(seeds):
        for i, feature in enumerate((1, 8)):
            for j, strength in enumerate((0.0, 3.0)):
                want = METRIC(lm.run(pair[0], {FEATURES: jmi.Scale(strength, units=feature)}))
                assert_agree(np.asarray(got)[n, i, j], np.asarray(want))


def test_twenty_lengths_take_few_programs(spliced):
    from tests.support.programs import compiled

    before = compiled()
    for length in range(3, 23):
        tokens = np.random.default_rng(length).integers(0, 29, (1, length)).astype(np.int32)
        out = spliced.run(tokens, {FEATURES: jmi.Zero(units=3)}, capture=[FEATURES])
        assert out.stack("hook_resid_post.hook_sae_acts_post").shape == (1, 1, length, F)
    assert compiled() - before <= 4


def _host(spliced):
    params = {name: value for name, value in spliced.params.items() if name != "modules"}
    return dataclasses.replace(spliced, arch=spliced.arch.model, params=params)
