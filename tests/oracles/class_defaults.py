"""Config of every family as its class in transformers makes it when nothing is asked for but few layers.

``python -m tests.oracles.class_defaults`` (with transformers, the version compared against) writes
``tests/data/class_defaults.json``. What every config has (names of labels, tokens, training) is left out.
"""

import copy
import json
from collections.abc import Mapping
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.oracles import grid

FILE = grid.DATA / "class_defaults.json"
LAYERS = 6
"""Enough for every pattern of layers to repeat or to end."""


def config_class(family: str) -> Any:
    """The class of ``family`` in transformers."""
    return CONFIG_MAPPING[family]


def plain(config: Any) -> dict[str, Any]:
    """A config as its ``config.json`` has it, without what every config has."""
    everywhere = set(transformers.PreTrainedConfig().to_dict()) - {"tie_word_embeddings"}
    held = json.loads(json.dumps(config.to_dict()))
    return {name: held[name] for name in sorted(held) if name not in everywhere or name == "model_type"}


def read(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the class makes of ``config``, in full; None where it refuses it."""
    try:
        return plain(config_class(config["model_type"]).from_dict(copy.deepcopy(dict(config))))
    except Exception:
        return None


def defaults(family: str) -> dict[str, Any]:
    """What the class takes for every field."""
    return plain(config_class(family)(num_hidden_layers=LAYERS))


if __name__ == "__main__":
    table = {family: defaults(family) for family in grid.FAMILIES}
    lines = [f"  {json.dumps(family)}: {json.dumps(config)}" for family, config in table.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
