"""Qwen 2 and 2.5: biases on queries, keys and values; windows in the later layers, if any."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import KEYS, always, read_usual, rms, windows


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face Qwen2Config, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    attn = {"windows": late_windows(read), "qkv_bias": True}
    arch = read_usual(read, "qwen2", Norms(rms(read)), n_ctx=32768, n_kv_heads=32, attn=attn)
    read.finish()
    return arch


def late_windows(read: Reader) -> tuple[int | None, ...]:
    """Windows of the layers from ``max_window_layers`` on, where they are switched on at all."""
    first = read.index("max_window_layers", 28)
    read.ignore("sliding_window", "layer_types")
    if not read.flag("use_sliding_window", False):
        return ()
    return windows(read, 4096, lambda layer: layer >= first)


QWEN2 = Family(name="qwen2", from_config=from_config, keys=always(KEYS))
