"""Folders of SAELens: ``cfg.json``, ``sae_weights.safetensors`` and, at times, ``sparsity.safetensors``."""

import re
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jmi.errors import ArgumentError, CheckpointError, ConfigError
from jmi.model.sites import split
from jmi.reading import read_object
from jmi_models.disk import words
from jmi_sparse.dictionaries.activations import Activation, BatchTopK, Gated, JumpReLU, ReLU, TopK
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.dictionaries.folding import fold_norm_factor
from jmi_sparse.dictionaries.normalisation import ConstantNorm, LayerNorm, Normalisation, Outside, Scalar
from jmi_sparse.dictionaries.pursuit import MatchingPursuit
from jmi_sparse.dictionaries.temporal import FeatureAttention, Linear, Temporal
from jmi_sparse.formats.reading import tensors
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.decoders import Decoders
from jmi_sparse.formats.saelens.config import OUTSIDE, Config, parse
from jmi_sparse.formats.saelens.writing import CONFIG, LINEAR, SPARSITY, WEIGHTS, OneDictionary
from jmi_sparse.formats.saelens.writing import write as write

SCALER = "activation_scaler.json"
_LARGEST = 1e30
"""A factor as large as this is none."""
_SCALED = ("finetuning_scaling_factor", "scaling_factor")
"""Names under which versions before 6 kept what a finetuning multiplied features by."""


def matches(folder: Path) -> bool:
    """Whether a folder looks like one of these."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path, asked: Asked) -> OneDictionary:
    """The dictionary in a folder; errors as of `jmi_sparse.load`."""
    config = _config(folder, asked)
    headers = tensors.headers(folder / WEIGHTS)
    scaled = next((name for name in _SCALED if name in headers), None)
    wanted = config.tensors() | ({scaled: (config.n_features,)} if scaled else {})
    problems = tensors.misfits(headers, wanted)
    if config.scaled and not scaled:
        problems.append("finetuning_scaling_factor is true, and there is no tensor of that name")
    density = None
    if (folder / SPARSITY).exists():
        density = tensors.headers(folder / SPARSITY)
        problems += [
            f"{SPARSITY}: {each}" for each in tensors.misfits(density, {"sparsity": (config.n_features,)})
        ]
    if problems:
        raise CheckpointError(f"{WEIGHTS}: " + "; ".join(problems))
    arrays = {name: np.asarray(headers[name].read()) for name in wanted}
    if not config.scaled and scaled and (arrays[scaled] != 1).any():
        raise CheckpointError(f"{WEIGHTS}: {scaled} is not 1, and cfg.json says that nothing was finetuned")
    if scaled:
        # Features were multiplied by it before they were decoded.
        arrays["W_dec"] = arrays["W_dec"].astype(np.float64) * arrays.pop(scaled).astype(np.float64)[:, None]
    if density:
        arrays["log_density"] = np.asarray(density["sparsity"].read())
    made = _made(config, tensors.cast(arrays, asked.dtype, WEIGHTS))
    factor = _factor(folder, config, asked)
    # A temporal dictionary has no such mode.
    return made if factor is None or isinstance(made, Temporal) else fold_norm_factor(made, factor)


def on_disk(folder: Path, asked: Asked) -> Decoders:
    """The decoder of such a folder, whose layer is that of its hook, or 0; see `open_decoder`.

    Raises:
      ArgumentError: loading multiplies its rows by a factor, so those of the file are not its own.
    """
    config = _config(folder, asked)
    headers = tensors.headers(folder / WEIGHTS)
    factor = (folder / SCALER).exists() or asked.listed_factor is not None
    if config.scaled or set(_SCALED) & set(headers) or (config.normalise == OUTSIDE[0] and factor):
        raise ArgumentError(
            f"{folder.name}: loading multiplies decoder rows by a factor, so they cannot stay on disk; use "
            "jmi_sparse.load"
        )
    if problems := tensors.misfits(headers, config.tensors()):
        raise CheckpointError(f"{WEIGHTS}: " + "; ".join(problems))
    written = config.hook_out if config.kind == "transcoder" else config.hook_in
    layer = re.match(r"blocks\.(\d{1,4})\.", config.hook_in or "", re.ASCII)
    return Decoders(
        targets={found: (found,) for found in [int(layer[1]) if layer else 0]},
        shape=headers["W_dec"].shape,
        dtype=asked.dtype,
        view=lambda layer, target: np.asarray(headers["W_dec"].read()),
        encode=lambda layer: read(folder, asked),
        site=None if written is None else split(written)[0],
    )


def _config(folder: Path, asked: Asked) -> Config:
    said = read_object(folder / CONFIG, ConfigError)
    if asked.normalize_activations is not None:
        said["normalize_activations"] = asked.normalize_activations
    return parse(said, asked.k, asked.hook)


def _made(config: Config, arrays: dict[str, Any]) -> OneDictionary:
    normalise: dict[str, Normalisation | None] = {
        "none": None,
        "constant_norm_rescale": ConstantNorm(),
        "layer_norm": LayerNorm(),
        **{mode: Outside(mode) for mode in OUTSIDE},
    }
    if config.normalise == "constant_scalar_rescale":
        factor = config.options["activation_normalization_factor"]
        normalise[config.normalise] = Scalar(jnp.asarray(factor, arrays["W_dec"].dtype))
    shared: dict[str, Any] = {
        "W_dec": arrays["W_dec"],
        "b_dec": arrays["b_dec"],
        "normalisation": normalise[config.normalise],
        "log_density": arrays.get("log_density"),
        "apply_b_dec_to_input": config.apply_b_dec,
        "hook_z": config.hook_z,
        "hook_in": config.hook_in,
        "hook_out": config.hook_out,
        "metadata": config.metadata,
    }
    if config.activation == "pursuit":
        return MatchingPursuit(**shared, **config.options)
    if config.activation == "temporal":
        return _temporal(config, arrays, shared)
    return Dictionary(
        W_enc=arrays["W_enc"],
        activation=_activation(config, arrays),
        b_enc=arrays.get("b_enc"),
        W_skip=arrays.get("W_skip"),
        rescale_acts_by_decoder_norm=config.rescale,
        kind=config.kind,
        **shared,
    )


def _temporal(config: Config, arrays: dict[str, Any], shared: dict[str, Any]) -> Temporal:
    layers = []
    for number in range(config.options["n_attn_layers"]):
        maps = {
            name: Linear(*(arrays[f"attn_layers.{number}.{name}.{part}"] for part in ("weight", "bias")))
            for name in LINEAR
        }
        layers.append(FeatureAttention(**maps, heads=config.options["n_heads"]))
    kept = config.options["kval_topk"] if config.options["sae_diff_type"] == "topk" else config.n_features
    activation = ReLU() if kept == config.n_features else TopK(kept, "before")
    return Temporal(W_enc=arrays.get("W_enc"), layers=tuple(layers), activation=activation, **shared)


def _activation(config: Config, arrays: dict[str, Any]) -> Activation:
    kept = config.k or 1
    match config.activation:
        case "jump":
            return JumpReLU(arrays["threshold"])
        case "gated":
            return Gated(arrays["b_gate"], arrays["b_mag"], arrays["r_mag"])
        case "topk":
            return TopK(int(kept), "magnitude" if config.architecture == "abstopk" else "after")
        case "batch":
            return BatchTopK(arrays["topk_threshold"], float(kept))
    return ReLU()


def _factor(folder: Path, config: Config, asked: Asked) -> float | None:
    """What inputs were multiplied by in training: the argument's, or that of a checkpoint or a registry."""
    given = asked.norm_factor
    if config.normalise != OUTSIDE[0]:
        if given is not None:
            raise ArgumentError(
                f"norm_factor={given}: normalize_activations is {config.normalise}, not {OUTSIDE[0]}"
            )
        if config.normalise in OUTSIDE:
            warnings.warn(
                f"{folder.name}: {config.normalise} has its numbers outside this folder; inputs are read as "
                "they are, as SAELens does, and features differ from those of its training",
                stacklevel=5,
            )
        return None
    if given is None and (folder / SCALER).exists():
        said = read_object(folder / SCALER, ConfigError).get("scaling_factor")
        if said is not None:
            if isinstance(said, bool) or not isinstance(said, (int, float)) or not 0 < said < _LARGEST:
                raise ConfigError(
                    f"{SCALER}: scaling_factor must be a number above 0, not {words.value(said)}"
                )
            return float(said)
    given = asked.listed_factor if given is None else given
    if given is None:
        warnings.warn(
            f"{folder.name}: {config.normalise} has its factor outside this folder; inputs are read as they "
            "are, as SAELens does. If it was not folded into the weights, pass norm_factor=",
            stacklevel=5,
        )
    return given
