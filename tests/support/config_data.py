"""Configs of every family, and the headers of checkpoints that fit them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jmi_models.disk.layout import disk_shape
from jmi_models.disk.tensors import Stored
from jmi_models.families import FAMILIES
from jmi_models.weights.checkpoint import plan_reads
from tests.oracles import grid

Config = Mapping[str, Any]

CLASS_DEFAULTS: Mapping[str, Config] = json.loads((grid.DATA / "class_defaults.json").read_text())
"""Family -> what its class in transformers takes for every field (`tests.oracles.class_defaults`)."""

RECURRENT: Mapping[str, Config] = {
    "rwkv6": {
        "model_type": "rwkv6",
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "vocab_size": 64,
        "head_size": 64,
        "attention_hidden_size": 128,
        "intermediate_size": 448,
        "layer_norm_epsilon": 1e-5,
        "head_size_divisor": 8,
        "tie_word_embeddings": False,
    },
    "rwkv7": {
        "model_type": "rwkv7",
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "vocab_size": 64,
        "head_dim": 64,
        "hidden_ratio": 4.0,
        "intermediate_size": 512,
        "norm_eps": 1e-5,
        "norm_bias": True,
        "norm_first": True,
        "hidden_act": "sqrelu",
        "tie_word_embeddings": False,
        **{f"{name}_low_rank_dim": 32 for name in ("decay", "a", "v", "gate")},
    },
}
"""Family that transformers does not have -> config.json with every field that is read."""


_OF_LAYERS = ("rope_parameters", "layer_types", "no_rope_layers", "head_dim")
"""Fields of a class's defaults that would contradict those of a smaller model."""


def small(family: str) -> Config:
    """The config of a committed model, with every other field that the class has."""
    if family in RECURRENT:
        return RECURRENT[family]
    of_grid = next(grid.GRID[name] for name in grid.COMMITTED if name.split("/")[0] == family)
    rest = {name: value for name, value in CLASS_DEFAULTS[family].items() if name not in _OF_LAYERS}
    return {**rest, **of_grid}


def headers_of(config: Config) -> dict[str, Stored]:
    """Of a checkpoint that fits ``config``."""
    family = FAMILIES[config["model_type"]]
    arch = family.from_config(config)
    shapes = {
        name: disk_shape(targets[0].key, arch.sizes())
        for name, targets in plan_reads(arch, family, {}).items()
    }
    return {name: Stored(Path("x"), shape, "F32", lambda box=None: None) for name, shape in shapes.items()}
