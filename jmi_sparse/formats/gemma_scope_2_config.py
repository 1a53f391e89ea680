"""What a folder of Gemma Scope 2 says of a dictionary of several layers: its ``config.json`` and its name."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from jmi.errors import ArgumentError, ConfigError
from jmi.reading import read_if_there
from jmi_models.disk import words
from jmi_sparse.formats.reading.asked import Asked

CONFIG = "config.json"
_POINTS = {
    "clt": ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"),
    "crosscoder": ("output", "output"),
}
_HOOKS = {
    "clt": ("blocks.*.mlp.hook_in", "blocks.*.hook_mlp_out"),
    "crosscoder": ("blocks.*.hook_resid_post", "blocks.*.hook_resid_post"),
}
_POINT = re.compile(r"model\.layers\.\{(all|\d{1,4}(?:,\d{1,4})*)\}\.([\w.]+)", re.ASCII)
_SEVERAL = re.compile(r"layer_(\d{1,4}(?:_\d{1,4})+)_width_\w+", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is said.

    Attributes:
      layers: of the model, in the order of the files.
      hook_in, hook_out: with the layer open; None where nothing says which kind it is.
      metadata: as a JSON text.
    """

    layers: tuple[int, ...]
    hook_in: str | None
    hook_out: str | None
    metadata: str


def parse(path: Path, asked: Asked, count: int, skips: bool) -> Config:
    """What is said of a folder of ``count`` layers, or of one file of it.

    Args:
      skips: whether its files have affine skips.

    Raises:
      ConfigError: all that is not known, or does not fit the files.
      ArgumentError: an argument that such a folder has no use for.
    """
    for name in ("k", "norm_factor"):
        if getattr(asked, name) is not None:
            raise ArgumentError(
                f"{name}={getattr(asked, name)}: Gemma Scope 2 has thresholds, and raw inputs"
            )
    folder = path if path.is_dir() else path.parent
    given, problems = read_if_there(folder / CONFIG, ConfigError), list[str]()
    named = _SEVERAL.fullmatch(folder.name)
    kind = given.get("type", _kind(folder))
    if kind not in (*_HOOKS, None):
        problems.append(f"type {words.value(kind)} is none of {', '.join(_HOOKS)}")
        kind = None
    if given.get("architecture", "jump_relu") != "jump_relu":
        problems.append(f"architecture {words.value(given['architecture'])} is not jump_relu")
    if given.get("affine_connection", skips) is not skips:
        problems.append(f"affine_connection {words.value(given['affine_connection'])} does not fit the files")
    layers = tuple(map(int, named[1].split("_"))) if named else None
    for end, name in enumerate(("hf_hook_point_in", "hf_hook_point_out")):
        point = _POINT.fullmatch(str(given[name])) if name in given else None
        if name in given and (point is None or (kind and point[2] != _POINTS[kind][end])):
            problems.append(
                f"{name} {words.value(given[name])} is no point of a {kind or 'clt or crosscoder'}"
            )
        elif point:
            said = tuple(range(count)) if point[1] == "all" else tuple(map(int, point[1].split(",")))
            layers = said if layers is None else layers
            if layers != said:
                problems.append(f"{name} {words.value(given[name])} does not fit layers {list(layers)}")
    layers = tuple(range(count)) if layers is None else layers
    if len(layers) != count or list(layers) != sorted(set(layers)):
        problems.append(f"layers {list(layers)}, and the files have {count}")
    if problems:
        raise ConfigError(f"{CONFIG}: " + "; ".join(problems))
    hooks: tuple[Any, Any] = _HOOKS[kind] if kind else (None, None)
    return Config(layers, asked.hook or hooks[0], hooks[1], json.dumps(given))


def _kind(folder: Path) -> str | None:
    """The kind that the published names of folders say."""
    above = [folder.name, folder.parent.name]
    return next((kind for kind in _HOOKS if kind in above), None)
