"""GPT-2 and its kin: learned positions, fused projections stored input axis first."""

from collections.abc import Mapping
from typing import Any

from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import always
from jmi_models.layout import Fused, Key
from jmi_models.norms import Norm
from jmi_models.transformer import Transformer

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
    "blocks.ln1.w": Key(_LAYER + "ln_1.weight", "d_model"),
    "blocks.ln1.b": Key(_LAYER + "ln_1.bias", "d_model"),
    **_fused(),
    "blocks.attn.W_O": Key(_LAYER + "attn.c_proj.weight", "(n_heads d_head) d_model"),
    "blocks.attn.b_O": Key(_LAYER + "attn.c_proj.bias", "d_model"),
    "blocks.ln2.w": Key(_LAYER + "ln_2.weight", "d_model"),
    "blocks.ln2.b": Key(_LAYER + "ln_2.bias", "d_model"),
    "blocks.mlp.W_in": Key(_LAYER + "mlp.c_fc.weight", "d_model d_mlp"),
    "blocks.mlp.b_in": Key(_LAYER + "mlp.c_fc.bias", "d_mlp"),
    "blocks.mlp.W_out": Key(_LAYER + "mlp.c_proj.weight", "d_mlp d_model"),
    "blocks.mlp.b_out": Key(_LAYER + "mlp.c_proj.bias", "d_model"),
    "ln_final.w": Key("transformer.ln_f.weight", "d_model"),
    "ln_final.b": Key("transformer.ln_f.bias", "d_model"),
    "unembed.W_U": Key("lm_head.weight", "d_vocab d_model"),
}


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face GPT2Config, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    d_model, n_heads = read.count("n_embd"), read.count("n_head")
    read.divides("n_head", n_heads, "n_embd", d_model)
    read.only("add_cross_attention", False)
    # How Hugging Face orders the same computation, and a size that older configs repeat.
    read.ignore("reorder_and_upcast_attn", "n_ctx")
    d_head = d_model // n_heads
    arch = Transformer(
        family="gpt2",
        n_layers=read.count("n_layer"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_head,
        d_mlp=read.count("n_inner", 4 * d_model),
        d_vocab=read.count("vocab_size"),
        n_ctx=read.count("n_positions", 1024),
        act_fn=read.activation("activation_function", "gelu_new"),
        norm=Norm("layer", read.number("layer_norm_epsilon", 1e-5), bias=True),
        learned_positions=0,
        attn_scale=d_head**-0.5 if read.flag("scale_attn_weights", True) else 1.0,
        scale_by_layer=read.flag("scale_attn_by_inverse_layer_idx", False),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        gated=False,
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
