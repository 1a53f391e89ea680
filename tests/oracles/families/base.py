"""What the configs of most families share, and how variants are written down."""

from typing import Any

Config = dict[str, Any]
Family = dict[str, Config]

SIZES: Config = {
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""Four query heads of width 6 (three rotary frequencies) over two key and value heads."""

ROTARY: Config = {**SIZES, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False}


def family(model_type: str, base: Config, **variants: Config) -> Family:
    """Variant -> config.json: ``base`` with what the variant changes."""
    return {name: {"model_type": model_type, **base, **change} for name, change in variants.items()}
