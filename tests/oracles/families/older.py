"""Layer norms and one-branch MLPs: learned positions, partial rotary, alibi, parallel blocks."""

from tests.oracles.families.base import ROTARY, SIZES, Config, family

_GPT: Config = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 61}

GPT2 = family(
    "gpt2",
    {**_GPT, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
    plain={"n_inner": None},
    by_layer_untied={
        "n_layer": 3,
        "n_inner": 20,
        "scale_attn_by_inverse_layer_idx": True,
        "tie_word_embeddings": False,
        "activation_function": "gelu",
    },
    unscaled_relu={"scale_attn_weights": False, "activation_function": "relu", "layer_norm_epsilon": 1e-2},
    upcast={"reorder_and_upcast_attn": True, "activation_function": "gelu_pytorch_tanh"},
)

_NEOX: Config = {
    **SIZES,
    "hidden_size": 16,
    "layer_norm_eps": 1e-5,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "hidden_act": "gelu",
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
}
_NEOX.pop("num_key_value_heads")

GPT_NEOX = family(
    "gpt_neox",
    {**_NEOX, "num_attention_heads": 2},
    parallel={},
    sequential={"use_parallel_residual": False, "rotary_pct": 1.0, "hidden_act": "gelu_new"},
    no_bias_tied={"attention_bias": False, "tie_word_embeddings": True, "rotary_pct": 0.5},
)

GPTJ = family(
    "gptj",
    {**_GPT, "n_head": 2, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False},
    plain={"rotary_dim": 4, "activation_function": "gelu_new", "n_inner": 20},
    whole_tied={
        "rotary_dim": 8,
        "n_inner": None,
        "activation_function": "gelu",
        "tie_word_embeddings": True,
    },
)

_OPT: Config = {
    **SIZES,
    "hidden_size": 16,
    "ffn_dim": 20,
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "word_embed_proj_dim": 16,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
}
for _key in ("num_key_value_heads", "intermediate_size"):
    _OPT.pop(_key)

OPT = family(
    "opt",
    _OPT,
    pre_norm={},
    no_bias={
        "enable_bias": False,
        "layer_norm_elementwise_affine": False,
        "activation_function": "gelu",
        "tie_word_embeddings": False,
    },
    post_norm={"do_layer_norm_before": False, "word_embed_proj_dim": 12},
    projected={"word_embed_proj_dim": 12},
)

PHI = family(
    "phi",
    {**ROTARY, "hidden_size": 32, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new"},
    partial={"partial_rotary_factor": 0.5, "num_key_value_heads": 4},
    qk_norm_grouped={"partial_rotary_factor": 0.25, "qk_layernorm": True, "hidden_act": "gelu"},
)

STABLELM = family(
    "stablelm",
    {**ROTARY, "hidden_size": 32, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25},
    sequential={"use_qkv_bias": True, "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    parallel={"use_parallel_residual": True, "qk_layernorm": True, "tie_word_embeddings": True},
    sequential_qk_norm={"qk_layernorm": True, "use_qkv_bias": True},
)

_FALCON: Config = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 61,
    "layer_norm_epsilon": 1e-5,
    "bias": False,
    "alibi": False,
    "multi_query": True,
    "parallel_attn": True,
    "new_decoder_architecture": False,
    "ffn_hidden_size": 24,
    "bos_token_id": None,
    "eos_token_id": None,
}

FALCON = family(
    "falcon",
    _FALCON,
    multi_query={},
    new_decoder={"new_decoder_architecture": True, "num_kv_heads": 2, "tie_word_embeddings": False},
    new_decoder_one_norm={
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1,
        "rope_theta": 500.0,
    },
    alibi={"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
)

BLOOM = family(
    "bloom",
    {"n_layer": 2, "vocab_size": 61, "layer_norm_epsilon": 1e-5},
    four_heads={"hidden_size": 24, "n_head": 4},
    six_heads_untied={"hidden_size": 12, "n_head": 6, "tie_word_embeddings": False},
)
