"""Gemma 2: norms before and after each module, soft-caps, windows in every second layer."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import Key
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import KEYS, LAYER, always, read_usual, rms, windows

KEYS_WITH_POST_NORMS = {
    **KEYS,
    "blocks.ln1_post.w": Key(LAYER + "post_attention_layernorm.weight", "d_model"),
    "blocks.ln2.w": Key(LAYER + "pre_feedforward_layernorm.weight", "d_model"),
    "blocks.ln2_post.w": Key(LAYER + "post_feedforward_layernorm.weight", "d_model"),
}


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face Gemma2Config, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    fields = gemma_fields(read)
    fields["attn"] |= {
        "windows": windows(read, 4096, lambda layer: layer % 2 == 0, optional=False),
        "softcap": read.optional("attn_logit_softcapping", 50.0),
    }
    cap = read.optional("final_logit_softcapping", 30.0)
    arch = read_usual(read, "gemma2", n_ctx=8192, n_kv_heads=4, logit_softcap=cap, **fields)
    read.finish()
    return arch


def gemma_fields(read: Reader) -> dict[str, Any]:
    """What Gemma 2 and 3 share."""
    bias = read.flag("attention_bias", False)
    read.only("use_bidirectional_attention", False)
    read.ignore("hidden_act")
    return {
        "norms": Norms(rms(read, gain="1 + w"), "both"),
        "d_head": 256,
        "attn": {
            "scale": read.positive("query_pre_attn_scalar", 256) ** -0.5,
            "qkv_bias": bias,
            "out_bias": bias,
        },
        "mlp": {"act_fn": read.activation("hidden_activation", "gelu_pytorch_tanh")},
        "embed_scale": read.count("hidden_size") ** 0.5,
        "tied": True,
    }


GEMMA2 = Family(name="gemma2", from_config=from_config, keys=always(KEYS_WITH_POST_NORMS))
