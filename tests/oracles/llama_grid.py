"""Tiny random Llama models as plain data: configs, tensors and folders, without torch.

Each entry of `GRID` is a ``config.json`` as Hugging Face writes or wrote them. The tensors follow from
a seed by numpy alone, so a test without torch runs the very models the oracle ran with it.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

BATCH, LENGTH = 2, 10
FILE = Path(__file__).parent.parent / "data" / "llama_oracle.npz"

_BASE = {
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}

# Sixteen rotary dimensions, so that each scaling keeps, mixes and divides some frequencies.
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "beta_fast": 8.0,
    "original_max_position_embeddings": 256,
}
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.5],
    "long_factor": [1.2, 2.0, 3.5, 6.0],
}

_CHANGES: dict[str, dict[str, Any]] = {
    "multi_head": {"num_key_value_heads": 4, "num_hidden_layers": 3},
    "grouped": {},
    "multi_query_tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "odd_head_dim": {"hidden_size": 36, "head_dim": 10},
    "wide_heads_one_layer": {"head_dim": 16, "num_hidden_layers": 1},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "all_biases": {
        "attention_bias": True,
        "mlp_bias": True,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "large_eps": {"rms_norm_eps": 0.1},
    "large_theta": {"rope_theta": 500000.0},
    "gelu": {"hidden_act": "gelu"},
    "gelu_tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu"},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "linear_old_spelling": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama3": {
        "head_dim": 16,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "dynamic_within": {"head_dim": 8, "rope_scaling": {"rope_type": "dynamic", "factor": 3.0}},
    "dynamic_beyond": {
        "head_dim": 8,
        "max_position_embeddings": 8,
        "rope_scaling": {"rope_type": "dynamic", "factor": 3.0},
    },
    "yarn": {"head_dim": 16, "max_position_embeddings": 1024, "rope_scaling": _YARN},
    "yarn_mscale": {
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "rope_scaling": {**_YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    },
    "yarn_untruncated": {
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "rope_scaling": {**_YARN, "truncate": False},
    },
    "yarn_attention_factor": {
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "rope_scaling": {**_YARN, "attention_factor": 0.8},
    },
    "longrope_within": {
        "head_dim": 8,
        "rope_scaling": {**_LONGROPE, "original_max_position_embeddings": 16},
    },
    "longrope_beyond": {
        "head_dim": 8,
        "rope_scaling": {**_LONGROPE, "original_max_position_embeddings": 8},
    },
    "rope_parameters": {
        "rope_theta": None,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
    },
}

GRID: dict[str, dict[str, Any]] = {name: {**_BASE, **change} for name, change in _CHANGES.items()}
"""Name -> config.json."""

COMMITTED = ("all_biases", "odd_head_dim", "llama3", "yarn_mscale", "longrope_beyond")
"""Configs whose outputs are committed, for runs without torch."""


UNEXPOSED = {
    "blocks.*.ln1.hook_scale",
    "blocks.*.ln1.hook_normalized",
    "blocks.*.ln2.hook_scale",
    "blocks.*.ln2.hook_normalized",
    "ln_final.hook_scale",
    "blocks.*.attn.hook_attn_scores",
    "blocks.*.attn.hook_result",
}
"""Sites that Hugging Face computes inside a function, where no hook of torch reaches."""

TWINS = {
    "blocks.*.hook_attn_out": "blocks.*.attn.hook_out",
    "blocks.*.hook_mlp_out": "blocks.*.mlp.hook_out",
}
"""In Llama these are one tensor under two names; the committed file holds it once."""


def tokens(config: dict[str, Any]) -> np.ndarray:
    """The fixed prompt, int32 ``[BATCH, LENGTH]``."""
    rng = np.random.default_rng(7)
    return rng.integers(0, config["vocab_size"], (BATCH, LENGTH)).astype(np.int32)


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


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor in float32, scaled so that logits and attention are far from flat."""
    return {name: _tensor(name, shape, seed) for name, shape in shapes(config).items()}


def _tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    values = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    if "norm" in name:
        values = 1 + 0.3 * values
    elif name.endswith("bias"):
        values = 0.3 * values
    elif "embed_tokens" in name:
        values = 0.7 * values
    else:
        sharp = 1.5 if any(part in name for part in ("q_proj", "k_proj", "lm_head")) else 1.0
        values = sharp * values / np.sqrt(shape[1])
    return values.astype(np.float32)


def write_folder(folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray] | None = None) -> Path:
    """A model folder with ``config`` and ``weights`` (by default `tensors`)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors(config) if weights is None else weights, folder / "model.safetensors")
    return folder
