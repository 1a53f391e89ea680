"""Mixtures of experts."""

from tests.oracles.families.base import ROTARY, Config, family

_RMS: Config = {**ROTARY, "rms_norm_eps": 1e-5}
_EXPERTS: Config = {"num_experts": 4, "num_experts_per_tok": 2}

MIXTRAL = family(
    "mixtral",
    {**_RMS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    full={},
    window_tied={
        "sliding_window": 4,
        "num_local_experts": 3,
        "num_experts_per_tok": 1,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    head_dim={"head_dim": 10, "num_local_experts": 5, "num_experts_per_tok": 3},
)

QWEN2_MOE = family(
    "qwen2_moe",
    {
        **_RMS,
        **_EXPERTS,
        "moe_intermediate_size": 12,
        "shared_expert_intermediate_size": 16,
        "norm_topk_prob": False,
        "use_sliding_window": False,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    shared={},
    normalised_tied={"norm_topk_prob": True, "tie_word_embeddings": True, "qkv_bias": False},
    sparse_step={"decoder_sparse_step": 2, "num_key_value_heads": 4},
    dense_first_window={
        "mlp_only_layers": [0],
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "max_window_layers": 3,
    },
)

QWEN3_MOE = family(
    "qwen3_moe",
    {
        **_RMS,
        **_EXPERTS,
        "head_dim": 8,
        "moe_intermediate_size": 12,
        "norm_topk_prob": True,
        "use_sliding_window": False,
        "sliding_window": None,
    },
    normalised={},
    raw_tied={"norm_topk_prob": False, "tie_word_embeddings": True, "attention_bias": True},
    dense_last={"mlp_only_layers": [1], "num_experts_per_tok": 3, "num_key_value_heads": 1},
)

OLMOE = family(
    "olmoe",
    {**_RMS, **_EXPERTS, "intermediate_size": 12, "norm_topk_prob": False, "clip_qkv": None},
    clipped={"clip_qkv": 1.2, "num_key_value_heads": 4},
    grouped_tied={"norm_topk_prob": True, "tie_word_embeddings": True},
)

_YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 128,
}

GPT_OSS = family(
    "gpt_oss",
    {
        **_RMS,
        "head_dim": 8,
        "num_local_experts": 4,
        "experts_per_token": 2,
        "num_experts_per_tok": 2,
        "intermediate_size": 10,
        "sliding_window": 4,
        "attention_bias": True,
        "swiglu_limit": 7.0,
        "rope_theta": 150000.0,
        "max_position_embeddings": 1024,
        "rope_scaling": _YARN,
    },
    alternating={"layer_types": ["sliding_attention", "full_attention"]},
    full_first_tied={
        "layer_types": ["full_attention", "sliding_attention"],
        "num_key_value_heads": 4,
        "swiglu_limit": 1.5,
        "tie_word_embeddings": True,
        "rope_scaling": {**_YARN, "truncate": True},
    },
)
