"""compressed-tensors: whole numbers packed into int32, INT8 and FP8, as llm-compressor writes them.

``pack-quantized`` packs along the inputs, the first lowest, numbers from which half of their range is then
taken away; zero points are packed so along the outputs. The other formats store numbers of eight bits as
they are. What is quantised at run time, activations, is left alone.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from jmi.errors import CheckpointError, ConfigError
from jmi_models.disk import words
from jmi_models.disk.tensors import Stored
from jmi_models.weights.quantised.layout import (
    Config,
    Layout,
    Method,
    Parts,
    by_rows,
    check,
    floats,
    group_size,
    matrix_shape,
    only,
    refused,
    unpacked,
)
from jmi_models.weights.quantised.scaled import FP8, INTEGERS, scaled

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
_TAKEN = (".input_scale", ".input_zero_point", ".output_scale", ".output_zero_point")
_SAME = ("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "actorder")
_SCALES = ("F16", "BF16", "F32")


def _read_packed(bits: int, size: int, parts: Parts) -> Stored:
    packed, scale = parts[".weight_packed"], parts[".weight_scale"]
    outputs, words_of = matrix_shape(packed, "its numbers")
    check(packed, "its numbers", packed.shape, "I32")
    check(parts[".weight_shape"], "its shape", (2,), "I64", "I32")
    rows, inputs = map(int, parts[".weight_shape"].read())
    each, half = 32 // bits, 2 ** (bits - 1)
    if rows != outputs or -(-inputs // each) != words_of:
        raise CheckpointError(f"its numbers {list(packed.shape)} do not hold a matrix [{rows}, {inputs}]")
    groups = -(-inputs // size) if size else 1
    one = int(np.prod(scale.shape)) == 1
    check(scale, "its scales", scale.shape if one and groups == 1 else (outputs, groups), *_SCALES)
    zero, order = parts.get(".weight_zero_point"), parts.get(".weight_g_idx")
    if zero is not None:
        check(zero, "its zero points", (-(-outputs // each), groups), "I32")
    if order is not None:
        check(order, "its g_idx", (inputs,), "I32", "I64")

    def decode(start: int, stop: int) -> np.ndarray:
        of = np.arange(inputs) // (size or inputs) if order is None else np.asarray(order.read())
        if len(of) and not 0 <= of.min() <= of.max() < groups:
            raise CheckpointError(f"{packed.file.name}: g_idx names a group that is not there, of {groups}")
        values = unpacked(packed.read((slice(start, stop),)), bits, 1)[:, :inputs].astype(np.float32)
        if zero is None:
            values -= np.float32(half)
        else:
            first = start // each
            zeros = unpacked(zero.read((slice(first, -(-stop // each)),)), bits, 0)
            values -= zeros[start - first * each : stop - first * each].astype(np.float32)[:, of]
        scales = floats(scale.read()).reshape(-1, groups)
        values *= (scales if one else scales[start:stop])[:, of]
        return values

    return by_rows(packed, (outputs, inputs), decode)


def _read_scaled(kind: str, block: tuple[int, int] | None, parts: Parts) -> Stored:
    zero = parts.get(".weight_zero_point")
    dtypes = FP8 if kind == "float" else INTEGERS
    return scaled(parts[".weight"], parts[".weight_scale"], dtypes, block, zero)


def _layouts(config: Config) -> tuple[Layout, ...]:
    weights = _weights(config)
    layout = only(config, "format", *_FORMATS, why="only formats")
    only(config, "quantization_status", "compressed")
    for field in ("sparsity_config", "kv_cache_scheme", "transform_config"):
        given = config.get(field)
        if given and not (isinstance(given, Mapping) and given.get("format") == "dense"):
            raise refused(config, f"it has a {field}")
    kind = only({**config, "type": weights.get("type")}, "type", "int", "float")
    bits = {**config, "num_bits": weights.get("num_bits")}
    if layout == "pack-quantized":
        if kind != "int":
            raise refused(config, f"the type of packed numbers is {kind!r}")
        strategy = only(
            {**config, "strategy": weights.get("strategy")}, "strategy", "tensor", "channel", "group"
        )
        size = group_size({**config, **weights}, -1) if strategy == "group" else 0
        read = functools.partial(_read_packed, only(bits, "num_bits", 8, 4, 2), size)
        needs = (".weight_scale", ".weight_shape", *_declared(weights))
        more = (".weight_zero_point", ".weight_g_idx", *_TAKEN)
        return (Layout(".weight_packed", ".weight", read, needs, more),)
    only(bits, "num_bits", 8)
    only({**config, "strategy": weights.get("strategy")}, "strategy", "tensor", "channel", "group", "block")
    read = functools.partial(_read_scaled, kind, _block(config, weights))
    needs = (".weight", *_declared(weights))
    return (Layout(".weight_scale", ".weight", read, needs, (".weight_zero_point", *_TAKEN)),)


def _declared(weights: Mapping[str, Any]) -> tuple[str, ...]:
    """Tensors that the config says there are; a matrix read without them would be another, silently."""
    zeros = (".weight_zero_point",) if weights.get("symmetric") is False else ()
    by_activation = str(weights.get("actorder")).lower() in ("true", "group", "dynamic")
    order = (".weight_g_idx",) if by_activation else ()
    return (*zeros, *order)


def _weights(config: Config) -> Mapping[str, Any]:
    """How weights are quantised, alike in all groups of modules."""
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
        raise ConfigError(
            f"config.json: 'config_groups' must be an object of objects, got {words.value(groups)}"
        )
    found = [group["weights"] for group in groups.values() if isinstance(group.get("weights"), Mapping)]
    if not found:
        raise refused(config, "no group has weights")
    alike = {repr([weights.get(name) for name in _SAME]) for weights in found}
    formats = {group.get("format") for group in groups.values()} - {None, config.get("format")}
    if len(alike) > 1 or formats:
        raise refused(config, "groups of modules are stored in different ways")
    return found[0]


def _block(config: Config, weights: Mapping[str, Any]) -> tuple[int, int] | None:
    if weights.get("strategy") != "block":
        return None
    block = weights.get("block_structure")
    if not isinstance(block, list) or len(block) != 2 or not all(isinstance(n, int) and n > 0 for n in block):
        raise refused(config, f"block_structure={words.value(block)}, only two whole numbers")
    return block[0], block[1]


def _told(config: Config) -> str:
    weights = _weights(config)
    size = weights.get("group_size")
    groups = f"groups of {words.value(size)}" if size and size != -1 else words.name(weights.get("strategy"))
    bits = f"{words.value(weights.get('num_bits'))} bits ({words.name(weights.get('type'))})"
    return f"compressed-tensors {words.name(config.get('format'))}, {bits} by {groups}"


METHODS = {"compressed-tensors": Method(_layouts, _told)}
