"""OPT: learned positions, ReLU; the 350m model normalises the stream itself and has a narrower embedding."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.attention import Attention
from jmi_models.decoder.mlp import Mlp
from jmi_models.decoder.norms import Norm, Norms
from jmi_models.decoder.positions import Positions
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import Key
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import attention_keys, mlp_keys, norm_keys

_DECODER = "model.decoder."
_LAYER = _DECODER + "layers.{i}."
_KEYS = {
    "embed.W_in": Key(_DECODER + "project_in.weight", "d_model d_embed"),
    "pos_embed.W_pos": Key(_DECODER + "embed_positions.weight", "n_positions d_model"),
    **norm_keys("blocks.ln1", _LAYER + "self_attn_layer_norm"),
    **attention_keys(_LAYER + "self_attn.", "q_proj k_proj v_proj out_proj"),
    **norm_keys("blocks.ln2", _LAYER + "final_layer_norm"),
    **mlp_keys(_LAYER, "fc1 fc2"),
    **norm_keys("ln_final", _DECODER + "final_layer_norm"),
    "unembed.W_out": Key(_DECODER + "project_out.weight", "d_embed d_model"),
}


def keys_of(arch: Transformer) -> dict[str, Key]:
    """Tensors of an OPT, whose embedding may be narrower than the stream."""
    width = "d_embed" if arch.d_embed else "d_model"
    embedding = Key(_DECODER + "embed_tokens.weight", f"d_vocab {width}")
    return {**_KEYS, "embed.W_E": embedding, "unembed.W_U": Key("lm_head.weight", f"d_vocab {width}")}


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face OPTConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    d_model, n_heads = read.count("hidden_size"), read.count("num_attention_heads")
    read.divides("num_attention_heads", n_heads, "hidden_size", d_model)
    read.only("_remove_final_layer_norm", False)
    bias, gains = read.flag("enable_bias", True), read.flag("layer_norm_elementwise_affine", True)
    d_embed = read.count("word_embed_proj_dim", d_model)
    arch = Transformer(
        family="opt",
        n_layers=read.layers(),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=read.count("ffn_dim"),
        d_vocab=read.count("vocab_size"),
        n_ctx=read.count("max_position_embeddings", 2048),
        norms=Norms(
            Norm("layer", 1e-5, gain="w" if gains else "none", bias=gains),
            "pre" if read.flag("do_layer_norm_before", True) else "stream",
        ),
        attn=Attention((d_model // n_heads) ** -0.5, qkv_bias=bias, out_bias=bias),
        mlp=Mlp(read.activation("activation_function", "relu"), gated=False, bias=bias),
        # Its table of positions begins with the rows that padding had in fairseq.
        positions=Positions(learned=2),
        d_embed=None if d_embed == d_model else d_embed,
        tied=read.flag("tie_word_embeddings", True),
    )
    read.finish()
    return arch


OPT = Family(name="opt", from_config=from_config, keys=keys_of)
