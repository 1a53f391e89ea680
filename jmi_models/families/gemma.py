"""Gemma 1: scaled embeddings, and norms whose gain is one plus the weight."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import KEYS, always, read_usual, rms


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face GemmaConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    # The first checkpoints say "gelu" but were trained with its approximation by tanh.
    act = read.activation("hidden_activation", "gelu") if config.get("hidden_activation") else None
    act = act or read.activation("hidden_act", "gelu_pytorch_tanh")
    read.ignore("hidden_activation", "hidden_act")
    bias = read.flag("attention_bias", False)
    arch = read_usual(
        read,
        "gemma",
        Norms(rms(read, gain="1 + w")),
        n_ctx=8192,
        n_kv_heads=16,
        d_head=256,
        attn={"qkv_bias": bias, "out_bias": bias},
        mlp={"act_fn": "gelu_pytorch_tanh" if act == "gelu" else act},
        embed_scale=read.count("hidden_size") ** 0.5,
        tied=True,
    )
    read.only("use_bidirectional_attention", False)
    read.finish()
    return arch


GEMMA = Family(name="gemma", from_config=from_config, keys=always(KEYS))
