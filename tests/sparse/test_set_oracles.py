"""Folders of several layers that circuit-tracer and SAELens wrote or read, and what they computed."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import jmi_sparse
from tests.sparse.set_folders import gap

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
ORACLES = SHARED / "oracles" / "sparse"

pytestmark = pytest.mark.skipif(not ORACLES.is_dir(), reason="oracles/sparse is not here; set JMI_SHARED")

SETS = {
    "clt-relu": ("hook_resid_mid", jmi_sparse.ReLU),
    "clt-threshold": ("hook_resid_mid", jmi_sparse.JumpReLU),
    "gemma-scope-2-clt": ("mlp.hook_in", jmi_sparse.JumpReLU),
    "plt-jumprelu": ("ln2.hook_normalized", jmi_sparse.JumpReLU),
    "plt-relu": ("hook_resid_mid", jmi_sparse.ReLU),
    "plt-relu-skip-bf16": ("hook_resid_mid", jmi_sparse.ReLU),
    "plt-topk": ("hook_resid_mid", jmi_sparse.TopK),
}


@pytest.mark.parametrize("name", SETS)
def test_what_circuit_tracer_computes(name):
    held, (hook, activation) = np.load(ORACLES / "circuit-tracer" / name / "io.npz"), SETS[name]
    one = jmi_sparse.load(ORACLES / "circuit-tracer" / name)
    found = one if name.endswith("clt") or name.startswith("clt") else one.stacked
    assert isinstance(found.activation, activation)
    assert (one.hook_in, one.hook_out) == (f"blocks.*.{hook}", "blocks.*.hook_mlp_out")
    assert gap(one.encode_pre(held["x"]), held["pre"]) <= 3e-5
    acts = np.asarray(one.encode(held["x"]))
    assert gap(acts, held["acts"]) <= 3e-5
    np.testing.assert_array_equal(acts != 0, held["acts"] != 0)
    assert gap(one.reconstruct(held["x"]), held["recon"]) <= 3e-5


def test_in_bfloat16():
    held = np.load(ORACLES / "circuit-tracer" / "plt-relu-skip-bf16" / "io.npz")
    one = jmi_sparse.load(ORACLES / "circuit-tracer" / "plt-relu-skip-bf16", dtype="bfloat16")
    assert gap(one.encode(held["x"]), held["acts"]) <= 1e-2
    assert gap(one.reconstruct(held["x"]), held["recon"]) <= 1e-2


def test_mwhannas_folders_with_either_name_of_their_config(tmp_path):
    source = ORACLES / "foreign" / "mwhanna-qwen3-transcoder"
    held, x = np.load(source / "io.npz"), np.load(source / "io.npz")["x"]
    for number, (config, wandb) in enumerate(
        [
            ("config.yaml", "wandb-config.yaml"),
            ("config.yaml", "wanb-config.yaml"),
            (None, "wanb-config.yaml"),
        ]
    ):
        place = tmp_path / str(number)
        place.mkdir()
        (place / wandb).write_bytes((source / "wandb-config.yaml").read_bytes())
        (place / "layer_2.safetensors").write_bytes((source / "layer_2.safetensors").read_bytes())
        if config:
            (place / config).write_bytes((source / config).read_bytes())
        every, one = jmi_sparse.load(place), jmi_sparse.load(place / "layer_2.safetensors")
        assert every.layers == (2,)
        assert (every.hook_in, one.hook_in) == ("blocks.*.mlp.hook_in", "blocks.2.mlp.hook_in")
        assert one.hook_out == "blocks.2.hook_mlp_out"
        acts = np.asarray(one.encode(x))
        np.testing.assert_array_equal(acts != 0, held["acts"] != 0)
        assert gap(acts, held["acts"]) <= 3e-5
        assert gap(one.reconstruct(x), held["forward"]) <= 3e-5
        assert gap(every.reconstruct(x[None])[0], held["forward"]) <= 3e-5


def test_one_layer_of_gemma_scope_2_keeps_its_targets_apart():
    source = ORACLES / "foreign" / "gemma-scope-2-clt"
    held, one = np.load(source / "io.npz"), jmi_sparse.load(source)
    assert (one.layers, one.targets, one.pairs) == ((3,), (3, 4), ((0, 0), (0, 1)))
    acts = np.asarray(one.encode(held["x"][None]))
    np.testing.assert_array_equal(acts[0] != 0, held["acts"] != 0)
    assert gap(acts[0], held["acts"]) <= 1e-5
    # SAELens adds what is written into all targets.
    parts = np.asarray(one.reconstruct(held["x"][None]))
    assert np.abs(parts[1]).max() > 0.1
    assert gap(parts.sum(0), held["forward"]) <= 1e-5


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gemma2-plt-jump-normalized", jmi_sparse.JumpReLU),
        ("gpt2-plt-topk-skip", jmi_sparse.TopK),
        ("llama-plt-relu", jmi_sparse.ReLU),
        ("llama-clt", jmi_sparse.JumpReLU),
    ],
)
def test_folders_without_a_config_and_their_recorded_activations(name, kind):
    source = ORACLES / "attribution" / name
    one = jmi_sparse.load(source / "transcoders")
    activation = one.activation if name == "llama-clt" else one.stacked.activation
    assert isinstance(activation, kind)
    assert (one.hook_in, one.layers) == (None, (0, 1, 2))
    # The recorded pre-activations, activated, are the recorded activations.
    graph = np.load(source / "graph.npz")
    features = jax.vmap(lambda a, p: a(p))(activation, jnp.asarray(graph["pre_activations"]))
    features = np.asarray(features)
    for (layer, position, feature), value in zip(
        graph["active_features"], graph["activation_values"], strict=True
    ):
        assert abs(features[layer, position, feature] - value) <= 3e-5 * max(1, abs(value))


@pytest.mark.parametrize("name", [name for name in SETS if "gemma" not in name])
def test_recorded_folders_are_saved_again_bit_for_bit(name, tmp_path):
    source = ORACLES / "circuit-tracer" / name
    dtype = "bfloat16" if name.endswith("bf16") else "float32"
    jmi_sparse.save(jmi_sparse.load(source, dtype=dtype), tmp_path, format="circuit-tracer")
    files = sorted(source.glob("*.safetensors"))
    assert files
    for file in files:
        first, second = load_file(file), load_file(tmp_path / file.name)
        assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in first.items()} == {
            n: (a.dtype, a.shape, a.tobytes()) for n, a in second.items()
        }
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == yaml.safe_load(
        (source / "config.yaml").read_text()
    )
