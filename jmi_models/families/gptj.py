"""GPT-J: parallel blocks that share a norm, interleaved partial rotary, a head with a bias."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jmi.errors import ConfigError
from jmi_models.decoder.attention import Attention
from jmi_models.decoder.positions import Positions
from jmi_models.decoder.rope import Rope
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import Key
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import always, attention_keys, gpt_fields, mlp_keys, norm_keys

_LAYER = "transformer.h.{i}."
KEYS = {
    "embed.W_E": Key("transformer.wte.weight", "d_vocab d_model"),
    **norm_keys("blocks.ln1", _LAYER + "ln_1"),
    **attention_keys(_LAYER + "attn.", "q_proj k_proj v_proj out_proj"),
    **mlp_keys(_LAYER + "mlp.", "fc_in fc_out"),
    **norm_keys("ln_final", "transformer.ln_f"),
    "unembed.W_U": Key("lm_head.weight", "d_vocab d_model"),
    "unembed.b_U": Key("lm_head.bias", "d_vocab"),
}


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face GPTJConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    fields = gpt_fields(read, n_ctx=2048)
    d_head, turned = fields["d_head"], read.count("rotary_dim", 64)
    if turned % 2 or turned > d_head:
        raise ConfigError(f"config.json: rotary_dim={turned} must be even and at most {d_head}")
    # Sizes that older configs repeat, and flags without effect on this family.
    read.ignore("n_ctx", "rotary", "scale_attn_weights")
    fields["norms"] = dataclasses.replace(fields["norms"], shared=True)
    arch = Transformer(
        family="gptj",
        **fields,
        attn=Attention(d_head**-0.5),
        positions=Positions((Rope(1e4, turned),), interleaved=True),
        parallel=True,
        unembed_bias=True,
        tied=read.flag("tie_word_embeddings", False),
    )
    read.finish()
    return arch


GPTJ = Family(
    name="gptj",
    from_config=from_config,
    keys=always(KEYS),
    prefix="transformer.",
    ignored=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
)
