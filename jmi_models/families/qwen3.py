"""Qwen 3: each head's queries and keys are normalised."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import HeadNorm, Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.families.family import Family, Reader
from jmi_models.families.qwen2 import late_windows
from jmi_models.families.usual import HEAD_NORMS, KEYS, always, read_usual, rms


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face Qwen3Config, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    bias, norm = read.flag("attention_bias", False), rms(read)
    arch = read_usual(
        read,
        "qwen3",
        Norms(norm),
        n_ctx=32768,
        n_kv_heads=32,
        d_head=128,
        attn={
            "windows": late_windows(read),
            "qk_norm": HeadNorm(norm),
            "qkv_bias": bias,
            "out_bias": bias,
        },
    )
    read.finish()
    return arch


QWEN3 = Family(name="qwen3", from_config=from_config, keys=always({**KEYS, **HEAD_NORMS}))
