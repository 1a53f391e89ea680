"""BLOOM: alibi, a normalised embedding, projections fused per head."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.attention import Attention
from jmi_models.decoder.mlp import Mlp
from jmi_models.decoder.norms import Norm, Norms
from jmi_models.decoder.positions import Alibi, Positions
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import Key
from jmi_models.families import falcon
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import norm_keys


def keys_of(arch: Transformer) -> dict[str, Key]:
    """Tensors of a BLOOM: a Falcon's, and the norm of its embedding."""
    return {
        **falcon.keys_of(arch),
        **norm_keys("embed.ln", "transformer.word_embeddings_layernorm"),
    }


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face BloomConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    d_model = read.count("hidden_size", old="n_embed")
    n_heads = read.count("n_head", old="num_attention_heads")
    read.divides("n_head", n_heads, "hidden_size", d_model)
    read.only("apply_residual_connection_post_layernorm", False)
    # How its training ran, and how Hugging Face splits the same products.
    read.ignore("pretraining_tp", "slow_but_exact", "offset_alibi", "skip_bias_add", "skip_bias_add_qkv")
    read.ignore("attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "n_inner")
    arch = Transformer(
        family="bloom",
        n_layers=read.layers("n_layer", old="num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=4 * d_model,
        d_vocab=read.count("vocab_size"),
        n_ctx=read.count("seq_length", 2048),
        norms=Norms(Norm("layer", read.eps("layer_norm_epsilon", 1e-5), bias=True), embed=True),
        attn=Attention((d_model // n_heads) ** -0.5, qkv_bias=True, out_bias=True),
        mlp=Mlp("bloom_gelu", gated=False, bias=True),
        positions=Positions(alibi=Alibi()),
        tied=read.flag("tie_word_embeddings", True),
    )
    read.finish()
    return arch


BLOOM = Family(name="bloom", from_config=from_config, keys=keys_of, prefix="transformer.")
