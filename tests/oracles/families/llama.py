"""Llama: each kind of head sharing, of bias, of activation and of rotary scaling."""

from typing import Any

from tests.oracles.families.base import Config, family

_BASE: Config = {
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
_YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "original_max_position_embeddings": 256}
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.5],
    "long_factor": [1.2, 2.0, 3.5, 6.0],
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _yarn(**more: Any) -> Config:
    return {"head_dim": 16, "max_position_embeddings": 1024, "rope_scaling": {**_YARN, **more}}


def _longrope(original: int) -> Config:
    return {"head_dim": 8, "rope_scaling": {**_LONGROPE, "original_max_position_embeddings": original}}


LLAMA = family(
    "llama",
    _BASE,
    multi_head={"num_key_value_heads": 4, "num_hidden_layers": 3},
    grouped={},
    multi_query_tied={"num_key_value_heads": 1, "tie_word_embeddings": True},
    odd_head_dim={"hidden_size": 36, "head_dim": 10},
    wide_heads_one_layer={"head_dim": 16, "num_hidden_layers": 1},
    attention_bias={"attention_bias": True},
    mlp_bias={"mlp_bias": True},
    all_biases={
        "attention_bias": True,
        "mlp_bias": True,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    large_eps={"rms_norm_eps": 0.1},
    large_theta={"rope_theta": 500000.0},
    gelu={"hidden_act": "gelu"},
    gelu_tanh={"hidden_act": "gelu_pytorch_tanh"},
    relu={"hidden_act": "relu"},
    linear={"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    linear_old_spelling={"rope_scaling": {"type": "linear", "factor": 4.0}},
    llama3={"head_dim": 16, "rope_scaling": _LLAMA3},
    dynamic_within={"head_dim": 8, "rope_scaling": {"rope_type": "dynamic", "factor": 3.0}},
    dynamic_beyond={
        "head_dim": 8,
        "max_position_embeddings": 8,
        "rope_scaling": {"rope_type": "dynamic", "factor": 3.0},
    },
    yarn=_yarn(),
    yarn_mscale=_yarn(mscale=0.7, mscale_all_dim=1.3),
    yarn_untruncated=_yarn(truncate=False),
    yarn_attention_factor=_yarn(attention_factor=0.8),
    longrope_within=_longrope(16),
    longrope_beyond=_longrope(8),
    rope_parameters={
        "rope_theta": None,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
    },
)
