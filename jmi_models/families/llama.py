"""Llama 1, 2, 3 and everything that says ``model_type: llama``."""

from collections.abc import Mapping
from typing import Any

from jmi_models import rope
from jmi_models.families.family import Family, Key, Reader
from jmi_models.transformer import Transformer

KEYS = {
    "embed.W_E": Key("model.embed_tokens.weight", "d_vocab d_model"),
    "blocks.ln1.w": Key("model.layers.{i}.input_layernorm.weight", "d_model"),
    "blocks.attn.W_Q": Key("model.layers.{i}.self_attn.q_proj.weight", "(n_heads d_head) d_model"),
    "blocks.attn.W_K": Key("model.layers.{i}.self_attn.k_proj.weight", "(n_kv_heads d_head) d_model"),
    "blocks.attn.W_V": Key("model.layers.{i}.self_attn.v_proj.weight", "(n_kv_heads d_head) d_model"),
    "blocks.attn.W_O": Key("model.layers.{i}.self_attn.o_proj.weight", "d_model (n_heads d_head)"),
    "blocks.attn.b_Q": Key("model.layers.{i}.self_attn.q_proj.bias", "(n_heads d_head)"),
    "blocks.attn.b_K": Key("model.layers.{i}.self_attn.k_proj.bias", "(n_kv_heads d_head)"),
    "blocks.attn.b_V": Key("model.layers.{i}.self_attn.v_proj.bias", "(n_kv_heads d_head)"),
    "blocks.attn.b_O": Key("model.layers.{i}.self_attn.o_proj.bias", "d_model"),
    "blocks.ln2.w": Key("model.layers.{i}.post_attention_layernorm.weight", "d_model"),
    "blocks.mlp.W_gate": Key("model.layers.{i}.mlp.gate_proj.weight", "d_mlp d_model"),
    "blocks.mlp.W_in": Key("model.layers.{i}.mlp.up_proj.weight", "d_mlp d_model"),
    "blocks.mlp.W_out": Key("model.layers.{i}.mlp.down_proj.weight", "d_model d_mlp"),
    "blocks.mlp.b_gate": Key("model.layers.{i}.mlp.gate_proj.bias", "d_mlp"),
    "blocks.mlp.b_in": Key("model.layers.{i}.mlp.up_proj.bias", "d_mlp"),
    "blocks.mlp.b_out": Key("model.layers.{i}.mlp.down_proj.bias", "d_model"),
    "ln_final.w": Key("model.norm.weight", "d_model"),
    "unembed.W_U": Key("lm_head.weight", "d_vocab d_model"),
}


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face LlamaConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    d_model, n_heads = read.count("hidden_size"), read.count("num_attention_heads")
    n_kv_heads = read.count("num_key_value_heads", n_heads)
    if config.get("head_dim") is None:
        read.divides("num_attention_heads", n_heads, "hidden_size", d_model)
    d_head = read.count("head_dim", d_model // n_heads)
    read.divides("num_key_value_heads", n_kv_heads, "num_attention_heads", n_heads)
    read.even("head_dim", d_head)
    read.only("pretraining_tp", 1)
    bias = read.flag("attention_bias", False)
    n_ctx = read.count("max_position_embeddings", 2048)
    rotary = rope.read(config, d_head, 10000.0)
    if isinstance(rotary.scaling, rope.Dynamic):
        n_ctx = int(n_ctx * rotary.scaling.factor)
    arch = Transformer(
        family="llama",
        n_layers=read.count("num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        d_mlp=read.count("intermediate_size"),
        d_vocab=read.count("vocab_size"),
        n_ctx=n_ctx,
        act_fn=read.activation("hidden_act", "silu"),
        eps=read.number("rms_norm_eps", 1e-6),
        rope=rotary,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=read.flag("mlp_bias", False),
        tied=read.flag("tie_word_embeddings", False),
    )
    read.finish()
    return arch


LLAMA = Family(
    name="llama",
    from_config=from_config,
    keys=KEYS,
    # Buffers that old checkpoints stored although they follow from the config.
    ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)
