"""The ``config.yaml`` of circuit-tracer: what a folder says of its transcoders."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jmi.errors import ArgumentError, ConfigError
from jmi_models.disk import words
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.fields import Fields
from jmi_sparse.formats.reading.yaml_files import read_yaml

CONFIG = "config.yaml"
PLT, CLT = "transcoder_set", "cross_layer_transcoder"
WANDB = ("wandb-config.yaml", "wanb-config.yaml")
"""What the folders of mwhanna's transcoders hold besides; the second name is a slip that was published."""

ACTIVATIONS = {"relu": "relu", "topk": "topk", "jumprelu": "jump", "jump_relu": "jump"}
_HOOKS = ("feature_input_hook", "feature_output_hook")
_HELD = ("model_kind", *_HOOKS, "activation", "k", "transcoders")
"""Fields that a dictionary holds itself; the others are its metadata."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What such a file says; of a folder without one, what can be known.

    Attributes:
      hook_in, hook_out: with the layer open, ``blocks.*.hook_resid_mid``.
      activation: ``"relu"``, ``"jump"`` or ``"topk"``; None where the tensors decide.
      k: of topk, where it is said.
      sizes: width of the model and number of features, where they are said.
      listed: a curation list: for each layer the place of its file.
      metadata: what is said besides, as a JSON text.
    """

    hook_in: str | None = None
    hook_out: str | None = None
    activation: str | None = None
    k: int | None = None
    sizes: tuple[int, int] | None = None
    listed: Mapping[int, str] | None = None
    metadata: str = "{}"


def parse(folder: Path, kind: str, asked: Asked, file: str = CONFIG) -> Config:
    """What a folder says of transcoders of one kind, `PLT` or `CLT`.

    Raises:
      ConfigError: everything that is absurd or not known, in one message.
      ArgumentError: an argument that such a folder has no use for.
    """
    if asked.norm_factor is not None:
        raise ArgumentError(f"norm_factor={asked.norm_factor}: transcoders of circuit-tracer read raw inputs")
    problems = list[str]()
    sizes = _sizes(folder, problems) if kind == PLT else None
    said = os.path.lexists(folder / file)
    given = read_yaml(folder / file, ConfigError) if said else {}
    find = Fields(given, problems)
    hooks = [find.text(given, name) for name in _HOOKS]
    if not said and sizes:
        # mwhanna's largest set has no config.yaml; its others all read and write here.
        hooks = ["mlp.hook_in", "hook_mlp_out"]
    if given.get("model_kind", kind) != kind:
        problems.append(f"model_kind is {words.value(given['model_kind'])}, and the files are a {kind}")
    activation = given.get("activation")
    if activation is not None:
        activation = ACTIVATIONS[find.word("activation", tuple(ACTIVATIONS), "relu")]
    if kind == CLT and activation == "topk":
        problems.append("activation topk of a cross-layer transcoder is not defined")
    k = None if given.get("k") is None else find.whole("k")
    listed = _listed(given["transcoders"], problems) if "transcoders" in given else None
    if problems:
        raise ConfigError(f"{words.name(file)}: " + "; ".join(problems))
    opened = [None if hook is None else f"blocks.*.{hook}" for hook in hooks]
    about = {name: value for name, value in given.items() if name not in _HELD}
    return Config(asked.hook or opened[0], opened[1], activation, k, sizes, listed, _text(about))


def check_open(asked: Asked) -> None:
    """Raise ArgumentError for a hook that names one layer, where all of them are read."""
    if asked.hook is not None and "blocks.*." not in asked.hook:
        raise ArgumentError(
            f"hook={words.value(asked.hook)}: each layer is read; leave it open: blocks.*.hook_resid_mid"
        )


def _sizes(folder: Path, problems: list[str]) -> tuple[int, int] | None:
    name = next((name for name in WANDB if os.path.lexists(folder / name)), None)
    if name is None:
        return None
    given = read_yaml(folder / name, ConfigError)
    # Each of wandb's fields is an object with a description and a value.
    held = {key: value.get("value") for key, value in given.items() if isinstance(value, dict)}
    found = Fields(held, faults := list[str]())
    sizes = found.whole("d_model"), found.whole("d_feature")
    problems += [f"{name}: {fault}" for fault in faults]
    return sizes


def _listed(given: Any, problems: list[str]) -> dict[int, str]:
    """Places by layer: of a list of them in order, or of one of ``layer`` and ``filepath``, as it was."""
    if not isinstance(given, list) or not given:
        problems.append(f"transcoders must be a list of files, not {words.value(given)}")
        return {}
    found = dict[int, str]()
    for number, entry in enumerate(given):
        said: dict[str, Any] = entry if isinstance(entry, dict) else {"layer": number, "filepath": entry}
        layer: Any = said.get("layer")
        place = said.get("filepath")
        known = isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer < len(given)
        if not known or not isinstance(place, str) or not place or layer in found:
            problems.append(f"transcoders: {words.value(entry)} is no file of a layer of its own")
        else:
            found[layer] = place
    return dict(sorted(found.items()))


def _text(about: Mapping[str, Any]) -> str:
    try:
        return json.dumps(about, default=str)
    except (TypeError, ValueError):
        return "{}"  # keys that are no names
