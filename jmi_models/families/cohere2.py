"""Command R7B and A: windowed layers with rotary embedding, and every fourth without either."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.transformer import Transformer
from jmi_models.families import rope_config
from jmi_models.families.cohere import cohere_fields
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import KEYS, always, per_layer, read_usual, sliding_layers, windows


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face Cohere2Config, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    every = read.count("sliding_window_pattern", 4)
    slides = sliding_layers(read, lambda layer: (layer + 1) % every != 0)
    d_head = read.count("hidden_size") // read.count("num_attention_heads")
    rope = rope_config.read(config, d_head, default_length=8192)
    # Written by some configs; Hugging Face reads neither.
    read.ignore(
        "head_dim", "use_qk_norm", "rotary_pct", "order_of_interleaved_layers", "position_embedding_type"
    )
    fields = cohere_fields(read)
    fields["attn"]["windows"] = windows(read, 4096, lambda layer: slides[layer], optional=False)
    fields["positions"]["ropes"] = per_layer([rope if slide else None for slide in slides])
    arch = read_usual(read, "cohere2", **fields)
    read.finish()
    return arch


COHERE2 = Family(name="cohere2", from_config=from_config, keys=always(KEYS))
