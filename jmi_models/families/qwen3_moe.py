"""Qwen 3 mixtures: Qwen 3 with many small experts."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.experts import Experts
from jmi_models.decoder.norms import HeadNorm, Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.families.family import Family, Reader
from jmi_models.families.qwen2_moe import EXPERT_KEYS, dense_layers
from jmi_models.families.usual import HEAD_NORMS, KEYS, MLP, by_kind, one_window, read_usual, rms


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face Qwen3MoeConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    n_experts = read.count("num_experts", 128, old="num_local_experts")
    experts = Experts(
        n_experts=n_experts,
        top_k=read.chosen("num_experts_per_tok", 8, n_experts),
        d_expert=read.count("moe_intermediate_size", 768),
        normalise=read.flag("norm_topk_prob", False),
        dense_layers=dense_layers(read),
    )
    bias, norm = read.flag("attention_bias", False), rms(read)
    read.ignore("max_window_layers", "sliding_window")
    arch = read_usual(
        read,
        "qwen3_moe",
        Norms(norm),
        n_ctx=32768,
        n_kv_heads=4,
        attn={
            "windows": one_window(read, 4096) if read.flag("use_sliding_window", False) else (),
            "qk_norm": HeadNorm(norm),
            "qkv_bias": bias,
            "out_bias": bias,
        },
        experts=experts,
    )
    read.finish()
    return arch


QWEN3_MOE = Family(
    name="qwen3_moe", from_config=from_config, keys=by_kind({**KEYS, **HEAD_NORMS, **EXPERT_KEYS}, MLP)
)
