"""crosslayer-transcoder (Goreg12345): ``config.yaml``, which names classes, and ``checkpoint.safetensors``.

Decoders are grouped by the layer that is written, ``decoder.W_<t>`` ``[t + 1, features, d]``. What
standardises inputs and outputs is folded into the weights, where saving did not do it. Its trainer reads
``ln_2``'s input and writes the MLP's output.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmi.errors import CheckpointError, ConfigError, JmiError
from jmi_models.disk import words
from jmi_models.disk.tensors import Stored
from jmi_sparse.dictionaries.activations import Activation, BatchTopK, JumpReLU, ReLU, TopK
from jmi_sparse.dictionaries.crosslayer import CrossLayerTranscoder
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.dictionaries.layered import DictionarySet
from jmi_sparse.formats.reading import fields, tensors
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.fields import Fields
from jmi_sparse.formats.reading.yaml_files import read_yaml
from jmi_sparse.formats.sets import numbered
from jmi_sparse.formats.sets.circuit_tracer_config import check_open

CONFIG, WEIGHTS = "config.yaml", "checkpoint.safetensors"
_HOOKS = {"hook_in": "blocks.*.hook_resid_mid", "hook_out": "blocks.*.hook_mlp_out"}
_ACTIVATIONS = ("ReLU", "JumpReLU", "PerLayerTopK", "PerLayerBatchTopK")
_STANDARDIZERS = (
    "Standardizer",
    *(f"{a}wise{b}Standardizer" for a in ("Dimension", "Layer") for b in ("Input", "Output")),
)


def matches(folder: Path) -> bool:
    """Whether a folder looks like one of these."""
    try:
        return (folder / WEIGHTS).is_file() and "model" in read_yaml(folder / CONFIG, ConfigError)
    except JmiError:
        return False


def read(folder: Path, asked: Asked) -> CrossLayerTranscoder | DictionarySet:
    """The transcoders in a folder; errors as of `jmi_sparse.load`."""
    fields.refuse(asked, "norm_factor")
    check_open(asked)
    parts, k = _parsed(read_yaml(folder / CONFIG, ConfigError).get("model"), asked.k)
    headers = tensors.headers(folder / WEIGHTS)
    layers, features, d = _checked(headers, parts)
    cross = parts["decoder"] == "CrosslayerDecoder"
    pairs = tuple((i, t) for i in range(layers) for t in range(i, layers if cross else i + 1))
    stacks = numbered.Stacks.of(
        {
            "W_enc": (layers, d, features),
            "b_enc": (layers, features),
            "W_dec": (len(pairs), features, d),
            "b_dec": (layers, d),
        },
        asked.dtype,
    )
    _fill(stacks, headers, pairs, parts)
    arrays = stacks.filled()
    held: dict[str, Any] = {
        **arrays,
        "activation": _activation(parts["nonlinearity"], k, headers, asked.dtype),
        **_HOOKS,
        "hook_in": asked.hook or _HOOKS["hook_in"],
    }
    every = tuple(range(layers))
    if cross:
        return CrossLayerTranscoder(**held, pairs=pairs, layers=every)
    return DictionarySet(Dictionary(**held, kind="transcoder"), every)


def _parsed(model: Any, asked: int | None) -> tuple[dict[str, str | None], int | None]:
    """Class of each part, None for none, and k."""
    given = model.get("init_args") if isinstance(model, dict) else None
    if not isinstance(given, dict) or _class(model) != "CrossLayerTranscoder":
        raise ConfigError(
            f"{CONFIG}: model {words.value(_class(model))} is no CrossLayerTranscoder; others cannot be "
            "represented"
        )
    known = {
        "nonlinearity": _ACTIVATIONS,
        "encoder": ("Encoder",),
        "decoder": ("CrosslayerDecoder", "Decoder"),
        "input_standardizer": (None, *_STANDARDIZERS),
        "output_standardizer": (None, *_STANDARDIZERS),
    }
    parts = {name: _class(given.get(name)) for name in known}
    problems = [
        f"{name} {words.value(found)} cannot be represented"
        for name, found in parts.items()
        if found not in known[name]
    ]
    k = None
    if "TopK" in str(parts["nonlinearity"]):
        args = given["nonlinearity"].get("init_args")
        k = Fields(args if isinstance(args, dict) else {}, problems).whole("k") if asked is None else asked
    elif asked is not None:
        problems.append(f"k={asked} was given, and this kind keeps no fixed number")
    if problems:
        raise ConfigError(f"{CONFIG}: " + "; ".join(problems))
    return parts, k


def _class(part: Any) -> str | None:
    """The name of a part's class, without the module that it is in."""
    path = part.get("class_path") if isinstance(part, dict) else None
    return str(path).rsplit(".", 1)[-1] if part is not None else None


def _checked(headers: Mapping[str, Stored], parts: Mapping[str, str | None]) -> tuple[int, int, int]:
    """Numbers of layers and features, and the width; CheckpointError where tensors do not fit."""
    weight = headers.get("encoder.W")
    if weight is None or len(weight.shape) != 3:
        raise CheckpointError(f"{WEIGHTS}: encoder.W [layers, d, features] must be there")
    layers, d, features = weight.shape
    wanted: dict[str, tuple[int, ...]] = {"encoder.W": weight.shape, "encoder.b": (layers, features)}
    wanted["decoder.b"] = (layers, d)
    if parts["decoder"] == "Decoder":
        wanted["decoder.W"] = (layers, features, d)
    else:
        wanted |= {f"decoder.W_{t}": (t + 1, features, d) for t in range(layers)}
    if parts["nonlinearity"] == "JumpReLU":
        wanted |= {"nonlinearity.theta": (1, layers, features), "nonlinearity.bandwidth": ()}
    elif parts["nonlinearity"] == "PerLayerBatchTopK":
        wanted["nonlinearity.threshold"] = (layers,)
    for name in ("input_standardizer", "output_standardizer"):
        if parts[name] not in (None, "Standardizer"):
            shape = (layers, d) if str(parts[name]).startswith("Dim") else (layers,)
            wanted |= {f"{name}.mean": shape, f"{name}.std": shape}
    if problems := tensors.misfits(headers, wanted):
        raise CheckpointError(f"{WEIGHTS}: " + "; ".join(problems))
    return layers, features, d


def _fill(
    stacks: numbered.Stacks,
    headers: Mapping[str, Stored],
    pairs: tuple[tuple[int, int], ...],
    parts: Mapping[str, str | None],
) -> None:
    W, b, out = (np.asarray(headers[name].read()) for name in ("encoder.W", "encoder.b", "decoder.b"))
    moments = {}
    for name in ("input_standardizer", "output_standardizer"):
        if parts[name] not in (None, "Standardizer"):
            both = (np.asarray(headers[f"{name}.{m}"].read()).astype(np.float64) for m in ("mean", "std"))
            # One number of a layer, or one of each dimension.
            moments[name] = [each.reshape(len(each), -1) for each in both]
    for layer in range(len(W)):
        weight, bias, written = W[layer], b[layer], out[layer]
        if "input_standardizer" in moments:
            mean, std = (np.broadcast_to(each[layer], W.shape[1]) for each in moments["input_standardizer"])
            weight = weight.astype(np.float64) / std[:, None]
            bias = bias.astype(np.float64) - mean @ weight
        if "output_standardizer" in moments:
            mean, std = (each[layer] for each in moments["output_standardizer"])
            written = written.astype(np.float64) * std + mean
        for name, values in (("W_enc", weight), ("b_enc", bias), ("b_dec", written)):
            stacks.put(name, layer, values, f"{name} of layer {layer}")
    for row, (i, t) in enumerate(pairs):
        name, at = ("decoder.W", t) if parts["decoder"] == "Decoder" else (f"decoder.W_{t}", i)
        rows = np.asarray(headers[name].read())[at]
        if "output_standardizer" in moments:
            rows = rows.astype(np.float64) * moments["output_standardizer"][1][t]
        stacks.put("W_dec", row, rows, name)


def _activation(name: str | None, k: int | None, headers: Mapping[str, Stored], dtype: Any) -> Activation:
    if name == "JumpReLU":
        theta = {"threshold": np.asarray(headers["nonlinearity.theta"].read())[0]}
        threshold: Any = tensors.cast(theta, dtype, WEIGHTS)["threshold"]
        return JumpReLU(threshold)
    if name == "PerLayerBatchTopK":
        kept = {"threshold": np.asarray(headers["nonlinearity.threshold"].read())}
        held: Any = tensors.cast(kept, dtype, WEIGHTS)["threshold"]
        return BatchTopK(held, float(k or 1))
    return TopK(k, "after") if name == "PerLayerTopK" and k else ReLU()
