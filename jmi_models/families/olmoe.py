"""OLMoE: OLMo with 64 experts, pre-norms, and queries and keys normalised over all heads together."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.experts import Experts
from jmi_models.decoder.norms import HeadNorm, Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.families.family import Family, Reader
from jmi_models.families.qwen2_moe import EXPERT_KEYS
from jmi_models.families.usual import JOINT_NORMS, KEYS, always, read_usual, rms


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face OlmoeConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    n_experts = read.count("num_experts", 64)
    experts = Experts(
        n_experts=n_experts,
        top_k=read.chosen("num_experts_per_tok", 8, n_experts),
        d_expert=read.count("intermediate_size"),
        normalise=read.flag("norm_topk_prob", False),
    )
    bias, norm = read.flag("attention_bias", False), rms(read, 1e-5)
    arch = read_usual(
        read,
        "olmoe",
        Norms(norm),
        n_ctx=4096,
        attn={
            "qk_norm": HeadNorm(norm, joint=True),
            "clip_qkv": read.optional("clip_qkv"),
            "qkv_bias": bias,
            "out_bias": bias,
        },
        experts=experts,
    )
    read.finish()
    return arch


OLMOE = Family(name="olmoe", from_config=from_config, keys=always({**KEYS, **JOINT_NORMS, **EXPERT_KEYS}))
