"""GPT-NeoX and Pythia: parallel blocks with two norms, partial rotary, projections fused per head."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import Norm, Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import Key
from jmi_models.families import rope_config
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import always, fused_keys, mlp_keys, norm_keys, read_usual

_LAYER = "gpt_neox.layers.{i}."
KEYS = {
    "embed.W_E": Key("gpt_neox.embed_in.weight", "d_vocab d_model"),
    **norm_keys("blocks.ln1", _LAYER + "input_layernorm"),
    **fused_keys(_LAYER + "attention.query_key_value", _LAYER + "attention.dense"),
    **norm_keys("blocks.ln2", _LAYER + "post_attention_layernorm"),
    **mlp_keys(_LAYER + "mlp.", "dense_h_to_4h dense_4h_to_h"),
    **norm_keys("ln_final", "gpt_neox.final_layer_norm"),
    "unembed.W_U": Key("embed_out.weight", "d_vocab d_model"),
}


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face GPTNeoXConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    d_head = read.count("hidden_size") // read.count("num_attention_heads")
    bias = read.flag("attention_bias", True)
    old = {"rope_theta": config.get("rotary_emb_base"), "partial_rotary_factor": config.get("rotary_pct")}
    read.ignore("rotary_emb_base", "rotary_pct", "partial_rotary_factor")
    rope = rope_config.read({**{k: v for k, v in old.items() if v is not None}, **config}, d_head, 1e4, 0.25)
    arch = read_usual(
        read,
        "gpt_neox",
        Norms(Norm("layer", read.eps("layer_norm_eps", 1e-5), bias=True)),
        n_kv_heads=read.count("num_attention_heads"),
        act="gelu",
        attn={"qkv_bias": bias, "out_bias": bias},
        mlp={"gated": False, "bias": True},
        positions={"ropes": (rope,)},
        parallel=read.flag("use_parallel_residual", True),
    )
    read.finish()
    return arch


GPT_NEOX = Family(
    name="gpt_neox",
    from_config=from_config,
    keys=always(KEYS),
    prefix="gpt_neox.",
    # Causal masks that old checkpoints stored.
    ignored=(r"gpt_neox\.layers\.\d+\.attention\.(masked_)?bias",),
)
