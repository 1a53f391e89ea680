"""Transcoders of several layers as folders of circuit-tracer."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jmi.artefacts import replacing
from jmi.errors import ArgumentError, OutputError, printable
from jmi_models.disk import words
from jmi_sparse.dictionaries.activations import JumpReLU, ReLU, TopK
from jmi_sparse.dictionaries.crosslayer import CrossLayerTranscoder
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.dictionaries.kinds import AnyDictionary
from jmi_sparse.dictionaries.layered import DictionarySet
from jmi_sparse.formats.reading.paths import make_folder
from jmi_sparse.formats.sets.circuit_tracer import PREFIX, THRESHOLD, warn_of_negative
from jmi_sparse.formats.sets.circuit_tracer_clt import DECODER, ENCODER
from jmi_sparse.formats.sets.circuit_tracer_config import CLT, CONFIG, PLT

Files = dict[str, dict[str, np.ndarray]]


def write(dictionary: AnyDictionary, folder: Path) -> None:
    """Write such a folder; arguments and errors as `jmi_sparse.save`.

    A cross-layer transcoder's skips are kept as ``W_skip_<i>``, which circuit-tracer does not read back.
    """
    if isinstance(dictionary, DictionarySet):
        kind, files = PLT, _of_set(dictionary)
    elif isinstance(dictionary, CrossLayerTranscoder):
        kind, files = CLT, _of_clt(dictionary)
    else:
        raise ArgumentError(
            f"save: circuit-tracer has sets of transcoders (jmi_sparse.stack) and cross-layer ones, not "
            f"{dictionary!r}"
        )
    text = yaml.safe_dump(_config(dictionary, kind), sort_keys=False)
    make_folder(folder)
    _check_alone(folder, files)
    with contextlib.ExitStack() as stack:
        # None takes its place before all are written.
        places = {name: stack.enter_context(replacing(folder / name)) for name in (CONFIG, *files)}
        for name, arrays in files.items():
            try:
                save_file({key: _whole(array) for key, array in arrays.items()}, places[name])
            except SafetensorError as error:
                raise OutputError(f"{folder}: {name} could not be written: {printable(error)}") from None
        places[CONFIG].write_text(text)


def _whole(array: np.ndarray) -> np.ndarray:
    """An array of its own bytes: safetensors writes those of a view as they lie."""
    return np.array(array, order="C", copy=True)


def _check_alone(folder: Path, files: Mapping[str, Any]) -> None:
    """Raise ArgumentError where files of another set would be read together with the new ones."""
    others = [
        file.name
        for prefix in (PREFIX, ENCODER, DECODER)
        for file in folder.glob(f"{prefix}[0-9]*.safetensors")
        if file.name not in files
    ]
    if others:
        raise ArgumentError(
            f"save: {folder} has other layers, {words.some(sorted(others))}; remove them first"
        )


def _config(dictionary: DictionarySet | CrossLayerTranscoder, kind: str) -> dict[str, Any]:
    about = json.loads(
        dictionary.stacked.metadata if isinstance(dictionary, DictionarySet) else dictionary.metadata
    )
    activation = dictionary.stacked.activation if isinstance(dictionary, DictionarySet) else None
    hooks = {"feature_input_hook": dictionary.hook_in, "feature_output_hook": dictionary.hook_out}
    for name, hook in hooks.items():
        if hook is not None and not hook.startswith("blocks.*."):
            raise ArgumentError(f"save: {name} {words.value(hook)} is no point of each layer, blocks.*.hook")
    found = {name: hook.removeprefix("blocks.*.") for name, hook in hooks.items() if hook is not None}
    kept = {"activation": "topk", "k": activation.k} if isinstance(activation, TopK) else {}
    return {**about, "model_kind": kind, **found, **kept}


def _of_set(given: DictionarySet) -> Files:
    d = given.stacked
    if d.kind != "transcoder" or d.b_enc is None or _unusual(d):
        raise ArgumentError(
            f"save: circuit-tracer has transcoders of ReLU, JumpReLU and TopK(k, 'none') that read their "
            f"input as it is, not {d!r}"
        )
    arrays: dict[str, Any] = {"W_enc": np.swapaxes(_host(d.W_enc), 1, 2)}
    arrays |= {name: _host(getattr(d, name)) for name in ("W_dec", "b_enc", "b_dec")}
    if d.W_skip is not None:
        arrays["W_skip"] = _host(d.W_skip)
    if isinstance(d.activation, JumpReLU):
        arrays[THRESHOLD] = _host(d.activation.threshold)
        warn_of_negative(Path("save"), arrays[THRESHOLD])
    files = {
        f"{PREFIX}{layer}.safetensors": {name: array[row] for name, array in arrays.items()}
        for row, layer in enumerate(given.layers)
    }
    if isinstance(d.activation, TopK):
        for held in files.values():
            held["k"] = np.array(d.activation.k, np.int64)
    return files


def _unusual(d: Dictionary) -> bool:
    """Whether something is done that circuit-tracer has no field for."""
    known = isinstance(d.activation, (ReLU, JumpReLU, TopK))
    others = isinstance(d.activation, TopK) and d.activation.relu != "none"
    flags = d.apply_b_dec_to_input or d.rescale_acts_by_decoder_norm or d.hook_z
    return not known or others or flags or d.normalisation is not None


def _of_clt(clt: CrossLayerTranscoder) -> Files:
    layers = tuple(range(len(clt.layers)))
    places = {pair: row for row, pair in enumerate(clt.pairs)}
    every = {(i, t) for i in layers for t in layers[i:]}
    if (clt.layers, clt.targets, set(places), len(clt.pairs)) != (layers, layers, every, len(every)):
        raise ArgumentError(
            f"save: circuit-tracer has transcoders of layers 0 to n that write into all from their own on, "
            f"not layers {list(clt.layers)} into {list(clt.targets)}"
        )
    if not isinstance(clt.activation, (ReLU, JumpReLU)):
        raise ArgumentError(f"save: circuit-tracer has cross-layer ReLU and JumpReLU, not {clt!r}")
    W_dec = _host(clt.W_dec)
    arrays = {
        "W_enc": np.swapaxes(_host(clt.W_enc), 1, 2),
        "b_enc": _host(clt.b_enc),
        "b_dec": _host(clt.b_dec),
    }
    if clt.W_skip is not None:
        arrays["W_skip"] = np.swapaxes(_host(clt.W_skip), 1, 2)
    if isinstance(clt.activation, JumpReLU):
        arrays["threshold"] = _host(clt.activation.threshold)
        warn_of_negative(Path("save"), arrays["threshold"])
    files = {}
    for i in layers:
        files[f"{ENCODER}{i}.safetensors"] = {f"{name}_{i}": array[i] for name, array in arrays.items()}
        rows = [places[i, t] for t in layers[i:]]
        files[f"{DECODER}{i}.safetensors"] = {f"W_dec_{i}": np.stack([W_dec[row] for row in rows], axis=1)}
    return files


def _host(array: jax.Array) -> np.ndarray:
    return np.asarray(jax.device_get(array))
