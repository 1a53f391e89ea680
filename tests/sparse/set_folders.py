"""Folders of several layers, made by hand of random numbers."""

import json

import numpy as np
import yaml
from safetensors.numpy import save_file


def gap(got, want):
    """The largest difference, in parts of the largest entry."""
    assert np.shape(got) == np.shape(want)
    return np.abs(np.asarray(got, np.float64) - want).max() / max(np.abs(want).max(), 1e-30)


def layer_file(seed, d=4, features=6, skip=False, threshold=None, k=None, d_out=None):
    """Tensors of a layer as circuit-tracer stores them."""
    rng, d_out = np.random.default_rng(seed), d_out or d
    held = {
        "W_enc": rng.normal(size=(features, d)),
        "W_dec": rng.normal(size=(features, d_out)),
        "b_enc": rng.normal(size=features),
        "b_dec": rng.normal(size=d_out),
    }
    if skip:
        held["W_skip"] = rng.normal(size=(d_out, d))
    if threshold is not None:
        held["activation_function.threshold"] = np.full(features, threshold)
    found = {name: array.astype(np.float32) for name, array in held.items()}
    return found | ({"k": np.array(k)} if k is not None else {})


CONFIG = {
    "model_name": "some/model",
    "model_kind": "transcoder_set",
    "feature_input_hook": "hook_resid_mid",
    "feature_output_hook": "hook_mlp_out",
}


def plt_folder(path, layers=(0, 1, 2), config=None, **options):
    """A folder of per-layer transcoders, made by hand; returns it and its tensors."""
    path.mkdir(parents=True, exist_ok=True)
    held = {layer: layer_file(layer, **options) for layer in layers}
    for layer, arrays in held.items():
        save_file(arrays, path / f"layer_{layer}.safetensors")
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG | (config or {})))
    return path, held


def clt_folder(path, layers=3, d=4, features=6, d_out=None, skip=False, threshold=None):
    """A folder of a cross-layer transcoder, made by hand; returns it and its tensors."""
    path.mkdir(parents=True, exist_ok=True)
    rng, d_out, held = np.random.default_rng(7), d_out or d, {}
    for i in range(layers):
        encoder = {
            f"W_enc_{i}": rng.normal(size=(features, d)),
            f"b_enc_{i}": rng.normal(size=features),
            f"b_dec_{i}": rng.normal(size=d_out),
        }
        if skip:
            encoder[f"W_skip_{i}"] = rng.normal(size=(d, d_out))
        if threshold is not None:
            encoder[f"threshold_{i}"] = np.full(features, threshold)
        held[f"W_enc_{i}"] = {name: array.astype(np.float32) for name, array in encoder.items()}
        rows = rng.normal(size=(features, layers - i, d_out)).astype(np.float32)
        held[f"W_dec_{i}"] = {f"W_dec_{i}": rows}
    for name, arrays in held.items():
        save_file(arrays, path / f"{name}.safetensors")
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"model_kind": "cross_layer_transcoder"}))
    return path, held


def gemma_folder(path, count=3, d=4, features=6, affine=True, lower=0.0, config=None):
    """A folder of Gemma Scope 2, made by hand; returns it and its tensors."""
    path.mkdir(parents=True, exist_ok=True)
    held = {}
    for i in range(count):
        rng = np.random.default_rng(i)
        rows = rng.normal(size=(features, count, d))
        rows[:, :i] = lower
        held[i] = {
            "w_enc": rng.normal(size=(d, features)),
            "w_dec": rows,
            "b_enc": rng.normal(size=features),
            "b_dec": rng.normal(size=d),
            "threshold": rng.uniform(0, 1, features),
        }
        if affine:
            held[i]["affine_skip_connection"] = rng.normal(size=(d, d))
        held[i] = {name: array.astype(np.float32) for name, array in held[i].items()}
        save_file(held[i], path / f"params_layer_{i}.safetensors")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path, held


def points(layers, d=4, seed=3):
    return np.random.default_rng(seed).normal(size=(layers, 5, d)).astype(np.float32)


CLT_CONFIG = {
    "hf_hook_point_in": "model.layers.{all}.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.{all}.post_feedforward_layernorm.output",
    "width": 18,
    "model_name": "google/gemma-3-270m-pt",
    "architecture": "jump_relu",
    "l0": 150,
    "affine_connection": True,
    "type": "clt",
}
CODER_CONFIG = CLT_CONFIG | {
    "hf_hook_point_in": "model.layers.{5,9,12}.output",
    "hf_hook_point_out": "model.layers.{5,9,12}.output",
    "affine_connection": False,
    "type": "crosscoder",
}
