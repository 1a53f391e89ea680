"""gpt-oss: attention sinks, windows in every second layer, biased clamped experts, MXFP4 weights."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.experts import Experts
from jmi_models.decoder.norms import Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import Fused, Key
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import KEYS, LAYER, always, read_usual, rms, windows

_EXPERTS = LAYER + "mlp.experts."

_SCALING = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _paired(part: int) -> Fused:
    """Gates and linear units lie in turn."""
    return Fused("d_expert", ("one", "one"), part)


EXPERT_KEYS = {
    "blocks.attn.sinks": Key(LAYER + "self_attn.sinks", "n_heads"),
    "blocks.mlp.W_router": Key(LAYER + "mlp.router.weight", "n_experts d_model"),
    "blocks.mlp.b_router": Key(LAYER + "mlp.router.bias", "n_experts"),
    "blocks.mlp.W_gate": Key(_EXPERTS + "gate_up_proj", "n_experts d_model [d_expert]", _paired(0)),
    "blocks.mlp.W_in": Key(_EXPERTS + "gate_up_proj", "n_experts d_model [d_expert]", _paired(1)),
    "blocks.mlp.W_out": Key(_EXPERTS + "down_proj", "n_experts d_expert d_model"),
    "blocks.mlp.b_gate": Key(_EXPERTS + "gate_up_proj_bias", "n_experts [d_expert]", _paired(0)),
    "blocks.mlp.b_in": Key(_EXPERTS + "gate_up_proj_bias", "n_experts [d_expert]", _paired(1)),
    "blocks.mlp.b_out": Key(_EXPERTS + "down_proj_bias", "n_experts d_model"),
}


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face GptOssConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(_with_scaling(config))
    bias = read.flag("attention_bias", True)
    read.only("swiglu_alpha", 1.702)
    # Names that some configs repeat.
    read.ignore("experts_per_token", "initial_context_length")
    n_experts = read.count("num_local_experts", 128)
    experts = Experts(
        n_experts=n_experts,
        top_k=read.chosen("num_experts_per_tok", 4, n_experts),
        d_expert=read.count("intermediate_size"),
        normalise=True,
        bias=True,
        limit=read.positive("swiglu_limit", 7.0),
    )
    arch = read_usual(
        read,
        "gpt_oss",
        Norms(rms(read, 1e-5)),
        n_ctx=131072,
        n_kv_heads=8,
        d_head=64,
        theta=150000.0,
        attn={
            "windows": windows(read, 128, lambda layer: layer % 2 == 0, optional=False),
            "sinks": True,
            "qkv_bias": bias,
            "out_bias": bias,
        },
        experts=experts,
    )
    read.finish()
    return arch


def _with_scaling(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """``config`` with the scaling of its rotary embedding, which the family has where none is named."""
    named = config.get("rope_scaling") or config.get("rope_parameters") is not None
    return config if named else {**config, "rope_parameters": _SCALING}


GPT_OSS = Family(name="gpt_oss", from_config=from_config, keys=always({**KEYS, **EXPERT_KEYS}))
