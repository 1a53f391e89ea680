"""Dictionaries as folders for inference, as SAELens 6 writes them."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jmi.artefacts import replacing
from jmi.errors import ArgumentError, OutputError, printable
from jmi_sparse.dictionaries.activations import BatchTopK, Gated, JumpReLU, ReLU, TopK
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.dictionaries.kinds import AnyDictionary
from jmi_sparse.dictionaries.normalisation import ConstantNorm, LayerNorm, Outside, Scalar
from jmi_sparse.dictionaries.pursuit import MatchingPursuit
from jmi_sparse.dictionaries.temporal import Temporal
from jmi_sparse.formats.reading.paths import make_folder

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
LINEAR = ("q_target", "k_ctx", "v_ctx", "c_proj")
"""The linear maps of one layer of attention in a temporal dictionary."""

OneDictionary = Dictionary | MatchingPursuit | Temporal


def write(dictionary: AnyDictionary, folder: Path) -> None:
    """Write such a folder; arguments and errors as `jmi_sparse.save`."""
    if not isinstance(dictionary, OneDictionary):
        raise ArgumentError(
            f"save: a folder of SAELens holds one dictionary of one point, not {dictionary!r}"
        )
    config, arrays = _config(dictionary), _arrays(dictionary)
    make_folder(folder)
    files = {WEIGHTS: arrays}
    if dictionary.log_density is not None:
        files[SPARSITY] = {"sparsity": np.asarray(dictionary.log_density)}
    for name, tensors in files.items():
        with replacing(folder / name) as temporary:
            try:
                save_file(tensors, temporary)
            except SafetensorError as error:
                raise OutputError(f"{folder}: {name} could not be written: {printable(error)}") from None
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")


def _config(d: OneDictionary) -> dict[str, Any]:
    names: dict[type, str] = {
        type(None): "none",
        ConstantNorm: "constant_norm_rescale",
        LayerNorm: "layer_norm",
        Scalar: "constant_scalar_rescale",
    }
    normalise = d.normalisation
    mode = normalise.mode if isinstance(normalise, Outside) else names.get(type(normalise))
    if mode is None or isinstance(normalise, Scalar) != (isinstance(d, Temporal) and mode == names[Scalar]):
        raise ArgumentError(f"save: SAELens has no such normalisation ({type(normalise).__name__}) for {d!r}")
    config = {
        "d_in": d.d_in,
        "d_sae": d.n_features,
        "dtype": str(d.W_dec.dtype),
        "device": "cpu",
        "apply_b_dec_to_input": d.apply_b_dec_to_input,
        "normalize_activations": mode,
        "reshape_activations": "hook_z" if d.hook_z else "none",
        "architecture": _architecture(d),
        **_options(d),
    }
    # Without a version it would be read as one before 6, with other defaults.
    metadata = {"sae_lens_version": "6.0.0", **json.loads(d.metadata), "hook_name": d.hook_in}
    if d.kind == "transcoder" and d.hook_out is not None:
        metadata["hook_name_out"] = d.hook_out
    return {**config, "metadata": metadata}


def _options(d: OneDictionary) -> dict[str, Any]:
    """Fields that only some architectures have."""
    if isinstance(d, MatchingPursuit):
        names = ("residual_threshold", "max_iterations", "stop_on_duplicate_support")
        return {name: getattr(d, name) for name in names}
    if isinstance(d, Temporal):
        chosen = isinstance(d.activation, TopK)
        return {
            "n_heads": d.layers[0].heads,
            "n_attn_layers": len(d.layers),
            "bottleneck_factor": d.n_features // len(d.layers[0].q_target.bias),
            "sae_diff_type": "topk" if chosen else "relu",
            "kval_topk": d.activation.k if isinstance(d.activation, TopK) else None,
            "tied_weights": d.W_enc is None,
            "activation_normalization_factor": _decimal(d.normalisation.factor)
            if isinstance(d.normalisation, Scalar)
            else 1.0,
        }
    found: dict[str, Any] = {"d_out": d.d_out} if d.kind == "transcoder" else {}
    if isinstance(d.activation, TopK):
        found |= {"k": d.activation.k, "rescale_acts_by_decoder_norm": d.rescale_acts_by_decoder_norm}
    return found


def _decimal(factor: jax.Array) -> float:
    """The shortest number that is ``factor`` in its dtype: 0.7 and not 0.699999988."""
    return float(str(np.asarray(factor)))


def _architecture(d: OneDictionary) -> str:
    """SAELens's name for a dictionary; ArgumentError where it has none."""
    if not isinstance(d, Dictionary):
        return "temporal" if isinstance(d, Temporal) else "matching_pursuit"
    if isinstance(d.activation, BatchTopK):
        raise ArgumentError(
            "save: a BatchTopK selects over a batch; save jmi_sparse.at_threshold(dictionary) instead"
        )
    usual: dict[type, str] = {ReLU: "standard", JumpReLU: "jumprelu", Gated: "gated", TopK: "topk"}
    name = usual.get(type(d.activation))
    if isinstance(d.activation, TopK) and d.activation.relu not in ("after", "before"):
        # Before and after give the same values.
        name = "abstopk" if d.activation.relu == "magnitude" else None
    if d.kind == "transcoder":
        skip, prefixes = "skip_" * (d.W_skip is not None), {"standard": "", "jumprelu": "jumprelu_"}
        name = f"{prefixes[name]}{skip}transcoder" if name in prefixes else None
    elif d.W_skip is not None:
        name = None
    rescaled = d.rescale_acts_by_decoder_norm and not isinstance(d.activation, TopK)
    if name is None or rescaled or (d.b_enc is None) != isinstance(d.activation, Gated):
        raise ArgumentError(f"save: SAELens has no kind of dictionary for {d!r}")
    return name


def _arrays(d: OneDictionary) -> dict[str, np.ndarray]:
    names = ("W_enc", "W_dec", "b_dec", "b_enc", "W_skip")
    found = {name: getattr(d, name) for name in names if getattr(d, name, None) is not None}
    if isinstance(d, Temporal):
        for number, layer in enumerate(d.layers):
            for name in LINEAR:
                found[f"attn_layers.{number}.{name}.weight"] = getattr(layer, name).weight
                found[f"attn_layers.{number}.{name}.bias"] = getattr(layer, name).bias
    elif isinstance(d, Dictionary) and isinstance(d.activation, JumpReLU):
        found["threshold"] = d.activation.threshold
    elif isinstance(d, Dictionary) and isinstance(d.activation, Gated):
        found |= {name: getattr(d.activation, name) for name in ("b_gate", "b_mag", "r_mag")}
    return {name: np.ascontiguousarray(jax.device_get(array)) for name, array in found.items()}
