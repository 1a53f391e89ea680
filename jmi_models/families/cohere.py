"""Command R: parallel blocks that share a norm, interleaved rotary embedding, scaled logits."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import HeadNorm, Norm, Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import Key
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import KEYS, LAYER, always, read_usual


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face CohereConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    fields = cohere_fields(read)
    if read.flag("use_qk_norm", False):
        fields["attn"]["qk_norm"] = HeadNorm(fields["norms"].norm, axes="n_heads d_head")
    arch = read_usual(read, "cohere", theta=5e5, **fields)
    read.finish()
    return arch


def cohere_fields(read: Reader) -> dict[str, Any]:
    """What Command R and R7B share."""
    bias = read.flag("attention_bias", False)
    return {
        "n_ctx": 8192,
        "norms": Norms(Norm("layer", read.eps("layer_norm_eps", 1e-5)), shared=True),
        "parallel": True,
        "attn": {"qkv_bias": bias, "out_bias": bias},
        "positions": {"interleaved": True},
        "logit_scale": read.positive("logit_scale", 0.0625),
        "tied": True,
    }


COHERE = Family(
    name="cohere",
    from_config=from_config,
    keys=always(
        {
            **KEYS,
            "blocks.attn.q_norm.w": Key(LAYER + "self_attn.q_norm.weight", "n_heads d_head"),
            "blocks.attn.k_norm.w": Key(LAYER + "self_attn.k_norm.weight", "n_kv_heads d_head"),
        }
    ),
)
