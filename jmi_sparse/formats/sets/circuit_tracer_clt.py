"""Cross-layer transcoders of circuit-tracer: ``W_enc_<i>.safetensors``, ``W_dec_<i>.safetensors``.

Features of layer i write into it and all later ones: ``W_dec_i`` is ``[features, layers - i, d]``. Thresholds
are there for every layer or for none; circuit-tracer asks the first layer alone, and here a set in which they
differ is refused. ``W_skip_i`` ``[d_in, d_out]``, read as ``x W_skip``, is of jmi's own writer:
circuit-tracer has such skips in memory, and its files leave them out.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jmi.errors import CheckpointError, ConfigError
from jmi_models.disk.tensors import Stored
from jmi_sparse.dictionaries.activations import JumpReLU, ReLU
from jmi_sparse.dictionaries.crosslayer import CrossLayerTranscoder
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.formats.reading import tensors
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.decoders import Decoders
from jmi_sparse.formats.sets import circuit_tracer_config, curation, gemma_scope_2_sets, numbered
from jmi_sparse.formats.sets.circuit_tracer import warn_of_negative
from jmi_sparse.formats.sets.circuit_tracer_config import CLT, CONFIG, Config
from jmi_sparse.formats.sets.encoders import only

ENCODER, DECODER = "W_enc_", "W_dec_"
OPTIONAL = ("threshold", "W_skip")

Shapes = dict[str, tuple[int, ...]]
Files = tuple[dict[int, dict[str, Stored]], dict[int, dict[str, Stored]]]


def matches(path: Path) -> bool:
    """Whether a folder looks like one of these."""
    return numbered.is_numbered(path, ENCODER) or curation.is_list(path / CONFIG, CLT)


def read(folder: Path, asked: Asked) -> CrossLayerTranscoder:
    """The transcoder in a folder; errors as of `jmi_sparse.load`."""
    if curation.is_list(folder / CONFIG, CLT):
        return gemma_scope_2_sets.read(_listed(folder, asked), asked)
    return _read(folder, asked)


def _read(folder: Path, asked: Asked) -> CrossLayerTranscoder:
    config, (encoders, decoders), shapes = _opened(folder, asked)
    layers = tuple(encoders)
    pairs = tuple((i, t) for i in layers for t in layers[i:])
    stacked = {name: (len(layers), *shape) for name, shape in shapes.items() if name != "W_dec"}
    stacks = numbered.Stacks.of(stacked | {"W_dec": (len(pairs), *shapes["W_dec"])}, asked.dtype)
    for layer in layers:
        _fill(stacks, layer, layer, encoders[layer])
    for row, (i, t) in enumerate(pairs):
        stacks.put("W_dec", row, _view(decoders, i, t), f"W_dec_{i}")
    arrays = stacks.filled()
    warn_of_negative(folder, arrays.get("threshold"))
    return CrossLayerTranscoder(
        W_enc=arrays["W_enc"],
        W_dec=arrays["W_dec"],
        b_dec=arrays["b_dec"],
        activation=JumpReLU(arrays["threshold"]) if "threshold" in arrays else ReLU(),
        b_enc=arrays["b_enc"],
        pairs=pairs,
        layers=layers,
        W_skip=arrays.get("W_skip"),
        hook_in=config.hook_in,
        hook_out=config.hook_out,
        metadata=config.metadata,
    )


def on_disk(folder: Path, asked: Asked) -> Decoders:
    """The decoders of such a folder, and its encoders one at a time; see `open_decoder`."""
    if curation.is_list(folder / CONFIG, CLT):
        return gemma_scope_2_sets.on_disk(_listed(folder, asked), asked)
    config, (encoders, decoders), shapes = _opened(folder, asked)

    def encoder(layer: int) -> Dictionary:
        alone = {name: (1, *shape) for name, shape in shapes.items() if name != "W_dec"}
        stacks = numbered.Stacks.of(alone, asked.dtype)
        _fill(stacks, 0, layer, encoders[layer])
        return only(stacks.filled(), 0, layer, config.hook_in, config.hook_out)

    return Decoders(
        targets={layer: tuple(range(layer, len(encoders))) for layer in encoders},
        shape=shapes["W_dec"],
        dtype=asked.dtype,
        view=lambda layer, target: _view(decoders, layer, target),
        encode=encoder,
        site=config.hook_out,
    )


def _listed(folder: Path, asked: Asked) -> Path:
    """The folder of Gemma Scope 2 whose files a list names; none other is published in such lists."""
    config = circuit_tracer_config.parse(folder, CLT, asked)
    files = curation.resolved(folder, config.listed or {}, CONFIG, asked.files)
    place = files[0].parent
    if any(file != place / f"{gemma_scope_2_sets.PREFIX}{i}.safetensors" for i, file in files.items()):
        raise ConfigError(
            f"{CONFIG}: transcoders: of a cross-layer transcoder these must be "
            f"{gemma_scope_2_sets.PREFIX}<i>.safetensors of one folder"
        )
    return place


def _fill(stacks: numbered.Stacks, row: int, layer: int, held: Mapping[str, Stored]) -> None:
    for name in stacks.arrays:
        if name != "W_dec":
            values = np.asarray(held[f"{name}_{layer}"].read())
            # As the class has them: both matrices are kept transposed.
            stacks.put(name, row, values.T if values.ndim == 2 else values, f"{name}_{layer}")


def _view(decoders: Mapping[int, Mapping[str, Stored]], layer: int, target: int) -> np.ndarray:
    return np.asarray(decoders[layer][f"{DECODER}{layer}"].read())[:, target - layer]


def _opened(folder: Path, asked: Asked) -> tuple[Config, Files, Shapes]:
    """What the folder says, its headers, and the shapes of one layer's arrays.

    Raises:
      ConfigError, CheckpointError: all that does not fit.
    """
    config = circuit_tracer_config.parse(folder, CLT, asked)
    circuit_tracer_config.check_open(asked)
    files = numbered.numbered(folder, ENCODER), numbered.numbered(folder, DECODER)
    count = max(files[0], default=-1) + 1
    problems = []
    for prefix, found in zip((ENCODER, DECODER), files, strict=True):
        problems += numbered.gaps(found, count, prefix)
    if problems:
        raise CheckpointError("; ".join(problems))
    encoders, decoders = ({i: tensors.headers(file) for i, file in found.items()} for found in files)
    shapes = _shapes(encoders[0], decoders[0], count)
    for i in range(count):
        wanted = {f"{name}_{i}": _stored(name, shape) for name, shape in shapes.items() if name != "W_dec"}
        problems += [f"{files[0][i].name}: {each}" for each in tensors.misfits(encoders[i], wanted)]
        features, width = shapes["W_dec"]
        rows: Shapes = {f"{DECODER}{i}": (features, count - i, width)}
        problems += [f"{files[1][i].name}: {each}" for each in tensors.misfits(decoders[i], rows)]
    if problems:
        raise CheckpointError("; ".join(problems))
    return config, (encoders, decoders), shapes


def _stored(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if name in ("W_enc", "W_skip") else shape


def _shapes(encoder: Mapping[str, Stored], decoder: Mapping[str, Stored], count: int) -> Shapes:
    """Shapes of arrays as the class has them, from the first layer; others are compared with it."""
    sizes = [held[name].shape for held, name in ((encoder, "W_enc_0"), (decoder, "W_dec_0")) if name in held]
    if [len(size) for size in sizes] != [2, 3]:
        raise CheckpointError(
            "layer 0: W_enc_0 [features, d] and W_dec_0 [features, layers, d] must be there"
        )
    (features, d_in), (_, found, d_out) = sizes
    if found != count:
        raise CheckpointError(
            f"W_dec_0 writes into {found} layers, and there are files of {count}; download those that lack"
        )
    shapes: Shapes = {
        "W_enc": (d_in, features),
        "W_dec": (features, d_out),
        "b_enc": (features,),
        "b_dec": (d_out,),
    }
    extra: Shapes = {"threshold": (features,), "W_skip": (d_out, d_in)}
    return shapes | {name: extra[name] for name in OPTIONAL if f"{name}_0" in encoder}
