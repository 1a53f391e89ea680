"""Llama 1, 2, 3 and everything that says ``model_type: llama``."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import KEYS, always, read_usual, rms


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face LlamaConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    read.only("pretraining_tp", 1)
    bias = read.flag("attention_bias", False)
    attn, mlp = {"qkv_bias": bias, "out_bias": bias}, {"bias": read.flag("mlp_bias", False)}
    arch = read_usual(read, "llama", Norms(rms(read)), attn=attn, mlp=mlp)
    read.finish()
    return arch


LLAMA = Family(name="llama", from_config=from_config, keys=always(KEYS))
