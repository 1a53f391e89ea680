"""Gemma 1, 2 and 3: gains of 1 + w, scaled embeddings, soft caps, alternating windows."""

from tests.oracles.families.base import SIZES, Config, family

_BASE: Config = {
    **SIZES,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "tie_word_embeddings": True,
}
_TANH = {"hidden_activation": "gelu_pytorch_tanh"}

GEMMA = family(
    "gemma",
    _BASE,
    # Of Gemma 1's "gelu" Hugging Face makes the approximation by tanh.
    multi_query={"num_key_value_heads": 1, "hidden_act": "gelu"},
    untied={"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": False, "attention_bias": True},
    silu={"hidden_act": "silu", "num_key_value_heads": 4},
)

_GEMMA2: Config = {
    **_BASE,
    **_TANH,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 12,
    "sliding_window": 4,
}

GEMMA2 = family(
    "gemma2",
    {**_GEMMA2, "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 4},
    capped={"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    uncapped_untied={
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
    layer_types={
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": None,
        "num_hidden_layers": 2,
        "layer_types": ["full_attention", "sliding_attention"],
    },
)

GEMMA3_TEXT = family(
    "gemma3_text",
    {**_GEMMA2, "hidden_size": 8, "intermediate_size": 6},
    linear={
        "num_hidden_layers": 6,
        "sliding_window_pattern": 6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    rope_parameters={
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rope_theta": None,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
    # Hugging Face caps the logits of Gemma 3, but ignores a cap of its attention.
    capped_untied={
        "num_hidden_layers": 2,
        "sliding_window_pattern": 2,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 2.0,
        "tie_word_embeddings": False,
    },
)
