"""Gemma Scope 2 over several layers: cross-layer transcoders and weakly causal crosscoders.

Both have a file for each layer, ``params_layer_<i>.safetensors``, with rows for every layer in ``w_dec``
``[features, layers, d]``. A feature writes into its own layer and later ones; rows for earlier ones are
zeros, and are not read. A crosscoder of this kind has an encoder for each of its layers, so it is a
`CrossLayerTranscoder` of the residual stream, whose ``y`` is its ``x``. Transcoders read ``mlp.hook_in``,
after the norm's gain, and stand for ``hook_mlp_out``, after the norm that follows.

Source: config files and shapes as they were published; the technical report of Gemma Scope 2, section 2.6.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmi.errors import CheckpointError, JmiError
from jmi_models.disk.tensors import Stored
from jmi_sparse.dictionaries.activations import JumpReLU
from jmi_sparse.dictionaries.crosslayer import CrossLayerTranscoder
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.formats.gemma_scope_2_config import Config, parse
from jmi_sparse.formats.reading import tensors
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.decoders import Decoders
from jmi_sparse.formats.sets import numbered
from jmi_sparse.formats.sets.circuit_tracer_config import check_open
from jmi_sparse.formats.sets.encoders import only

PREFIX = "params_layer_"
_ONE = re.compile(r"(?:params_)?layer_(\d{1,4})(?:_width_\w+)?\.safetensors", re.ASCII)
_NAMES = {"W_enc": "w_enc", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
_SKIP = "affine_skip_connection"

Headers = dict[int, dict[str, Stored]]


def matches(path: Path) -> bool:
    """Whether a path is a folder of these, or the file of one layer."""
    if path.is_dir():
        return numbered.is_numbered(path, PREFIX)
    if not _ONE.fullmatch(path.name):
        return False
    try:
        held = tensors.headers(path)
    except JmiError:
        return False
    return "w_enc" in held and len(held["w_dec"].shape if "w_dec" in held else ()) == 3


def read(path: Path, asked: Asked) -> CrossLayerTranscoder:
    """All layers of a folder, or that of one file: it writes into its own layer and later ones."""
    config, headers, shapes = _opened(path, asked)
    places, count = list(headers), len(config.layers)
    pairs = tuple((row, target) for row, place in enumerate(places) for target in range(place, count))
    stacked = {name: (len(places), *shape) for name, shape in shapes.items() if name != "W_dec"}
    stacks = numbered.Stacks.of(stacked | {"W_dec": (len(pairs), *shapes["W_dec"])}, asked.dtype)
    for row, place in enumerate(places):
        _fill(stacks, row, place, headers[place])
    for number, (row, target) in enumerate(pairs):
        stacks.put("W_dec", number, _view(headers, places[row], target), f"w_dec of layer {places[row]}")
    arrays = stacks.filled()
    first = places[0] if len(places) == 1 else 0
    # Of one file alone, what later layers add by themselves is not known: their biases are 0.
    bias: Any = np.zeros((count - first, shapes["b_dec"][0]), asked.dtype)
    bias[: len(places)] = arrays["b_dec"]
    return CrossLayerTranscoder(
        W_enc=arrays["W_enc"],
        W_dec=arrays["W_dec"],
        b_dec=bias,
        activation=JumpReLU(arrays["threshold"]),
        b_enc=arrays["b_enc"],
        pairs=tuple((row, target - first) for row, target in pairs),
        layers=tuple(config.layers[place] for place in places),
        targets=config.layers[first:],
        W_skip=arrays.get("W_skip"),
        hook_in=config.hook_in,
        hook_out=config.hook_out,
        metadata=config.metadata,
    )


def on_disk(path: Path, asked: Asked) -> Decoders:
    """The decoders of such a folder or file, and its encoders one at a time; see `open_decoder`."""
    config, headers, shapes = _opened(path, asked)
    places = {config.layers[place]: place for place in headers}

    def encoder(layer: int) -> Dictionary:
        alone = {name: (1, *shape) for name, shape in shapes.items() if name != "W_dec"}
        stacks = numbered.Stacks.of(alone, asked.dtype)
        _fill(stacks, 0, places[layer], headers[places[layer]])
        return only(stacks.filled(), 0, layer, config.hook_in, config.hook_out)

    return Decoders(
        targets={layer: config.layers[place:] for layer, place in places.items()},
        shape=shapes["W_dec"],
        dtype=asked.dtype,
        view=lambda layer, target: _view(headers, places[layer], config.layers.index(target)),
        encode=encoder,
        site=config.hook_out,
    )


def _fill(stacks: numbered.Stacks, row: int, place: int, held: Mapping[str, Stored]) -> None:
    for name, stored in _NAMES.items():
        stacks.put(name, row, np.asarray(held[stored].read()), f"{stored} of layer {place}")
    if _SKIP in held:
        stacks.put("W_skip", row, np.asarray(held[_SKIP].read()).T, f"{_SKIP} of layer {place}")
    earlier = np.asarray(held["w_dec"].read())[:, :place]
    if any(earlier[:, target].any() for target in range(place)):
        warnings.warn(
            f"layer {place} has rows for earlier layers that are not zeros; they are not read", stacklevel=4
        )


def _view(headers: Headers, place: int, target: int) -> np.ndarray:
    return np.asarray(headers[place]["w_dec"].read())[:, target]


def _opened(path: Path, asked: Asked) -> tuple[Config, Headers, dict[str, Any]]:
    """What the folder says, headers by place in its layers, and the shapes of one layer's arrays.

    Raises:
      ArgumentError, ConfigError, CheckpointError: all that does not fit.
    """
    check_open(asked)
    if path.is_dir():
        files, alone = numbered.numbered(path, PREFIX), False
    else:
        match = _ONE.fullmatch(path.name)
        files, alone = {int(match[1]) if match else 0: path}, True
    headers = {place: tensors.headers(file) for place, file in files.items()}
    shapes, count = _shapes(headers[next(iter(files))])
    skips = "W_skip" in shapes
    config = parse(path, asked, count, skips)
    problems = [] if alone else numbered.gaps(files, count, PREFIX)
    if alone and next(iter(files)) >= count:
        problems.append(f"{path.name}: w_dec has {count} layers, and the name says layer {next(iter(files))}")
    wanted = {stored: shapes[name] for name, stored in _NAMES.items()}
    wanted["w_dec"] = (shapes["W_dec"][0], count, shapes["W_dec"][1])
    if skips:
        wanted[_SKIP] = shapes["W_skip"][::-1]
    for place, held in headers.items():
        problems += [f"{files[place].name}: {each}" for each in tensors.misfits(held, wanted)]
    if problems:
        raise CheckpointError("; ".join(problems))
    return config, headers, shapes


def _shapes(held: Mapping[str, Stored]) -> tuple[dict[str, Any], int]:
    """Shapes of arrays as the class has them, and the number of layers, from one file."""
    sizes = [held[name].shape for name in ("w_enc", "w_dec") if name in held]
    if [len(size) for size in sizes] != [2, 3] or not sizes[1][1]:
        raise CheckpointError("w_enc [d, features] and w_dec [features, layers, d] must be there")
    (d_in, features), (_, count, d_out) = sizes
    shapes = {
        "W_enc": (d_in, features),
        "W_dec": (features, d_out),
        "b_enc": (features,),
        "b_dec": (d_out,),
        "threshold": (features,),
    }
    return shapes | ({"W_skip": (d_out, d_in)} if _SKIP in held else {}), count
