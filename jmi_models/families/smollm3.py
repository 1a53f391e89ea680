"""SmolLM 3: Llama in which every fourth layer has no rotary embedding."""

from collections.abc import Mapping
from typing import Any

from jmi.errors import ConfigError
from jmi_models.decoder.norms import Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk import words
from jmi_models.families import rope_config
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import KEYS, always, per_layer, read_usual, rms, windows


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face SmolLM3Config, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    d_head = read.count("head_dim", read.count("hidden_size") // read.count("num_attention_heads"))
    rope, turns = rope_config.read(config, d_head, 2e6, default_length=32768), turning_layers(read)
    bias = read.flag("attention_bias", False)
    sliding = read.flag("use_sliding_window", False)
    read.ignore("sliding_window", "layer_types")
    arch = read_usual(
        read,
        "smollm3",
        Norms(rms(read)),
        n_ctx=32768,
        n_kv_heads=4,
        attn={
            "windows": windows(read, None, lambda layer: not turns[layer]) if sliding else (),
            "qkv_bias": bias,
            "out_bias": bias,
        },
        mlp={"bias": read.flag("mlp_bias", False)},
        positions={"ropes": per_layer([rope if turn else None for turn in turns])},
        tied=True,
    )
    read.finish()
    return arch


def turning_layers(read: Reader) -> list[bool]:
    """For each layer whether it has rotary embedding: despite its name, a 1 in ``no_rope_layers``."""
    every, n_layers = read.count("no_rope_layer_interval", 4), read.layers()
    given = read.config.get("no_rope_layers")
    read.ignore("no_rope_layers")
    if given is None:
        return [(layer + 1) % every != 0 for layer in range(n_layers)]
    if not isinstance(given, list) or len(given) != n_layers or any(turn not in (0, 1) for turn in given):
        shown = words.value(given)
        raise ConfigError(f"config.json: no_rope_layers must be {n_layers} times 0 or 1, got {shown}")
    return [bool(turn) for turn in given]


SMOLLM3 = Family(name="smollm3", from_config=from_config, keys=always(KEYS))
