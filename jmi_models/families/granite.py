"""Granite 3: Llama with multipliers of embedding, attention, residual and logits."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import KEYS, always, read_usual, rms


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face GraniteConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    bias = read.flag("attention_bias", False)
    arch = read_usual(
        read,
        "granite",
        Norms(rms(read)),
        attn={
            "scale": read.positive("attention_multiplier", 1.0),
            "qkv_bias": bias,
            "out_bias": bias,
        },
        mlp={"bias": read.flag("mlp_bias", False)},
        embed_scale=read.positive("embedding_multiplier", 1.0),
        residual_scale=read.positive("residual_multiplier", 1.0),
        logit_scale=1 / read.positive("logits_scaling", 1.0),
    )
    read.finish()
    return arch


GRANITE = Family(name="granite", from_config=from_config, keys=always(KEYS))
