"""StableLM 1.6B, 3B and 12B: layer norms, partial rotary, per-head norms of queries and keys."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import HeadNorm, Norm, Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import Key
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import KEYS, LAYER, always, read_usual


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face StableLmConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    eps = read.eps("layer_norm_eps", 1e-5)
    heads = HeadNorm(Norm("layer", eps), axes="n_heads d_head")
    parallel = read.flag("use_parallel_residual", False)
    arch = read_usual(
        read,
        "stablelm",
        Norms(Norm("layer", eps, bias=True), shared=parallel),
        n_ctx=4096,
        n_kv_heads=32,
        partial=0.25,
        parallel=parallel,
        attn={
            "qk_norm": heads if read.flag("qk_layernorm", False) else None,
            "qkv_bias": read.flag("use_qkv_bias", False),
        },
    )
    read.finish()
    return arch


STABLELM = Family(
    name="stablelm",
    from_config=from_config,
    keys=always(
        {
            **KEYS,
            "blocks.attn.q_norm.w": Key(LAYER + "self_attn.q_layernorm.norms.{h}.weight", "d_head"),
            "blocks.attn.k_norm.w": Key(LAYER + "self_attn.k_layernorm.norms.{h}.weight", "d_head"),
        }
    ),
)
