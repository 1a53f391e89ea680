"""Dictionaries made of random numbers, and folders of them."""

import json

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import jmi_sparse

D, F = 6, 20


def weights(seed=0, d_in=D, d_out=D, features=F):
    """Arrays of a dictionary in float64: rows of several norms, biases on either side of 0."""
    rng = np.random.default_rng(seed)
    return {
        "W_enc": rng.normal(size=(d_in, features)),
        "W_dec": rng.normal(size=(features, d_out)) * rng.uniform(0.3, 3, (features, 1)),
        "b_dec": rng.normal(size=d_out),
        "b_enc": rng.normal(size=features) * 0.3,
    }


def dictionary(activation=None, dtype=np.float32, skip=(), **options):
    """One of them; ``skip`` names what is left out."""
    activation = jmi_sparse.ReLU() if activation is None else activation
    d_out = options.pop("d_out", D)
    arrays = {key: jnp.asarray(value.astype(dtype)) for key, value in weights(d_out=d_out).items()}
    kept = {key: value for key, value in arrays.items() if key not in skip}
    return jmi_sparse.Dictionary(activation=activation, **kept, **options)


def points(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape or (5, D))


CONFIG = {
    "d_in": D,
    "d_sae": F,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "architecture": "standard",
    "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.hook_resid_post"},
}


def folder(path, config=None, arrays=None, **others):
    """A folder of SAELens; ``others`` are files of tensors besides, or of texts."""
    path.mkdir(exist_ok=True)
    given = CONFIG | (config or {})
    (path / "cfg.json").write_text(json.dumps({k: v for k, v in given.items() if v is not LEFT_OUT}))
    held = {name: array.astype(np.float32) for name, array in weights().items()} | (arrays or {})
    kept = {name: array for name, array in held.items() if array is not LEFT_OUT}
    save_file(kept, path / "sae_weights.safetensors")
    for name, value in others.items():
        if isinstance(value, dict):
            save_file(value, path / f"{name}.safetensors")
        else:
            (path / f"{name}.json").write_text(value)
    return path


LEFT_OUT = object()
