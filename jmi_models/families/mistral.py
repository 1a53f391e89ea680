"""Mistral: Llama with a sliding window."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import KEYS, always, one_window, read_usual, rms


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face MistralConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    attn = {"windows": one_window(read, 4096)}
    arch = read_usual(read, "mistral", Norms(rms(read)), n_ctx=131072, n_kv_heads=8, attn=attn)
    read.finish()
    return arch


MISTRAL = Family(name="mistral", from_config=from_config, keys=always(KEYS))
