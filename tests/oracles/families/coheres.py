"""Cohere 1 and 2: parallel blocks, interleaved rotary, scaled logits, layers without positions."""

from tests.oracles.families.base import ROTARY, Config, family

_BASE: Config = {**ROTARY, "layer_norm_eps": 1e-5, "tie_word_embeddings": True}

COHERE = family(
    "cohere",
    {**_BASE, "use_qk_norm": False},
    plain={"logit_scale": 0.3, "num_key_value_heads": 4},
    qk_norm_untied={"use_qk_norm": True, "logit_scale": 1.7, "tie_word_embeddings": False},
)

COHERE2 = family(
    "cohere2",
    {**_BASE, "hidden_size": 16, "intermediate_size": 12, "logit_scale": 0.4, "sliding_window": 4},
    pattern={"num_hidden_layers": 4, "sliding_window_pattern": 4},
    layer_types_untied={
        "layer_types": ["full_attention", "sliding_attention"],
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
)
