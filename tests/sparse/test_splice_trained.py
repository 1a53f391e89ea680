"""Dictionaries that SAELens trained, in the model they were trained on: what it recorded of the two."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
import jmi_sparse

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
TRAINED, HOST = SHARED / "oracles" / "sparse" / "trained", SHARED / "models" / "llama-stories260k"
NAMES = ("stories260k-resid2-batchtopk", "stories260k-mlp1-topk")
BOS = 1

pytestmark = pytest.mark.skipif(
    not (TRAINED.is_dir() and HOST.is_dir()), reason="oracles/sparse/trained is not here; set JMI_SHARED"
)


@pytest.fixture(scope="module")
def lm():
    return jmi_models.load(HOST)


@pytest.fixture(scope="module")
def held_out():
    return np.load(TRAINED / "tokens.npz")["tokens"][-32:].astype(np.int32)


def cross_entropy(logits, tokens):
    log_probs = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    return float(-jnp.take_along_axis(log_probs, jnp.asarray(tokens)[:, 1:, None], axis=-1).mean())


@pytest.mark.parametrize("name", NAMES)
def test_features_and_outputs_of_the_recorded_context(lm, held_out, name):
    sae, held = jmi_sparse.load(TRAINED / name), np.load(TRAINED / name / "io.npz")
    site = sae.hook_in
    points = [f"{site}.hook_sae_acts_post", f"{site}.hook_sae_output"]
    np.testing.assert_array_equal(held["tokens"][:1], held_out[:1])
    spliced = jmi_sparse.splice(lm, sae, error=False)
    out = spliced.run(held_out[:1], capture=[site, *points])
    for point, recorded in zip([site, *points], ("x", "acts", "forward"), strict=True):
        got, want = np.asarray(out[point])[:, 1:], held[recorded]
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    np.testing.assert_array_equal(np.asarray(out[points[0]])[:, 1:] > 0, held["acts"] > 0)


@pytest.mark.parametrize("name", NAMES)
def test_loss_recovered_on_the_held_out_contexts(lm, held_out, name):
    sae, said = jmi_sparse.load(TRAINED / name), json.loads((TRAINED / name / "stats.json").read_text())
    clean = cross_entropy(lm.run(held_out).logits, held_out)
    # The position of BOS was left out of all three.
    rest = jmi.Zero(positions=np.arange(1, held_out.shape[1]))
    zero = cross_entropy(lm.run(held_out, {sae.hook_in: rest}).logits, held_out)
    spliced = jmi_sparse.splice(lm, sae, error=False, skip_special=[BOS])
    found = cross_entropy(spliced.run(held_out).logits, held_out)
    wanted = [said["ce"], said["ce_with_sae"], said["ce_zero_ablation"]]
    np.testing.assert_allclose([clean, found, zero], wanted, atol=1e-4)
    assert abs((zero - found) / (zero - clean) - said["loss_recovered"]) <= 0.005
    whole = jmi_sparse.splice(lm, sae).run(held_out).logits
    assert np.abs(whole - lm.run(held_out).logits).max() <= 1e-5 * np.abs(whole).max()
