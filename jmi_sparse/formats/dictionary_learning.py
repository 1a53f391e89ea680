"""dictionary_learning: a folder with ``ae.pt``, a state dict, and ``config.json`` of its training.

Features are those of each class's ``encode``. Its `AutoEncoder.from_pretrained` and ``output_features``
report some of them times the norms of decoder rows: that is `Dictionary.fold_norms`.
"""

import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmi.errors import ConfigError
from jmi.reading import read_object
from jmi_models.disk import words
from jmi_sparse.dictionaries.activations import Activation, Gated, JumpReLU, ReLU, TopK
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.formats.reading import fields, paths, tensors
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.fields import Fields
from jmi_sparse.formats.reading.tensors import Part

WEIGHTS, CONFIG = "ae.pt", "config.json"
_SUBMODULE = r"resid_post_layer_(\d+)(?:_checkpoints)?"

_LAYERS = {"W_enc": Part("encoder.weight", "fi"), "W_dec": Part("decoder.weight", "of")}
_BIAS = {"b_enc": Part("encoder.bias", "f")}
_PLAIN = {
    "W_enc": Part("W_enc", "if"),
    "W_dec": Part("W_dec", "fo"),
    "b_enc": Part("b_enc", "f"),
    "b_dec": Part("b_dec", "o"),
}
_GATE = {
    "b_gate": Part("gate_bias", "f"),
    "b_mag": Part("mag_bias", "f"),
    "r_mag": Part("r_mag", "f"),
}
# Versions of 2024 did not keep it.
_KEPT = {"k": Part("k", "", optional=True, whole=True)}
_BATCH = {**_KEPT, "threshold": Part("threshold", "")}


@dataclasses.dataclass(frozen=True)
class _Class:
    """A class of dictionary: its tensors, what it is here, and whether it subtracts the decoder's bias."""

    layout: Mapping[str, Part]
    activation: str
    subtracts: bool = True


_CLASSES = {
    "AutoEncoder": _Class({**_LAYERS, **_BIAS, "b_dec": Part("bias", "o")}, "relu"),
    "AutoEncoderNew": _Class({**_LAYERS, **_BIAS, "b_dec": Part("decoder.bias", "o")}, "relu", False),
    "GatedAutoEncoder": _Class({**_LAYERS, **_GATE, "b_dec": Part("decoder_bias", "o")}, "gated"),
    "JumpReluAutoEncoder": _Class({**_PLAIN, "threshold": Part("threshold", "f")}, "jump", False),
    "AutoEncoderTopK": _Class(
        {
            **_LAYERS,
            **_BIAS,
            **_KEPT,
            "b_dec": Part("b_dec", "o"),
            "threshold": Part("threshold", "", optional=True),
        },
        "topk",
    ),
    "BatchTopKSAE": _Class({**_LAYERS, **_BIAS, **_BATCH, "b_dec": Part("b_dec", "o")}, "batch"),
    "MatryoshkaBatchTopKSAE": _Class(
        {**_PLAIN, **_BATCH, "groups": Part("group_sizes", "g", whole=True)}, "batch"
    ),
}


def matches(folder: Path) -> bool:
    """Whether a folder looks like one of these."""
    return (folder / WEIGHTS).is_file()


def read(folder: Path, asked: Asked) -> Dictionary:
    """The dictionary in a folder; errors as of `jmi_sparse.load`."""
    fields.refuse(asked, "norm_factor")
    config = read_object(folder / CONFIG, ConfigError)
    trainer, buffer = (_inner(config, name) for name in ("trainer", "buffer"))
    name = trainer.get("dict_class")
    if not isinstance(name, str) or name not in _CLASSES:
        raise ConfigError(f"{CONFIG}: dict_class {words.value(name)} is none of {', '.join(_CLASSES)}")
    made, problems = _CLASSES[name], list[str]()
    if made.activation != "topk":
        fields.refuse(asked, "k")
    find = Fields(trainer, problems)
    sizes = {"i": find.whole("activation_dim"), "f": find.whole("dict_size")}
    hook, transcoder = _hook(find, buffer, folder)
    if problems:
        raise ConfigError(f"{CONFIG}: " + "; ".join(problems))
    headers = tensors.headers(folder / WEIGHTS)
    arrays = tensors.parts(WEIGHTS, headers, made.layout, square=True, sizes=sizes)
    kept = _kept(made, arrays, find, asked.k)
    if made.activation == "batch":
        arrays["threshold"] = _threshold(arrays["threshold"], sizes["f"], folder)
    held: dict[str, Any] = tensors.cast(arrays, asked.dtype, WEIGHTS)
    activation = _activation(made.activation, held, kept)
    return Dictionary(
        activation=activation,
        apply_b_dec_to_input=made.subtracts,
        **held,
        **paths.sites(asked.hook or hook, transcoder=transcoder),
        metadata=fields.about(
            model_name=trainer.get("lm_name"), context_size=buffer.get("ctx_len"), k=trainer.get("k")
        ),
    )


def _inner(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name, {} if name == "buffer" else None)
    if not isinstance(found, dict):
        raise ConfigError(f"{CONFIG}: {name} is {words.value(found)}, not an object")
    return found


def _hook(find: Fields, buffer: Mapping[str, Any], folder: Path) -> tuple[str | None, bool]:
    """The site, where its trainer or the folders' names say it, and whether it is a transcoder."""
    io = Fields(buffer, find.problems).word("io", ("out", "in", "in_and_out"), "out")
    name, layer = find.text(find.given, "submodule_name"), find.given.get("layer")
    said = re.fullmatch(_SUBMODULE, name, re.ASCII) if name else paths.said(folder, _SUBMODULE)
    if said is None or io != "out":
        return None, io == "in_and_out"
    if layer is not None and said[1] != str(layer):
        find.problems.append(f"the submodule is {words.value(said[0])}, and layer {words.value(layer)}")
    return f"blocks.{said[1]}.hook_resid_post", False


def _kept(made: _Class, arrays: dict[str, np.ndarray], find: Fields, asked: int | None) -> int:
    """How many features are kept; takes out of the arrays what is no field of a dictionary."""
    features, problems = find.whole("dict_size"), list[str]()
    groups, stored, said = arrays.pop("groups", None), arrays.pop("k", None), find.given.get("k")
    if groups is not None and (groups.sum() != features or (groups < 1).any()):
        problems.append(f"group_sizes do not make up dict_size {features}")
    if stored is not None and said is not None and int(stored) != said:
        problems.append(f"k is {int(stored)} in {WEIGHTS}, and {words.value(said)} in {CONFIG}")
    kept = None
    if made.activation == "topk":
        # Each position keeps its k largest; the threshold is for those who ask that class for it.
        arrays.pop("threshold", None)
        given = said if said is not None or stored is None else int(stored)
        kept = Fields({"k": given}, problems).k("topk", features, asked)
    if problems:
        raise ConfigError(f"{CONFIG}: " + "; ".join(problems))
    return int(kept or 1)


def _threshold(stored: np.ndarray, features: int, folder: Path) -> np.ndarray:
    """One for each feature."""
    if stored < 0:
        warnings.warn(
            f"{folder.name}: the threshold is {float(stored):g}, which its training never set; every feature "
            "above 0 is active, as in dictionary_learning",
            stacklevel=4,
        )
    return np.full(features, stored)


def _activation(name: str, arrays: dict[str, Any], kept: int) -> Activation:
    match name:
        case "gated":
            return Gated(*(arrays.pop(part) for part in ("b_gate", "b_mag", "r_mag")))
        case "topk":
            return TopK(kept, "before")
        case "relu":
            return ReLU()
    return JumpReLU(arrays.pop("threshold"))
