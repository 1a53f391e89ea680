"""OLMo 2: modules read the bare stream, their outputs are normalised, queries and keys as well."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import HeadNorm, Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import Key
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import JOINT_NORMS, KEYS, LAYER, always, read_usual, rms


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face Olmo2Config, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    bias, norm = read.flag("attention_bias", False), rms(read, 1e-5)
    attn = {"qk_norm": HeadNorm(norm, joint=True), "qkv_bias": bias, "out_bias": bias}
    arch = read_usual(read, "olmo2", Norms(norm, "post"), attn=attn)
    read.finish()
    return arch


OLMO2 = Family(
    name="olmo2",
    from_config=from_config,
    keys=always(
        {
            **KEYS,
            **JOINT_NORMS,
            "blocks.ln1_post.w": Key(LAYER + "post_attention_layernorm.weight", "d_model"),
            "blocks.ln2_post.w": Key(LAYER + "post_feedforward_layernorm.weight", "d_model"),
        }
    ),
)
