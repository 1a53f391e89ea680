"""Folders that SAELens itself wrote: features and outputs as it computed them."""

import os
import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jmi_sparse
from jmi.errors import ArgumentError, ConfigError
from jmi.reading import read_object

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
FOLDERS = SHARED / "oracles" / "sparse" / "saelens"
NAMES = sorted(path.name for path in FOLDERS.iterdir() if path.is_dir()) if FOLDERS.is_dir() else []

pytestmark = pytest.mark.skipif(not NAMES, reason="oracles/sparse/saelens is not here; set JMI_SHARED")


def loaded(name, dtype="float32"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jmi_sparse.load(FOLDERS / name, dtype=dtype)


def gap(got, want):
    """The largest difference, in parts of the largest entry."""
    assert np.shape(got) == np.shape(want)
    return np.abs(np.asarray(got, np.float64) - want).max() / max(np.abs(want).max(), 1e-30)


def test_all_of_them_are_here():
    assert len(NAMES) == 41
    assert sum(name.endswith("-training") for name in NAMES) == 6


@pytest.mark.parametrize("name", NAMES)
def test_features_and_outputs(name):
    held = np.load(FOLDERS / name / "io.npz")
    exact = "acts64" in held
    with jax.enable_x64(exact):
        one = loaded(name, "float64" if exact else "float32")
        x, ending = held["x"], "64" if exact else ""
        x = x.astype(np.float64) if exact else x
        bar = 1e-9 if exact else 2e-5 if name.startswith("legacy") else 1e-5
        acts = np.asarray(one.encode(x))
        assert gap(acts, held["acts" + ending]) <= bar
        np.testing.assert_array_equal(acts != 0, held["acts" + ending] != 0)
        assert gap(one.reconstruct(x), held["forward" + ending]) <= bar
        decoded = held["decode" + ending] if "decode" in held else held["forward" + ending]
        assert gap(one.decode(acts, x), decoded) <= bar
        if "z_pred64" in held:
            assert gap(one.predict(x), held["z_pred64"]) <= bar


HALVES = {"standard-bf16": "bfloat16", "standard-f16": "float16"}


@pytest.mark.parametrize("name", NAMES)
def test_in_the_dtype_they_are_stored_in(name):
    held, dtype = np.load(FOLDERS / name / "io.npz"), HALVES.get(name, "float32")
    one = loaded(name, dtype)
    acts = np.asarray(one.encode(held["x"])).astype(np.float32)
    bar = 1e-2 if name in HALVES else 2e-5 if name.startswith("legacy") else 1e-5
    assert gap(acts, held["acts"]) <= bar
    ours, theirs = acts != 0, held["acts"] != 0
    # Of two bytes each, what is within rounding of 0 may be active in one and not in the other.
    assert (ours & theirs).sum() >= (0.98 if name in HALVES else 1) * (ours | theirs).sum()
    assert gap(np.asarray(one.reconstruct(held["x"])).astype(np.float32), held["forward"]) <= bar
    if "pre" in held:
        assert gap(np.asarray(one.encode_pre(held["x"])).astype(np.float32), held["pre"]) <= bar


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("legacy")])
def test_saved_again_bit_for_bit(name, tmp_path):
    stored = load_file(FOLDERS / name / "sae_weights.safetensors")
    said = read_object(FOLDERS / name / "cfg.json", ConfigError)
    one = loaded(name, said["dtype"])
    if isinstance(getattr(one, "activation", None), jmi_sparse.BatchTopK):
        with pytest.raises(ArgumentError, match="at_threshold"):
            jmi_sparse.save(one, tmp_path)
        return
    jmi_sparse.save(one, tmp_path)
    again = load_file(tmp_path / "sae_weights.safetensors")
    assert {key: (value.dtype, value.tobytes()) for key, value in stored.items()} == {
        key: (value.dtype, value.tobytes()) for key, value in again.items()
    }
    written = read_object(tmp_path / "cfg.json", ConfigError)
    if not name.endswith("-training"):
        assert written == said
    assert {key: said[key] for key in written} == written


@pytest.mark.parametrize("name", ["trained-batchtopk", "trained-matryoshka"])
def test_a_checkpoint_at_its_threshold_is_what_saelens_saves_for_inference(name):
    x = np.load(FOLDERS / name / "io.npz")["x"]
    ours, theirs = jmi_sparse.at_threshold(loaded(f"{name}-training")), loaded(name)
    assert jax.tree.structure(ours.activation) == jax.tree.structure(theirs.activation)
    assert gap(ours.encode(x), np.asarray(theirs.encode(x))) <= 1e-5
    assert gap(ours.reconstruct(x), np.asarray(theirs.reconstruct(x))) <= 1e-5
    assert gap(ours.W_enc, np.asarray(theirs.W_enc)) <= 1e-6


@pytest.mark.parametrize("name", ["standard", "topk", "jumprelu"])
def test_the_error_term_makes_the_input_whole(name):
    held = np.load(FOLDERS / name / "io.npz")
    one = loaded(name)
    whole = one.reconstruct(held["x"]) + one.error(held["x"])
    assert gap(whole, held["forward_error_term"]) <= 1e-5
    np.testing.assert_allclose(one.error(held["x"]), held["x"] - held["forward"], atol=1e-4)


@pytest.mark.parametrize("name", ["standard-expected-average", "standard-whitening"])
def test_what_lies_outside_the_folder_is_warned_of(name):
    with pytest.warns(UserWarning, match=re.escape(f"{name}: ")):
        jmi_sparse.load(FOLDERS / name)


def test_hooks_are_those_of_the_config():
    one = loaded("transcoder-dout")
    assert (one.hook_in, one.hook_out) == ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
    assert (one.kind, one.d_in, one.n_features, one.d_out) == ("transcoder", 32, 128, 24)
    assert loaded("legacy-v2-hook-point").hook_in == "blocks.8.hook_resid_pre"
    assert isinstance(loaded("legacy-topk").activation, jmi_sparse.TopK)
    assert loaded("trained-gated").W_dec.dtype == jnp.float32
