"""clt-training (EleutherAI): for each MLP a folder ``layers.<i>.mlp``: ``cfg.json``, ``sae.safetensors``.

Each holds the encoder of its layer and decoders into that layer and those that follow it in the run,
``W_decs.<n>``, with a bias for each. What normalises inputs and outputs is one number of each layer, and is
folded into the weights. Coders that write nowhere else are in the layout of sparsify.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmi.errors import CheckpointError, ConfigError, JmiError
from jmi.reading import read_object
from jmi_models.disk import words
from jmi_models.disk.tensors import Stored
from jmi_sparse.dictionaries.activations import Activation, GroupMax, TopK
from jmi_sparse.dictionaries.crosslayer import CrossLayerTranscoder
from jmi_sparse.formats.reading import fields, tensors
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.fields import Fields
from jmi_sparse.formats.sets import numbered
from jmi_sparse.formats.sets.circuit_tracer_config import check_open

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_FOLDER = re.compile(r"(?:\w+\.)*(?:layers|h)\.(\d{1,4})\.mlp", re.ASCII)
_HOOKS = ("blocks.*.mlp.hook_in", "blocks.*.mlp.hook_out")
_REFUSED = {
    "coalesce_topk": "none",
    "topk_coalesced": False,
    "secondary_target_tied": False,
    "divide_cross_layer": False,
    "post_encoder_scale": False,
    "use_fp8": False,
}
"""Options that a `CrossLayerTranscoder` cannot honour, with the values that need nothing of it."""

_ALIASES = {"W_dec": "W_decs.0", "b_dec": "b_decs.0", "W_skip": "W_skips.0"}
Headers = dict[int, dict[str, Stored]]


def matches(folder: Path) -> bool:
    """Whether a folder holds coders that write into several layers."""
    try:
        return any(
            read_object(place / CONFIG, ConfigError).get("n_targets", 0) not in (0, None)
            for place in _places(folder).values()
        )
    except JmiError:
        return False


def read(folder: Path, asked: Asked) -> CrossLayerTranscoder:
    """The transcoder in a folder; errors as of `jmi_sparse.load`."""
    fields.refuse(asked, "norm_factor")
    check_open(asked)
    places = _places(folder)
    said = {layer: read_object(place / CONFIG, ConfigError) for layer, place in places.items()}
    activation, targets, tied, skip, scaled = _parsed(said, places, asked.k)
    headers = {layer: tensors.headers(place / WEIGHTS) for layer, place in places.items()}
    features, d = _checked(places, headers, targets, tied, skip, scaled)
    layers = tuple(places)
    pairs = tuple((row, row + n) for row, layer in enumerate(layers) for n in range(targets[layer]))
    count = len(layers)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (count, d, features), "b_enc": (count, features)}
    shapes |= {"W_dec": (len(pairs), features, d), "b_dec": (count, d)}
    if skip:
        shapes["W_skip"] = (count, d, d)
    stacks = numbered.Stacks.of(shapes, asked.dtype)
    _fill(stacks, headers, pairs, scaled, tied)
    arrays = stacks.filled()
    return CrossLayerTranscoder(
        **arrays,
        activation=activation,
        pairs=pairs,
        layers=layers,
        hook_in=asked.hook or _HOOKS[0],
        hook_out=_HOOKS[1],
    )


def _places(folder: Path) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for place in folder.iterdir() if folder.is_dir() else ():
        match = _FOLDER.fullmatch(place.name)
        if match and (place / CONFIG).is_file() and (place / WEIGHTS).exists():
            if int(match[1]) in found:
                raise CheckpointError(f"{words.name(place.name)}: two folders are of layer {int(match[1])}")
            found[int(match[1])] = place
    return dict(sorted(found.items()))


def _parsed(
    said: Mapping[int, dict[str, Any]], places: Mapping[int, Path], k: int | None
) -> tuple[Activation, dict[int, int], bool, bool, bool]:
    """The activation, how many layers each one writes into, and whether decoders are tied, there are skips,
    and inputs and outputs are scaled."""
    problems, targets, seen = list[str](), dict[int, int](), set[Any]()
    for number, (layer, given) in enumerate(said.items()):
        find = Fields(given, faults := list[str]())
        for name, plain in _REFUSED.items():
            if given.get(name, plain) != plain:
                faults.append(f"{name} {words.value(given[name])} cannot be represented")
        if not find.flag("transcode", False):
            faults.append("transcode must be true")
        name = find.word("activation", ("topk", "groupmax"), "topk")
        kept = find.whole("k", 32) if k is None else k
        targets[layer] = find.whole("n_targets")
        if targets[layer] > len(said) - number:
            faults.append(f"n_targets {targets[layer]}: only {len(said) - number} folders follow")
            targets[layer] = 1
        flags = [find.flag(name, False) for name in ("per_source_tied", "skip_connection", "normalize_io")]
        seen.add((name, kept, *flags))
        problems += [f"{words.name(places[layer].name)}: {fault}" for fault in faults]
    if len(seen) > 1 and not problems:
        problems.append(
            "the folders differ in activation, k, per_source_tied, skip_connection or normalize_io"
        )
    if problems:
        raise ConfigError(f"{CONFIG}: " + "; ".join(problems))
    name, kept, tied, skip, scaled = seen.pop()
    return (GroupMax(kept) if name == "groupmax" else TopK(kept, "before")), targets, tied, skip, scaled


def _checked(
    places: Mapping[int, Path],
    headers: Headers,
    targets: Mapping[int, int],
    tied: bool,
    skip: bool,
    scaled: bool,
) -> tuple[int, int]:
    """Number of features and width; CheckpointError or ConfigError where tensors do not fit."""
    weight = headers[next(iter(headers))].get("encoder.weight")
    features, d = weight.shape if weight and len(weight.shape) == 2 else (0, 0)
    problems, lost = list[str](), list[str]()
    for layer, held in headers.items():
        wanted: dict[str, tuple[int, ...]] = {"encoder.weight": (features, d), "encoder.bias": (features,)}
        wanted |= {f"b_decs.{n}": (d,) for n in range(targets[layer])}
        wanted |= {"W_dec": (features, d)} if tied else {}
        wanted |= {} if tied else {f"W_decs.{n}": (features, d) for n in range(targets[layer])}
        wanted |= {f"W_skips.{n}": (d, d) for n in range(targets[layer])} if skip else {}
        wanted |= {"in_norm": (1,), "out_norm": (1,)} if scaled else {}
        spare: dict[str, tuple[int, ...]] = {f"post_encs.{n}": (features,) for n in range(targets[layer])}
        spare |= {name: wanted[full] for name, full in _ALIASES.items() if full in wanted}
        wanted |= {name: shape for name, shape in spare.items() if name in held}
        name = words.name(places[layer].name)
        faults = tensors.misfits(held, wanted)
        problems += [f"{name}/{WEIGHTS}: {fault}" for fault in faults]
        if not faults:
            lost += [f"{name}: {fault}" for fault in _lost(held, targets[layer])]
    if problems or not features:
        raise CheckpointError("; ".join(problems) or f"{WEIGHTS}: encoder.weight must be [features, d]")
    if lost:
        raise ConfigError("; ".join(lost))
    return features, d


def _lost(held: Mapping[str, Stored], count: int) -> list[str]:
    """What tensors hold that a `CrossLayerTranscoder` has no place for."""
    found = []
    for n in range(count):
        if f"post_encs.{n}" in held and np.asarray(held[f"post_encs.{n}"].read()).any():
            found.append(
                f"post_encs.{n} is added to active values of one target, which cannot be represented"
            )
        if n and f"W_skips.{n}" in held and np.asarray(held[f"W_skips.{n}"].read()).any():
            found.append(f"W_skips.{n} is a skip into a later layer, which cannot be represented")
    for name, full in _ALIASES.items():
        if {name, full} <= set(held):
            one, other = (np.asarray(held[each].read()) for each in (name, full))
            if not np.array_equal(one, other):
                found.append(f"{name} and {full} are one, and differ")
    return found


def _fill(
    stacks: numbered.Stacks, headers: Headers, pairs: tuple[tuple[int, int], ...], scaled: bool, tied: bool
) -> None:
    every = list(headers.values())
    d = stacks.arrays["b_dec"].shape[1]

    def of(row: int, name: str) -> np.ndarray:
        return np.asarray(every[row][name].read())

    def wide(row: int, name: str, factor: float) -> np.ndarray:
        """A tensor times a factor, in float64 where there is one."""
        return of(row, name).astype(np.float64) * factor if scaled else of(row, name)

    ins = [np.sqrt(d) / float(of(row, "in_norm")[0]) if scaled else 1.0 for row in range(len(every))]
    outs = [float(of(row, "out_norm")[0]) / np.sqrt(d) if scaled else 1.0 for row in range(len(every))]
    for row in range(len(every)):
        stacks.put("W_enc", row, wide(row, "encoder.weight", ins[row]).T, f"encoder.weight {row}")
        stacks.put("b_enc", row, of(row, "encoder.bias"), f"encoder.bias {row}")
        if "W_skip" in stacks.arrays:
            stacks.put("W_skip", row, wide(row, "W_skips.0", ins[row] * outs[row]), f"W_skips.0 {row}")
    bias = np.zeros((len(every), d))
    for number, (source, target) in enumerate(pairs):
        name = "W_dec" if tied else f"W_decs.{target - source}"
        stacks.put("W_dec", number, wide(source, name, outs[target]), f"{name} {source}")
        bias[target] += of(source, f"b_decs.{target - source}").astype(np.float64) * outs[target]
    for row in range(len(every)):
        stacks.put("b_dec", row, bias[row], f"b_decs into {row}")
