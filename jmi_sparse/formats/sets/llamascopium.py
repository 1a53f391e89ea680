"""Llamascopium (OpenMOSS Language-Model-SAEs): ``config.json`` and ``sae_weights.safetensors``.

Features are gated in units of their decoder rows where the config says so. Of ReLU and JumpReLU nothing but
thresholds is changed by that, and features are those of Llamascopium; of TopK and BatchTopK they are as many
times as large as their rows are long, and rows as much shorter: what is kept is what Llamascopium keeps, and
reconstructions are its own.

Under ``dataset-wise`` its trainer scales inputs by ``sqrt(d)`` over a mean norm that the file holds, and
outputs back. Both are folded into the weights, and features are those of the training. Folding as
Llamascopium does it divides them by the factor of the inputs, and leaves the thresholds of an SAE as they
are.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmi.errors import CheckpointError, ConfigError, JmiError
from jmi.reading import read_object
from jmi_models.disk import words
from jmi_models.disk.tensors import Stored
from jmi_sparse.dictionaries.activations import Activation, BatchTopK, JumpReLU, ReLU, TopK
from jmi_sparse.dictionaries.crosscoder import Crosscoder
from jmi_sparse.dictionaries.crosslayer import CrossLayerTranscoder
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.dictionaries.normalisation import ConstantNorm
from jmi_sparse.formats.reading import fields, tensors
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.sets import numbered
from jmi_sparse.formats.sets.circuit_tracer_config import check_open
from jmi_sparse.formats.sets.llamascopium_config import Config, layers_of, parse

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
_THRESHOLD, _AVERAGE = "activation_function.log_jumprelu_threshold", "dataset_average_activation_norm."
_OTHERS = ("sae_weights.pt", "sae_weights.dcp")

Arrays = dict[str, np.ndarray]


def matches(folder: Path) -> bool:
    """Whether a folder looks like one of these."""
    try:
        ours = (folder / CONFIG).is_file() and "sae_type" in read_object(folder / CONFIG, ConfigError)
    except JmiError:
        return False
    # Earlier folders of these authors, in the layout of Llama Scope, say it, too.
    return ours and "encoder.weight" not in (tensors.names(folder / WEIGHTS) or ())


def read(folder: Path, asked: Asked) -> Dictionary | CrossLayerTranscoder | Crosscoder:
    """The dictionary in a folder; errors as of `jmi_sparse.load`."""
    fields.refuse(asked, "norm_factor")
    config = parse(read_object(folder / CONFIG, ConfigError), asked.k)
    other = next((name for name in _OTHERS if (folder / name).exists()), None)
    if other and not (folder / WEIGHTS).exists():
        raise CheckpointError(
            f"{other} is no safetensors file; load and save it as {WEIGHTS} by Llamascopium"
        )
    headers = tensors.headers(folder / WEIGHTS)
    _check(headers, config)
    raw = {name: np.asarray(tensor.read()) for name, tensor in headers.items()}
    if config.kind == "clt":
        return _transcoder(config, raw, asked)
    arrays, threshold = _plain(config, raw)
    cast: Any = tensors.cast(arrays | threshold, asked.dtype, WEIGHTS)
    activation = _activation(config, cast.pop("threshold", None), asked.dtype)
    if config.kind == "crosscoder":
        return Crosscoder(**cast, activation=activation, points=config.reads)
    return Dictionary(
        **cast,
        activation=activation,
        normalisation=ConstantNorm() if config.norm == "token-wise" else None,
        rescale_acts_by_decoder_norm=config.by_norm and config.k is not None,
        hook_in=asked.hook or config.reads[0],
        hook_out=config.writes[0] if config.reads != config.writes else asked.hook or config.reads[0],
        kind="transcoder" if config.reads != config.writes else "sae",
    )


def _check(headers: Mapping[str, Stored], config: Config) -> None:
    """Raise CheckpointError where tensors are missing, surplus or of another shape."""
    d, f, n = config.d_model, config.features, len(config.reads)
    lead = () if config.kind == "sae" else (n,)
    wanted: dict[str, tuple[int, ...]] = {"W_E": (*lead, d, f), "b_E": (*lead, f)}
    if config.kind == "clt":
        wanted |= {f"W_D.{t}": (t + 1, f, d) for t in range(n)} | {f"b_D.{t}": (d,) for t in range(n)}
    else:
        wanted["W_D"] = (*lead, f, d)
        wanted |= {"b_D": (*lead, d)} if config.bias or config.kind == "crosscoder" else {}
    if config.activation == "jumprelu":
        wanted[_THRESHOLD] = (*(lead if config.kind == "clt" else ()), f)
    averages: dict[str, tuple[int, ...]] = {f"{_AVERAGE}{p}": () for p in {*config.reads, *config.writes}}
    # Where nothing is scaled they may be there, and say nothing.
    needed = config.norm == "dataset-wise"
    wanted |= {name: shape for name, shape in averages.items() if needed or name in headers}
    if problems := tensors.misfits(headers, wanted):
        raise CheckpointError(f"{WEIGHTS}: " + "; ".join(problems))


def _factors(config: Config, raw: Arrays, points: tuple[str, ...]) -> np.ndarray:
    """What activations at each point are multiplied by."""
    if config.norm != "dataset-wise":
        return np.ones(len(points))
    averages = np.array([float(raw[f"{_AVERAGE}{point}"]) for point in points])
    if not (np.isfinite(averages) & (averages > 0)).all():
        raise CheckpointError(f"{WEIGHTS}: {_AVERAGE}* must be above 0, not {words.value(averages.tolist())}")
    return math.sqrt(config.d_model) / averages


def _plain(config: Config, raw: Arrays) -> tuple[Arrays, Arrays]:
    """Arrays of an SAE or a crosscoder, and its thresholds."""
    wide = {name: array.astype(np.float64) for name, array in raw.items()}
    ins, outs = (_factors(config, raw, points) for points in (config.reads, config.writes))
    if config.kind == "sae":
        ins, outs = ins[0], outs[0]
        norms = np.linalg.norm(wide["W_D"], axis=-1)
        bias = wide.get("b_D", np.zeros(config.d_model)) / outs
        threshold = {"threshold": _threshold(config, wide, norms)} if _THRESHOLD in wide else {}
    else:
        # Each head is read by an encoder with a bias of its own, and they are added up.
        wide["b_E"] = wide["b_E"].sum(0)
        bias, threshold = wide["b_D"] / outs[:, None], {}
        ins, outs = ins[:, None, None], outs[:, None, None]
    arrays = {"W_enc": wide["W_E"] * ins, "W_dec": wide["W_D"] / outs, "b_enc": wide["b_E"], "b_dec": bias}
    return arrays, threshold


def _threshold(config: Config, raw: Arrays, norms: np.ndarray) -> np.ndarray:
    """Thresholds of pre-activations, of those of features in units of their rows."""
    with np.errstate(over="ignore"):
        theta = np.exp(raw[_THRESHOLD].astype(np.float64))
    if not config.by_norm:
        return theta
    # A feature that writes nothing is never active.
    return np.divide(theta, norms, out=np.full_like(theta, np.inf), where=norms > 0)


def _activation(config: Config, threshold: Any, dtype: Any) -> Activation:
    if threshold is not None:
        return JumpReLU(threshold)
    if config.activation == "topk" and config.k:
        return TopK(config.k, "before")
    if config.activation == "batchtopk" and config.k:
        lead = (len(config.reads),) if config.kind == "clt" else ()
        unset: Any = np.zeros(lead, dtype)
        return BatchTopK(unset, float(config.k))
    return ReLU()


def _transcoder(config: Config, raw: Arrays, asked: Asked) -> CrossLayerTranscoder:
    check_open(asked)
    layers, reads = layers_of(config.reads)
    targets, writes = layers_of(config.writes)
    count, d, f = len(layers), config.d_model, config.features
    ins, outs = (_factors(config, raw, points) for points in (config.reads, config.writes))
    pairs = tuple((i, t) for i in range(count) for t in range(i, count))
    squares = np.zeros((count, f))
    for i, t in pairs:
        squares[i] += np.square(raw[f"W_D.{t}"][i].astype(np.float64)).sum(-1)
    norms = np.sqrt(squares)
    # What keeps the largest compares features in units of their rows: rows get norm 1, or stay 0.
    scale = norms if config.by_norm and config.k else np.ones_like(norms)
    unit = np.where(scale > 0, scale, 1.0)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (count, d, f), "b_enc": (count, f)}
    stacks = numbered.Stacks.of(shapes | {"W_dec": (len(pairs), f, d), "b_dec": (count, d)}, asked.dtype)
    # One matrix after the other: in float64 all at once would be twice as large as the files.
    for i in range(count):
        stacks.put("W_enc", i, raw["W_E"][i].astype(np.float64) * ins[i] * scale[i], f"W_E {i}")
        stacks.put("b_enc", i, raw["b_E"][i].astype(np.float64) * scale[i], f"b_E {i}")
        stacks.put("b_dec", i, raw[f"b_D.{i}"].astype(np.float64) / outs[i], f"b_D.{i}")
    for row, (i, t) in enumerate(pairs):
        matrix = raw[f"W_D.{t}"][i].astype(np.float64)
        stacks.put("W_dec", row, matrix / (unit[i] * outs[t])[:, None], f"W_D.{t}")
    threshold: Any = None
    if _THRESHOLD in raw:
        held = {"threshold": _threshold(config, raw, norms)}
        threshold = tensors.cast(held, asked.dtype, WEIGHTS)["threshold"]
    return CrossLayerTranscoder(
        **stacks.filled(),
        activation=_activation(config, threshold, asked.dtype),
        pairs=pairs,
        layers=layers,
        targets=targets,
        hook_in=asked.hook or reads,
        hook_out=writes,
    )
