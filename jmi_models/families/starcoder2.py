"""StarCoder 2: layer norms, biases everywhere, an MLP of one branch."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import Norm, Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import KEYS, LAYER, always, mlp_keys, one_window, read_usual


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face Starcoder2Config, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    bias = read.flag("use_bias", True)
    arch = read_usual(
        read,
        "starcoder2",
        Norms(Norm("layer", read.eps("norm_epsilon", 1e-5), bias=True)),
        n_ctx=4096,
        n_kv_heads=2,
        act="gelu_pytorch_tanh",
        attn={"windows": one_window(read, None), "qkv_bias": bias, "out_bias": bias},
        mlp={"gated": False, "bias": bias},
        tied=True,
    )
    read.finish()
    return arch


STARCODER2 = Family(
    name="starcoder2",
    from_config=from_config,
    keys=always({**KEYS, **mlp_keys(LAYER + "mlp.", "c_fc c_proj")}),
)
