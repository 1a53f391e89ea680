"""OLMo 1: layer norms without parameters, clamped queries, keys and values."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import Norm, Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import KEYS, always, read_usual


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face OlmoConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    bias = read.flag("attention_bias", False)
    attn = {"clip_qkv": read.optional("clip_qkv"), "qkv_bias": bias, "out_bias": bias}
    arch = read_usual(read, "olmo", Norms(Norm("layer", 1e-5, gain="none")), attn=attn)
    read.finish()
    return arch


OLMO = Family(name="olmo", from_config=from_config, keys=always(KEYS))
