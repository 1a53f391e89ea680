"""Families that differ from Llama in a few places: windows, biases, norms, multipliers, fused weights."""

from tests.oracles.families.base import ROTARY, Config, family

_RMS: Config = {**ROTARY, "rms_norm_eps": 1e-5}
_WINDOWED = {"use_sliding_window": True, "sliding_window": 4}

MISTRAL = family(
    "mistral",
    {**_RMS, "sliding_window": 4},
    window={},
    full_tied={"sliding_window": None, "tie_word_embeddings": True, "num_key_value_heads": 4},
    head_dim={"head_dim": 10, "sliding_window": 6, "num_key_value_heads": 1},
)

QWEN2 = family(
    "qwen2",
    # Published configs carry a window that is switched off.
    {**_RMS, "use_sliding_window": False, "sliding_window": 4, "max_window_layers": 1},
    tied={"tie_word_embeddings": True},
    window={**_WINDOWED, "max_window_layers": 2, "num_hidden_layers": 4},
    layer_types={
        **_WINDOWED,
        "hidden_size": 16,
        "intermediate_size": 12,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    yarn={
        "num_key_value_heads": 4,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    },
)

QWEN3 = family(
    "qwen3",
    {**_RMS, "head_dim": 8, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2},
    tied={"tie_word_embeddings": True, "attention_bias": False},
    biased={"attention_bias": True, "num_key_value_heads": 1},
    window={**_WINDOWED, "max_window_layers": 1, "num_hidden_layers": 3, "num_key_value_heads": 4},
)

_LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.3], "long_factor": [1.5, 4.0]}
_PARTIAL: Config = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "partial_rotary_factor": 0.5,
    "rope_scaling": _LONGROPE,
    "max_position_embeddings": 32,
}

PHI3 = family(
    "phi3",
    {**_RMS, "original_max_position_embeddings": 64, "sliding_window": None},
    grouped={},
    window_multi_head={"sliding_window": 4, "num_key_value_heads": 4, "tie_word_embeddings": True},
    longrope_beyond={**_PARTIAL, "original_max_position_embeddings": 8},
    longrope_within={**_PARTIAL, "original_max_position_embeddings": 16},
)

STARCODER2 = family(
    "starcoder2",
    {**ROTARY, "norm_epsilon": 1e-5, "hidden_act": "gelu_pytorch_tanh", "use_bias": True},
    window_tied={"sliding_window": 4, "tie_word_embeddings": True},
    no_bias={"use_bias": False, "sliding_window": None, "num_key_value_heads": 4, "hidden_act": "gelu"},
)

OLMO = family(
    "olmo",
    {**ROTARY, "clip_qkv": None, "attention_bias": False},
    clipped={"clip_qkv": 1.5},
    plain_tied={"num_key_value_heads": 4, "tie_word_embeddings": True},
)

OLMO2 = family(
    "olmo2",
    {**_RMS, "attention_bias": False, "rope_theta": 500000.0},
    grouped={},
    multi_head_tied={"num_key_value_heads": 4, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
)

GRANITE = family(
    "granite",
    {
        **_RMS,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.6,
        "logits_scaling": 2.5,
        "attention_bias": False,
        "mlp_bias": False,
    },
    multipliers={"tie_word_embeddings": True},
    biased={"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
)

SMOLLM3 = family(
    "smollm3",
    {**_RMS, "num_hidden_layers": 4, "use_sliding_window": False, "sliding_window": None},
    tied={
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "tie_word_embeddings": True,
        "no_rope_layers": [1, 0, 1],
    },
    interval={"no_rope_layer_interval": 2, "attention_bias": True, "mlp_bias": True},
    window={
        **_WINDOWED,
        "num_hidden_layers": 2,
        "no_rope_layers": [1, 0],
        "layer_types": ["full_attention", "sliding_attention"],
    },
)
