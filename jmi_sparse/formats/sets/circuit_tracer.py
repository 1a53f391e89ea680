"""Per-layer transcoders of circuit-tracer: ``layer_<i>.safetensors`` and, at most, a ``config.yaml``."""

import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmi.errors import ArgumentError, CheckpointError, ConfigError, JmiError
from jmi_models.disk import words
from jmi_models.disk.tensors import Stored
from jmi_sparse.dictionaries.activations import Activation, JumpReLU, ReLU, TopK
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.dictionaries.layered import DictionarySet, stack
from jmi_sparse.formats import gemma_scope, gemma_scope_2
from jmi_sparse.formats.reading import tensors
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.decoders import Decoders
from jmi_sparse.formats.sets import circuit_tracer_config, curation, numbered
from jmi_sparse.formats.sets.circuit_tracer_config import CONFIG, PLT, WANDB, Config

PREFIX, THRESHOLD = "layer_", "activation_function.threshold"
_FILE = re.compile(r"layer_\d+\.safetensors", re.ASCII)
_OTHERS = {gemma_scope.PARAMS: gemma_scope, gemma_scope_2.PARAMS: gemma_scope_2}
"""Files of other formats that lists may name, and what reads them."""


def matches(path: Path) -> bool:
    """Whether a path is a folder of these, one of its files, or a list of where they are."""
    if path.suffix in (".yaml", ".yml"):
        return path.name not in WANDB and curation.is_list(path, PLT)
    if path.is_dir():
        return numbered.is_numbered(path, PREFIX) or curation.is_list(path / CONFIG, PLT)
    return _FILE.fullmatch(path.name) is not None and _is_one(path)


def _is_one(file: Path) -> bool:
    try:
        return {"W_enc", "W_dec", "b_enc", "b_dec"} <= set(tensors.headers(file))
    except JmiError:
        return False


def read(path: Path, asked: Asked) -> DictionarySet | Dictionary:
    """The transcoders of a folder, or that of one file; errors as of `jmi_sparse.load`."""
    if path.suffix == ".safetensors":
        config = circuit_tracer_config.parse(path.parent, PLT, asked)
        layer = int(path.stem.removeprefix(PREFIX))
        return _read(path.parent, {layer: path}, config, asked)[layer]
    config, folder, files = _opened(path, asked)
    circuit_tracer_config.check_open(asked)
    if any(file.name in _OTHERS for file in files.values()):
        return stack({layer: _other(layer, file, asked) for layer, file in files.items()})
    return _read(folder, files, config, asked)


def _other(layer: int, file: Path, asked: Asked) -> Dictionary:
    """A transcoder of Gemma Scope that a list names."""
    if file.name not in _OTHERS:
        raise ConfigError(
            f"transcoders: {words.name(file.name)} beside files of Gemma Scope; load them apart"
        )
    hook = None if asked.hook is None else asked.hook.replace("*", str(layer), 1)
    return _OTHERS[file.name].read(file.parent, dataclasses.replace(asked, hook=hook))


def on_disk(path: Path, asked: Asked) -> Decoders:
    """The decoders of such a folder or file, and its encoders one at a time; see `open_decoder`."""
    if path.suffix == ".safetensors":
        layer = int(path.stem.removeprefix(PREFIX))
        folder, files = path.parent, {layer: path}
        config = circuit_tracer_config.parse(folder, PLT, asked)
    else:
        config, folder, files = _opened(path, asked)
    if any(file.name in _OTHERS for file in files.values()):
        raise ArgumentError(f"{path.name}: decoders of Gemma Scope cannot stay on disk; use jmi_sparse.load")
    headers = {layer: tensors.headers(file) for layer, file in files.items()}
    _, shapes = _checked(files, headers, config, asked)

    def encoder(layer: int) -> Dictionary:
        return _read(folder, {layer: files[layer]}, config, asked)[layer]

    return Decoders(
        targets={layer: (layer,) for layer in files},
        shape=shapes["W_dec"],
        dtype=asked.dtype,
        view=lambda layer, target: np.asarray(headers[layer]["W_dec"].read()),
        encode=encoder,
        site=config.hook_out,
    )


def _opened(path: Path, asked: Asked) -> tuple[Config, Path, dict[int, Path]]:
    folder, name = (path, CONFIG) if path.is_dir() else (path.parent, path.name)
    config = circuit_tracer_config.parse(folder, PLT, asked, name)
    if config.listed is None:
        return config, folder, numbered.numbered(folder, PREFIX)
    return config, folder, curation.resolved(folder, config.listed, name, asked.files)


def _read(folder: Path, files: Mapping[int, Path], config: Config, asked: Asked) -> DictionarySet:
    """Layers of one shape, each read and cast into its row."""
    headers = {layer: tensors.headers(file) for layer, file in files.items()}
    k, shapes = _checked(files, headers, config, asked)
    # As the class has them: the encoder's matrix is kept transposed.
    shapes["W_enc"] = shapes["W_enc"][::-1]
    stacks = numbered.Stacks.of({name: (len(files), *shape) for name, shape in shapes.items()}, asked.dtype)
    for row, (layer, file) in enumerate(files.items()):
        for name in shapes:
            values = np.asarray(headers[layer][THRESHOLD if name == "threshold" else name].read())
            stacks.put(name, row, values.T if name == "W_enc" else values, f"{name} of {file.name}")
    arrays = stacks.filled()
    warn_of_negative(folder, arrays.get("threshold"))
    stacked = Dictionary(
        W_enc=arrays["W_enc"],
        W_dec=arrays["W_dec"],
        b_dec=arrays["b_dec"],
        activation=_made(k, arrays),
        b_enc=arrays["b_enc"],
        W_skip=arrays.get("W_skip"),
        hook_in=config.hook_in,
        hook_out=config.hook_out,
        kind="transcoder",
        metadata=config.metadata,
    )
    return DictionarySet(stacked, tuple(files))


def warn_of_negative(folder: Path, thresholds: np.ndarray | None) -> None:
    """Say that a threshold is negative: it acts as 0 here, and there lets negative values through."""
    count = 0 if thresholds is None else int((thresholds < 0).sum())
    if count:
        warnings.warn(
            f"{folder.name}: {count} thresholds are negative; they act as 0, where circuit-tracer lets "
            "negative values above them through",
            stacklevel=5,
        )


def _checked(
    files: Mapping[int, Path], headers: Mapping[int, dict[str, Stored]], config: Config, asked: Asked
) -> tuple[int | None, dict[str, tuple[int, ...]]]:
    """k of topk, and the shapes of tensors: those of the first layer and so of all.

    Raises:
      ConfigError, CheckpointError: all that does not fit.
    """
    first = next(iter(files))
    kept = {layer: _k(files[layer], held) for layer, held in headers.items() if "k" in held}
    shapes = _shapes(headers[first], files[first])
    features, width = shapes["b_enc"][0], shapes["b_dec"][0]
    wanted = {THRESHOLD if name == "threshold" else name: shape for name, shape in shapes.items()}
    problems = []
    for layer, held in headers.items():
        floats = {name: tensor for name, tensor in held.items() if name != "k"}
        problems += [f"{files[layer].name}: {each}" for each in tensors.misfits(floats, wanted)]
    if kept and set(kept) != set(headers):
        problems.append("k is a tensor of some layers and not of others")
    if problems:
        raise CheckpointError("; ".join(problems))
    if config.sizes not in (None, (width, features)):
        raise ConfigError(
            f"wandb-config.yaml says d_model, d_feature {config.sizes}; the files have {(width, features)}"
        )
    return _kept(config, asked.k, "threshold" in shapes, kept, features), shapes


def _shapes(held: Mapping[str, Stored], file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes that all layers must have, from the biases and from which tensors the first one has."""
    sizes = [held[name].shape for name in ("b_enc", "b_dec", "W_enc") if name in held]
    if [len(size) for size in sizes] != [1, 1, 2]:
        raise CheckpointError(
            f"{file.name}: W_enc [features, d], b_enc and b_dec must be there, one row each"
        )
    (features,), (d_out,), (_, d_in) = sizes
    shapes = {"W_enc": (features, d_in), "W_dec": (features, d_out), "b_enc": (features,), "b_dec": (d_out,)}
    if THRESHOLD in held:
        shapes["threshold"] = (features,)
    if "W_skip" in held:
        shapes["W_skip"] = (d_out, d_in)
    return shapes


def _k(file: Path, held: Mapping[str, Stored]) -> int:
    if held["k"].shape or held["k"].dtype not in tensors.WHOLE:
        raise CheckpointError(f"{file.name}: k must be one whole number")
    return int(held["k"].read())


def _kept(
    config: Config, asked: int | None, threshold: bool, kept: Mapping[int, int], features: int
) -> int | None:
    """k, where the activation is topk: the config decides, and else which tensors there are."""
    held = "jump" if threshold else "topk" if kept else "relu"
    found = config.activation or held
    # A topk layer need not hold its k; what else a file holds must be what is used.
    if (threshold and kept) or (found != held and (found, held) != ("topk", "relu")):
        raise ConfigError(
            f"{CONFIG}: activation {found} does not fit the files, which have "
            f"{'a threshold' if threshold else 'no threshold'} and {'a k' if kept else 'no k'}"
        )
    if found != "topk":
        if asked is not None or config.k is not None:
            raise ConfigError(f"k={asked or config.k}: activation {found} keeps no fixed number; leave k out")
        return None
    several = sorted(set(kept.values()))
    k = asked or config.k or (several[0] if len(several) == 1 else None)
    if k is None or not 1 <= k <= features:
        raise ConfigError(
            f"{CONFIG}: k={words.value(k or several)}: topk needs one number from 1 to {features}; pass k="
        )
    return k


def _made(k: int | None, arrays: Mapping[str, Any]) -> Activation:
    if k is not None:
        return TopK(k, "none")
    return JumpReLU(arrays["threshold"]) if "threshold" in arrays else ReLU()
