"""Llama Scope: ``hyperparams.json`` with ``checkpoints/final.safetensors``, and the later R1-Distill form.

That one is ``config.json`` with ``sae_weights.safetensors``, has a threshold for each feature, and may have
mean norms among its weights.
"""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmi.errors import ConfigError
from jmi.reading import read_object
from jmi_models.disk import words
from jmi_models.disk.tensors import Stored
from jmi_sparse.dictionaries.activations import JumpReLU
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.dictionaries.normalisation import Outside
from jmi_sparse.formats.reading import fields, paths, tensors
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.fields import Fields
from jmi_sparse.formats.reading.tensors import Part

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
LATER_CONFIG, LATER_WEIGHTS = "config.json", "sae_weights.safetensors"
_LAYOUT = {
    "W_enc": Part("encoder.weight", "fi"),
    "W_dec": Part("decoder.weight", "of"),
    "b_enc": Part("encoder.bias", "f"),
    "b_dec": Part("decoder.bias", "o"),
}
_LATER_LAYOUT = {**_LAYOUT, "threshold": Part("log_jumprelu_threshold", "f")}
_SCALED, _PLAIN = "dataset-wise", "inference"
_AVERAGE = "dataset_average_activation_norm"
"""What the authors call the mean norm of inputs, in a config or, after a dot and a hook, among weights."""


def matches(folder: Path) -> bool:
    """Whether a folder looks like one of these."""
    return (folder / CONFIG).is_file() or _is_later(folder)


def _is_later(folder: Path) -> bool:
    if not (folder / LATER_CONFIG).is_file() or not (folder / LATER_WEIGHTS).is_file():
        return False
    names = tensors.names(folder / LATER_WEIGHTS)
    # SAELens's files have a cfg.json beside them, and later ones of these authors other names.
    return not (folder / "cfg.json").exists() and (
        names is None or not names.isdisjoint(part.name for part in _LAYOUT.values())
    )


def read(folder: Path, asked: Asked) -> Dictionary:
    """The dictionary in a folder; errors as of `jmi_sparse.load`."""
    fields.refuse(asked, "k")
    later = not (folder / CONFIG).is_file()
    config, file = (LATER_CONFIG, LATER_WEIGHTS) if later else (CONFIG, WEIGHTS)
    problems: list[str] = []
    find = Fields(read_object(folder / config, ConfigError), problems)
    d_in = find.whole("d_model")
    features = d_in * find.whole("expansion_factor") if later else find.whole("d_sae")
    find.word("act_fn", ("jumprelu",), "jumprelu")
    find.word("sae_type", ("sae",), "sae")
    threshold = None if later else find.number("jump_relu_threshold", math.nan)
    reads, writes = (find.text(find.given, f"hook_point_{end}") for end in ("in", "out"))
    transcoder = None not in (reads, writes) and reads != writes
    by_norms = find.flag("sparsity_include_decoder_norm", True)
    headers = tensors.headers(folder / file)
    norms = _norms_among(headers, reads, writes) if later else find.given.get(_AVERAGE)
    factors = _factors(find, norms, d_in, asked, later)
    if problems:
        raise ConfigError(f"{config}: " + "; ".join(problems))
    arrays = tensors.parts(
        file,
        headers,
        _LATER_LAYOUT if later else _LAYOUT,
        square=not transcoder,
        sizes={"i": d_in, "f": features},
    )
    if by_norms:
        _check_norms(folder, arrays["W_dec"])
    if threshold is None:
        with np.errstate(over="ignore", under="ignore"):
            arrays["threshold"] = np.exp(arrays["threshold"].astype(np.float64))
    else:
        # In the files it is that of inputs as they are.
        arrays["threshold"] = np.full(features, threshold * (factors or (1, 1))[0])
    held: dict[str, Any] = tensors.cast(_scaled(arrays, factors or (1, 1), asked.dtype), asked.dtype, file)
    return Dictionary(
        activation=JumpReLU(held.pop("threshold")),
        normalisation=None if factors else Outside(_SCALED),
        **held,
        **paths.sites(asked.hook or reads, writes, transcoder=transcoder),
        metadata=fields.about(model_name=find.given.get("model_name")),
    )


def _norms_among(headers: dict[str, Stored], reads: str | None, writes: str | None) -> Any:
    """Mean norms that lie among the weights, taken out of ``headers``; None where they are no norms."""
    held = {name: headers.pop(name) for name in [*headers] if name.startswith(f"{_AVERAGE}.")}
    norms = {end: held.get(f"{_AVERAGE}.{hook}") for end, hook in (("in", reads), ("out", writes))}
    # Some were never set: what is not above 0 says nothing.
    known = {
        end: float(np.asarray(one.read()).reshape(-1)[0])
        for end, one in norms.items()
        if one is not None and math.prod(one.shape) == 1 and one.dtype in tensors.FLOATS
    }
    return known if len(known) == 2 and all(0 < norm < math.inf for norm in known.values()) else None


def _factors(find: Fields, norms: Any, d_in: int, asked: Asked, later: bool) -> tuple[float, float] | None:
    """What the training multiplied inputs and outputs by; None where nothing says it."""
    mode = find.word("norm_activation", (_SCALED, _PLAIN), _SCALED)
    if mode == _PLAIN:
        fields.refuse(asked, "norm_factor")
        return 1.0, 1.0
    if isinstance(norms, dict):
        fields.refuse(asked, "norm_factor")
        each = Fields(norms, find.problems)
        inner = each.number("in", math.nan, 1e-30)
        return d_in**0.5 / inner, d_in**0.5 / each.number("out", inner, 1e-30)
    given = asked.listed_factor if asked.norm_factor is None else asked.norm_factor
    if given is not None:
        return given, given
    if norms is not None or not later:
        find.problems.append(
            f"{_AVERAGE} is {words.value(norms)}, not the norms in and out; pass norm_factor="
        )
    elif not find.problems:
        warnings.warn(
            f"{LATER_CONFIG}: norm_activation is {_SCALED}, and its factor is not there; inputs are read as "
            "they are, as SAELens does. If it was not folded into the weights, pass norm_factor=",
            stacklevel=4,
        )
    return None


def _scaled(
    arrays: Mapping[str, np.ndarray], factors: tuple[float, float], dtype: Any
) -> dict[str, np.ndarray]:
    """Weights for inputs and outputs as the model has them."""
    by = {"W_enc": factors[0], "W_dec": 1 / factors[1], "b_dec": 1 / factors[1]}
    return {
        name: tensors.times(array, by[name], dtype) if by.get(name, 1) != 1 else array
        for name, array in arrays.items()
    }


def _check_norms(folder: Path, W_dec: np.ndarray) -> None:
    """Warn where these authors would choose features by the norms of their rows, and SAELens does not."""
    with np.errstate(over="ignore", under="ignore"):
        squares = np.einsum("fo,fo->f", W_dec, W_dec, dtype=np.float32, casting="same_kind")
    if (np.abs(squares - 1) > 0.04).any():
        warnings.warn(
            f"{folder.name}: sparsity_include_decoder_norm is true, and rows of the decoder are not of norm "
            "1; features are chosen without their norms, as SAELens does",
            stacklevel=4,
        )
