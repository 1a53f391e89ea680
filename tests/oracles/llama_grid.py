"""Tiny Llama folders without torch: the names and shapes of Llama's tensors, written down by hand."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.oracles import grid

GRID = grid.FAMILIES["llama"]
"""Variant -> config.json."""


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the checkpoint."""
    d, m, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    width = config.get("head_dim") or d // heads
    q, kv = heads * width, config["num_key_value_heads"] * width
    out = {"model.embed_tokens.weight": (config["vocab_size"], d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = (config["vocab_size"], d)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        linear = {"q_proj": (q, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, q)}
        out |= {f"{layer}.self_attn.{name}.weight": shape for name, shape in linear.items()}
        if config["attention_bias"]:
            out |= {f"{layer}.self_attn.{name}.bias": shape[:1] for name, shape in linear.items()}
        linear = {"gate_proj": (m, d), "up_proj": (m, d), "down_proj": (d, m)}
        out |= {f"{layer}.mlp.{name}.weight": shape for name, shape in linear.items()}
        if config["mlp_bias"]:
            out |= {f"{layer}.mlp.{name}.bias": shape[:1] for name, shape in linear.items()}
        out |= {f"{layer}.{name}.weight": (d,) for name in ("input_layernorm", "post_attention_layernorm")}
    return out


def tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every tensor in float32, as in `tests.oracles.grid`."""
    return grid.tensors(shapes(config), "llama")


def write_folder(folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray] | None = None) -> Path:
    """A model folder with ``config`` and ``weights`` (by default `tensors`)."""
    return grid.write_folder(folder, config, tensors(config) if weights is None else weights)
