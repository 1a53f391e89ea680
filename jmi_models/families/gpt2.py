"""GPT-2 and its kin: learned positions, fused projections stored input axis first."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.attention import Attention
from jmi_models.decoder.positions import Positions
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import Fused, Key
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import always, gpt_fields, norm_keys

_LAYER = "transformer.h.{i}."


def _fused() -> dict[str, Key]:
    keys = {}
    for part, letter in enumerate("QKV"):
        fused = Fused("", ("n_heads d_head",) * 3, part)
        axis = "n_heads" if letter == "Q" else "n_kv_heads"
        keys[f"blocks.attn.W_{letter}"] = Key(
            f"{_LAYER}attn.c_attn.weight", f"d_model [{axis} d_head]", fused
        )
        keys[f"blocks.attn.b_{letter}"] = Key(f"{_LAYER}attn.c_attn.bias", f"[{axis} d_head]", fused)
    return keys


KEYS = {
    "embed.W_E": Key("transformer.wte.weight", "d_vocab d_model"),
    "pos_embed.W_pos": Key("transformer.wpe.weight", "n_positions d_model"),
    **norm_keys("blocks.ln1", _LAYER + "ln_1"),
    **_fused(),
    "blocks.attn.W_O": Key(_LAYER + "attn.c_proj.weight", "(n_heads d_head) d_model"),
    "blocks.attn.b_O": Key(_LAYER + "attn.c_proj.bias", "d_model"),
    **norm_keys("blocks.ln2", _LAYER + "ln_2"),
    "blocks.mlp.W_in": Key(_LAYER + "mlp.c_fc.weight", "d_model d_mlp"),
    "blocks.mlp.b_in": Key(_LAYER + "mlp.c_fc.bias", "d_mlp"),
    "blocks.mlp.W_out": Key(_LAYER + "mlp.c_proj.weight", "d_mlp d_model"),
    "blocks.mlp.b_out": Key(_LAYER + "mlp.c_proj.bias", "d_model"),
    **norm_keys("ln_final", "transformer.ln_f"),
    "unembed.W_U": Key("lm_head.weight", "d_vocab d_model"),
}


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face GPT2Config, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    fields = gpt_fields(read, n_ctx=1024)
    read.only("add_cross_attention", False)
    # How Hugging Face orders the same computation, and a size that older configs repeat.
    read.ignore("reorder_and_upcast_attn", "n_ctx")
    arch = Transformer(
        family="gpt2",
        **fields,
        attn=Attention(
            fields["d_head"] ** -0.5 if read.flag("scale_attn_weights", True) else 1.0,
            scale_by_layer=read.flag("scale_attn_by_inverse_layer_idx", False),
            qkv_bias=True,
            out_bias=True,
        ),
        positions=Positions(learned=0),
        tied=read.flag("tie_word_embeddings", True),
    )
    read.finish()
    return arch


GPT2 = Family(
    name="gpt2",
    from_config=from_config,
    keys=always(KEYS),
    prefix="transformer.",
    # Causal masks that old checkpoints stored.
    ignored=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
)
