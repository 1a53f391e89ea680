"""Falcon 1B to 180B: parallel blocks, multi-query or grouped fused projections, rotary or alibi."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.attention import Attention
from jmi_models.decoder.mlp import Mlp
from jmi_models.decoder.norms import Norm, Norms
from jmi_models.decoder.positions import Alibi, Positions
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import Key
from jmi_models.families import rope_config
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import fused_keys, mlp_keys, norm_keys

_LAYER = "transformer.h.{i}."


def keys_of(arch: Transformer) -> dict[str, Key]:
    """Tensors of a Falcon; those with two norms in a parallel block call them after what they feed."""
    two = arch.parallel and not arch.norms.shared
    first, second = ("ln_attn", "ln_mlp") if two else ("input_layernorm", "post_attention_layernorm")
    return {
        "embed.W_E": Key("transformer.word_embeddings.weight", "d_vocab d_model"),
        **norm_keys("blocks.ln1", _LAYER + first),
        **fused_keys(_LAYER + "self_attention.query_key_value", _LAYER + "self_attention.dense"),
        **norm_keys("blocks.ln2", _LAYER + second),
        **mlp_keys(_LAYER + "mlp.", "dense_h_to_4h dense_4h_to_h"),
        **norm_keys("ln_final", "transformer.ln_f"),
        "unembed.W_U": Key("lm_head.weight", "d_vocab d_model"),
    }


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face FalconConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    d_model = read.count("hidden_size")
    n_heads = read.count("num_attention_heads", old="n_head")
    read.divides("num_attention_heads", n_heads, "hidden_size", d_model)
    grouped, alibi = read.flag("new_decoder_architecture", False), read.flag("alibi", False)
    parallel = read.flag("parallel_attn", True) or grouped
    n_norms = read.count("num_ln_in_parallel_attn", 2 if grouped else 1)
    one_key = read.flag("multi_query", True)
    n_kv_heads = read.count("num_kv_heads", n_heads)
    n_kv_heads = n_kv_heads if grouped else (1 if one_key else n_heads)
    read.divides("num_kv_heads", n_kv_heads, "num_attention_heads", n_heads)
    longest = read.count("max_position_embeddings", 2048)
    d_head, bias = d_model // n_heads, read.flag("bias", False)
    rope = None if alibi else rope_config.read(config, d_head)
    arch = Transformer(
        family="falcon",
        n_layers=read.layers(old="n_layer"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        d_mlp=read.count("ffn_hidden_size", 4 * d_model),
        d_vocab=read.count("vocab_size"),
        n_ctx=rope.scaling.reach(longest) if rope else longest,
        norms=Norms(
            Norm("layer", read.eps("layer_norm_epsilon", 1e-5), bias=True), shared=parallel and n_norms == 1
        ),
        attn=Attention(d_head**-0.5, qkv_bias=bias, out_bias=bias),
        mlp=Mlp(read.activation("activation", "gelu"), gated=False, bias=bias),
        positions=Positions(alibi=Alibi(scaled=True, rounded=True)) if alibi else Positions((rope,)),
        parallel=parallel,
        tied=read.flag("tie_word_embeddings", True),
    )
    read.finish()
    return arch


FALCON = Family(name="falcon", from_config=from_config, keys=keys_of, prefix="transformer.")
