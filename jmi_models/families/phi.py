"""Phi 1, 1.5 and 2: parallel blocks that share a norm, partial rotary, biases everywhere."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import HeadNorm, Norm, Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import Key
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import (
    EMBEDDINGS,
    LAYER,
    PRE_NORMS,
    always,
    attention_keys,
    mlp_keys,
    norm_keys,
    read_usual,
)

KEYS = {
    **EMBEDDINGS,
    **PRE_NORMS,
    **attention_keys(LAYER + "self_attn.", "q_proj k_proj v_proj dense"),
    **mlp_keys(LAYER + "mlp.", "fc1 fc2"),
    "blocks.attn.q_norm.w": Key(LAYER + "self_attn.q_layernorm.weight", "d_head"),
    "blocks.attn.q_norm.b": Key(LAYER + "self_attn.q_layernorm.bias", "d_head"),
    "blocks.attn.k_norm.w": Key(LAYER + "self_attn.k_layernorm.weight", "d_head"),
    "blocks.attn.k_norm.b": Key(LAYER + "self_attn.k_layernorm.bias", "d_head"),
    **norm_keys("ln_final", "model.final_layernorm"),
}


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face PhiConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    norm = Norm("layer", read.eps("layer_norm_eps", 1e-5), bias=True)
    arch = read_usual(
        read,
        "phi",
        Norms(norm, shared=True),
        act="gelu_new",
        partial=0.5,
        attn={
            "qk_norm": HeadNorm(norm) if read.flag("qk_layernorm", False) else None,
            "qkv_bias": True,
            "out_bias": True,
        },
        mlp={"gated": False, "bias": True},
        parallel=True,
        unembed_bias=True,
    )
    read.finish()
    return arch


PHI = Family(name="phi", from_config=from_config, keys=always(KEYS))
