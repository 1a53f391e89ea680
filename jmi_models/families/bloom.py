"""BLOOM: alibi, a normalised embedding, projections fused per head."""

from collections.abc import Mapping
from typing import Any

from jmi_models.attention import Alibi
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import always, fused_keys, mlp_keys
from jmi_models.layout import Key
from jmi_models.norms import Norm
from jmi_models.transformer import Transformer

_LAYER = "transformer.h.{i}."
KEYS = {
    "embed.W_E": Key("transformer.word_embeddings.weight", "d_vocab d_model"),
    "embed.ln.w": Key("transformer.word_embeddings_layernorm.weight", "d_model"),
    "embed.ln.b": Key("transformer.word_embeddings_layernorm.bias", "d_model"),
    "blocks.ln1.w": Key(_LAYER + "input_layernorm.weight", "d_model"),
    "blocks.ln1.b": Key(_LAYER + "input_layernorm.bias", "d_model"),
    **fused_keys(_LAYER + "self_attention.query_key_value", _LAYER + "self_attention.dense"),
    "blocks.ln2.w": Key(_LAYER + "post_attention_layernorm.weight", "d_model"),
    "blocks.ln2.b": Key(_LAYER + "post_attention_layernorm.bias", "d_model"),
    **mlp_keys(_LAYER + "mlp.", "dense_h_to_4h dense_4h_to_h"),
    "ln_final.w": Key("transformer.ln_f.weight", "d_model"),
    "ln_final.b": Key("transformer.ln_f.bias", "d_model"),
    "unembed.W_U": Key("lm_head.weight", "d_vocab d_model"),
}


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face BloomConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    d_model, n_heads = (
        read.count("hidden_size", old="n_embed"),
        read.count("n_head", old="num_attention_heads"),
    )
    read.divides("n_head", n_heads, "hidden_size", d_model)
    read.only("apply_residual_connection_post_layernorm", False)
    # How its training ran, and how Hugging Face splits the same products.
    read.ignore("pretraining_tp", "slow_but_exact", "offset_alibi", "skip_bias_add", "skip_bias_add_qkv")
    read.ignore("attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "n_inner")
    arch = Transformer(
        family="bloom",
        n_layers=read.count("n_layer", old="num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=4 * d_model,
        d_vocab=read.count("vocab_size"),
        n_ctx=read.count("seq_length", 2048),
        act_fn="bloom_gelu",
        norm=Norm("layer", read.number("layer_norm_epsilon", 1e-5), bias=True),
        alibi=Alibi(),
        attn_scale=(d_model // n_heads) ** -0.5,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        gated=False,
        embed_norm=True,
        tied=read.flag("tie_word_embeddings", True),
    )
    read.finish()
    return arch


BLOOM = Family(name="bloom", from_config=from_config, keys=always(KEYS), prefix="transformer.")
